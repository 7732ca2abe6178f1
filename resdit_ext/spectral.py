"""Fusion of the two branches by frequency (PSF): low band from the global branch, the rest from the local one."""

from __future__ import annotations

import torch
from torch import Tensor


def lowpass_matrix(n: int, cutoff: float) -> Tensor:
    """(n, n) float64 circulant that keeps the frequencies |f| <= `cutoff` cycles per token of a length-n signal.

    D[i, j] = (1/n) sum over the kept k of cos(2 pi k (i - j) / n): what a forward FFT, a binary mask and an
    inverse FFT do along one axis, as one small real matrix.
    """
    frequency = torch.fft.fftfreq(n, dtype=torch.float64)
    kept = (frequency.abs() <= cutoff + 1e-12).double()
    row = torch.fft.ifft(kept).real
    index = torch.arange(n)
    return row[(index[:, None] - index) % n]


def lowpass(x: Tensor, rows: Tensor, cols: Tensor) -> Tensor:
    """Box low-pass D_h X D_w^T of patches x (..., h, w, C) by matrices rows (h, h) and cols (w, w)."""
    *batch, h, w, channels = x.shape
    along_width = torch.matmul(cols, x.reshape(-1, w, channels)).view(-1, h, w * channels)
    return torch.matmul(rows, along_width).view(*batch, h, w, channels)


def fuse(global_patch: Tensor, local_patch: Tensor, rows: Tensor, cols: Tensor) -> Tensor:
    """x_l + LP(x_g - x_l): F^-1(M F(x_g) + (1 - M) F(x_l)) with a box mask M, by linearity without a transform."""
    return local_patch + lowpass(global_patch - local_patch, rows, cols)
