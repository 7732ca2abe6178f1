"""The size of the picture: what the size options mean together, and the arithmetic of its sides."""

from __future__ import annotations

from ..method.layout import Grid

PIXELS_PER_TOKEN = 16
MIN_SIDE, MAX_SIDE = 256, 8192
WEBUI_SIZE, CUSTOM_SIZE = "WebUI", "Custom"
LONG_SIDES = {"2K": 2048, "3K": 3072, "4K": 4096}
WEBUI_RATIO, FREE_RATIO = "WebUI", "Free"
RATIOS = {"1:1": (1, 1), "5:4": (5, 4), "4:3": (4, 3), "3:2": (3, 2), "16:9": (16, 9), "2:1": (2, 1), "21:9": (21, 9)}


def snap(pixels: float, multiple: int = PIXELS_PER_TOKEN) -> int:
    """The nearest multiple, at least one."""
    return max(1, round(pixels / multiple)) * multiple


def grid_of(width: int, height: int, token: int = PIXELS_PER_TOKEN) -> Grid:
    """The grid of tokens of `token` pixels a side of a picture; a side that is no multiple is padded by the model."""
    return Grid(-(-height // token), -(-width // token))


def output_size(
    values: dict[str, object], width: int, height: int, multiple: int = PIXELS_PER_TOKEN
) -> tuple[int, int]:
    """(width, height) in pixels, multiples of `multiple` unless they are the page's own `width` and `height`.

    Args:
        values: the options.
        width, height: the page's own.
        multiple: of which the sides are to be.
    """
    if values["size"] == WEBUI_SIZE:
        return width, height
    if values["ratio"] == FREE_RATIO:
        return snap(values["width"], multiple), snap(values["height"], multiple)
    long = values["long_side"] if values["size"] == CUSTOM_SIZE else LONG_SIDES[values["size"]]
    if values["ratio"] == WEBUI_RATIO:
        return snap(long * min(1, width / height), multiple), snap(long * min(1, height / width), multiple)
    a, b = RATIOS[values["ratio"]]
    sides = snap(long, multiple), snap(long * b / a, multiple)
    return sides[::-1] if values["portrait"] else sides


def idle_sizes(values: dict[str, object]) -> set[str]:
    """The size options that have no effect beside the others."""
    if values["size"] == WEBUI_SIZE:
        return {"ratio", "portrait", "width", "height", "long_side"}
    if values["ratio"] == FREE_RATIO:
        return {"portrait", "long_side"}
    idle = {"width", "height"}
    if values["size"] != CUSTOM_SIZE:
        idle.add("long_side")
    if values["ratio"] == WEBUI_RATIO:
        idle.add("portrait")
    return idle


def complete_size(given: dict[str, object]) -> dict[str, object]:
    """Named options, with `size`, `ratio` and the sides that the given ones imply.

    A `width` or `height` alone makes a square (ratio "Free"); both make a picture of that size; a `long_side` alone
    makes one of that long side. Where none of these is given, nor `size` or `ratio`, the request keeps its own size,
    whatever `portrait` says.
    """
    sides = [name for name in ("width", "height") if name in given]
    if sides and "ratio" not in given and given.get("size", CUSTOM_SIZE) == CUSTOM_SIZE:
        square = dict.fromkeys(("width", "height"), given[sides[0]])
        return square | given | {"size": CUSTOM_SIZE, "ratio": FREE_RATIO}
    if "long_side" in given:
        return {"size": CUSTOM_SIZE} | given
    return given if sides or "ratio" in given else {"size": WEBUI_SIZE} | given
