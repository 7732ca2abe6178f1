"""MOP, the paper's minimum-overlap partition: token grids, an output's base grid, and the patches of that size."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from itertools import product

from .config import ResDiTConfig, check_number

MIDDLE_ABOVE = 3.05  # in scale, of both sides: at 3x half the size did nothing in the lab (docs/experiments.md)


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

    "square": the paper's fixed square, clamped per axis. "aspect", ours: of the four roundings of the exact (h, w) the
    one whose two scales H/h and W/w are closest, so that nothing is stretched.
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


def partition_starts(length: int, patch: int, overlap: bool = True, more: int = 0) -> tuple[int, ...]:
    """MOP: t_k = (k-1)(H-h)/(N-1), the first tokens of patches k = 1..N along an axis of `length` H and `patch` h.

    N is the smallest integer > H/h, or >= without `overlap`, and `more` on top of that (ours); N = 1 where H <= h.
    Rounded half up to whole tokens, which the paper leaves open: the first patch starts at 0, the last ends at H, and
    every token is covered.
    """
    if length <= patch:
        return (0,)
    count = length // patch + 1 if overlap else -(-length // patch)
    count = min(count + more, max(count, length - patch + 1))  # no two at one place
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
    def at_base(self) -> Layout:
        """The layout of a call on the base grid."""
        return Layout(self.base, self.base, (0,), (0,))

    @property
    def middle(self) -> Grid | None:
        """The grid of half the size, rounded up, that has steps of its own between the base size and the full one."""
        if min(self.scales) <= MIDDLE_ABOVE:
            return None
        return Grid((self.grid.height + 1) // 2, (self.grid.width + 1) // 2)

    @property
    def scales(self) -> tuple[float, float]:
        """PES: (s_h, s_w) = (H/h, W/w), both >= 1."""
        return self.grid.height / self.base.height, self.grid.width / self.base.width

    @property
    def patches(self) -> tuple[tuple[int, int], ...]:
        """(first row, first column) of every patch, row-major."""
        return tuple(product(self.rows, self.cols))


def make_layout(grid: Grid, config: ResDiTConfig, more: int = 0, base: Grid | None = None) -> Layout:
    """Lay out `grid` as the configuration asks, with `more` patches along each axis that has several.

    `base` is given where it is another grid's as well.
    """
    return _lay_out(grid, config, more, base)


@lru_cache(maxsize=16)  # as every model call asks for it
def _lay_out(grid: Grid, config: ResDiTConfig, more: int, base: Grid | None) -> Layout:
    base = base or base_grid(grid, config.base_tokens, config.base_shape)
    return Layout(
        grid=grid,
        base=base,
        rows=partition_starts(grid.height, base.height, config.overlap, more),
        cols=partition_starts(grid.width, base.width, config.overlap, more),
    )


def layouts_in_turn(grid: Grid, config: ResDiTConfig, base: Grid | None = None) -> tuple[Layout, ...]:
    """The layouts that the steps of a run take in turn.

    With `borders` "moving" (ours) there are two, the second with one more patch along each axis, so that most borders
    lie elsewhere in every other step.
    """
    usual = make_layout(grid, config, 0, base)
    return (usual, make_layout(grid, config, 1, base)) if config.borders == "moving" else (usual,)
