"""The one table of options: widgets, defaults, validation, infotext and API are all read from it.

The order of the rows is the order of the API's positional arguments, a public contract: append only. A label or a hint
may change; a key may not, as older pictures have it. The method's parameters have their defaults, ranges and choices
from `ResDiTConfig`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace

from ..errors import ResDiTError, quoted
from ..method.config import BALANCED, PRESETS, ResDiTConfig, check_choice
from ..method.shift import HIGHEST_SHIFT, LOWEST_SHIFT
from ..version import TITLE
from .option import MAIN, METHOD, Option
from .sizes import (
    CUSTOM_SIZE,
    FREE_RATIO,
    LONG_SIDES,
    MAX_SIDE,
    MIN_SIDE,
    PIXELS_PER_TOKEN,
    RATIOS,
    WEBUI_RATIO,
    WEBUI_SIZE,
    complete_size,
    idle_sizes,
)

MODELS_OWN = "automatic"
WEBUI_SHIFT, SHIFT_BY_SIZE = "WebUI", "automatic"
BOTH_PASSES, FIRST_PASS, HIRES_PASS = "both", "first pass", "hires pass"


def _parameter(name: str, key: str, label: str, info: str, **rest: object) -> Option:
    """The row of a field of ResDiTConfig."""
    field = next(each for each in fields(ResDiTConfig) if each.name == name)
    allowed = field.metadata["allowed"]
    if allowed.low is None:
        kind, bounds = "choice", {}
    else:
        kind, bounds = "scale" if allowed.choices else "number", {"low": allowed.low, "high": allowed.high}
    common = dict(choices=allowed.choices, key=key, parameter=True)
    return Option(name, label, kind, field.default, info, **bounds, **common, **rest)


def _side(name: str, key: str, label: str) -> Option:
    """A side of the picture in pixels."""
    sides = dict(low=MIN_SIDE, high=MAX_SIDE, step=PIXELS_PER_TOKEN)
    return Option(name, label, "number", 3072, "Pixels, a multiple of 16", **sides, place=MAIN, key=key)


OPTIONS = (
    Option("enabled", TITLE, "bool", False, place=MAIN, key="ResDiT"),
    Option(
        "size",
        "Output size",
        "choice",
        "3K",
        "Long side: 2048, 3072, 4096 or custom pixels; WebUI keeps the page's own size",
        choices=(WEBUI_SIZE, *LONG_SIDES, CUSTOM_SIZE),
        place=MAIN,
        key="ResDiT output size",
    ),
    Option(
        "ratio",
        "Aspect ratio",
        "choice",
        "1:1",
        "Free: your own width and height; WebUI: the ratio of the page's own size",
        choices=(*RATIOS, FREE_RATIO, WEBUI_RATIO),
        place=MAIN,
        key="ResDiT aspect ratio",
    ),
    Option("portrait", "Portrait", "bool", False, "Taller than wide", place=MAIN, key="ResDiT portrait"),
    _side("width", "ResDiT custom width", "Custom width"),
    _side("height", "ResDiT custom height", "Custom height"),
    _parameter(
        "global_until",
        "ResDiT global until",
        "Global until",
        "With layout scaled: the layout phase ends at this fraction of the steps",
        step=0.005,
        place=METHOD,
    ),
    _parameter(
        "fused_until",
        "ResDiT fused until",
        "Fused until",
        "Fusion ends at this fraction of the steps; 1 keeps the layout at 3K-4K",
        step=0.005,
        place=METHOD,
    ),
    _parameter(
        "cutoff",
        "ResDiT cut-off",
        "Cut-off",
        "Fusion takes frequencies up to this share from the whole picture, the rest from the patches",
        step=0.01,
        older=(("0.2.2", 0.2),),
        place=METHOD,
    ),
    _parameter(
        "cutoff_unit",
        "ResDiT cut-off unit",
        "Cut-off unit",
        "A cut-off of 1 is the finest the base size shows (base), half a cycle per token (nyquist) or one (sampling)",
        older=(("0.2.2", "nyquist"),),
        place=METHOD,
    ),
    _parameter(
        "attention_scale",
        "ResDiT attention scale",
        "Attention scale",
        "Sharpens attention over the whole picture as it grows; a number is a fixed factor",
        place=METHOD,
    ),
    Option(
        "base_size",
        "Base size",
        "scale",
        MODELS_OWN,
        "Side in pixels of the pictures that the model was trained on; automatic: as usual for the model",
        choices=(MODELS_OWN,),
        low=128,
        high=2048,
        integer=True,
        key="ResDiT base size",
        older=(("0.3.0", math.isqrt(BALANCED.base_tokens) * PIXELS_PER_TOKEN),),
    ),
    _parameter(
        "base_shape",
        "ResDiT base shape",
        "Base shape",
        "Aspect: patches of the output's shape; square: as in the paper",
        place=METHOD,
    ),
    _parameter(
        "splice_sigma",
        "ResDiT splice sigma",
        "Splice sigma",
        "Width of the blend between patches, as a share of a patch's side",
        step=0.01,
        older=(("0.2.1", 0.25),),
        place=METHOD,
    ),
    _parameter(
        "chunk_mb",
        "ResDiT chunk memory",
        "Chunk memory",
        "Memory limit in MiB for patches computed at once; the picture stays the same",
    ),
    _parameter(
        "speed",
        "ResDiT speed",
        "Speed",
        "From 2x on: coarser attention over the whole picture in fused steps (fast) or in all steps (fastest)",
        older=(("0.2.1", "exact"),),
    ),
    _side("long_side", "ResDiT custom long side", "Custom long side"),
    Option(
        "apply_to",
        "Apply to",
        "choice",
        BOTH_PASSES,
        "Which passes use ResDiT when Hires. fix is on",
        choices=(BOTH_PASSES, FIRST_PASS, HIRES_PASS),
        key="ResDiT apply to",
    ),
    _parameter(
        "layout",
        "ResDiT layout",
        "Layout",
        "What is where is decided at the base size (base, fast), or in the whole picture (scaled, as in the paper)",
        older=(("0.2.1", "scaled"),),
        place=METHOD,
    ),
    _parameter(
        "layout_until",
        "ResDiT layout until",
        "Layout until",
        "With layout base: it is decided until this noise level; lower keeps closer to the base size's picture",
        step=0.01,
    ),
    _parameter(
        "borders",
        "ResDiT borders",
        "Borders",
        "Moving: patches meet elsewhere in every other step, so that no border shows",
        older=(("0.2.1", "fixed"),),
        place=METHOD,
    ),
    _parameter(
        "positions",
        "ResDiT positions",
        "Positions",
        "In attention over the whole picture; automatic: scaled, or rpe-2d where a LoRA in the prompt is made for it",
    ),
    _parameter(
        "maximal_range",
        "ResDiT maximal range",
        "Maximal range",
        "With positions rpe-2d: how many positions a side the model was trained with",
        place=METHOD,
    ),
    Option(
        "shift",
        "Timestep shift",
        "scale",
        WEBUI_SHIFT,
        "Higher: more steps at high noise; WebUI: the model's own; automatic: more for larger pictures; a number is mu",
        choices=(WEBUI_SHIFT, SHIFT_BY_SIZE),
        low=LOWEST_SHIFT,
        high=HIGHEST_SHIFT,
        key="ResDiT timestep shift",
    ),
    Option(
        "compare",
        "Compare",
        "bool",
        False,
        "txt2img: also makes the same seed's picture at the base size, without ResDiT; it is shown, not saved",
        place=MAIN,
        key="ResDiT compare",
    ),
    _parameter(
        "middle_until",
        "ResDiT middle until",
        "Middle until",
        "Above 3x: the steps after those at the base size are at half the size until this noise level; 1: none",
        step=0.01,
        older=(("0.4.0", 1.0),),
        place=METHOD,
    ),
    _parameter(
        "fresh_noise",
        "ResDiT fresh noise",
        "Fresh noise",
        "How much of the noise is new in every step, so that patches agree on a texture; 0: as the sampler has it",
        step=0.05,
        older=(("0.5.0", 0.0),),
    ),
)
BY_NAME = {option.name: option for option in OPTIONS}
DEFAULTS = {option.name: option.default for option in OPTIONS}
PARAMETERS = tuple(option.name for option in OPTIONS if option.parameter)


@dataclass(frozen=True)
class Request:
    """A validated set of options.

    Attributes:
        values: by name.
        config: the method's parameters; with an automatic base size at the usual one, see `for_model`.
    """

    values: dict[str, object]
    config: ResDiTConfig

    @property
    def enabled(self) -> bool:
        return self.values["enabled"]

    def for_model(self, base_tokens: int) -> Request:
        """The same for a model that was trained at so many tokens, which an automatic base size follows."""
        if self.values["base_size"] != MODELS_OWN:
            return self
        return replace(self, config=replace(self.config, base_tokens=base_tokens))

    @property
    def base_side(self) -> int:
        """The base size's side in pixels."""
        return math.isqrt(self.config.base_tokens) * PIXELS_PER_TOKEN

    def changed(self) -> dict[str, object]:
        """The options that differ from their defaults and have an effect, `enabled` aside."""
        idle = {"enabled"} | idle_sizes(self.values)
        return {name: value for name, value in self.values.items() if name not in idle and value != DEFAULTS[name]}


def preset_values(name: str) -> dict[str, object]:
    """The options that a built-in preset sets."""
    check_choice("preset", name, tuple(PRESETS))
    return {parameter: getattr(PRESETS[name], parameter) for parameter in PARAMETERS}


def values_from_args(args: tuple) -> dict[str, object]:
    """Options from a script's arguments: positional, or one dict as the first (`preset` allowed there).

    A positional list is the page's: what it does not reach has its default, the size as well. In a dict the size
    options mean what `complete_size` says, and an unknown name is refused.
    """
    if not args or not isinstance(args[0], dict):
        given = dict(zip(BY_NAME, args, strict=False))
        return DEFAULTS | given
    given = {"enabled": True} | args[0]
    preset = given.pop("preset", None)
    if unknown := [name for name in given if name not in BY_NAME]:
        raise ResDiTError(f"unknown field {quoted(unknown[0])}; the fields are {', '.join(BY_NAME)} and preset")
    if len(sides := given.keys() & {"width", "height"}) == 1:
        (side,) = sides
        BY_NAME[side].parse(given[side])  # before it becomes the other side too, so that an error names this one
    return DEFAULTS | (preset_values(preset) if preset is not None else {}) | complete_size(given)


def parse_request(args: tuple) -> Request:
    """Validate a script's arguments; raises ResDiTError naming the field. Switched off, nothing else is looked at."""
    values = values_from_args(args)
    if BY_NAME["enabled"].parse(values["enabled"]) is False:
        return Request(DEFAULTS, BALANCED)
    values = {option.name: option.parse(values[option.name]) for option in OPTIONS}
    parameters = {name: values[name] for name in PARAMETERS}
    side = values["base_size"]
    size = {} if side == MODELS_OWN else {"base_tokens": (side // PIXELS_PER_TOKEN) ** 2}
    return Request(values, ResDiTConfig(**parameters, **size))
