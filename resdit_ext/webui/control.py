"""ControlNet for our families in the WebUI's panel, whether or not ResDiT itself is ticked."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable

from ..errors import Unsupported, in_words
from ..families import Family
from ..hosts import HOSTS, host_of, recognised_model, running_host
from ..hosts.protocol import ControlServices
from . import lifecycle, passes, settings
from .sizes import PIXELS_PER_TOKEN, grid_of

logger = logging.getLogger("ResDiT")
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
    """What the page says of ControlNet where the panel takes no nets of ours; None where it does."""
    host = running_host()
    return None if host is None else host.control_note()


def register() -> None:
    """Have the panel know our control nets."""
    services = ControlServices(
        recognise=recognised_model,
        method=lifecycle.method_of_pass,
        sigmas=lifecycle.sigmas_of_pass,
        steps=steps_of_pass,
        default_shows=settings.union_mode,
        say=lifecycle.tell,
    )
    for host in HOSTS:
        host.register_control(services)


def unregister() -> None:
    """Have the panel forget them."""
    for host in HOSTS:
        host.unregister_control()


def family_of_passes(p: object) -> Family | None:
    """The family of the model that makes all passes; None where it is none of ours, or changes."""
    if getattr(p, "enable_hr", False) and getattr(p, "hr_checkpoint_name", None) not in SAME_CHECKPOINT:
        return None
    try:
        return recognised_model(p).family
    except Unsupported:
        return None


@log_errors
def review(p: object) -> None:
    """Look at the units, once the model is loaded and ResDiT has set the size."""
    method = lifecycle.method_of_pass(p, grid_of(p.width, p.height))
    most = None if method is None else PIXELS_PER_TOKEN * min(method[0].base.height, method[0].base.width)
    host_of(p).review_units(p, most, family_of_passes(p), functools.partial(lifecycle.tell, p))


@log_errors
def before_process(p: object) -> None:
    """Have the units looked at before the panel works on them; call after ResDiT has set the size."""
    for host in HOSTS:  # whose `p` it is tells its model, which may not be loaded yet; without a panel nothing happens
        host.before_units_are_prepared(p, review)


@log_errors
def before_sampling(p: object) -> None:
    """Tell of units that the panel has failed to prepare, or that have no effect."""
    host_of(p).report_units(p, functools.partial(lifecycle.tell, p))
