"""Rows of what several devices save and send for it: counted on tensors without data, the speed-up timed on GPUs."""

from __future__ import annotations

import os
import statistics
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch._subclasses.fake_tensor import FakeTensorMode, unset_fake_temporarily

from ... import BALANCED
from ...hosts.diffusers.parallel import enable_parallelism
from ...method.phases import Phase
from . import flux
from .counted import GIGABYTE, flops
from .counters import SentBytes
from .table import Row
from .whole import run_time

DEVICES, PIXELS = (2, 4, 8), 4096
BLOCKS, REPEATS = (1, 1), 57 / 2  # FLUX.1 has 19 and 38 blocks; both kinds exchange the same
SPEED_UP = "denoising in 35 steps, 4K, Balanced: one GPU / {} GPUs"


@contextmanager
def imagined_group(count: int) -> Iterator[None]:
    """A group of so many processes, of which this is the first and the others are not there: nothing is sent."""
    import torch.distributed as dist
    from torch.testing._internal.distributed.fake_pg import FakeStore

    dist.init_process_group("fake", rank=0, world_size=count, store=FakeStore())
    try:
        yield
    finally:
        dist.destroy_process_group()


def by_heads(transformer: torch.nn.Module, count: int) -> None:
    """Have so many processes share the heads."""
    from diffusers import ContextParallelConfig

    with unset_fake_temporarily():  # the mesh of processes has data
        enable_parallelism(transformer, ContextParallelConfig(ulysses_degree=count))


def work_and_bytes(call: Callable[[], object]) -> tuple[int, float]:
    """Operations of a call of these blocks, and the bytes that a process sends in one of FLUX.1's."""
    with SentBytes() as sent:
        operations = sum(flops(call))
    return operations, REPEATS * sent.exchanged + sent.gathered


def counted_rows(pixels: int = PIXELS) -> list[Row]:
    """Bytes sent and operations of one of several devices, from the code that runs there."""
    found = []
    with FakeTensorMode(allow_non_fake_inputs=True), torch.inference_mode():
        alone = flux.model("cpu", BLOCKS)
        one = sum(steps * sum(flops(call)) for steps, _, call in flux.calls(alone, BALANCED, pixels, "cpu"))
        for count in DEVICES:
            with imagined_group(count):
                transformer = flux.model("cpu", BLOCKS)
                by_heads(transformer, count)
                ((_, _, plain),) = flux.calls(transformer, None, pixels, "cpu")
                calls = flux.calls(transformer, BALANCED, pixels, "cpu")
                counts = [(steps, phase, *work_and_bytes(call)) for steps, phase, call in calls]
                _, plainly = work_and_bytes(plain)
            fused = next(sent for _, phase, _, sent in counts if phase is Phase.FUSED)
            share = sum(steps * work for steps, _, work, _ in counts) / one
            mean = sum(steps * sent for steps, _, _, sent in counts) / flux.STEPS
            on = f"4K, {count} devices"
            found += [
                Row(f"bytes sent in a fused step, {on}: Balanced / plain Ulysses", "1.00", fused / plainly),
                Row(f"sent per device and fused step, {on}", "", fused / GIGABYTE, unit=" GB"),
                Row(f"sent per device and step, mean of 35, {on}", "", mean / GIGABYTE, unit=" GB"),
                Row(f"FLOPs per device of 35 steps, {on}, Balanced / on one", f"<= {1.05 / count:.2f}", share),
            ]
    return found


def timed_rows(device: str) -> list[Row]:
    """The speed-up of the processes that torchrun has started on as many GPUs."""
    count = int(os.environ.get("WORLD_SIZE", "1"))
    if device != "cuda" or count == 1:
        how = "needs several GPUs: `torchrun --nproc-per-node N -m resdit_ext benchmark --parallel --device cuda`"
        return [Row(SPEED_UP.format("N"), "", None, how=how)]
    from ...generate.processes import processes

    with processes() as here, torch.inference_mode():
        transformer = flux.model(str(here.device))
        alone = run_time(flux.calls(transformer, BALANCED, PIXELS, str(here.device)), device)
        by_heads(transformer, count)
        together = run_time(flux.calls(transformer, BALANCED, PIXELS, str(here.device)), device)
        speed_ups = here.all_of(alone / together)
    spread = min(speed_ups), max(speed_ups)
    return [Row(SPEED_UP.format(count), "", statistics.median(speed_ups), spread, how=f"timed, {count} GPUs")]


def rows(device: str) -> list[Row]:
    """All of them."""
    return [*counted_rows(), *timed_rows(device)]
