"""PES and PIPE for positions that are added to the tokens (SD3): the model's own table, read at any index.

Only the indices change: by PES to i / s, counted from the first of the base grid's crop in the middle of the table.
"""

from __future__ import annotations

import math
from itertools import product

import torch
from torch import Tensor

from .layout import Grid, Layout


def unwrapped(angles: Tensor) -> Tensor:
    """Angles (N, C) with whole turns added, so that no step along the first axis exceeds half a turn."""
    steps = (angles.diff(dim=0) + math.pi) % (2 * math.pi) - math.pi
    return torch.cat((angles[:1], angles[:1] + steps.cumsum(0)))


def angle_law(profile: Tensor, tolerance: float) -> Tensor | None:
    """(2, C/2) float64 slope and offset of the angles of a profile (N, C) of [sines, cosines], or None if it is none.

    Every angle is an affine function of the index, so a least-squares line through the N unwrapped angles recovers it
    more precisely than the profile is stored.
    """
    angles = unwrapped(torch.atan2(*profile.double().chunk(2, -1)))
    index = torch.arange(len(profile), dtype=torch.float64)
    law = torch.linalg.lstsq(torch.stack((index, torch.ones_like(index)), -1), angles).solution
    return law if (along(law, index) - profile.double()).abs().max() <= tolerance else None


def along(law: Tensor, index: Tensor) -> Tensor:
    """(n, C) float64 [sines, cosines] of a law (2, C/2) at the indices (n,)."""
    angles = index[:, None] * law[0] + law[1]
    return torch.cat((angles.sin(), angles.cos()), -1)


class PositionTable:
    """A stored table (N, N, C) of added positions: half its channels tell the column, half the row.

    Where the table is sines and cosines of the index, as SD3's, it is evaluated from their recovered angles: exact to
    the precision it is stored in (5e-5 for float16, 6e-4 for bfloat16, 3e-2 for float8), beyond its ends too. Any other
    table is interpolated linearly between its entries and held at its ends, with an error of at most an eighth of its
    second difference along each axis.
    """

    def __init__(self, stored: Tensor) -> None:
        self.stored = stored.detach()
        self.size, half = len(stored), stored.shape[-1] // 2
        tolerance = 0.01 + torch.finfo(stored.dtype).eps
        across, down = self.stored[0, :, :half].float(), self.stored[:, 0, half:].float()
        # Row by row, as the whole in float32 is large, and read back once: every reading waits for the device.
        errors = [
            torch.maximum((row[:, :half].float() - across).abs().max(), (row[:, half:].float() - down[i]).abs().max())
            for i, row in enumerate(self.stored)
        ]
        separable = bool(torch.stack(errors).max() <= tolerance)
        laws = (angle_law(down.cpu(), tolerance), angle_law(across.cpu(), tolerance)) if separable else (None, None)
        self.laws = laws if all(law is not None for law in laws) else None

    def at(self, rows: Tensor, cols: Tensor, device: torch.device | str = "cpu") -> Tensor:
        """(H, W, C) float32 positions at the indices rows (H,) and cols (W,), fractions allowed."""
        rows, cols = rows.double(), cols.double()
        if self.laws is not None:
            down, across = (along(*pair).float().to(device) for pair in zip(self.laws, (rows, cols), strict=True))
            shape = len(rows), len(cols), -1
            return torch.cat((across[None].expand(shape), down[:, None].expand(shape)), -1)
        read = 0.0  # one corner after the other, where the table lies: it is large, and in whatever type it is stored
        for (y, weight_y), (x, weight_x) in product(self._neighbours(rows), self._neighbours(cols)):
            weights = (weight_y[:, None] * weight_x)[..., None].float().to(self.stored.device)
            read = read + self.stored[y[:, None], x].float() * weights
        return read.to(device)

    def _neighbours(self, index: Tensor) -> list[tuple[Tensor, Tensor]]:
        """The entries on both sides of indices (n,) held at the table's ends, and their weights."""
        index = index.clamp(0, self.size - 1)
        low = index.floor()
        high = (low + 1).clamp(max=self.size - 1)
        return [(low.long(), 1 - (index - low)), (high.long(), index - low)]

    def patch(
        self, start: tuple[int, int], layout: Layout, anchor: float, device: torch.device | str = "cpu"
    ) -> Tensor:
        """PIPE: (1, h*w, C) float32 positions of the patch that starts at a token, one index a token as in training.

        With `anchor` 0 they are the base crop's, the same for every patch. With 1 the patch's centre stands at the
        index that scaled positions give it (PES), so that it knows its place in the picture. In between: in between.
        """
        indices = []
        for first, h, s in zip(start, (layout.base.height, layout.base.width), layout.scales, strict=True):
            middle = (h - 1) / 2
            shift = anchor * ((first + middle) / s - middle)
            indices.append((self.size - h) // 2 + shift + torch.arange(h, dtype=torch.float64))
        return self.at(*indices, device).flatten(0, 1)[None]

    def crop(
        self, grid: Grid, base: Grid, scales: tuple[float, float] = (1.0, 1.0), device: torch.device | str = "cpu"
    ) -> Tensor:
        """PES: (1, H*W, C) float32 positions of a token grid, index `first + i / s`, `first` of the centred base crop.

        With `grid == base` and no scales these are the model's own positions at the base size.
        """
        sides = (grid.height, scales[0]), (grid.width, scales[1])
        rows, cols = (torch.arange(n, dtype=torch.float64) / s for n, s in sides)
        return self.in_range(rows, cols, base, device)

    def in_range(self, rows: Tensor, cols: Tensor, maximal: Grid, device: torch.device | str = "cpu") -> Tensor:
        """(1, H*W, C) float32 positions at rows (H,) and columns (W,) of a range centred in the table, as RPE-2D's.

        With the base grid as the range, and all of its rows and columns, these are the model's own.
        """
        rows = (self.size - maximal.height) // 2 + rows
        cols = (self.size - maximal.width) // 2 + cols
        return self.at(rows, cols, device).flatten(0, 1)[None]
