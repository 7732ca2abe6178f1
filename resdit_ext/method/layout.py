"""Token grids, the base grid of an output and the minimum-overlap partition (MOP)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import product

from .config import ResDiTConfig, check_number


@dataclass(frozen=True)
class Grid:
    """Image tokens, `height` rows by `width` columns."""

    height: int
    width: int

    def __post_init__(self) -> None:
        check_number("grid height", self.height, 1, 4096, whole=True)
        check_number("grid width", self.width, 1, 4096, whole=True)

    @property
    def tokens(self) -> int:
        return self.height * self.width


def base_grid(grid: Grid, base_tokens: int, shape: str = "aspect") -> Grid:
    """The grid h x w of about `base_tokens` that the model was trained on, never larger than `grid`.

    "aspect": of the four roundings of the exact (h, w) the one whose two scales H/h and W/w are closest, so that
    nothing is stretched. "square": the paper's fixed square, clamped per axis.
    """
    H, W = grid.height, grid.width
    if shape == "square":
        side = math.isqrt(base_tokens)
        return Grid(min(H, side), min(W, side))
    if H * W <= base_tokens:
        return grid
    shrink = math.sqrt(base_tokens / (H * W))
    candidates = product(*(sorted({max(1, math.floor(n * shrink)), math.ceil(n * shrink)}) for n in (H, W)))
    h, w = min(
        candidates,
        key=lambda c: (round(abs(math.log(H / c[0]) - math.log(W / c[1])), 9), abs(c[0] * c[1] - base_tokens)),
    )
    return Grid(h, w)


def partition_starts(length: int, patch: int, overlap: bool = True) -> tuple[int, ...]:
    """First tokens t_k of the patches along one axis: t_k = (k-1)(length-patch)/(N-1), rounded to whole tokens.

    N is the smallest integer > length/patch (MOP), or >= without `overlap`; the first patch starts at 0, the last
    ends at `length`, and every token is covered.
    """
    if length <= patch:
        return (0,)
    count = length // patch + 1 if overlap else -(-length // patch)
    # Integer arithmetic, half up: floor((2 k (length - patch) + (N - 1)) / (2 (N - 1))).
    span = length - patch
    return tuple((2 * k * span + count - 1) // (2 * (count - 1)) for k in range(count))


@dataclass(frozen=True)
class Layout:
    """An output grid, its base grid and the patches between them."""

    grid: Grid
    base: Grid
    rows: tuple[int, ...]
    cols: tuple[int, ...]

    @property
    def is_base(self) -> bool:
        """True at or below the base size, where the method is the identity."""
        return self.grid == self.base

    @property
    def scales(self) -> tuple[float, float]:
        """(s_h, s_w) = (H/h, W/w), both >= 1."""
        return self.grid.height / self.base.height, self.grid.width / self.base.width

    @property
    def patches(self) -> tuple[tuple[int, int], ...]:
        """(first row, first column) of every patch, row-major."""
        return tuple(product(self.rows, self.cols))


def make_layout(grid: Grid, config: ResDiTConfig) -> Layout:
    """Lay out `grid` as the configuration asks."""
    base = base_grid(grid, config.base_tokens, config.base_shape)
    return Layout(
        grid=grid,
        base=base,
        rows=partition_starts(grid.height, base.height, config.overlap),
        cols=partition_starts(grid.width, base.width, config.overlap),
    )
