"""python -m benchmarks [--device cuda] [--json FILE] [--readme FILE]: the README's performance table."""

from __future__ import annotations

import argparse
import json
import platform
from dataclasses import asdict
from pathlib import Path

import torch

from . import api, counted, timed, whole
from .table import Row, markdown

MARKS = "<!-- benchmarks -->", "<!-- /benchmarks -->"


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


def fill(readme: Path, text: str) -> None:
    """Put the table in its place, between two marks."""
    before, _, rest = readme.read_text(encoding="utf8").partition(MARKS[0])
    _, _, after = rest.partition(MARKS[1])
    readme.write_text(f"{before}{MARKS[0]}\n{text}\n{MARKS[1]}{after}", encoding="utf8")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--json", type=Path, help="write rows and environment here")
    parser.add_argument("--readme", type=Path, help="put the table between this file's marks")
    chosen = parser.parse_args()
    found: list[Row] = [*counted.rows(), *timed.rows(chosen.device), *api.rows(), *whole.rows(chosen.device)]
    about = environment(chosen.device)
    text = markdown(found) + "\n\n" + ", ".join(f"{key} {value}" for key, value in about.items())
    print(text)
    if chosen.readme:
        fill(chosen.readme, text)
    if chosen.json:
        chosen.json.write_text(json.dumps({"environment": about, "rows": [asdict(row) for row in found]}, indent=1))


if __name__ == "__main__":
    main()
