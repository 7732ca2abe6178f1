"""Rows that need no device: attention's operations and peak memory of a full-size FLUX, on tensors without data.

One double and two single blocks are counted: the others, 18 and 36, repeat them one after the other, with the same
operations and the same peak.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from ...method.phases import SMALLER, Phase
from . import flux
from .counters import Peak, by_kind, flop_counter
from .table import Row

AIMS = {
    "Paper": "<= 0.67",
    "Scaled positions": "<= 1.10",
    "Scaled positions, fastest": "<= 0.30",
    "Balanced": "<= 0.40",
}
WHOLE_AIMS = {"Balanced": "<= 0.45"}
SIZES = {"2K": 2048, "3K": 3072, "4K": 4096}
GIGABYTE = 1e9


def flops(work: Callable[[], object]) -> tuple[int, int]:
    """Operations of (attention proper, everything else) of a model call."""
    with flop_counter() as counter:
        work()
    return by_kind(counter)


def peak_bytes(work: Callable[[], object]) -> int:
    """Most bytes alive during a call, weights and inputs aside."""
    with Peak() as peak:
        work()
    return peak.most


def operations(call: Callable[[], object], phase: Phase, linear: int) -> tuple[int, int]:
    """Operations of (attention, the whole) of a model call, `linear` of which are not attention's at the full size.

    What the method adds around attention (low-pass, means) counts as attention's.
    """
    attention, others = flops(call)
    return (attention if phase in SMALLER else attention + others - linear), attention + others


def rows() -> list[Row]:
    """Attention, all of a call, and a control net, against the plain calls at 2K to 4K; memory above theirs at 4K."""
    found = []
    with FakeTensorMode(allow_non_fake_inputs=True), torch.inference_mode():
        transformer = flux.model("cpu", blocks=(1, 2))
        for size, pixels in SIZES.items():
            ((_, _, plain),) = flux.calls(transformer, None, pixels, "cpu")
            attention, linear = flops(plain)
            plainly = flux.STEPS * np.array((attention, attention + linear))
            for name, config in flux.SETTINGS.items():
                calls = flux.calls(transformer, config, pixels, "cpu")
                ours = sum(n * np.array(operations(call, phase, linear)) for n, phase, call in calls) / plainly
                for what, value, aims in zip(("attention", "all"), ours, (AIMS, WHOLE_AIMS), strict=True):
                    aim = aims.get(name, "") if size == "4K" else ""
                    found.append(Row(f"{what} FLOPs of 35 steps, {size}, {name} / plain", aim, float(value)))
        ((_, _, plain),) = flux.calls(transformer, None, 4096, "cpu")
        at_least = peak_bytes(plain)
        for name, config in flux.SETTINGS.items():
            most = max(peak_bytes(call) for _, _, call in flux.calls(transformer, config, 4096, "cpu"))
            above = (most - at_least) / GIGABYTE
            found.append(Row(f"peak memory above plain, 4K, bf16, {name}", "<= 1.0", above, unit=" GB"))
        for size, pixels in SIZES.items():
            counts = {name: sum(flops(call)) for name, call in flux.control_calls(pixels).items()}
            for name in ("exact", "fast"):
                value = counts[name] / counts["as it is"]
                found.append(Row(f"FLOPs of a FLUX control net, {size}, {name} / called at the full size", "", value))
    return found
