"""`python -m resdit_ext field-test`: which maker the options name, and what is written."""

from __future__ import annotations

import argparse
from pathlib import Path

from ..errors import ResDiTError
from ..lab.commands import MICRO, RANDOM
from ..method.config import check_number
from .making import Maker
from .plan import METHODS, SAMPLERS, SIZES, FieldOptions

SIDE = 1024  # pixels: of a WebUI's model, which its API does not tell


def names(text: str) -> tuple[str, ...]:
    """Names with commas between."""
    return tuple(part.strip() for part in text.split(",") if part.strip())


def add_to(commands: argparse._SubParsersAction) -> None:
    """Add the command to a command line."""
    parser = commands.add_parser("field-test", help="compare the methods on your own GPU with your own model")
    parser.add_argument(
        "--model", help=f"a folder in diffusers' format, a transformer's .safetensors, {', '.join(MICRO)} or {RANDOM}"
    )
    parser.add_argument("--webui", metavar="URL", help="instead: a running WebUI started with --api")
    parser.add_argument("--components", type=Path, help="where the model is a file: a folder with all its other parts")
    parser.add_argument("--out", type=Path, default=Path("out/field"), help="folder, resumed (default out/field)")
    parser.add_argument("--prompts", type=int, default=12, help="how many of the twelve (default 12)")
    parser.add_argument("--sizes", type=names, default=tuple(SIZES), help=f"(default {','.join(SIZES)})")
    parser.add_argument("--methods", type=names, default=METHODS, help=f"(default {','.join(METHODS)})")
    parser.add_argument("--steps", type=int, default=28, help="(default 28)")
    parser.add_argument("--sampler", default="Euler", help=f"{', '.join(SAMPLERS)} (default Euler)")
    parser.add_argument("--guidance", type=float, help="default: the pipeline's own; in a WebUI a CFG Scale of 1")
    parser.add_argument(
        "--base-size", type=int, help=f"pixels a side it was trained at (default: the model's; with --webui {SIDE})"
    )
    parser.add_argument("--device", help="default: cuda where there is one, else cpu")
    parser.add_argument("--offload", action="store_true", help="keep on the GPU only the part that is at work")
    parser.add_argument("--tiled-vae", action="store_true", help="always; default: after running out of memory")
    parser.add_argument("--depth", default="19,38", help=f"of {RANDOM}: double and single blocks (default 19,38)")
    parser.add_argument("--heads", type=int, default=24, help=f"of {RANDOM} (default 24)")
    parser.add_argument("--clip", type=Path, help="folder of a CLIPModel (default: one in transformers' cache, if any)")
    parser.add_argument("--page-megabytes", type=int, default=150, help="about how large the page may be (default 150)")
    parser.add_argument("--retry", action="store_true", help="try pictures again that could not be made")
    parser.set_defaults(run=run)


def maker_of(args: argparse.Namespace, options: FieldOptions) -> Maker:
    """What makes the pictures; raises ResDiTError where the options do not name it."""
    if (args.model is None) == (args.webui is None):
        raise ResDiTError("give either --model, a model's path or name, or --webui, a running WebUI's address")
    if args.webui is not None:
        from .webui import WebUIMaker

        return WebUIMaker(args.webui, options, args.base_size or SIDE)
    if args.model in MICRO:
        from .micro import MicroMaker

        return MicroMaker(args.model, options)
    import torch

    from ..families import family_of_class
    from .pipelines import PipelineMaker

    device = args.device or ("cuda" if torch.cuda.is_available() else "cpu")
    dtype = torch.float32 if device == "cpu" else torch.bfloat16  # which few CPUs compute with at any speed
    if args.model == RANDOM:
        from ..lab.random_model import random_pipeline

        pipe, inputs = random_pipeline(device, dtype, args.depth, args.heads)
        family, name = family_of_class(type(pipe.transformer).__name__), f"{RANDOM} {args.depth}, {args.heads} heads"
    else:
        from ..hosts.diffusers.loading import load_pipeline

        pipe, family = load_pipeline(Path(args.model), args.components, dtype)
        inputs, name = None, Path(args.model).name
    base = args.base_size or family.base_size
    return PipelineMaker(pipe, family, name, options, base, device, args.offload, args.tiled_vae, inputs)


def run(args: argparse.Namespace) -> int:
    """The command."""
    from .clip import find_clip
    from .kit import FieldTest
    from .page import write_page
    from .summary import report, table

    if args.base_size is not None:
        check_number("base_size", args.base_size, 64, 2048, whole=True)
    options = FieldOptions(
        args.prompts, args.sizes, args.methods, args.steps, args.sampler, args.guidance, args.page_megabytes
    )
    maker = maker_of(args, options)
    clip, score = find_clip(args.clip)
    test = FieldTest(maker, options, args.out, score)
    found = report(maker.about() | {"clip": clip}, options, test.orders, test.run(args.retry))
    (args.out / "report.json").write_text(found.text(), encoding="utf8")
    page = write_page(found, test.orders, args.out, options.page_megabytes)
    print(table(found))
    print(f"pictures to compare: {page}; to attach to a report: {args.out / 'report.json'}")
    return 0
