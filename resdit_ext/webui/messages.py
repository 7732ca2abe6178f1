"""Messages about one generation: in the console, under the picture, and in the API's answer."""

from __future__ import annotations

import logging
from collections.abc import Callable

from ..hosts import lifetime
from .infotext import NOTES_KEY

logger = logging.getLogger("ResDiT")
SAID = "_resdit_said"


def log_to_console() -> None:
    """Show our messages in the host's console: by default the hosts set up no logging of their own."""
    if not logger.handlers:
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter("[ResDiT] %(message)s"))
        logger.addHandler(handler)
        logger.setLevel(logging.INFO)
        logger.propagate = False


def forget(p: object) -> None:
    """Forget earlier messages: the X/Y/Z plot copies `p`, and a batch of img2img uses one for all its pictures."""
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
    """`tell` for this generation. The host may keep the function, so it holds no reference to `p` and its pictures."""
    return lifetime.teller(p, "", tell)


def answer(p: object, processed: object) -> None:
    """Put the messages into the API's answer, whose `info` has the extra parameters but not the comments.

    The pictures' own parameters have been written by now, so the page does not show the messages twice.
    """
    if said := getattr(p, SAID, ()):
        processed.extra_generation_params = {**p.extra_generation_params, NOTES_KEY: list(said)}
