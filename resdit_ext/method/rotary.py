"""RoPE at PES's and PIPE's positions: queries and keys rotated by angles computed from any position.

The paper changes the positions alone; the rotation is the model's own, in a precision that carries fractions.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from .frequencies import Law, native

# Numbers held in float32 at a time: what stays in a CPU's cache, and few but full kernels on a GPU (32 MiB).
ROTATED_AT_ONCE = {True: 2**20, False: 2**23}


class RotaryTable(NamedTuple):
    """Rotary factors of tokens: `x * cos + swap(x) * sin` rotates every channel pair (x_2j, x_2j+1) by its angle.

    Attributes:
        cos, sin: (..., L, D) float32, the sine negative where it multiplies x_2j+1.
    """

    cos: Tensor
    sin: Tensor

    def to(self, device: torch.device | str) -> RotaryTable:
        return RotaryTable(self.cos.to(device), self.sin.to(device))


def rotary_table(
    ids: Tensor,
    axes_dim: tuple[int, ...],
    theta: float | tuple[float, ...],
    laws: tuple[Law, Law] | None = None,
    grid_axes: tuple[int, int] = (-2, -1),
) -> RotaryTable:
    """RotaryTable of `ids` (..., L, axes) for heads of D = sum(axes_dim) channels, paired as FLUX pairs them.

    The frequencies are the model's own, of one theta or of one for each axis; those of `grid_axes`, rows and columns,
    are `laws`' where there are some. Angles are computed in float64 where the device has it.
    """
    dtype = torch.float32 if ids.device.type in ("mps", "xpu") else torch.float64
    count = len(axes_dim)
    thetas = theta if isinstance(theta, tuple) else (theta,) * count
    of_axes = dict(zip((axis % count for axis in grid_axes), laws or (None, None), strict=True))
    angles = []
    for axis, (d, theta) in enumerate(zip(axes_dim, thetas, strict=True)):
        law = of_axes.get(axis)
        frequency = native(d, theta, dtype, ids.device) if law is None else law(d, theta).to(ids.device, dtype)
        angles.append(ids[..., axis, None].to(dtype) * frequency)
    angle = torch.cat(angles, -1)
    cos, sin = angle.cos().float(), angle.sin().float()
    return RotaryTable(torch.stack((cos, cos), -1).flatten(-2), torch.stack((-sin, sin), -1).flatten(-2))


def rotate(x: Tensor, rotary: RotaryTable, scale: float = 1.0) -> Tensor:
    """x (B, heads, L, D) rotated and multiplied by `scale`, in its own dtype.

    `rotary` are (L, D), or (B, 1, L, D) where the sequences differ. Computed in float32, a few heads at a time.
    """
    B, heads, L, D = x.shape
    cos, sin = (rotary.cos * scale, rotary.sin * scale) if scale != 1 else (rotary.cos, rotary.sin)
    at_once = max(1, ROTATED_AT_ONCE[x.device.type == "cpu"] // (B * L * D))
    out = torch.empty_like(x, memory_format=torch.contiguous_format)
    for first in range(0, heads, at_once):
        part = x[:, first : first + at_once].to(torch.promote_types(x.dtype, cos.dtype))
        rotated = part * cos
        rotated.addcmul_(part.unflatten(-1, (-1, 2)).flip(-1).flatten(-2), sin)
        out[:, first : first + at_once] = rotated
    return out
