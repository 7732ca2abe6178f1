"""What the user is told of one generation: in the console, under the picture, and in the API's answer."""

from __future__ import annotations

import logging
from collections.abc import Callable

from ..hosts import lifetime
from .infotext import NOTES_KEY

logger = logging.getLogger("ResDiT")
SAID = "_resdit_said"


def log_to_console() -> None:
    """Show our messages, by name, in the host's console: the hosts set up no logging of their own by default."""
    if not logger.handlers:
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter("[ResDiT] %(message)s"))
        logger.addHandler(handler)
        logger.setLevel(logging.INFO)
        logger.propagate = False


def forget(p: object) -> None:
    """Begin anew: the X/Y/Z plot copies `p`, and a batch of img2img uses one for all its pictures."""
    if hasattr(p, SAID):
        delattr(p, SAID)


def tell(p: object, message: str, level: int = logging.WARNING) -> None:
    """Tell the user something, once in a generation."""
    said = getattr(p, SAID, ())
    if message not in said:
        setattr(p, SAID, (*said, message))
        logger.log(level, message)
        p.comment(f"ResDiT: {message}")


def teller(p: object) -> Callable[[str], None]:
    """A function that tells this generation's user; the host may keep it, so it does not keep `p` and its pictures."""
    return lifetime.teller(p, "", tell)


def answer(p: object, processed: object) -> None:
    """Put what was told into the API's answer, whose `info` has the extra parameters but not the comments.

    The pictures' own parameters are written by now: there the messages would be shown a second time on the page.
    """
    if said := getattr(p, SAID, ()):
        processed.extra_generation_params = {**p.extra_generation_params, NOTES_KEY: list(said)}
