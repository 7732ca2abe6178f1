"""The processes that torchrun has started, or the one that works alone."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

import torch

from ..seams.ranks import meeting_place

PATIENCE = timedelta(minutes=30)  # while the first decodes and saves, the others wait for its next picture


@dataclass(frozen=True)
class Processes:
    """All processes of a command, seen from one of them.

    Attributes:
        count: how many there are.
        mine: which of them this is, from 0.
        device: its own.
    """

    count: int
    mine: int
    device: torch.device

    @property
    def speaks(self) -> bool:
        """True in the one that shows progress, decodes and saves."""
        return self.mine == 0

    def all_of(self, value: float) -> list[float]:
        """What every process has as `value`, in their order; each of them calls this."""
        if self.count == 1:
            return [value]
        import torch.distributed as dist

        mine = torch.tensor([value], dtype=torch.float64, device=meeting_place(None, self.device))
        found = [torch.empty_like(mine) for _ in range(self.count)]
        dist.all_gather(found, mine)
        return [float(one) for one in found]


@contextmanager
def processes() -> Iterator[Processes]:
    """Join the processes that torchrun has started, for the duration of the block; without it there is this one.

    Those that have met already go on as they are.
    """
    count, mine = int(os.environ.get("WORLD_SIZE", "1")), int(os.environ.get("RANK", "0"))
    device = torch.device("cpu")
    if torch.cuda.is_available():
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        torch.cuda.set_device(device)
    if count == 1:
        yield Processes(count, mine, device)
        return
    import torch.distributed as dist

    if dist.is_initialized():
        yield Processes(count, mine, device)
        return

    # Small things, as sizes and checksums, go by the CPU.
    dist.init_process_group("cpu:gloo,cuda:nccl" if device.type == "cuda" else "cpu:gloo", timeout=PATIENCE)
    try:
        yield Processes(count, mine, device)
    finally:
        dist.destroy_process_group()
