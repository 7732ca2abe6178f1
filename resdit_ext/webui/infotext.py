"""Generation parameters in the saved image, and back into the page."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from .. import __version__
from ..errors import ResDiTError
from .option import Option
from .options import BY_NAME, Request

KEY = BY_NAME["enabled"].key
REFUSED_KEY = "ResDiT not active"
NOTES_KEY = "ResDiT notes"  # in the API's answer alone


def parameters(request: Request, made: tuple[int, int] | None = None) -> dict[str, object]:
    """What to write: the version, and the options that differ from their defaults.

    Args:
        request: the options.
        made: (width, height) of the picture, where the host has rounded the ones that were asked for.
    """
    if made is not None:
        sides = dict(width=made[0], height=made[1], long_side=max(made))
        request = replace(request, values=request.values | sides)
    return {KEY: __version__} | {BY_NAME[name].key: value for name, value in request.changed().items()}


def remove(written: dict[str, object]) -> None:
    """Take our parameters out of those that will be written."""
    for key in [key for key in written if key == KEY or key.startswith(f"{KEY} ")]:
        del written[key]


def restore(option: Option) -> Callable[[dict], object]:
    """The function the host calls with a pasted infotext's parameters to set the option's component.

    An image without ResDiT switches it off and leaves the rest; one with it restores every option, those not
    mentioned to their defaults. A value that cannot be read becomes the default.
    """
    if option.name == "enabled":
        return lambda params: KEY in params

    def value_in(params: dict) -> object:
        if KEY not in params:
            return None  # the host leaves the component as it is
        text = params.get(option.key, option.default)
        if option.kind == "bool" and isinstance(text, str):
            text = {"True": True, "False": False}.get(text, option.default)
        try:
            return option.parse(text)
        except ResDiTError:
            return option.default

    return value_in


class PasteField(str):
    """An option's parameter, by name where the host compares names and as a function where it reads a picture's.

    The hosts call what is callable when they paste, and copy between tabs ("Send to img2img") what is in a list of
    names; only something that is both gets both.
    """

    __slots__ = ("_restore",)

    def __new__(cls, option: Option) -> PasteField:
        field = super().__new__(cls, option.key)
        field._restore = restore(option)
        return field

    def __call__(self, params: dict) -> object:
        return self._restore(params)
