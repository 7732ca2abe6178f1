"""The ControlNet panel of Forge, Forge Neo and ersatzForge: its units, before it prepares them and after it failed to.

An error in one unit would end the panel's work for the units after it, with a traceback in the console alone.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from ...control.checkpoint import PICKLED, SUFFIXES, made_for_others, why_unreadable
from ...families import Family

TITLE = "ControlNet"
ORDINALS = ("first", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth", "ninth", "tenth")
NO_MODEL = (None, "", "None")


def panel_of(p: object) -> object | None:
    """The panel's script in this generation."""
    scripts = getattr(getattr(p, "scripts", None), "alwayson_scripts", ())
    return next((script for script in scripts if script.title() == TITLE and hasattr(script, "current_params")), None)


def value_of(unit: object, name: str, default: object = None) -> object:
    """A field of a unit: the page's are objects, the API's dicts that lack what is as the panel has it by default."""
    if not isinstance(unit, dict):
        return getattr(unit, name, default)
    code = sys.modules.get("lib_controlnet.external_code")
    return unit.get(name, getattr(getattr(code, "ControlNetUnit", None), name, default))


def name_of(panel: object, index: int) -> str:
    """What a unit is called in messages: Forge and ersatzForge number them from 0, Forge Neo from 1."""
    return f"the {ORDINALS[min(index - panel.args_from, 9)]} ControlNet unit"


def enabled_units(p: object, panel: object) -> Iterator[tuple[int, object]]:
    """(index among the scripts' arguments, unit) of the units that are on; the API's are unless they say otherwise."""
    for index in range(panel.args_from, min(panel.args_to, len(p.script_args))):
        unit = p.script_args[index]
        known = isinstance(unit, dict) or hasattr(unit, "processor_res")
        if known and value_of(unit, "enabled", True):
            yield index, unit


def file_of(unit: object) -> Path | None:
    """The file of a unit's model, where the panel knows one of that name."""
    state = sys.modules.get("lib_controlnet.global_state")
    name = value_of(unit, "model")
    if state is None or name in NO_MODEL:
        return None
    try:
        found = state.get_controlnet_filename(name)
    except Exception:  # the panel says so itself
        return None
    return Path(found) if found else None


def lacks_image(p: object, unit: object) -> bool:
    """True where the panel will find no picture for a unit."""
    several = getattr(value_of(unit, "input_mode"), "value", "simple") != "simple"
    given = value_of(unit, "image") is not None or value_of(unit, "generated_image") is not None
    return not (several or given or getattr(p, "init_images", None))


def changed(unit: object, **values: object) -> object:
    """A copy of a unit with other values; the page keeps its own."""
    if isinstance(unit, dict):
        return unit | values
    unit = copy.copy(unit)
    for name, value in values.items():
        setattr(unit, name, value)
    return unit


def why_useless(file: Path, family: Family | None) -> str | None:
    """Why a unit with this file cannot work beside a model of this family of ours (None: another), or None."""
    if reason := why_unreadable(file):
        return reason
    if family is None:
        return None
    if file.suffix.lower() not in SUFFIXES:
        return PICKLED
    kind = made_for_others(file)
    return kind and f"it is a {kind}, and the model is {family.name}"


def review_units(p: object, most: int | None, family: Family | None, say: Callable[[str], None]) -> None:
    """Switch off, for this generation, units that cannot work, and keep preprocessors at a size they were made for.

    Args:
        p: the host's object of the generation.
        most: pixels of the short side that "pixel perfect" may ask of a preprocessor; None for any.
        family: of the loaded model, where all passes use it and it is one of ours; else None.
        say: tells the user once.
    """
    panel = panel_of(p)
    if panel is None:
        return
    arguments = list(p.script_args)
    for index, unit in enabled_units(p, panel):
        file = file_of(unit)
        reason = why_useless(file, family) if file is not None else None
        if reason is not None:
            say(f"ControlNet {file.name} is ignored: {reason}")
            arguments[index] = changed(unit, enabled=False)
        elif lacks_image(p, unit):
            say(f"{name_of(panel, index)} is ignored: it has no image")
            arguments[index] = changed(unit, enabled=False)
        elif most is not None and value_of(unit, "pixel_perfect", False):
            size = f"its preprocessor works at {most} pixels"
            say(f"{name_of(panel, index)}: {size}, as Pixel Perfect would be too slow at this size")
            arguments[index] = changed(unit, pixel_perfect=False, processor_res=most)
    if any(new is not old for new, old in zip(arguments, p.script_args, strict=True)):
        p.script_args = type(p.script_args)(arguments)


def before_units_are_prepared(p: object, act: Callable[[object], None]) -> None:
    """Have `act(p)` run once, right before the panel prepares the units: the model is loaded by then, and not before.

    The panel comes before this extension in each of the host's hooks, and the hooks before that one are too early.
    """
    panel = panel_of(p)
    if panel is None:
        return
    own = vars(panel)
    before = {name: own[name] for name in ("process",) if name in own}

    def process(p: object, *_: object, **kwargs: object) -> object:
        del own["process"]
        own.update(before)
        act(p)
        return panel.process(p, *p.script_args[panel.args_from : panel.args_to], **kwargs)

    panel.process = process


def report_units(p: object, say: Callable[[str], None]) -> None:
    """Tell which unit the panel could not prepare; it goes on without it and those after it."""
    panel = panel_of(p)
    if panel is None:
        return
    for number, (index, unit) in enumerate(enabled_units(p, panel)):
        if number not in panel.current_params:
            file = file_of(unit)
            which = name_of(panel, index) + (f" ({file.name})" if file else "")
            say(f"{which} is ignored, with any after it: the WebUI's console has the reason")
            return
