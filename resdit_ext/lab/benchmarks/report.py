"""The report: all rows as the table of what the method costs, with what the figures depend on."""

from __future__ import annotations

import json
import os
import platform
from dataclasses import asdict
from pathlib import Path

import torch

from ...readme import fill, part
from . import api, counted, parallel, timed, whole
from .table import Row, markdown


def cpu_name() -> str:
    """The processor as Linux names it, elsewhere its architecture."""
    info = Path("/proc/cpuinfo")
    if not info.is_file():
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in info.read_text().splitlines() if line.startswith("model name")]
    return names[0] if names else platform.machine()


def environment(device: str) -> dict[str, str]:
    """What the figures depend on."""
    name = torch.cuda.get_device_name() if device == "cuda" else cpu_name()
    return {
        "device": name,
        "threads": str(torch.get_num_threads()),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "system": platform.system(),
    }


def benchmark(
    device: str, figures: Path | None = None, readme: Path | None = None, several: bool = False, trial: bool = False
) -> None:
    """Measure all rows on `device` ("cpu" or "cuda") and print the table.

    Of several processes, which torchrun has started, the first does.

    Args:
        device: what the timed rows are timed on.
        figures: where rows and environment are written as JSON.
        readme: the file that gets the table, between its marks.
        several: the rows of several devices, instead of one's.
        trial: only the rows that need a GPU, with a small model, to see that they work on this device.
    """
    name = "parallel" if several else "benchmarks"
    if readme:
        part(readme, name)  # a file without its marks is refused before minutes of measuring
    if trial:
        print(markdown(whole.rows(device, trial=True)))
        return
    found: list[Row] = (
        parallel.rows(device) if several else [*counted.rows(), *timed.rows(device), *api.rows(), *whole.rows(device)]
    )
    if os.environ.get("RANK", "0") != "0":
        return
    about = environment(device)
    text = markdown(found) + "\n\n" + ", ".join(f"{key} {value}" for key, value in about.items())
    print(text)
    if readme:
        fill(readme, name, text)
    if figures:
        figures.write_text(json.dumps({"environment": about, "rows": [asdict(row) for row in found]}, indent=1))
