"""The options as axes of the host's X/Y/Z plot."""

from __future__ import annotations

import csv
import logging
import re
from collections.abc import Callable
from types import ModuleType

from ..errors import ResDiTError, quoted
from ..method.config import PRESETS
from .option import Option
from .options import OPTIONS, preset_values, values_from_args
from .sizes import CUSTOM_SIZE, FREE_RATIO

logger = logging.getLogger("ResDiT")
ATTRIBUTE = "_resdit_xyz"
# Any axis switches ResDiT on; the others never change the picture.
WITHOUT_AXIS = ("enabled", "chunk_mb", "compare")
PRESET = Option("preset", "Preset", "choice", "Balanced", choices=tuple(PRESETS))
RANGE = re.compile(r"\d\s*-")  # 0.1-0.5, 0.1-0.5 (+0.1) and 0.1-0.5 [5], which the host expands


def parse_text(option: Option, text: str) -> object:
    """An option's value from text, where true and false are words."""
    if option.kind == "bool":
        return option.parse({"true": True, "false": False}.get(text.lower(), text))
    return option.parse(text)


def number_texts(option: Option, text: str) -> list[str]:
    """The items of a number axis, each checked here: the host's message for a bad one would not name the option."""
    try:
        items = [item.strip() for item in next(csv.reader([text], skipinitialspace=True), [])]
    except csv.Error as error:
        raise ResDiTError(f"{option.name} is {quoted(text)}; write numbers with commas between ({error})") from error
    return [item if RANGE.search(item) else str(option.parse(item)) for item in items if item]


def axis(option: Option, axis_option: Callable) -> object:
    """The host's AxisOption for one option.

    The type of a number is `int` or `float` itself, which is what the host expands ranges for.
    """

    def confirm(_: object, values: list) -> None:
        for value in values:
            parsed(value)

    def parsed(value: object) -> object:
        return option.parse(round(value, 8) if isinstance(value, float) else value)

    def apply(p: object, value: object, _: list) -> None:
        # A new dict for every picture: the host copies `p` without copying what it holds.
        setattr(p, ATTRIBUTE, getattr(p, ATTRIBUTE, {}) | {option.name: parsed(value)})

    label = f"[ResDiT] {option.label}"
    if option.kind == "number":
        kind = int if option.whole else float
        return axis_option(label, kind, apply, confirm=confirm, prepare=lambda text: number_texts(option, text))
    choices = [str(value) for value in option.choices or (False, True)]
    return axis_option(label, lambda text: parse_text(option, text), apply, confirm=confirm, choices=lambda: choices)


def add_to(grid: ModuleType) -> None:
    """Add the axes that a host's X/Y/Z script does not have yet."""
    present = {existing.label for existing in grid.axis_options}
    options = (PRESET, *(option for option in OPTIONS if option.name not in WITHOUT_AXIS))
    axes = (axis(option, grid.AxisOption) for option in options)
    grid.axis_options.extend(new for new in axes if new.label not in present)


def add_axes() -> None:
    """Add the axes to the host's plot; where that fails, the host goes on without them."""
    try:
        from modules import scripts

        # The script is no importable module: the host loads it under its file's name, anew with every "Reload UI".
        for data in scripts.scripts_data:
            if data.script_class.__module__ == "xyz_grid.py" and hasattr(data.module, "axis_options"):
                add_to(data.module)
    except Exception:
        logger.exception("the options could not be added to the X/Y/Z plot")


def merged(p: object, args: tuple) -> tuple:
    """The script's arguments as one dict with the plot's values for this picture; without a plot, as they are.

    Any axis switches ResDiT on. A preset's values replace the page's, and the other axes replace the preset's.
    """
    axes = getattr(p, ATTRIBUTE, None)
    if not axes:
        return args
    given = {name: value for name, value in axes.items() if name != PRESET.name}
    preset = preset_values(axes[PRESET.name]) if PRESET.name in axes else {}
    # A side implies a size and a ratio, as in the API.
    size = {"size": CUSTOM_SIZE} if {"width", "height", "long_side"} & given.keys() else {}
    ratio = {"ratio": FREE_RATIO} if {"width", "height"} & given.keys() else {}
    return (values_from_args(args) | preset | size | ratio | given | {"enabled": True},)
