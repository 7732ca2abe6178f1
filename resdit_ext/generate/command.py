"""The command: `[torchrun --nproc-per-node N -m] resdit_ext generate --model PATH --prompt TEXT --out FILE`."""

from __future__ import annotations

import argparse
from pathlib import Path

from ..errors import ResDiTError
from ..method.config import PRESETS


def prompts_of(args: argparse.Namespace) -> tuple[str, ...]:
    """The texts of the command line: one, or the lines of a file."""
    if (args.prompt is None) == (args.prompts is None):
        raise ResDiTError("write one of --prompt TEXT and --prompts FILE")
    if args.prompt is not None:
        return (args.prompt,)
    return tuple(line.strip() for line in args.prompts.read_text(encoding="utf8").splitlines() if line.strip())


def run(args: argparse.Namespace) -> int:
    """Make the pictures; the exit status."""
    from .options import GenerateOptions, parse_seeds, parse_size
    from .pictures import generate

    options = GenerateOptions(
        model=args.model,
        components=args.components,
        prompts=prompts_of(args),
        seeds=parse_seeds(args.seeds),
        size=parse_size(args.size),
        out=args.out,
        preset=args.preset,
        base_size=args.base_size,
        steps=args.steps,
        guidance=args.guidance,
        sampler=args.sampler,
        share=args.share,
        offload=args.offload,
        vae_tiles={"auto": None, "on": True, "off": False}[args.vae_tiles],
        dtype=args.dtype,
    )
    generate(options, args.json)
    return 0


def add_to(commands: argparse._SubParsersAction) -> None:
    """Add the command to a command line."""
    made = commands.add_parser("generate", help="make pictures with a diffusers pipeline, on one device or several")
    made.add_argument("--model", type=Path, required=True, help="a pipeline's folder, or a transformer's .safetensors")
    made.add_argument("--components", type=Path, help="where the model is a file: a folder with all other parts")
    made.add_argument("--prompt", help="the text")
    made.add_argument("--prompts", type=Path, help="instead: a file with one text a line")
    made.add_argument("--seeds", default="0", help="a seed, or the first and the last as 1-8 (default 0)")
    made.add_argument("--size", default="3072x3072", help="WIDTHxHEIGHT in pixels (default 3072x3072)")
    made.add_argument("--preset", default="Balanced", help=", ".join(PRESETS))
    made.add_argument("--base-size", type=int, help="side of the training pictures (default: as usual for the model)")
    made.add_argument("--steps", type=int, help="default: usual for the model")
    made.add_argument("--guidance", type=float, help="default: the pipeline's own")
    made.add_argument("--sampler", default="Euler", help="Euler (default), or LCM: the scheduler adds the noise itself")
    made.add_argument("--out", type=Path, required=True, help="a .png file, or a folder for several; resumed")
    made.add_argument(
        "--share", choices=("heads", "halves"), default="heads", help="what several devices share (default heads)"
    )
    made.add_argument("--offload", choices=("none", "model", "sequential"), default="none", help="to the CPU's memory")
    made.add_argument("--vae-tiles", choices=("auto", "on", "off"), default="auto", help="auto: above 2048x2048")
    made.add_argument("--dtype", choices=("bfloat16", "float16", "float32"), help="default: bfloat16, on a CPU float32")
    made.add_argument("--json", type=Path, help="write seconds per phase and peak memory per process here")
    made.set_defaults(run=run)
