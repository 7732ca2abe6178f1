"""`python -m resdit_ext COMMAND`: pictures with diffusers, the field test, the lab, and what works where."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from .field import command as field_test
from .generate import command as generate
from .lab import commands as lab


def run_models(args: argparse.Namespace) -> int:
    from .readme import fill
    from .supported import table

    print(table())
    if args.readme:
        fill(args.readme, "models", table())
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

    generate.add_to(commands)
    field_test.add_to(commands)
    lab.add_to(commands)

    models = commands.add_parser("models", help="say which models work in which WebUI")
    models.add_argument("--readme", type=Path, help="put the table between this file's marks")
    models.set_defaults(run=run_models)

    doctor = commands.add_parser("doctor", help="say whether a WebUI has what the extension needs")
    doctor.add_argument("host", nargs="?", type=Path, help="a WebUI's folder (default: the running environment)")
    doctor.set_defaults(run=run_doctor)
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
