"""PSF, the paper's fusion in the frequency domain: low band from the global branch, the rest from the local one.

x = F^-1(M . F(x_g) + (1-M) . F(x_l)) for every patch, with a binary mask M of the low frequencies. It is linear, so
that x = x_l + LP(x_g - x_l) with the low-pass LP(X) = F^-1(M . F(X)), which for a box M is two small real matrices.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

AUTOCAST = ("cpu", "cuda", "xpu")  # in every version of torch that is supported


def lowpass_matrix(n: int, cutoff: float) -> Tensor:
    """PSF's F^-1(M . F(x)) along one axis: (n, n) float64 circulant that keeps |f| <= `cutoff` cycles per token.

    D[i, j] = (1/n) sum over the kept k of cos(2 pi k (i - j) / n).
    """
    frequency = torch.fft.fftfreq(n, dtype=torch.float64)
    kept = (frequency.abs() <= cutoff + 1e-12).double()
    row = torch.fft.ifft(kept).real
    index = torch.arange(n)
    return row[(index[:, None] - index) % n]


def own_precision(x: Tensor) -> AbstractContextManager:
    """A context whose matrix products have their tensors' type, where autocast would take one of fewer bits."""
    return torch.autocast(x.device.type, enabled=False) if x.device.type in AUTOCAST else nullcontext()


def along_axes(x: Tensor, rows: Tensor, cols: Tensor) -> Tensor:
    """rows X cols^T of maps x (..., h, w, C) by matrices rows (h', h) and cols (w', w): (..., h', w', C)."""
    *batch, h, w, channels = x.shape
    # Down first: a map inside a longer sequence is then read where it lies.
    with own_precision(x):
        down = torch.matmul(rows, x.reshape(-1, h, w * channels))
        across = torch.matmul(cols, down.view(-1, w, channels))
    return across.view(*batch, len(rows), len(cols), channels)


def fuse(global_patch: Tensor, local_patch: Tensor, rows: Tensor, cols: Tensor) -> Tensor:
    """PSF: F^-1(M . F(x_g) + (1-M) . F(x_l)) with a box mask M, as x_l + LP(x_g - x_l), without a transform.

    LP(X) = D_h X D_w^T with the low-pass matrices rows (h, h) and cols (w, w), on patches (..., h, w, C).
    """
    h, w, channels = local_patch.shape[-3:]
    local = local_patch.reshape(-1, h, w * channels)
    with own_precision(local):
        across = torch.matmul(cols, (global_patch - local_patch).reshape(-1, w, channels)).view(-1, h, w * channels)
        return torch.baddbmm(local, rows.expand(len(local), -1, -1), across).view(local_patch.shape)
