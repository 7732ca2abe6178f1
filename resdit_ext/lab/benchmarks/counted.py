"""Rows that need no device: attention's operations and peak memory of a full-size FLUX, on tensors without data.

One double and one single block are counted: the others repeat them one after the other, with the same operations and
the same peak.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from . import flux
from .counters import Peak, by_kind, flop_counter
from .table import Row

AIMS = {"Paper": "<= 0.67", "Balanced": "<= 1.10", "Fast": "<= 0.45", "Fastest": "<= 0.30"}
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


def rows() -> list[Row]:
    """Attention, and a control net, against their plain calls at 2K to 4K; memory on top of the plain call's at 4K."""
    found = []
    with FakeTensorMode(allow_non_fake_inputs=True), torch.inference_mode():
        transformer = flux.model("cpu", blocks=(1, 1))
        for size, pixels in SIZES.items():
            ((_, plain),) = flux.calls(transformer, None, pixels, "cpu")
            attention, linear = flops(plain)
            for name, config in flux.SETTINGS.items():
                # What the method adds around attention (low-pass, means) counts as attention's.
                ours = [(n, sum(flops(call)) - linear) for n, call in flux.calls(transformer, config, pixels, "cpu")]
                value = sum(n * count for n, count in ours) / (flux.STEPS * attention)
                aim = AIMS[name] if size == "4K" else ""
                found.append(Row(f"attention FLOPs of 35 steps, {size}, {name} / plain", aim, value))
        ((_, plain),) = flux.calls(transformer, None, 4096, "cpu")
        at_least = peak_bytes(plain)
        for name, config in flux.SETTINGS.items():
            most = max(peak_bytes(call) for _, call in flux.calls(transformer, config, 4096, "cpu"))
            above = (most - at_least) / GIGABYTE
            found.append(Row(f"peak memory above plain, 4K, bf16, {name}", "<= 1.0", above, unit=" GB"))
        for size, pixels in SIZES.items():
            counts = {name: sum(flops(call)) for name, call in flux.control_calls(pixels).items()}
            for name in ("exact", "fast"):
                value = counts[name] / counts["as it is"]
                found.append(Row(f"FLOPs of a FLUX control net, {size}, {name} / called at the full size", "", value))
    return found
