"""Layout steps, not of the paper: the model is called on the base grid, at the noise level that the latent has there.

Shrunk by s along both axes a latent keeps the picture's layout and has 1/s of the noise: it is what the model was
trained on, at a lower noise level. The clean latent that it sees there, enlarged, is one for the full size. A layout
step costs 1/s^2 of a call, needs no scaled positions, and leaves the sampler's own latent alone.

Middle steps, which follow where the picture is large, are the same at half its size, with the method in their call:
outlines become as straight as at that size before patches, each of which sees a small part, draw their detail.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from .layout import Grid
from .lowpass import own_precision
from .pooling import cosine_basis


def unit_cosines(n: int, m: int) -> Tensor:
    """(n, m) float64 orthonormal columns: the first m cosines of n values mirrored at their ends."""
    basis = cosine_basis(n, 0.5)[:, :m]
    return basis / basis.norm(dim=0)


def shrinking_matrix(n: int, m: int) -> Tensor:
    """(m, n) float64: n values to the m values with the same m first cosine coefficients, constants kept.

    A = sqrt(m/n) C_m C_n^T, so that A A^T = (m/n) I: white noise stays white, at the variance m/n exactly, at any ratio
    of sizes. Means over cells do that at whole ratios alone.
    """
    return unit_cosines(m, m) @ unit_cosines(n, m).T * (m / n) ** 0.5


class View:
    """What a smaller grid sees of latents (B, C, 2H, 2W), and the way back.

    Args:
        grid: the smaller one, of h x w tokens.
        before: (rows, columns) of the latent.
        after: (rows, columns) of a latent at the smaller size.
        device: where the latents live.
    """

    def __init__(
        self, grid: Grid, before: tuple[int, int], after: tuple[int, int], device: torch.device | str = "cpu"
    ) -> None:
        self.grid, self.after = grid, after
        down = [shrinking_matrix(n, m) for n, m in zip(before, after, strict=True)]
        self._down = [matrix.float().to(device) for matrix in down]
        self._up = [(matrix.T * (n / m)).float().to(device) for matrix, n, m in zip(down, before, after, strict=True)]
        self.gain = (after[0] * after[1] / (before[0] * before[1])) ** 0.5  # of the noise, by shrinking

    def shrink(self, latent: Tensor) -> Tensor:
        """(B, C, 2H, 2W) -> (B, C, 2h, 2w)."""
        return by_matrices(latent, self._down)

    def enlarge(self, latent: Tensor) -> Tensor:
        """(B, C, 2h, 2w) -> (B, C, 2H, 2W), with the same cosine coefficients."""
        return by_matrices(latent, self._up)

    def level(self, sigma: float) -> float:
        """sigma' = g sigma / (g sigma + 1 - sigma): the noise level of a latent at `sigma` after shrinking."""
        return sigma * self.gain / (sigma * self.gain + (1 - sigma))

    def noisy(self, latent: Tensor, sigma: float) -> Tensor:
        """The shrunk latent as the model knows one at `level(sigma)`: (1 - sigma') signal + sigma' noise."""
        return self.shrink(latent) / (1 - sigma + sigma * self.gain)


def view_of(grid: Grid, smaller: Grid, latent: Tensor) -> View:
    """What `smaller` sees of latents (B, C, about pH, about pW) like this one, on `grid`, p pixels to a token."""
    before = tuple(latent.shape[-2:])
    patch = max(math.ceil(n / m) for n, m in zip(before, (grid.height, grid.width), strict=True))
    return View(smaller, before, (patch * smaller.height, patch * smaller.width), latent.device)


def by_matrices(latent: Tensor, matrices: list[Tensor]) -> Tensor:
    """rows X cols^T of every channel of (B, C, H, W), computed in float32."""
    rows, cols = matrices
    with own_precision(latent):
        return (rows @ latent.float() @ cols.T).to(latent.dtype)


@dataclass(frozen=True)
class ModelCall:
    """How the model is called by whom a sampler has asked for one prediction, at one noise level.

    Attributes:
        predict: (latent, tokens=None) -> the prediction at that level; `tokens` are the indices of a patch's tokens, by
            which the host cuts to size what it passes per token (ControlNet's residuals).
        smaller: (view, its noise level) -> the call for what the view sees; what the host passes per token or latent
            pixel is brought to that size.
        velocity: True where predictions are velocities, False where they are clean latents.
    """

    predict: Callable[..., Tensor]
    smaller: Callable[[View, float], ModelCall]
    velocity: bool = False


def prediction_from(
    predict: Callable[[Tensor, float], Tensor], view: View, latent: Tensor, sigma: float, velocity: bool
) -> Tensor:
    """The prediction for `latent` (B, C, 2H, 2W) that is made on a smaller grid: x0 = E D(S x, sigma').

    D is the clean latent that the model sees, S the shrinking and E the enlarging; a velocity is v = (x - x0) / sigma.

    Args:
        predict: (latent (B, C, 2h, 2w), its noise level) -> the prediction there.
        view: of the smaller grid.
        latent: at the full size.
        sigma: its noise level.
        velocity: as `ModelCall` has it.
    """
    seen, level = view.noisy(latent, sigma), view.level(sigma)
    prediction = predict(seen, level)
    if not velocity:
        return view.enlarge(prediction)
    return (latent - view.enlarge(seen - level * prediction)) / sigma
