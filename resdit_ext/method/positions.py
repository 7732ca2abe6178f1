"""PES, the paper's scaled positions of the global branch, and PIPE's, which restart in every patch; for any embedding.

PES: p_h in {0/s_h, 1/s_h, .., (H-1)/s_h} and p_w likewise. PIPE: 0..h-1 x 0..w-1, those of a picture of the base size.
In the place of PES's may be the tokens' own at other frequencies (`frequencies`), of both RPE-2D's (`randomized`).
"""

from __future__ import annotations

import torch
from torch import Tensor

from .config import ResDiTConfig
from .layout import Grid, Layout
from .randomized import equidistant_positions


def grid_positions(grid: Grid, scales: tuple[float, float] = (1.0, 1.0)) -> Tensor:
    """PES: (H*W, 2) float32 positions (row / s_h, column / s_w) in row-major order; with scales of 1 PIPE's of a patch.

    Divided in float64 and rounded once: the host's own ids may be bfloat16, which is wrong by a quarter of a step
    at a third of a token and lets whole positions collide beyond 256.
    """
    rows = torch.arange(grid.height, dtype=torch.float64) / scales[0]
    cols = torch.arange(grid.width, dtype=torch.float64) / scales[1]
    return token_positions(rows, cols)


def token_positions(rows: Tensor, cols: Tensor) -> Tensor:
    """(H*W, 2) float32 positions (row, column) of tokens in row-major order, from the rows (H,) and columns (W,)."""
    return torch.cartesian_prod(rows, cols).reshape(-1, 2).float()


def maximal_grid(config: ResDiTConfig) -> Grid:
    """RPE-2D: the range of positions of both axes."""
    return Grid(config.maximal_range, config.maximal_range)


def are_divided(config: ResDiTConfig) -> bool:
    """True where the positions of the global branch are the tokens' own, divided by the scales (PES)."""
    return config.pes and config.positions not in ("ntk", "yarn")


def whole_positions(layout: Layout, config: ResDiTConfig) -> Tensor:
    """(H*W, 2) float32 positions of a whole picture, row-major; raises ResDiTError where RPE-2D has too few.

    Of an output those of the global branch, of the base grid a patch's.
    """
    if config.positions == "rpe-2d":
        return token_positions(*equidistant_positions(layout.grid, maximal_grid(config)))
    return grid_positions(layout.grid, layout.scales if are_divided(config) else (1.0, 1.0))


def spanned_grid(layout: Layout, config: ResDiTConfig) -> Grid:
    """The grid whose own positions reach as far as `whole_positions`, by which a model may place its text."""
    if config.positions == "rpe-2d":
        return maximal_grid(config)
    return layout.base if are_divided(config) else layout.grid


def patch_indices(layout: Layout) -> Tensor:
    """MOP: (N, h*w) int64 indices into the row-major output grid, a row for every patch."""
    rows = torch.arange(layout.base.height)[:, None] * layout.grid.width
    inside = (rows + torch.arange(layout.base.width)).reshape(-1)
    firsts = torch.tensor([row * layout.grid.width + col for row, col in layout.patches])
    return firsts[:, None] + inside
