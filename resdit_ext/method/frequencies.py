"""Rotary frequencies for positions beyond the trained ones: NTK and YaRN, neighbours of the paper's scaled positions.

Where PES divides positions, these keep them and slow the rotation, each frequency by a share of its own. Frequency j of
an axis of d channels is theta^(-2j/d) radians per token in training; s is the axis' scale and L0 the base grid's side.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from .config import ResDiTConfig
from .layout import Layout

Law = Callable[[int, float], Tensor]  # (channels d of an axis, theta) -> (d/2,) float64 radians per token
YARN_SCALED, YARN_NATIVE = (1.25, 0.75), (16.0, 2.0)  # turns over the base side: NTK to linear, scaled to native


def native(d: int, theta: float, dtype: torch.dtype = torch.float64, device: torch.device | str = "cpu") -> Tensor:
    """The frequencies of training, (d/2,): theta^(-2j/d) (RoFormer, eq. 15)."""
    return theta ** (-torch.arange(0, d, 2, dtype=dtype, device=device) / d)


def ntk(d: int, theta: float, s: float) -> Tensor:
    """theta s^(d/(d-2)) for theta: the highest frequency stays, the lowest is divided by s; native at s = 1."""
    return native(d, theta * s ** (d / (d - 2)))


def index_of(turns: float, d: int, theta: float, base: int) -> float:
    """Index (a fraction) of the frequency that makes so many turns over the base side; d/2 where none is so slow."""
    return d / 2 if turns <= 0 else d * math.log(base / (2 * math.pi * turns)) / (2 * math.log(theta))


def ramp(limits: tuple[float, float], d: int, theta: float, base: int) -> Tensor:
    """(d/2,) share, 1 up to the frequency of limits[0] turns, 0 from that of limits[1] on, linear between."""
    low = max(math.floor(index_of(limits[0], d, theta, base)), 0)
    high = min(math.ceil(index_of(limits[1], d, theta, base)), d - 1)
    index = torch.arange(d // 2, dtype=torch.float64)
    return 1 - ((index - low) / max(high - low, 1e-3)).clamp(0, 1)


def yarn(d: int, theta: float, s: float, base: int, pace: float = 1.0) -> Tensor:
    """YaRN by parts: slow frequencies scaled, middle ones NTK's, fast ones native; `pace` multiplies the limits.

    Native at s = 1. YaRN's own factor on the logits is not here: `ResDiTConfig.attention_scale` is in its place.
    """
    own = native(d, theta)
    if s == 1:
        return own
    scaled, fast = (tuple(pace * x for x in limits) for limits in (YARN_SCALED, YARN_NATIVE))
    some = ramp(scaled, d, theta, base)
    parts = some * ntk(d, theta, s) + (1 - some) * own / s
    kept = ramp(fast, d, theta, base)
    return kept * own + (1 - kept) * parts


def laws_of(layout: Layout, config: ResDiTConfig) -> tuple[Law, Law] | None:
    """The global branch's frequencies along rows and along columns; None where they are the model's own."""
    scales, sides = layout.scales, (layout.base.height, layout.base.width)
    if config.positions == "ntk":
        return tuple(partial(ntk, s=s) for s in scales)
    if config.positions == "yarn":
        return tuple(partial(yarn, s=s, base=base) for s, base in zip(scales, sides, strict=True))
    return None
