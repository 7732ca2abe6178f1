"""ControlNet for FLUX and SD3 in the WebUI's panel, whether or not ResDiT itself is ticked."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from importlib.util import find_spec

from ..errors import Unsupported
from ..hosts import a1111
from ..hosts.forge import control_panel as control_panel
from ..hosts.forge import control_unit as control_unit
from ..hosts.forge import model as forge
from ..hosts.forge.control_pass import in_words
from ..method.layout import Grid
from . import lifecycle, passes, settings
from .sizes import PIXELS_PER_TOKEN

logger = logging.getLogger("ResDiT")
NOTE = (
    "ControlNet has no effect on ResDiT's models in this WebUI, whose ControlNet extension does not support them. It "
    "works in Forge, Forge Neo and ersatzForge."
)
SAME_CHECKPOINT = (None, "", "Use same checkpoint")  # the hosts' words for a hires pass with the first one's model


def log_errors(hook: Callable) -> Callable:
    """Keep an error of ours from the generation: the panel's units stay as they are."""

    @functools.wraps(hook)
    def safe(p: object) -> None:
        try:
            hook(p)
        except Exception as error:
            logger.warning("the ControlNet panel is left to the WebUI (%s)", in_words(error))
            logger.debug("internal error", exc_info=True)

    return safe


def steps_of_pass(p: object) -> int:
    """How many steps the full list of noise levels has in the pass that is about to begin."""
    return passes.steps_of(p, passes.in_hires(p)).listed


def page_note() -> str | None:
    """What the page says of ControlNet where the panel is not one of ours; None where it is."""
    return NOTE if find_spec("modules_forge") is None else None


def register() -> None:
    """Have the panel know control nets for FLUX and SD3."""
    control_unit.register(
        control_unit.Passes(
            method=lifecycle.method_of_pass,
            sigmas=passes.sigmas_of_pass,
            steps=steps_of_pass,
            default_shows=settings.union_mode,
            say=lifecycle.tell,
        )
    )


def family_of_passes(p: object) -> str | None:
    """The family of the model that makes all passes, by name; None where it is none of ours, or changes."""
    if getattr(p, "enable_hr", False) and getattr(p, "hr_checkpoint_name", None) not in SAME_CHECKPOINT:
        return None
    try:
        return forge.family_of(p).name
    except Unsupported:
        return None


@log_errors
def review(p: object) -> None:
    """Look at the units, once the model is loaded and ResDiT has set the size."""
    method = lifecycle.method_of_pass(p, Grid(-(-p.height // PIXELS_PER_TOKEN), -(-p.width // PIXELS_PER_TOKEN)))
    most = None if method is None else PIXELS_PER_TOKEN * min(method[0].base.height, method[0].base.width)
    control_panel.review(p, most, family_of_passes(p), functools.partial(lifecycle.tell, p))


@log_errors
def before_process(p: object) -> None:
    """Have the units looked at before the panel works on them; call after ResDiT has set the size."""
    control_panel.before_it_prepares(p, review)
    if a1111.orders_control(p):
        lifecycle.tell(p, NOTE)


@log_errors
def before_sampling(p: object) -> None:
    """Tell of units that the panel has failed to prepare."""
    control_panel.report_failures(p, functools.partial(lifecycle.tell, p))
