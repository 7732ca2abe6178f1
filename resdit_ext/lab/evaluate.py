"""The ablation table: every method on held-out seeds, resumable, with standard errors."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path

import numpy as np
from tqdm import tqdm

from ..method.layout import Grid, make_layout
from .methods import METHODS, grid_for
from .metrics import measure
from .model import MicroModel
from .rivals import RIVALS
from .sampling import sample
from .scenes import random_scene, render

FIRST_SEED = 100_000  # development used seeds below it
SHOWN = ("ok", "one", "iou", "sky_error", "tex_object", "tex_ground", "stripes", "psd_hf", "seam")
DIGITS = {"control_error": 3}
TRUTH = "true render"


def default_seeds(scale: float) -> int:
    """32 seeds up to 2x, 16 above."""
    return 32 if scale <= 2 else 16


def key_of(aspect: tuple[int, int], scale: float, name: str, seed: int) -> str:
    return f"{aspect[0]}:{aspect[1]}/{scale:g}/{name}/{seed}"


def picture_of(model: MicroModel, name: str, grid: Grid, prompt: str, seed: int) -> np.ndarray:
    """The (4H, 4W, 3) picture of one method and seed; the truth is a render of a random scene of the prompt."""
    if name == TRUTH:
        scene = random_scene(np.random.default_rng(seed), prompt)
        return render(scene, 4 * grid.height, 4 * grid.width)
    if name in RIVALS:
        return RIVALS[name](model, [prompt], grid, [seed])[0]
    return sample(model, [prompt], grid, [seed], METHODS[name])[0]


def prompt_of(seed: int) -> str:
    """The prompt that goes with a seed."""
    return random_scene(np.random.default_rng(seed)).prompt


def measured(wanted: Mapping[str, Callable[[], dict[str, float]]], results: Path) -> dict[str, dict[str, float]]:
    """Measure what is not yet in `results` (one JSON object a line), and return all that is wanted by key."""
    done = {}
    if results.is_file():
        with results.open(encoding="utf8") as lines:
            done = {row.pop("key"): row for row in map(json.loads, lines)}
    results.parent.mkdir(parents=True, exist_ok=True)
    with results.open("a", encoding="utf8") as out:
        for key in (bar := tqdm([key for key in wanted if key not in done], desc="evaluate")):
            bar.set_postfix_str(key)
            done[key] = wanted[key]()
            out.write(json.dumps({"key": key} | done[key]) + "\n")
            out.flush()
    return {key: done[key] for key in wanted}


def evaluate(
    model: MicroModel,
    scales: Sequence[float],
    results: Path,
    seeds: int | None = None,
    chosen: Iterable[str] = (TRUTH, *METHODS),
    aspects: Sequence[tuple[int, int]] = ((1, 1),),
) -> dict[str, dict[str, float]]:
    """Measures by key of every method, size and seed, resumed from `results`.

    The plain model is left out where it has no positions for the size.
    """

    def row(name: str, grid: Grid, seed: int) -> dict[str, float]:
        layout, prompt = make_layout(grid, METHODS.get(name) or METHODS["Balanced"]), prompt_of(seed)
        return asdict(measure(picture_of(model, name, grid, prompt, seed), prompt, layout))

    wanted = {
        key_of(aspect, scale, name, seed): partial(row, name, grid_for(aspect, scale), seed)
        for aspect in aspects
        for scale in scales
        for name in chosen
        for seed in range(FIRST_SEED, FIRST_SEED + (seeds or default_seeds(scale)))
        if name != "plain" or model.reaches(grid_for(aspect, scale))
    }
    return measured(wanted, results)


def summary(measured: dict[str, dict[str, float]]) -> dict[str, dict[str, tuple[float, float, int]]]:
    """Mean, standard error and count of every measure, by "aspect/scale/method"."""
    cells: dict[str, list[dict[str, float]]] = {}
    for key, row in measured.items():
        cells.setdefault(key.rsplit("/", 1)[0], []).append(row)
    return {
        cell: {
            name: (
                float(np.mean(column := [row[name] for row in rows])),
                float(np.std(column, ddof=1) / len(column) ** 0.5) if len(column) > 1 else float("nan"),
                len(column),
            )
            for name in rows[0]
        }
        for cell, rows in cells.items()
    }


def table(cells: dict[str, dict[str, tuple[float, float, int]]], shown: Sequence[str] = SHOWN) -> str:
    """The summary as a Markdown table, mean +- standard error."""
    lines = [
        "| size | method | n | " + " | ".join(shown) + " |",
        "|---|---|---|" + "---|" * len(shown),
    ]
    for cell, row in cells.items():
        aspect, scale, name = cell.split("/", 2)
        size = f"{scale}x" if aspect == "1:1" else f"{scale}x {aspect}"
        figures = []
        for column in shown:
            (mean, error, _), digits = row[column], DIGITS.get(column, 2)
            figures.append(f"{mean:.{digits}f}±{error:.{digits}f}")
        lines.append(f"| {size} | {name} | {row[shown[0]][2]} | " + " | ".join(figures) + " |")
    return "\n".join(lines)
