"""How long the parts of a pipeline's picture take, and how much memory."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterable

import torch

from ..method.phases import Phase
from ..method.run import Run
from ..watch import GIGABYTE, Watch

STEPS = {*(phase.value for phase in Phase), "base"}


class PictureWatch(Watch):
    """A watch of the text and of the steps of each phase.

    Args:
        run: whose calls tell a step's phase.
        device: that is waited for before the clock is read.
    """

    def __init__(self, run: Run, device: torch.device) -> None:
        super().__init__(device)
        self.run, self._calls = run, Counter(run.calls)

    def first_call(self, *_: object) -> None:
        """A hook before each call of the model: what comes before the first is the text."""
        if "text" not in self.parts:
            self.mark("text")

    def step_ended(self, _pipe: object, _step: int, _timestep: object, kept: dict) -> dict:
        """A pipeline's callback after each step."""
        done = self.run.calls - self._calls
        self._calls = Counter(self.run.calls)
        self.mark(next((name for name in done if name in STEPS), "base"))
        return kept


def peak_bytes(device: torch.device, watches: Iterable[Watch]) -> int:
    """The most memory that was in use: the device's, or on a CPU the process's; 0 where the system does not tell."""
    if device.type == "cuda":
        return round(GIGABYTE * max((watch.peak_gb for watch in watches), default=0.0))
    try:
        import resource
    except ImportError:  # Windows
        return 0
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else 1024 * most
