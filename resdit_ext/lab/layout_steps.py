"""Layout steps: the model is called on the base grid, at the noise level that the averaged latent has there.

The mean of a latent over s x s of its values keeps the picture's layout and has 1/s of the noise: it is what the model
was trained on, at a lower noise level. The estimate of the clean latent made there, enlarged, is one for the full size.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from ..method.layout import Layout
from ..method.lowpass import along_axes
from ..method.pooling import cosine_basis
from .model import to_latent, to_tokens

Velocity = Callable[[Tensor, Tensor, Tensor, int], Tensor]  # (tokens (B, H*W, C), sigma (B,), words, height) -> tokens
ENLARGE = {"nearest": "nearest-exact", "bilinear": "bilinear", "bicubic": "bicubic"}


def area_matrix(n: int, m: int) -> Tensor:
    """(m, n) float64 means over the cells [i n/m, (i+1) n/m] of n values, those that a border divides in part."""
    edge = torch.arange(n, dtype=torch.float64)
    low = torch.arange(m, dtype=torch.float64)[:, None] * n / m
    inside = torch.minimum(edge + 1, low + n / m) - torch.maximum(edge, low)
    return inside.clamp(min=0) * m / n


def unit_cosines(n: int, m: int) -> Tensor:
    """(n, m) float64 orthonormal columns: the first m cosines of n values mirrored at their ends."""
    basis = cosine_basis(n, 0.5)[:, :m]
    return basis / basis.norm(dim=0)


def cosine_matrix(n: int, m: int) -> Tensor:
    """(m, n) float64: n values to the m values with the same m first cosine coefficients, constants kept.

    As A A^T = (m/n) I, white noise stays white, at the variance m/n exactly, at any ratio.
    """
    return unit_cosines(m, m) @ unit_cosines(n, m).T * (m / n) ** 0.5


def enlarging_matrix(m: int, n: int, kind: str = "bicubic") -> Tensor:
    """(n, m) float64: m values to n by "nearest", "bilinear", "bicubic" or "cosine", constants kept."""
    if kind == "cosine":
        return cosine_matrix(n, m).T * (n / m)
    edges = {} if kind == "nearest" else {"align_corners": False}
    impulses = torch.eye(m, dtype=torch.float64)[:, None, :, None]
    return F.interpolate(impulses, size=(n, 1), mode=ENLARGE[kind], **edges)[:, 0, :, 0].T.contiguous()


def noise_gain(average: Tensor) -> float:
    """Standard deviation of averaged white noise: the root of the mean of sum_j A_ij^2 over the rows of A (m, n).

    sqrt(m/n) at whole ratios; at others it is less for an area average, whose rows also differ a little.
    """
    return float(average.square().sum(1).mean().sqrt())


def level_at_base(sigma: float, gain: float) -> float:
    """The noise level sigma' of a latent at `sigma` whose noise was multiplied by `gain`.

    sigma' / (1 - sigma') = gain sigma / (1 - sigma); with 1/s that is sigma' = sigma / (sigma + s (1 - sigma)).
    """
    return sigma * gain / (sigma * gain + 1 - sigma)


def level_at_full(level: float, scale: float) -> float:
    """The noise level whose average over the scale s has the level sigma': s sigma' / (s sigma' + 1 - sigma')."""
    return level_at_base(level, scale)


class BaseView:
    """What the base grid sees of a latent, and the way back.

    Args:
        layout: the output grid and its base grid.
        average: "area" or "cosine".
        enlarge: "nearest", "bilinear", "bicubic" or "cosine".
    """

    def __init__(self, layout: Layout, average: str = "area", enlarge: str = "bicubic") -> None:
        self.layout = layout
        sides = [
            (2 * n, 2 * m) for n, m in zip(*((g.height, g.width) for g in (layout.grid, layout.base)), strict=True)
        ]
        down = [(area_matrix if average == "area" else cosine_matrix)(n, m) for n, m in sides]
        self._down = [matrix.float() for matrix in down]
        self._up = [enlarging_matrix(m, n, enlarge).float() for n, m in sides]
        self.gain = noise_gain(down[0]) * noise_gain(down[1])

    def average(self, tokens: Tensor) -> Tensor:
        """(B, H*W, 4C) -> (B, h*w, 4C), averaged as latents."""
        return to_tokens(planes(to_latent(tokens, self.layout.grid.height), self._down))

    def enlarge(self, tokens: Tensor) -> Tensor:
        """(B, h*w, 4C) -> (B, H*W, 4C), enlarged as latents."""
        return to_tokens(planes(to_latent(tokens, self.layout.base.height), self._up))

    def estimate(self, velocity: Velocity, x: Tensor, sigma: float, words: Tensor) -> Tensor:
        """The clean latent (B, H*W, C) as the model sees it from the base grid: E (x' - sigma' v(x', sigma'))."""
        level = level_at_base(sigma, self.gain)
        seen = self.average(x) / (1 - sigma + sigma * self.gain)  # (1 - sigma') signal + sigma' noise
        v = velocity(seen, torch.full((len(x),), level), words, self.layout.base.height)
        return self.enlarge(seen - level * v)


def planes(latent: Tensor, matrices: list[Tensor]) -> Tensor:
    """Rows and columns of latents (B, C, H, W) by two matrices: (B, C, H', W')."""
    return along_axes(latent[..., None], *matrices)[..., 0]


def lowpass(tokens: Tensor, height: int, cutoff: float) -> Tensor:
    """The part of tokens (B, H*W, C) below `cutoff` cycles per token, in cosines over the whole picture."""
    grid = tokens.unflatten(1, (height, -1))
    kept = [cosine_basis(n, cutoff) for n in grid.shape[1:3]]
    rows, cols = ((basis @ torch.linalg.pinv(basis)).float() for basis in kept)
    return along_axes(grid, rows, cols).flatten(1, 2)


def with_layout_steps(velocity: Velocity, view: BaseView, until: float, low_band: float | None = None) -> Velocity:
    """`velocity` with layout steps: on the base grid alone while its noise level is above `until`.

    Args:
        velocity: the model, with the method in it or around it where it is called at the full size.
        view: of the output's layout.
        until: the noise level at the base grid, sigma', from which down the full size is called.
        low_band: cycles per token below which the clean latent of later steps too is the base grid's; None: it is not.
    """

    def stepped(x: Tensor, sigma: Tensor, words: Tensor, height: int) -> Tensor:
        level = float(sigma[0])
        layout_step = level_at_base(level, view.gain) > until
        if layout_step:
            return (x - view.estimate(velocity, x, level, words)) / level
        v = velocity(x, sigma, words, height)
        if low_band is None:
            return v
        clean = x - level * v
        return v - lowpass(view.estimate(velocity, x, level, words) - clean, height, low_band) / level

    return stepped
