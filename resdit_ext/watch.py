"""A stopwatch that also reads the device's peak memory, for the parts of making one picture."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

import torch

GIGABYTE = 1e9


@dataclass
class Part:
    """What a part of making a picture took: the text encoders, a phase's steps, the autoencoder.

    Attributes:
        times: seconds of each step, or of each call.
        peak_gb: most memory allocated on the device, weights included; None where the device does not tell.
    """

    times: list[float] = field(default_factory=list)
    peak_gb: float | None = None


class Watch:
    """Seconds and peak memory since the last mark, kept under the names of the parts."""

    def __init__(self, device: str | torch.device) -> None:
        self.device, self.parts = torch.device(device), {}
        self.restart()

    @property
    def seconds(self) -> dict[str, float]:
        """Of every part so far."""
        return {name: sum(part.times) for name, part in self.parts.items()}

    @property
    def peak_gb(self) -> float:
        """The most of any part so far; 0 where the device does not tell."""
        return max((part.peak_gb or 0.0 for part in self.parts.values()), default=0.0)

    def restart(self) -> None:
        """Begin a part now; what was since the last mark is of none."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
            torch.cuda.reset_peak_memory_stats(self.device)
        self._since = time.perf_counter()

    def mark(self, name: str) -> None:
        """End a part, or a step of one, and begin the next."""
        part = self.parts.setdefault(name, Part())
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
            peak = torch.cuda.max_memory_allocated(self.device) / GIGABYTE
            part.peak_gb = max(peak, part.peak_gb or 0.0)
        part.times.append(time.perf_counter() - self._since)
        self.restart()
