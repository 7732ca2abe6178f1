"""How long the parts of a picture take, and how much memory."""

from __future__ import annotations

import sys
import time
from collections import Counter

import torch

from ..method.phases import Phase
from ..method.run import Run

STEPS = {*(phase.value for phase in Phase), "base"}


class Stopwatch:
    """Seconds of a picture: for the text, for the steps of each phase, and for decoding.

    Args:
        run: whose calls tell a step's phase.
        device: that is waited for before the clock is read.
    """

    def __init__(self, run: Run, device: torch.device) -> None:
        self.run, self.device = run, device
        self.seconds: dict[str, float] = {}
        self._calls, self._last = Counter(run.calls), time.perf_counter()

    def lap(self, name: str) -> None:
        """What was done since the last lap was this."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        now = time.perf_counter()
        self.seconds[name] = self.seconds.get(name, 0.0) + now - self._last
        self._last = now

    def first_call(self, *_: object) -> None:
        """A hook before each call of the model: what comes before the first is the text."""
        if "text" not in self.seconds:
            self.lap("text")

    def step_ended(self, _pipe: object, _step: int, _timestep: object, kept: dict) -> dict:
        """A pipeline's callback after each step."""
        done = self.run.calls - self._calls
        self._calls = Counter(self.run.calls)
        self.lap(next((name for name in done if name in STEPS), "base"))
        return kept


def peak_bytes(device: torch.device) -> int:
    """The most memory that was in use: the device's, or on a CPU the process's; 0 where the system does not tell."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        import resource
    except ImportError:  # Windows
        return 0
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else 1024 * most
