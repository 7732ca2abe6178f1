"""The paper's schedule: of 35 steps 1-10 compute the global branch alone, 11-20 both, fused, and 21-35 the local one.

For another number of steps the same shares, kept as noise levels: which branch a call needs follows from its level
alone, without counters, so that any sampler may call in any order. Steps at smaller sizes, ours, which take the place
of the first part, are ended by a noise level itself, as noise decides what can be seen.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

from .config import ResDiTConfig
from .shift import DEFAULT_SHIFT, shifted_sigmas

AT_FULL_SIZE = 8  # steps that no middle step takes: of fewer it takes the texture (docs/experiments.md)
LOWEST_START = 0.7  # the hosts' "DDIM" schedule type starts at .75 in two steps; lists for other models at .26 or 9999


class Phase(Enum):
    """What a model call computes: a part of the paper's schedule."""

    LAYOUT = "layout"
    MIDDLE = "middle"
    GLOBAL = "global"
    FUSED = "fused"
    LOCAL = "local"


SMALLER = (Phase.LAYOUT, Phase.MIDDLE)  # whose calls are on a smaller grid


def level_after(sigmas: Sequence[float], steps: int) -> float:
    """The noise level below which the first `steps` steps are over.

    Half way between the last step before and the first step after it, so that rounding in the host (bfloat16
    timesteps) cannot push a step over the boundary; +inf where no step comes before it, -inf where none after.
    """
    if steps <= 0:
        return math.inf
    if steps >= len(sigmas) - 1:
        return -math.inf
    return (sigmas[steps - 1] + sigmas[steps]) / 2


def boundary(sigmas: Sequence[float], share: float) -> float:
    """The noise level below which the first `share` of the steps, rounded up, is over."""
    return level_after(sigmas, math.ceil(share * (len(sigmas) - 1) - 1e-9))


def levels_between(sigmas: Sequence[float], start: float, end: float) -> tuple[float, float]:
    """(highest, lowest) noise levels of the steps that lie wholly between two shares of the run."""
    return boundary(sigmas, start), level_after(sigmas, math.floor(end * (len(sigmas) - 1) + 1e-9))


@dataclass(frozen=True)
class Schedule:
    """Phases as noise levels: the first above `first_end`, middle above `middle_end`, then fused, then local."""

    first_end: float
    fused_end: float
    top: float = 1.0
    first: Phase = Phase.GLOBAL
    middle_end: float = math.inf

    def phase(self, sigma: float) -> Phase:
        """The phase of a model call at `sigma`; NaN counts as the top, values outside [0, top] as the nearest."""
        sigma = self.top if math.isnan(sigma) else min(max(sigma, 0.0), self.top)
        if sigma > self.first_end:
            return self.first
        if sigma > self.middle_end:
            return Phase.MIDDLE
        return Phase.FUSED if sigma > self.fused_end else Phase.LOCAL

    def steps(self, sigmas: Sequence[float]) -> dict[Phase, int]:
        """How many first-order steps along a list of noise levels fall in each phase."""
        phases = [self.phase(sigma) for sigma in sigmas[:-1]]
        return {phase: phases.count(phase) for phase in Phase}

    def is_out_of_range(self, sigma: float) -> bool:
        """True where `phase` had to clamp, which a host should report once."""
        return not -1e-6 <= sigma <= self.top * (1 + 1e-3)


def usable_sigmas(sigmas: Sequence[float] | None) -> tuple[float, ...] | None:
    """The run's list as floats where it is a descending list of at least two finite numbers, else None."""
    if sigmas is None:
        return None
    values = tuple(map(float, sigmas.tolist() if hasattr(sigmas, "tolist") else sigmas))
    descending = all(a >= b for a, b in itertools.pairwise(values))
    return values if len(values) >= 2 and all(map(math.isfinite, values)) and descending else None


def fault_in(sigmas: Sequence[float]) -> str | None:
    """What makes a full list of noise levels unfit for a flow model, fit to follow "the noise levels"; None if fit.

    Such a model begins with noise alone, which is level 1, and a step that begins at 0 divides by it.
    """
    top = max(sigmas)
    if not LOWEST_START <= top <= 1 + 1e-3:
        return f"start at {top:g}, where a flow model's start at 1"
    if sigmas[-2] <= 0:
        return "are 0 before the last step, which makes the picture black"
    return None


def make_schedule(config: ResDiTConfig, sigmas: Sequence[float], middle: bool = False) -> Schedule:
    """Turn the configuration's shares of steps into noise levels of the run's full list `sigmas`.

    `middle`: whether the picture is one that has steps at half the size.
    """
    fused_end, top = boundary(sigmas, config.fused_until), max(sigmas)
    if config.layout == "scaled":
        return Schedule(boundary(sigmas, config.global_until), fused_end, top)

    def steps_above(level: float) -> int:
        return sum(sigma > level for sigma in sigmas[:-1])

    layout_steps, middle_steps = steps_above(config.layout_until), 0
    if middle:
        at_most = max(layout_steps, len(sigmas) - 1 - AT_FULL_SIZE)
        middle_steps = min(steps_above(config.middle_until), at_most)
    layout_end, middle_end = (level_after(sigmas, steps) for steps in (layout_steps, middle_steps))
    return Schedule(layout_end, fused_end, top, Phase.LAYOUT, middle_end)


def steps_per_phase(
    config: ResDiTConfig, steps: int, skipped: int = 0, mu: float = DEFAULT_SHIFT, middle: bool = False
) -> dict[Phase, int]:
    """How many of `steps` first-order steps, the first `skipped` left out, fall in each phase at the shift `mu`.

    `middle` is `make_schedule`'s.
    """
    schedule = make_schedule(config, sigmas := shifted_sigmas(steps, mu), middle)
    return schedule.steps(sigmas[skipped:])
