"""Scaled positions of the global branch (PES), restarted positions of the patches (PIPE) and rotation by them."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from .geometry import Grid, Layout

# Numbers held in float32 at a time: what stays in a CPU's cache, and few but full kernels on a GPU (32 MiB).
ROTATED_AT_ONCE = {True: 2**20, False: 2**23}


def grid_positions(grid: Grid, scales: tuple[float, float] = (1.0, 1.0)) -> Tensor:
    """(H*W, 2) float32 positions (row / s_h, column / s_w) in row-major order: PES where the scales exceed 1.

    Divided in float64 and rounded once: the host's own ids may be bfloat16, which is wrong by a quarter of a step
    at a third of a token and lets whole positions collide beyond 256.
    """
    rows = torch.arange(grid.height, dtype=torch.float64) / scales[0]
    cols = torch.arange(grid.width, dtype=torch.float64) / scales[1]
    return torch.cartesian_prod(rows, cols).reshape(-1, 2).float()


def patch_indices(layout: Layout) -> Tensor:
    """(N, h*w) int64 indices into the row-major output grid, a row for every patch."""
    rows = torch.arange(layout.base.height)[:, None] * layout.grid.width
    inside = (rows + torch.arange(layout.base.width)).reshape(-1)
    firsts = torch.tensor([row * layout.grid.width + col for row, col in layout.patches])
    return firsts[:, None] + inside


class Turns(NamedTuple):
    """Rotary factors of tokens: `x * cos + swap(x) * sin` turns every channel pair (x_2j, x_2j+1) by its angle.

    Attributes:
        cos, sin: (..., L, D) float32, the sine negative where it multiplies x_2j+1.
    """

    cos: Tensor
    sin: Tensor

    def to(self, device: torch.device | str) -> Turns:
        return Turns(self.cos.to(device), self.sin.to(device))


def rotary_turns(ids: Tensor, axes_dim: tuple[int, ...], theta: float) -> Turns:
    """Turns of `ids` (..., L, axes) for heads of D = sum(axes_dim) channels.

    Frequency j of an axis of `d` channels is theta^(-2j/d) (RoFormer, eq. 15, as FLUX pairs the channels). Angles are
    computed in float64 where the device has it.
    """
    dtype = torch.float32 if ids.device.type in ("mps", "xpu") else torch.float64
    angles = []
    for axis, d in enumerate(axes_dim):
        frequency = theta ** (-torch.arange(0, d, 2, dtype=dtype, device=ids.device) / d)
        angles.append(ids[..., axis, None].to(dtype) * frequency)
    angle = torch.cat(angles, -1)
    cos, sin = angle.cos().float(), angle.sin().float()
    return Turns(torch.stack((cos, cos), -1).flatten(-2), torch.stack((-sin, sin), -1).flatten(-2))


def rotate(x: Tensor, turns: Turns, scale: float = 1.0) -> Tensor:
    """x (B, heads, L, D) turned and multiplied by `scale`, in its own dtype.

    `turns` are (L, D), or (B, 1, L, D) where the sequences differ. Computed in float32, a few heads at a time.
    """
    B, heads, L, D = x.shape
    cos, sin = (turns.cos * scale, turns.sin * scale) if scale != 1 else (turns.cos, turns.sin)
    at_once = max(1, ROTATED_AT_ONCE[x.device.type == "cpu"] // (B * L * D))
    out = torch.empty_like(x, memory_format=torch.contiguous_format)
    for first in range(0, heads, at_once):
        part = x[:, first : first + at_once].to(torch.promote_types(x.dtype, cos.dtype))
        turned = part * cos
        turned.addcmul_(part.unflatten(-1, (-1, 2)).flip(-1).flatten(-2), sin)
        out[:, first : first + at_once] = turned
    return out
