"""The optimizer: AdamW, with its state in 8 bits where bitsandbytes can."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from ..errors import ResDiTError


def why_not_8_bit(on_cuda: bool, divided: bool) -> str | None:
    """What an optimizer with its state in 8 bits needs and does not have, or None."""
    if not on_cuda:
        return "a CUDA device"
    if divided:
        return "a training that FSDP does not divide"
    try:
        import bitsandbytes  # noqa: F401 (whether it can be imported is the question)
    except ImportError:
        return "bitsandbytes (pip install bitsandbytes)"
    return None


def make_optimizer(
    name: str, learning: Mapping[str, nn.Parameter], rate: float, on_cuda: bool, divided: bool
) -> torch.optim.Optimizer:
    """The optimizer of one of `options.OPTIMIZERS`; raises ResDiTError where it cannot be had.

    Args:
        name: of it.
        learning: the parameters.
        rate: their learning rate.
        on_cuda: whether they are on a CUDA device.
        divided: whether FSDP divides them among processes.
    """
    given = dict(params=list(learning.values()), lr=rate, betas=(0.9, 0.99), weight_decay=0.01)
    missing = "the choice of it" if name == "adamw" else why_not_8_bit(on_cuda, divided)
    if name == "adamw-8bit" and missing is not None:
        raise ResDiTError(f"optimizer is 'adamw-8bit', which needs {missing}; or choose 'adamw'")
    if missing is not None:
        return torch.optim.AdamW(**given)
    from bitsandbytes.optim import AdamW8bit

    return AdamW8bit(**given)
