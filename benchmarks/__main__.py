"""python -m benchmarks [--device cuda] [--json FILE]: the table of the README's performance section."""

from __future__ import annotations

import argparse
import json
import platform
from dataclasses import asdict
from pathlib import Path

import torch

from . import counted, timed, whole
from .table import Row, markdown


def environment(device: str) -> dict[str, str]:
    """What the figures depend on."""
    name = torch.cuda.get_device_name() if device == "cuda" else platform.processor() or platform.machine()
    return {
        "device": name,
        "threads": str(torch.get_num_threads()),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "system": platform.system(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--json", type=Path, help="write rows and environment here")
    chosen = parser.parse_args()
    found: list[Row] = [*counted.rows(), *timed.rows(chosen.device), *whole.rows(chosen.device)]
    print(markdown(found))
    about = environment(chosen.device)
    print("\n" + ", ".join(f"{key} {value}" for key, value in about.items()))
    if chosen.json:
        chosen.json.write_text(json.dumps({"environment": about, "rows": [asdict(row) for row in found]}, indent=1))


if __name__ == "__main__":
    main()
