"""The passes of one generation: their sizes, their steps, and what ResDiT will do in them.

`p` is the host's object of the generation, or the page's values under the same names.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from types import SimpleNamespace

from ..families import Family
from ..hosts.loras import loras_in
from . import settings
from .forecast import Forecast, forecast
from .options import BOTH_PASSES, FIRST_PASS, HIRES_PASS, Request
from .sizes import WEBUI_SIZE, output_size

LATENT_PIXEL = 8


@dataclass(frozen=True)
class Steps:
    """The steps of one pass.

    Attributes:
        listed: how many its list of noise levels has.
        skipped: how many of them, from the first, are not run: the pass begins with a picture.
    """

    listed: int
    skipped: int = 0


def has_hires(p: object) -> bool:
    """True where a second, larger pass follows."""
    return bool(getattr(p, "enable_hr", False))


def in_hires(p: object) -> bool:
    """True in that second pass."""
    return bool(getattr(p, "is_hr_pass", False))


def from_picture(p: object, ordered: int | None) -> Steps:
    """The steps of a pass that begins with a picture, by the host's own rule, which has settings of its own.

    Args:
        p: has `steps` and `denoising_strength`.
        ordered: how many steps a hires pass is to run; None in img2img.
    """
    try:
        from modules.sd_samplers_common import setup_img2img_steps
    except ImportError:  # no host
        return Steps(ordered or p.steps)
    listed, last = setup_img2img_steps(p, ordered)
    # `last` is the last step's number. Most hosts count from 0 and ersatzForge from 1, as it says itself of one step.
    _, first = setup_img2img_steps(SimpleNamespace(steps=1, denoising_strength=p.denoising_strength), 1)
    return Steps(max(1, listed), max(0, listed - (last - first + 1)))


def steps_of(p: object, hires: bool) -> Steps:
    """The steps of the hires pass, or of the first."""
    if hires:
        return from_picture(p, p.hr_second_pass_steps or p.steps)
    if getattr(p, "init_images", None):
        return from_picture(p, None)
    return Steps(p.steps)


def wants_this_pass(p: object, apply_to: str) -> bool:
    """True unless the choice excludes the pass that is about to begin; without hires there is one pass, the first."""
    return not has_hires(p) or apply_to == BOTH_PASSES or in_hires(p) == (apply_to == HIRES_PASS)


def set_size(p: object, request: Request, replaced: dict[str, int]) -> None:
    """Set the output size, with hires that of the picture that is saved; the host's own goes into `replaced`."""
    if request.values["size"] == WEBUI_SIZE:
        return
    size = output_size(request.values, p.width, p.height, settings.size_step())
    names = ("hr_resize_x", "hr_resize_y") if has_hires(p) else ("width", "height")
    for name, side in zip(names, size, strict=True):
        replaced[name] = getattr(p, name)
        setattr(p, name, side)


def final_size(p: object) -> tuple[int, int]:
    """(width, height) of the picture that will be saved."""
    if not has_hires(p):
        return p.width, p.height
    if hasattr(p, "calculate_target_resolution"):  # the hosts round in ways of their own
        asked = copy.copy(p)
        asked.extra_generation_params = {}
        asked.calculate_target_resolution()
        sides = (
            (asked.hr_upscale_to_x, getattr(asked, "truncate_x", 0)),
            (asked.hr_upscale_to_y, getattr(asked, "truncate_y", 0)),
        )
        x, y = ((side // LATENT_PIXEL - cut) * LATENT_PIXEL for side, cut in sides)
        return x, y
    x, y = p.hr_resize_x, p.hr_resize_y
    if x == 0 and y == 0:
        return int(p.width * p.hr_scale), int(p.height * p.hr_scale)
    return x or y * p.width // p.height, y or x * p.height // p.width


def size_of(p: object, hires: bool) -> tuple[int, int]:
    """(width, height) of what the hires pass, or the first, makes."""
    return final_size(p) if hires or not has_hires(p) else (p.width, p.height)


def prompt_of(p: object, hires: bool) -> str:
    """The prompt of the hires pass, or of the first, of the first picture; the page has one prompt for both."""
    if getattr(p, "disable_extra_networks", False):
        return ""
    prompts = (getattr(p, "all_hr_prompts", None) if hires else None) or getattr(p, "all_prompts", None)
    return str(prompts[0] if prompts else getattr(p, "prompt", ""))


def forecast_of_pass(p: object, request: Request, family: Family | None, hires: bool) -> Forecast:
    """What will happen in one pass."""
    steps, loras = steps_of(p, hires), loras_in(prompt_of(p, hires))
    which = (HIRES_PASS if hires else FIRST_PASS) if has_hires(p) else ""
    return forecast(request, *size_of(p, hires), steps.listed, family, skipped=steps.skipped, which=which, loras=loras)


def forecast_of(p: object, request: Request, family: Family | None = None) -> Forecast:
    """What will happen, with hires in the last pass in which anything does."""
    choice = request.values["apply_to"] if has_hires(p) else FIRST_PASS
    passes = {BOTH_PASSES: (True, False), FIRST_PASS: (False,), HIRES_PASS: (True,)}[choice]
    forecasts = [forecast_of_pass(p, request, family, hires) for hires in passes]
    return next((each for each in forecasts if each.active), forecasts[0])
