"""`python -m resdit_ext`: the demo, the gallery, the evaluation, the training and the doctor."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from .config import check_number
from .errors import ResDiTError


def run_demo(args: argparse.Namespace) -> int:
    from .lab.demo import demo, print_report
    from .lab.heap import keep_heap
    from .lab.model import load_micro

    keep_heap()
    model = load_micro(args.model, args.weights)
    report = demo(model, args.prompt, args.scale, args.aspect, args.seed, args.out, args.preset)
    print_report(report)
    print(f"pictures: {args.out / 'comparison.png'}")
    if args.json:
        args.json.write_text(json.dumps(report, indent=2), encoding="utf8")
    return 0


def run_gallery(args: argparse.Namespace) -> int:
    from .lab.demo import gallery
    from .lab.heap import keep_heap
    from .lab.model import load_micro

    keep_heap()
    for aspect, row in gallery(load_micro("flux", args.weights), args.out).items():
        found = ", ".join(
            f"{name} {'ok' if figures['ok'] else 'not ok'}, IoU {figures['iou']:.2f}"
            for name, figures in row["measures"].items()
        )
        print(f"{aspect}: seed {row['seed']}, {row['prompt']}: {found}")
    print(f"picture: {args.out}")
    return 0


def run_evaluate(args: argparse.Namespace) -> int:
    from .lab.demo import parse_aspect
    from .lab.evaluate import TRUTH, evaluate, summary, table
    from .lab.heap import keep_heap
    from .lab.methods import METHODS
    from .lab.model import load_micro

    keep_heap()
    chosen = args.methods.split(",") if args.methods else [TRUTH, *METHODS]
    if unknown := [name for name in chosen if name not in (TRUTH, *METHODS)]:
        raise ResDiTError(f"methods has {unknown[0]!r}; choose from {', '.join((TRUTH, *METHODS))}")
    try:
        scales = [float(scale) for scale in args.scales.split(",")]
    except ValueError:
        raise ResDiTError(f"scales is {args.scales!r}; write numbers with commas between, such as 2,3,4") from None
    for scale in scales:
        check_number("scales", scale, 1, 6)
    if args.seeds is not None:
        check_number("seeds", args.seeds, 1, 10000, whole=True)
    aspects = [parse_aspect(aspect) for aspect in args.aspects.split(",")]
    model = load_micro(args.model, args.weights)
    results = args.results or Path(f"out/evaluate_{args.model}.jsonl")
    measured = evaluate(model, scales, results, args.seeds, chosen, aspects)
    cells = summary(measured)
    print(table(cells))
    if args.json:
        args.json.write_text(json.dumps(cells, indent=2), encoding="utf8")
    return 0


def run_train(args: argparse.Namespace) -> int:
    from .lab.heap import keep_heap
    from .lab.model import MODELS
    from .lab.train import TrainConfig, train

    keep_heap()
    steps = MODELS[args.model].training_steps if args.steps is None else args.steps
    check_number("steps", steps, 1, 1_000_000, whole=True)
    out = args.out or Path(f"out/micro_{args.model}.safetensors")
    loss = train(out, TrainConfig(steps, args.model, seed=args.seed))
    print(f"loss of the last 100 steps: {loss:.4f}; weights: {out}")
    return 0


def run_ui(args: argparse.Namespace) -> int:
    from .lab.model import load_micro
    from .lab.page import ROOT, launch

    launch(load_micro("flux", args.weights), ROOT / "user_presets.json", args.port)
    return 0


def run_doctor(args: argparse.Namespace) -> int:
    from .doctor import examine

    report = examine(args.host)
    print(report)
    return 0 if report.usable else 1


def parser() -> argparse.ArgumentParser:
    """The command line."""
    main = argparse.ArgumentParser(prog="python -m resdit_ext", description=__doc__)
    commands = main.add_subparsers(required=True, metavar="COMMAND")

    demo = commands.add_parser("demo", help="make base, plain and ResDiT pictures with a micro model")
    demo.add_argument("--scale", type=float, default=3, help="of the side, above 1 and up to 6 (default 3)")
    demo.add_argument("--aspect", default="1:1", help="WIDTH:HEIGHT (default 1:1)")
    demo.add_argument("--prompt", default="red disc on green ground")
    demo.add_argument("--seed", type=int, default=0)
    demo.add_argument("--preset", default="Balanced", help="Balanced, More detail or Paper")
    demo.add_argument("--out", type=Path, default=Path("out"), help="folder for the pictures (default out)")
    demo.set_defaults(run=run_demo)

    gallery = commands.add_parser("gallery", help="make a sheet of square, wide and tall pictures with the micro FLUX")
    gallery.add_argument("--out", type=Path, default=Path("out/gallery.png"), help="(default out/gallery.png)")
    gallery.add_argument("--weights", type=Path, help="default: the shipped ones")
    gallery.set_defaults(run=run_gallery)

    evaluate = commands.add_parser("evaluate", help="measure the ablation table on held-out seeds")
    evaluate.add_argument("--seeds", type=int, help="per cell (default 32 at 2x, 16 above)")
    evaluate.add_argument("--scales", default="2,3,4")
    evaluate.add_argument("--aspects", default="1:1", help="WIDTH:HEIGHT, several by commas")
    evaluate.add_argument("--methods", help="rows of the table by commas (default all)")
    evaluate.add_argument("--results", type=Path, help="resumed from where it is (default out/evaluate_MODEL.jsonl)")
    evaluate.set_defaults(run=run_evaluate)

    train = commands.add_parser("train", help="train a micro model from scratch")
    train.add_argument("--out", type=Path, help="default out/micro_MODEL.safetensors")
    train.add_argument("--steps", type=int, help="default: as the shipped weights, 3600 (flux) or 4800 (sd3)")
    train.add_argument("--seed", type=int, default=0)
    train.set_defaults(run=run_train)

    doctor = commands.add_parser("doctor", help="say whether a WebUI has what the extension needs")
    doctor.add_argument("host", nargs="?", type=Path, help="a WebUI's folder (default: the running environment)")
    doctor.set_defaults(run=run_doctor)

    ui = commands.add_parser("ui", help="the accordion on a page of its own, with the micro FLUX behind Generate")
    ui.add_argument("--port", type=int, help="default: gradio's next free one from 7860")
    ui.add_argument("--weights", type=Path, help="default: the shipped ones")
    ui.set_defaults(run=run_ui)

    for command in (demo, evaluate):
        command.add_argument("--json", type=Path, help="write the figures here")
        command.add_argument("--weights", type=Path, help="default: the shipped ones")
    for command in (demo, evaluate, train):
        command.add_argument("--model", choices=("flux", "sd3"), default="flux", help="micro model (default flux)")
    return main


def main() -> int:
    args = parser().parse_args()
    try:
        return args.run(args)
    except (ValueError, FileNotFoundError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except ModuleNotFoundError as error:
        print(f"error: {error.name} is not installed; run: pip install -r requirements-dev.txt", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
