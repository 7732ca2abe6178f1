"""RPE-2D's positions (arXiv 2503.18719): drawn from a range larger than the grid in training, equidistant at inference.

A model trained this way knows the order of rows and columns, not their distances, and has seen every position of the
range; so a larger picture is more positions of the same range, and never one that is new.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..errors import ResDiTError
from .layout import Grid


def check_range(grid: Grid, maximal: Grid) -> None:
    """Raise ResDiTError where the maximal range has fewer positions than the grid has rows or columns."""
    for axis in ("height", "width"):
        tokens, positions = getattr(grid, axis), getattr(maximal, axis)
        if positions < tokens:
            raise ResDiTError(
                f"the maximal range is {positions} tokens and the picture's {axis} is {tokens} tokens; choose a range "
                f"of at least {tokens}, or a smaller picture"
            )


def randomized_positions(grid: Grid, maximal: Grid, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
    """The rows (H,) and the columns (W,) of a picture in training: RPE-2D's draw without replacement, sorted.

    Whole numbers in float64 from 0 to the side of `maximal` - 1, the two axes independent of each other. Raises
    ResDiTError where `maximal` is smaller than `grid`.
    """
    check_range(grid, maximal)
    sides = (grid.height, maximal.height), (grid.width, maximal.width)
    rows, cols = (torch.randperm(M, generator=generator)[:H].sort().values.double() for H, M in sides)
    return rows, cols


def equidistant_positions(grid: Grid, maximal: Grid) -> tuple[Tensor, Tensor]:
    """The rows (H,) and the columns (W,) of a picture at inference: RPE-2D's nearly equidistant positions.

    Position i = 0..H-1 is the mean of training's i-th, (i+1)(M+1)/(H+1) - 1, rounded half up to one that training
    draws; the paper leaves the rounding open. Whole numbers in float64, those of the model itself where `maximal` is
    `grid`. Raises ResDiTError where `maximal` is smaller than `grid`.
    """
    check_range(grid, maximal)
    sides = (grid.height, maximal.height), (grid.width, maximal.width)
    # Integer arithmetic, half up: floor((2 n (M + 1) + (H + 1)) / (2 (H + 1))) - 1 for n = i + 1.
    rows, cols = ((torch.arange(1, H + 1) * 2 * (M + 1) + H + 1) // (2 * (H + 1)) - 1 for H, M in sides)
    return rows.double(), cols.double()
