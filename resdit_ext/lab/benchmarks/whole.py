"""Rows that need a GPU: whole denoising runs of a full-size FLUX with random weights, and their peak memory."""

from __future__ import annotations

import statistics

import torch

from . import flux
from .counted import GIGABYTE
from .table import Row, seconds

AIMS = {"Paper": "<= 0.80", "Scaled positions": "", "Scaled positions, fastest": "<= 0.55", "Balanced": "<= 0.45"}
PIXELS, ROUNDS = 4096, 3
WHAT = "denoising in 35 steps, 4K, {} / plain"
MEMORY = "peak memory above plain, 4K, measured, {}"


def run_time(calls: flux.Calls, device: str) -> float:
    """Seconds of a run's 35 steps: the median time of a call of each phase, times its steps."""
    total = 0.0
    for steps, _, call in calls:
        call()
        total += steps * statistics.median(seconds(call, device) for _ in range(ROUNDS))
    return total


def peak(calls: flux.Calls) -> int:
    """Most bytes allocated during any of the calls."""
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    for _, _, call in calls:
        call()
    return torch.cuda.max_memory_allocated()


def rows(device: str) -> list[Row]:
    """Time and memory against plain, or what is left to measure where there is no GPU."""
    if device != "cuda":
        how = "needs `--device cuda`"
        found = [Row(WHAT.format(name), aim, None, how=how) for name, aim in AIMS.items()]
        return [*found, Row(MEMORY.format("Balanced"), "<= 1.0", None, unit=" GB", how=how)]
    with torch.inference_mode():
        transformer = flux.model(device)
        plain = flux.calls(transformer, None, PIXELS, device)
        time, most, found = run_time(plain, device), peak(plain), []
        for name, config in flux.SETTINGS.items():
            calls = flux.calls(transformer, config, PIXELS, device)
            found.append(Row(WHAT.format(name), AIMS[name], run_time(calls, device) / time, how="timed, cuda"))
            above = (peak(calls) - most) / GIGABYTE
            found.append(Row(MEMORY.format(name), "<= 1.0", above, unit=" GB", how="allocator, cuda"))
    return found
