"""Scaled positions of the global branch (PES) and restarted positions of the patches (PIPE), for any embedding."""

from __future__ import annotations

import torch
from torch import Tensor

from .layout import Grid, Layout


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
