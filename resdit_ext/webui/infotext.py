"""The options in the saved picture's parameters, and from there back into the page."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from .. import __version__
from ..errors import ResDiTError
from .option import Option, unmentioned
from .options import BY_NAME, Request

KEY = BY_NAME["enabled"].key
REFUSED_KEY = "ResDiT not active"
NOTES_KEY = "ResDiT notes"  # in the API's answer alone


def parameters(request: Request, made: tuple[int, int] | None = None) -> dict[str, object]:
    """What is written: the version, and the options that differ from their defaults.

    Args:
        request: the options.
        made: (width, height) of the picture, where the host has rounded the ones that were asked for.
    """
    if made is not None:
        sides = dict(width=made[0], height=made[1], long_side=max(made))
        request = replace(request, values=request.values | sides)
    return {KEY: __version__} | {BY_NAME[name].key: value for name, value in request.changed().items()}


def remove(written: dict[str, object]) -> None:
    """Remove our parameters from those that will be written."""
    for key in [key for key in written if key == KEY or key.startswith(f"{KEY} ")]:
        del written[key]


def restore(option: Option) -> Callable[[dict], object]:
    """The function the host calls with a pasted infotext's parameters to set the option's component.

    A picture made without ResDiT switches it off and changes nothing else; one made with it sets every option, those
    not mentioned to what they stood for in its version. A value that cannot be read becomes the default.
    """
    if option.name == "enabled":
        return lambda params: KEY in params

    def value_in(params: dict) -> object:
        if KEY not in params:
            return None  # the host leaves the component as it is
        text = params.get(option.key, unmentioned(option, params[KEY]))
        if option.kind == "bool" and isinstance(text, str):
            text = {"True": True, "False": False}.get(text, option.default)
        try:
            return option.parse(text)
        except ResDiTError:
            return option.default

    return value_in


class PasteField(str):
    """An option's key, which is also the function that sets its component.

    When the hosts paste, they call what is callable; for "Send to img2img" they look for a name in a list. Only an
    object that is both a text and callable serves both.
    """

    __slots__ = ("_restore",)

    def __new__(cls, option: Option) -> PasteField:
        field = super().__new__(cls, option.key)
        field._restore = restore(option)
        return field

    def __call__(self, params: dict) -> object:
        return self._restore(params)
