"""Rows that need a GPU: whole denoising runs of a full-size FLUX with random weights, and their peak memory."""

from __future__ import annotations

import statistics
from dataclasses import dataclass, replace

import torch

from . import flux
from .counted import GIGABYTE, peak_bytes
from .table import Row, seconds

AIMS = {"Paper": "<= 0.80", "Scaled positions": "", "Scaled positions, fastest": "<= 0.55", "Balanced": "<= 0.45"}
ROUNDS = 3
WHAT = "denoising in 35 steps, {}, {} / plain"
MEMORY = "peak memory above plain, {}, measured, {}"


@dataclass(frozen=True)
class Whole:
    """What is run.

    Attributes:
        name: in the table.
        pixels: a side of the picture.
        base: pixels a side of the base size.
        blocks, heads: of the model, of FLUX.1-dev's widths.
    """

    name: str
    pixels: int
    base: int
    blocks: tuple[int, int]
    heads: int


FULL = Whole("4K", 4096, 1024, (19, 38), flux.HEADS)
#: Small enough for a CPU, to see that the rows work before a GPU is at hand.
TRIAL = Whole("a trial at 256 pixels of a narrow model", 256, 64, (1, 1), 1)


def run_time(calls: flux.Calls, device: str) -> float:
    """Seconds of a run's 35 steps: the median time of a call of each phase, times its steps."""
    total = 0.0
    for steps, _, call in calls:
        call()
        total += steps * statistics.median(seconds(call, device) for _ in range(ROUNDS))
    return total


def peak(calls: flux.Calls, device: str) -> int:
    """Most bytes allocated during any of the calls; on a CPU weights and inputs aside."""
    if device == "cpu":
        return max(peak_bytes(call) for _, _, call in calls)
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    for _, _, call in calls:
        call()
    return torch.cuda.max_memory_allocated()


def rows(device: str, trial: bool = False) -> list[Row]:
    """Time and memory against plain, or what is left to measure where there is no GPU.

    Args:
        device: "cuda" or "cpu".
        trial: run a small model instead, on any device.
    """
    whole = TRIAL if trial else FULL
    if device != "cuda" and not trial:
        how = "needs `--device cuda`"
        found = [Row(WHAT.format(whole.name, name), aim, None, how=how) for name, aim in AIMS.items()]
        return [*found, Row(MEMORY.format(whole.name, "Balanced"), "<= 1.0", None, unit=" GB", how=how)]
    tokens = (whole.base // flux.PIXELS_PER_TOKEN) ** 2
    with torch.inference_mode():
        transformer = flux.model(device, whole.blocks, whole.heads)
        plain = flux.calls(transformer, None, whole.pixels, device)
        time, most, found = run_time(plain, device), peak(plain, device), []
        for name, config in flux.SETTINGS.items():
            calls = flux.calls(transformer, replace(config, base_tokens=tokens), whole.pixels, device)
            what, aim = WHAT.format(whole.name, name), "" if trial else AIMS[name]
            found.append(Row(what, aim, run_time(calls, device) / time, how=f"timed, {device}"))
            above, aim = (peak(calls, device) - most) / GIGABYTE, "" if trial else "<= 1.0"
            found.append(Row(MEMORY.format(whole.name, name), aim, above, unit=" GB", how=f"allocator, {device}"))
    return found
