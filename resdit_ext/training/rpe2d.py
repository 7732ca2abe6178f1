"""Train a LoRA that gives FLUX.1 or SD3.5 positions which can be scaled (RPE-2D), for pictures above their base size.

accelerate launch -m resdit_ext.training.rpe2d --model MODEL --images FOLDER --out FILE.safetensors
"""

from __future__ import annotations

import argparse
import os
import sys
from dataclasses import MISSING, fields
from pathlib import Path

from ..errors import ResDiTError
from .options import TrainingOptions

NEEDS = "diffusers transformers peft accelerate pillow tqdm"
TYPES = {"Path": Path, "int": int, "float": float, "str": str}


def parser() -> argparse.ArgumentParser:
    """The command line: an argument for every field of TrainingOptions."""
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for each in fields(TrainingOptions):
        kind, _, optional = each.type.partition(" | ")
        given = {"help": each.metadata["help"], "type": TYPES.get(kind, str)}
        if kind.startswith("tuple"):
            given |= {"nargs": "+", "default": each.default}
        elif each.default is MISSING:
            given["required"] = True
        else:
            given |= {"default": each.default, "help": given["help"] + ("" if optional else " (default %(default)r)")}
        made.add_argument(f"--{each.name.replace('_', '-')}", **given)
    return made


def main(argv: list[str] | None = None) -> int:
    """Train as the command line says; the exit status."""
    given = vars(parser().parse_args(argv))
    speaks = os.environ.get("RANK", "0") == "0"  # of several processes one
    try:
        options = TrainingOptions(**given | {"validation_prompts": tuple(given["validation_prompts"])})
        from .loop import train

        train(options)
        said = f"LoRA: {options.out}"
    except ResDiTError as error:
        said = f"error: {error}"
    except ModuleNotFoundError as error:
        said = f"error: {error.name} is not installed; run: pip install {NEEDS}"
    failed = said.startswith("error")
    if speaks:
        print(said, file=sys.stderr if failed else sys.stdout)
    return 2 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
