"""Scaled positions of the global branch (PES), restarted positions of the patches (PIPE) and rotary matrices."""

from __future__ import annotations

import torch
from torch import Tensor

from .geometry import Grid, Layout


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


def rotary_matrices(ids: Tensor, axes_dim: tuple[int, ...], theta: float) -> Tensor:
    """Rotary matrices (..., L, D/2, 2, 2) float32 of `ids` (..., L, axes), D = sum(axes_dim).

    Frequency j of an axis of `d` channels is theta^(-2j/d); each 2x2 block is [[cos, -sin], [sin, cos]]
    (RoFormer, eq. 15; the layout FLUX implementations pass as `pe`). Angles are computed in float64 where the
    device has it.
    """
    dtype = torch.float32 if ids.device.type in ("mps", "xpu") else torch.float64
    angles = []
    for axis, d in enumerate(axes_dim):
        frequency = theta ** (-torch.arange(0, d, 2, dtype=dtype, device=ids.device) / d)
        angles.append(ids[..., axis, None].to(dtype) * frequency)
    angle = torch.cat(angles, -1)
    cos, sin = angle.cos().float(), angle.sin().float()
    return torch.stack((cos, -sin, sin, cos), -1).unflatten(-1, (2, 2))
