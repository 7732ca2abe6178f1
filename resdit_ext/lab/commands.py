"""The lab's commands: demo, gallery, evaluate, train, benchmark and ui. What they need is imported when they run."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from ..errors import ResDiTError
from ..method.config import PRESETS, check_number

MICRO, RANDOM = ("micro-flux", "micro-sd3"), "random-flux"  # as the field test names the lab's models


def run_demo(args: argparse.Namespace) -> int:
    from .demo import demo, print_report
    from .heap import keep_heap
    from .model import load_micro

    keep_heap()
    model = load_micro(args.model, args.weights)
    report = demo(model, args.prompt, args.scale, args.aspect, args.seed, args.out, args.preset, args.sampler)
    print_report(report)
    print(f"pictures: {args.out / 'comparison.png'}")
    if args.json:
        args.json.write_text(json.dumps(report, indent=2), encoding="utf8")
    return 0


def run_gallery(args: argparse.Namespace) -> int:
    from .demo import gallery
    from .heap import keep_heap
    from .model import load_micro

    keep_heap()
    if args.control:
        from .evaluate_control import control_sheet

        control_sheet(args.out)
        print(f"picture: {args.out}")
        return 0
    for aspect, row in gallery(load_micro("flux", args.weights), args.out).items():
        found = ", ".join(
            f"{name} {'ok' if figures['ok'] else 'not ok'}, IoU {figures['iou']:.2f}"
            for name, figures in row["measures"].items()
        )
        print(f"{aspect}: seed {row['seed']}, {row['prompt']}: {found}")
    print(f"picture: {args.out}")
    return 0


def scales_of(args: argparse.Namespace) -> list[float]:
    """The sizes to evaluate; the number of seeds is checked with them."""
    try:
        scales = [float(scale) for scale in args.scales.split(",")]
    except ValueError:
        raise ResDiTError(f"scales is {args.scales!r}; write numbers with commas between, such as 2,3,4") from None
    for scale in scales:
        check_number("scales", scale, 0.5, 6)
    if args.seeds is not None:
        check_number("seeds", args.seeds, 1, 10000, whole=True)
    return scales


def report(cells: dict, text: str, path: Path | None) -> int:
    """Print an evaluation's table and write its figures where they are wanted."""
    print(text)
    if path:
        path.write_text(json.dumps(cells, indent=2), encoding="utf8")
    return 0


def run_evaluate_control(args: argparse.Namespace) -> int:
    from .control import load_control
    from .evaluate import summary, table
    from .evaluate_control import SHOWN, evaluate_control

    name = f"{args.model}-depth"
    results = args.results or Path(f"out/evaluate_{name}.jsonl")
    cells = summary(evaluate_control(load_control(name, args.weights), scales_of(args), results, args.seeds))
    return report(cells, table(cells, SHOWN), args.json)


def run_evaluate(args: argparse.Namespace) -> int:
    from .demo import parse_aspect
    from .evaluate import OWN, ROWS, TRUTH, evaluate, method_and_eta, summary, table
    from .heap import keep_heap
    from .methods import METHODS, RANDOMIZED
    from .model import load_micro
    from .rivals import RIVALS

    keep_heap()
    if args.control:
        return run_evaluate_control(args)
    chosen = args.methods.split(";") if args.methods else ROWS
    # The rivals are written for the micro FLUX.
    known = (TRUTH, OWN, *METHODS, *RANDOMIZED, *(RIVALS if args.model == "flux" else ()))
    if unknown := [name for name in chosen if method_and_eta(name)[0] not in known]:
        raise ResDiTError(
            f"methods has {unknown[0]!r}; choose from {'; '.join(known)}; each may have ', Euler a' or ', LCM' after it"
        )
    scales = scales_of(args)
    aspects = [parse_aspect(aspect) for aspect in args.aspects.split(",")]
    model = load_micro(args.model, args.weights)
    check_number("steps", args.steps, 1, 1000, whole=True)
    results = args.results or Path(f"out/evaluate_{args.model}_{args.textures}_{args.steps}.jsonl")
    measured = evaluate(model, scales, results, args.seeds, chosen, aspects, args.textures, args.steps)
    cells = summary(measured)
    return report(cells, table(cells), args.json)


def run_train(args: argparse.Namespace) -> int:
    from .heap import keep_heap
    from .model import weights_of
    from .randomized import RPE2D
    from .train import TRAINABLE, TrainConfig, train

    keep_heap()
    steps = TRAINABLE[args.model].training_steps if args.steps is None else args.steps
    check_number("steps", steps, 1, 1_000_000, whole=True)
    out = args.out or Path("out") / weights_of(args.model).name
    randomized = RPE2D(args.range, args.native_share, not args.no_crops, not args.no_crop_conditioning)
    config = TrainConfig(
        steps,
        args.model,
        batch=args.batch,
        seed=args.seed,
        start=args.start,
        textures=args.textures,
        positions=randomized if args.positions == "rpe-2d" else None,
        scale=args.scale,
        close_ups=args.close_ups,
    )
    loss = train(out, config)
    print(f"loss of the last 100 steps: {loss:.4f}; weights: {out}")
    return 0


def run_benchmark(args: argparse.Namespace) -> int:
    from .benchmarks.report import benchmark

    benchmark(args.device, args.json, args.readme, args.parallel, args.trial)
    return 0


def run_ui(args: argparse.Namespace) -> int:
    from .model import load_micro
    from .page import ROOT, launch

    launch(load_micro("flux", args.weights), ROOT / "user_presets.json", args.port)
    return 0


def add_to(commands: argparse._SubParsersAction) -> None:
    """Add the commands to a command line."""
    demo = commands.add_parser("demo", help="make base, plain and ResDiT pictures with a micro model")
    demo.add_argument("--scale", type=float, default=3, help="of the side, above 1 and up to 6 (default 3)")
    demo.add_argument("--aspect", default="1:1", help="WIDTH:HEIGHT (default 1:1)")
    demo.add_argument("--prompt", default="red disc on green ground")
    demo.add_argument("--seed", type=int, default=4, help="(default 4)")
    demo.add_argument("--preset", default="Balanced", help=", ".join(PRESETS))
    demo.add_argument("--sampler", default="Euler", help="Euler (default), Euler a, LCM")
    demo.add_argument("--out", type=Path, default=Path("out"), help="folder for the pictures (default out)")
    demo.set_defaults(run=run_demo)

    gallery = commands.add_parser("gallery", help="make a sheet of square, wide and tall pictures with the micro FLUX")
    gallery.add_argument("--out", type=Path, default=Path("out/gallery.png"), help="(default out/gallery.png)")
    gallery.add_argument("--weights", type=Path, help="default: the shipped ones")
    gallery.add_argument("--control", action="store_true", help="instead: both models under control of a depth map")
    gallery.set_defaults(run=run_gallery)

    evaluate = commands.add_parser("evaluate", help="measure the ablation table on held-out seeds")
    evaluate.add_argument("--seeds", type=int, help="per cell (default 64 at 2x, 48 at 3x, 32 at 4x)")
    evaluate.add_argument("--scales", default="2,3,4")
    evaluate.add_argument("--aspects", default="1:1", help="WIDTH:HEIGHT, several by commas")
    evaluate.add_argument("--methods", help="rows of the table, by semicolons (default all but the rivals)")
    evaluate.add_argument("--results", type=Path, help="resumed from where it is (default out/evaluate_....jsonl)")
    evaluate.add_argument("--steps", type=int, default=35, help="of each picture (default 35)")
    evaluate.add_argument("--control", action="store_true", help="instead: whether control by a depth map holds")
    evaluate.set_defaults(run=run_evaluate)

    train = commands.add_parser("train", help="train a micro model")
    train.add_argument("--out", type=Path, help="default out/micro_MODEL.safetensors")
    train.add_argument("--steps", type=int, help="default: as the shipped weights, 3600 (flux), 4800 (sd3) or 1200")
    train.add_argument("--batch", type=int, default=32)
    train.add_argument("--seed", type=int, default=0)
    train.add_argument("--start", type=Path, help="weights to go on from (default: from scratch)")
    train.add_argument("--scale", type=int, default=1, help="of the pictures' sides: 2 trains at twice the size")
    train.add_argument("--close-ups", type=float, default=0, help="share of pictures that are windows of larger ones")
    train.add_argument("--positions", choices=("native", "rpe-2d"), default="native", help="(default native)")
    train.add_argument("--range", type=int, default=64, help="RPE-2D's maximal range, in tokens")
    train.add_argument("--native-share", type=float, default=0.5, help="RPE-2D: of the steps, 0 to 1 (default .5)")
    train.add_argument("--no-crops", action="store_true", help="RPE-2D without resize-and-crop")
    train.add_argument("--no-crop-conditioning", action="store_true", help="RPE-2D without telling the model the crop")
    train.set_defaults(run=run_train)

    benchmark = commands.add_parser("benchmark", help="measure what the method costs, as ratios to plain inference")
    benchmark.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="(default cpu)")
    benchmark.add_argument("--parallel", action="store_true", help="instead: what several devices save and send")
    benchmark.add_argument("--json", type=Path, help="write rows and environment here")
    benchmark.add_argument("--readme", type=Path, help="put the table between this file's marks")
    benchmark.add_argument("--trial", action="store_true", help="instead: see that the rows that need a GPU work")
    benchmark.set_defaults(run=run_benchmark)

    ui = commands.add_parser("ui", help="the accordion on a page of its own, with the micro FLUX behind Generate")
    ui.add_argument("--port", type=int, help="default: gradio's next free one from 7860")
    ui.add_argument("--weights", type=Path, help="default: the shipped ones")
    ui.set_defaults(run=run_ui)

    for command in (evaluate, train):
        command.add_argument("--textures", choices=("drawn", "photographs"), default="drawn", help="(default drawn)")
    for command in (demo, evaluate):
        command.add_argument("--json", type=Path, help="write the figures here")
        command.add_argument("--weights", type=Path, help="default: the shipped ones")
    nets = ("flux-depth", "sd3-depth")
    for command, more in ((demo, ()), (evaluate, ()), (train, nets)):
        command.add_argument("--model", choices=("flux", "sd3", *more), default="flux", help="(default flux)")
