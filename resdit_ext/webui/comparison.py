"""*Compare*: the picture of the same seed at the base size, as the model makes it by itself, beside the large one."""

from __future__ import annotations

import logging

from ..hosts import progress
from ..hosts.another_picture import another_picture, without_script
from ..version import TITLE
from .generation import Generation
from .messages import tell

logger = logging.getLogger("ResDiT")


def add_base_picture(p: object, processed: object, generation: Generation) -> None:
    """Put the picture at the base size behind those that were made, where the options ask for it.

    An error here costs that picture alone.
    """
    if not generation.request.values["compare"] or not generation.acted or progress.stopped():
        return
    if getattr(p, "init_images", None):
        tell(p, "Compare is for txt2img: there is no picture at the base size")
        return
    try:
        args = without_script(p, TITLE)
        picture, parameters = another_picture(p, *generation.told.patch, args)
    except Exception as error:
        logger.exception("no picture at the base size")
        tell(p, f"no picture at the base size could be made ({type(error).__name__}: {error})")
        return
    processed.images.append(picture)
    processed.infotexts.append(parameters)
