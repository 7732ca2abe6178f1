"""The global branch on pooled tokens (speed "fast"), not of the paper: means of blocks of p x p image tokens, and back.

The global branch owes the picture its layout, a band far below what single tokens can carry. Its queries, keys and
values are averaged over blocks, at the mean of the blocks' positions. Picking every p-th token instead folds the
tokens' own noise into the band, and costs texture in the lab.
"""

from __future__ import annotations

import math

import torch
from einops import rearrange
from torch import Tensor

from .layout import Grid
from .lowpass import along_axes, own_precision

POOL = 2  # tokens a side of a block


def averaging_matrix(n: int, p: int) -> Tensor:
    """(ceil(n/p), n) float64: row i is the mean of tokens p*i to p*(i+1), the last block ending with the signal."""
    block = torch.arange(n) // p
    member = (block == torch.arange(-(-n // p))[:, None]).double()
    return member / member.sum(1, keepdim=True)


def cosine_basis(n: int, cutoff: float) -> Tensor:
    """(n, m) float64 columns cos(pi k (i + 1/2) / n) of at most `cutoff` cycles per token.

    The cosines of a signal mirrored at its ends: unlike Fourier's they have no wrap-around between opposite edges.
    """
    k = torch.arange(min(n, math.floor(2 * n * cutoff + 1e-9) + 1), dtype=torch.float64)
    return torch.cos(math.pi * (torch.arange(n, dtype=torch.float64)[:, None] + 0.5) * k / n)


def recovery_matrix(n: int, p: int, cutoff: float) -> Tensor:
    """(n, ceil(n/p)) float64 from block means to the band-limited signal that comes closest to having them.

    B pinv(A B) with the basis B and the averages A; exact for signals in the band while that is below 1/(2p).
    """
    basis = cosine_basis(n, cutoff)
    return basis @ torch.linalg.pinv(averaging_matrix(n, p) @ basis)


def coarse_grid(grid: Grid, p: int = POOL) -> Grid:
    """The blocks of p x p tokens of a grid, those at the far edges smaller."""
    return Grid(-(-grid.height // p), -(-grid.width // p))


class Pooling:
    """Means over blocks of p x p tokens of one grid, and the way back below a cut-off for each axis."""

    def __init__(self, grid: Grid, p: int, cutoffs: tuple[float, float], device: torch.device | str = "cpu") -> None:
        self.grid, self.coarse = grid, coarse_grid(grid, p)
        sides = grid.height, grid.width
        self._down = [averaging_matrix(n, p).float().to(device) for n in sides]
        self._up = [recovery_matrix(n, p, cutoff).float().to(device) for n, cutoff in zip(sides, cutoffs, strict=True)]

    def means(self, x: Tensor) -> Tensor:
        """(..., H, W, C) -> (..., ceil(H/p), ceil(W/p), C)."""
        return along_axes(x, *(m.to(x.dtype) for m in self._down))

    def move_low_band(self, image: Tensor, means: Tensor) -> None:
        """Give `image` (B, H, W, C), in place, the low band of a picture whose block means (B, coarse, C) are known."""
        (B, H, W, C), (rows, cols) = image.shape, self._up
        missing = means.view(B, self.coarse.height, -1, C).to(image.dtype) - self.means(image)
        with own_precision(image):
            down = torch.matmul(rows, missing.flatten(2))
            image.view(B * H, W, C).baddbmm_(cols.expand(B * H, -1, -1), down.view(B * H, -1, C))

    def positions(self, positions: Tensor) -> Tensor:
        """Positions (H*W, 2) -> the blocks' mean positions (coarse, 2), on the CPU."""
        down = [m.cpu() for m in self._down]
        return along_axes(positions.unflatten(0, (self.grid.height, self.grid.width)), *down).flatten(0, 1)

    def tokens(self, x: Tensor, text: int) -> Tensor:
        """(B, heads, T + H*W, D) -> (B, heads, T + coarse, D), the text's tokens as they are."""
        image = rearrange(x[:, :, text:], "B heads (H W) D -> B heads H W D", H=self.grid.height)
        means = rearrange(self.means(image), "B heads h w D -> B heads (h w) D")
        return torch.cat((x[:, :, :text], means), 2)
