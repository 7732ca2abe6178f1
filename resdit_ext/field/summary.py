"""A field test's report: every row, their means by size and method, and what they depend on; nothing of whose it is."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

import numpy as np

from ..version import __version__
from .plan import FieldOptions, Order

#: The table's columns: of a row's figures, with the digits that are shown.
COLUMNS = {"seconds": 1, "repetition": 2, "seam": 2, "fine": 2, "spectrum": 2, "patches": 2, "clip": 1}
STEP, PEAK, AUTOENCODER = "s/step", "peak GB", "VAE s"
AROUND = ("text", "vae")  # the parts that are no steps


@dataclass(frozen=True)
class Report:
    """A field test as JSON.

    Attributes:
        about: model, device, versions.
        options: what was asked for.
        rows: by key, each with its prompt, seed and size.
        means: by size and method, and then by column; None where nothing has the figure.
    """

    about: Mapping[str, object]
    options: Mapping[str, object]
    rows: Mapping[str, Mapping[str, object]]
    means: Mapping[str, Mapping[str, float | int | None]]

    def text(self) -> str:
        return json.dumps(asdict(self), indent=1)


def figures(row: Mapping[str, object]) -> dict[str, float | None]:
    """A row's figures by column."""
    parts = row.get("parts", {})
    times = [time for name, part in parts.items() if name not in AROUND for time in part["times"]]
    peaks = [part["peak_gb"] for part in parts.values() if part["peak_gb"] is not None]
    found = {name: row.get(name) for name in COLUMNS}
    found[STEP] = float(np.mean(times)) if len(times) > 1 else None
    found[AUTOENCODER] = sum(parts["vae"]["times"]) if "vae" in parts else None
    found[PEAK] = max(peaks, default=None)
    return found


def means_of(rows: Sequence[Mapping[str, object]]) -> dict[str, float | int | None]:
    """Means over the rows that have a figure (of the peak the highest), and how many were made and were not."""
    good = [figures(row) for row in rows if "error" not in row]
    means: dict[str, float | int | None] = {"made": len(good), "errors": len(rows) - len(good)}
    for name in (STEP, AUTOENCODER, PEAK, *COLUMNS):
        values = [row[name] for row in good if row[name] is not None]
        mean = max if name == PEAK else np.mean
        means[name] = round(float(mean(values)), 4) if values else None
    return means


def report(
    about: Mapping[str, object],
    options: FieldOptions,
    orders: Sequence[Order],
    rows: Mapping[str, Mapping[str, object]],
) -> Report:
    """The report of the rows that there are."""
    cells: dict[str, list[Mapping[str, object]]] = {}
    told = {}
    for order in orders:
        if order.key in rows:
            row = rows[order.key]
            asked = {"prompt": order.scene.prompt, "seed": order.scene.seed, "asked": [order.width, order.height]}
            told[order.key] = asked | row
            cells.setdefault(f"{order.size}/{order.method}", []).append(row)
    means = {cell: means_of(found) for cell, found in cells.items()}
    return Report({"version": __version__} | about, asdict(options), told, means)


def table(found: Report) -> str:
    """The means as a Markdown table."""
    names = ("seconds", STEP, AUTOENCODER, PEAK, *(name for name in COLUMNS if name != "seconds"))
    digits = {STEP: 2, AUTOENCODER: 1, PEAK: 1} | COLUMNS
    lines = ["| size | method | made | " + " | ".join(names) + " |", "|---" * (3 + len(names)) + "|"]
    for cell, means in found.means.items():
        size, _, method = cell.partition("/")
        shown = ["" if means[name] is None else f"{means[name]:.{digits[name]}f}" for name in names]
        count = f"{means['made']}" + (f" ({means['errors']} errors)" if means["errors"] else "")
        lines.append(f"| {size} | {method} | {count} | " + " | ".join(shown) + " |")
    return "\n".join(lines)
