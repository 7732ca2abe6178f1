"""The hint image on its way to a control net: its size, and the tones that a net was trained with."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import Unsupported

# What a hint shows, by the words of the panels' control types and preprocessors' tags.
SHOWN_BY = {
    "canny": "canny",
    "lineart": "canny",
    "mlsd": "canny",
    "softedge": "canny",
    "scribble": "canny",
    "sketch": "canny",
    "tile": "tile",
    "depth": "depth",
    "blur": "blur",
    "openpose": "pose",
    "recolor": "gray",
}


def shown(words: Iterable[object]) -> str | None:
    """What the hint shows according to the panel's words, None where none is known."""
    for word in words:
        for part in str(word).lower().split("/"):
            if part in SHOWN_BY:
                return SHOWN_BY[part]
    return None


def pixels(hint: object, height: int, width: int) -> Tensor:
    """(B, 3, height, width) in [0, 1] of a panel's hint; raises Unsupported where it is no picture.

    Shrunk with a filter and enlarged smoothly; grey is taken for all three colours.
    """
    if not isinstance(hint, Tensor) or hint.ndim != 4 or not hint.numel():
        raise Unsupported(f"its preprocessor gave no picture but {type(hint).__name__}")
    if hint.shape[1] not in (1, 3):
        raise Unsupported(f"its preprocessor gave {hint.shape[1]} channels where a picture has 3")
    hint = hint.float().expand(-1, 3, -1, -1)
    if hint.shape[-2:] != (height, width):
        hint = F.interpolate(hint, size=(height, width), mode="bicubic", antialias=True)
    return hint.clamp(0, 1)  # inpainting preprocessors mark with -1


def toned(hint: Tensor, tones: Mapping[str, Callable[[Tensor], Tensor]], shows: str | None) -> Tensor:
    """Pixels in [0, 1] -> what the autoencoder is to see: in [-1, 1], or as the net's own `tones` have it."""
    return tones[shows](hint) if shows in tones else 2 * hint - 1


def repeated(rows: Tensor, count: int) -> Tensor:
    """What there is for each picture of a batch, in turn, for the rows of a call (conditional and unconditional)."""
    return rows.repeat(-(-count // len(rows)), *[1] * (rows.ndim - 1))[:count]


def seeded(encode: Callable[[Tensor], Tensor], picture: Tensor) -> Tensor:
    """`encode(picture)` with random numbers of its own: the host's stay where they were."""
    devices = [torch.device("cuda", torch.cuda.current_device())] if torch.cuda.is_available() else []
    with torch.random.fork_rng(devices):
        torch.manual_seed(0)
        return encode(picture)
