"""Muon on CPUs without bfloat16 products: its iteration in float32, as torch's own would be most of a step there."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.optim._muon
from torch import Tensor

from ..monkeypatch import swapped


def has_fast_bfloat16() -> bool:
    """True where the CPU multiplies in bfloat16; where it does not, that is ten times slower than in float32."""
    return torch.backends.cpu.get_cpu_capability() not in ("DEFAULT", "AVX2")


def newton_schulz(gradient: Tensor, coefficients: tuple[float, float, float], steps: int, eps: float) -> Tensor:
    """(m, n) float32: X <- a X + (b A + c A A) X with A = X X^T, `steps` times from X = G / max(|G|, eps)."""
    a, b, c = coefficients
    tall = gradient.shape[0] > gradient.shape[1]
    X = gradient.float().T if tall else gradient.float()
    X = X / X.norm().clamp(min=eps)
    for _ in range(steps):
        A = X @ X.T
        X = torch.addmm(X, torch.addmm(A, A, A, beta=b, alpha=c), X, beta=a)
    return X.T if tall else X


@contextmanager
def muon_for_this_cpu() -> Iterator[None]:
    """Have `torch.optim.Muon` iterate in float32 for the duration of the block where bfloat16 is slow."""
    if has_fast_bfloat16():
        yield
        return
    with swapped(torch.optim._muon, _zeropower_via_newtonschulz=newton_schulz):
        yield
