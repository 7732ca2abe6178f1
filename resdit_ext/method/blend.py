"""GWS, the paper's Gaussian-weighted splicing, after PSF, its fusion by frequency: how patches become one picture.

f(p) = sum_i w_i(p) f_i(p) / sum_i w_i(p) over the patches i that cover token p, with
w_i(p) = exp(-|p - c_i|^2 / (2 sigma^2)) about the patch's centre c_i.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .config import ResDiTConfig
from .layout import Layout
from .lowpass import fuse, lowpass_matrix


def axis_weights(length: int, patch: int, starts: tuple[int, ...], sigma: float | None) -> Tensor:
    """GWS along one axis: (N, patch) float64 weights, summing to 1 over the patches that cover a token.

    w_k(p) = exp(-(p - c_k)^2 / (2 (sigma patch)^2)) about the patch's centre c_k, divided by the sum over k. The paper
    calls its sigma empirical; here it is a share of the patch's side, and None weighs all patches alike. The
    two-dimensional Gaussian and its normaliser are products over the axes, so these two vectors are all of it.
    """
    offset = torch.arange(patch, dtype=torch.float64) - (patch - 1) / 2
    # Shifted to its maximum per token below, so that a narrow Gaussian cannot underflow to 0/0.
    log_weight = torch.zeros_like(offset) if sigma is None else -(offset**2) / (2 * (sigma * patch) ** 2)
    spread = torch.full((len(starts), length), -torch.inf, dtype=torch.float64)
    for k, start in enumerate(starts):
        spread[k, start : start + patch] = log_weight
    share = spread.softmax(0)
    return torch.stack([share[k, start : start + patch] for k, start in enumerate(starts)])


def splice_weights(layout: Layout, sigma: float | None) -> Tensor:
    """GWS: w_i(p) / sum_j w_j(p), (N, h, w, 1) float32, for every patch's tokens in the order of `layout.patches`."""
    rows = axis_weights(layout.grid.height, layout.base.height, layout.rows, sigma)
    cols = axis_weights(layout.grid.width, layout.base.width, layout.cols, sigma)
    return torch.einsum("ih,jw->ijhw", rows, cols).flatten(0, 1)[..., None].float()


def splice_into(canvas: Tensor, patches: Tensor, weights: Tensor, starts: tuple[tuple[int, int], ...]) -> None:
    """GWS: f(p) = sum_i w_i(p) f_i(p) with weights (n, h, w, 1) that are normalised already.

    Adds patches (n, B, h, w, C) into canvas (B, H, W, C) at their starts, in place.
    """
    h, w = weights.shape[1:3]
    for patch, weight, (row, col) in zip(patches, weights, starts, strict=True):
        canvas[:, row : row + h, col : col + w].addcmul_(patch, weight)


class Joiner:
    """PSF and GWS of a layout: the low-pass's matrices and the splice's weights, on a device, in float32."""

    def __init__(self, layout: Layout, config: ResDiTConfig, device: torch.device | str = "cpu") -> None:
        self.layout, self.mean = layout, config.fusion == "mean"
        self.weights = splice_weights(layout, config.splice_sigma if config.splice == "gaussian" else None).to(device)
        cutoffs = map(config.cutoff_cycles, layout.scales)
        sides = layout.base.height, layout.base.width
        self.rows, self.cols = (
            lowpass_matrix(n, cutoff).float().to(device) for n, cutoff in zip(sides, cutoffs, strict=True)
        )

    def canvas(self, batch: int, channels: int) -> Tensor:
        """Zeros (B, H, W, C) in float32, so that up to four weighted patches add up without losing bits."""
        return self.weights.new_zeros(batch, self.layout.grid.height, self.layout.grid.width, channels)

    def fuse(self, global_patch: Tensor, local_patch: Tensor) -> Tensor:
        """PSF: low band of the one, the rest of the other (..., h, w, C); their mean where PSF is left out."""
        if self.mean:
            return (global_patch + local_patch) / 2
        return fuse(global_patch, local_patch, self.rows.to(local_patch.dtype), self.cols.to(local_patch.dtype))

    def splice(self, canvas: Tensor, patches: Tensor, first: int) -> None:
        """GWS: add patches (n, B, h, w, C), numbered from `first` in the layout's order, into the canvas in place."""
        part = slice(first, first + len(patches))
        splice_into(canvas, patches.float(), self.weights[part], self.layout.patches[part])
