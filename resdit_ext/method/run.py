"""One generation under the paper's schedule: its parameters and noise levels, what it made, and what happened in it."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from .config import ResDiTConfig
from .fresh_noise import FreshNoise
from .layout import Grid, Layout, layouts_in_turn
from .layout_steps import View, view_of
from .phases import Phase, Schedule, fault_in, make_schedule, usable_sigmas
from .shift import shifted_sigmas

logger = logging.getLogger("ResDiT")
# Of the four sizes that a picture's tiles can have: views from the size and half of it, and for either plans for two
# lengths of text (guidance) and layouts.
KEPT = 44
Made = TypeVar("Made")
UNSUITABLE = "do not suit the model (try Euler with Simple)"
FRESH = "under fresh noise"  # the count of the calls in which the model did not see the sampler's latent itself
BFLOAT16 = 2**-8  # of a level, by which rounding to that type changes it at most
ROUNDING = 0.25  # of a step, by which the host may have rounded a noise level up


def steps_before(sigmas: Sequence[float], sigma: float) -> int:
    """How many steps of the list were over before a call at `sigma`.

    A step lasts from its listed noise level down to the next, so that calls in between, a second-order sampler's,
    count as its own.
    """
    begun = [i for i in range(1, len(sigmas) - 1) if sigma <= sigmas[i] + ROUNDING * (sigmas[i - 1] - sigmas[i])]
    return len(begun)


def step_in_phase(schedule: Schedule, sigmas: Sequence[float], sigma: float) -> tuple[int, int]:
    """(number, count) of the step that a call at `sigma` belongs to, among those of its phase; (0, 0) of none."""
    phase = schedule.phase(sigma)
    mine = [i for i in range(len(sigmas) - 1) if schedule.phase(sigmas[i]) is phase]
    return (min(max(steps_before(sigmas, sigma) - mine[0], 0) + 1, len(mine)), len(mine)) if mine else (0, 0)


@dataclass(frozen=True)
class SmallerCall:
    """The model's call in a layout or middle step.

    Attributes:
        layout: of its picture.
        phase: of the method in it.
        acts: whether the method has a part in it.
    """

    layout: Layout
    phase: Phase
    acts: bool


class Run:
    """State shared by the model calls of one generation; drop it and nothing is left.

    Args:
        config: the method's parameters.
        sigmas: the run's full list of noise levels, descending; a usual one where there is none.
        steps: how many steps that default list has.
        say: receives each message for the user once.
        on_step: told of every model call: its phase, the step's number within the phase, and how many the phase has.
    """

    def __init__(
        self,
        config: ResDiTConfig,
        sigmas: Sequence[float] | None = None,
        steps: int = 35,
        say: Callable[[str], None] = logger.warning,
        on_step: Callable[[str, int, int], None] | None = None,
    ) -> None:
        self.config = config
        self.fresh_noise = FreshNoise(config.fresh_noise)
        self.calls: Counter[str] = Counter()
        self._say, self._said, self._on_step = say, set(), on_step
        self._made: dict[Hashable, object] = {}
        self.set_sigmas(sigmas, steps)

    def set_sigmas(self, sigmas: Sequence[float] | None, steps: int = 35, skipped: int | None = None) -> None:
        """Read the phases' noise levels from the run's full list, of which the first `skipped` steps are not run.

        Where that number is given, a first call in another phase than the list's is reported.
        """
        values = usable_sigmas(sigmas)
        if values is None:
            if sigmas is not None:
                self.say("the sampler's list of noise levels is not a descending one; a usual one is used")
            values = shifted_sigmas(steps)
        if fault := fault_in(values):
            self.say(f"the noise levels {fault}: this sampler and schedule type {UNSUITABLE}")
        start = min(skipped or 0, len(values) - 2)  # of a list that is shorter than it was to be
        self.sigmas = values[start:]
        self._schedules = [make_schedule(self.config, values, middle) for middle in (False, True)]
        self._begins = skipped is not None

    def say(self, message: str) -> None:
        """Tell the user, once per message."""
        if message not in self._said:
            self._said.add(message)
            self._say(message)

    def not_active(self, reason: str) -> None:
        """Tell the user why the method is not used in this run, which is then the model's own altogether."""
        self.say(f"not active: {reason}")
        self.fresh_noise.stop()

    def listed(self, sigma: float) -> float:
        """The level of the list that a host has rounded to `sigma`, or `sigma` itself."""
        i = min(range(len(self.sigmas) - 1), key=lambda i: abs(self.sigmas[i] - sigma))
        near = min(ROUNDING * (self.sigmas[i] - self.sigmas[i + 1]), BFLOAT16 * sigma)
        return self.sigmas[i] if abs(self.sigmas[i] - sigma) <= near else sigma

    def under_fresh_noise(
        self, predict: Callable[[Tensor], Tensor], latent: Tensor, layout: Layout, sigma: float, velocity: bool
    ) -> Tensor:
        """The prediction for `latent` at `sigma`, above the base size as `FreshNoise.predict` makes it."""
        if layout.is_base:
            return predict(latent)

        def counted(seen: Tensor) -> Tensor:
            if seen is not latent:
                self.calls[FRESH] += 1
            return predict(seen)

        return self.fresh_noise.predict(counted, latent, self.listed(sigma), velocity)

    @torch.compiler.disable  # a compiled model would trace into the cache, and warn of it
    def layout(self, grid: Grid, sigma: float = 1.0, base: Grid | None = None) -> Layout:
        """The layout of `grid` under this run's configuration, in the step that a call at `sigma` belongs to."""
        layouts = layouts_in_turn(grid, self.config, base)
        return layouts[steps_before(self.sigmas, sigma) % len(layouts)]

    def schedule(self, layout: Layout) -> Schedule:
        """The phases of a picture's steps."""
        return self._schedules[layout.middle is not None]

    def smaller(self, layout: Layout, phase: Phase, sigma: float) -> SmallerCall:
        """The call that a layout or middle step of a picture makes in place of one on the whole."""
        if phase is Phase.MIDDLE:
            return SmallerCall(self.layout(layout.middle, sigma, layout.base), Phase.FUSED, True)
        return SmallerCall(layout.at_base, Phase.GLOBAL, self.config.acts_at_base)

    def view(self, grid: Grid, smaller: Grid, latent: Tensor) -> View:
        """What a smaller grid sees of latents like this one, on `grid`."""
        key = "view", smaller, latent.shape[-2:], str(latent.device)
        return self.cached(key, lambda: view_of(grid, smaller, latent))

    def begin_call(self, sigma: float, layout: Layout) -> Phase:
        """Count the model call at `sigma`, tell `on_step` of it, and return its phase.

        A value that no flow model has is clamped and reported.
        """
        schedule, begins, self._begins = self.schedule(layout), self._begins, False
        phase, expected = schedule.phase(sigma), schedule.phase(self.sigmas[0])
        if schedule.is_out_of_range(sigma):
            self.say(f"noise level {sigma:g} is outside 0 to {schedule.top:g}; the nearest is used")
        elif begins and phase is not expected:
            self.say(
                f"the first step is at noise level {sigma:g}, in the {phase.value} phase, and not at "
                f"{self.sigmas[0]:g}, in the {expected.value} phase: this sampler and schedule type {UNSUITABLE}"
            )
        self.calls[phase.value] += 1
        if self._on_step is not None:
            self._on_step(phase.value, *step_in_phase(schedule, self.sigmas, sigma))
        return phase

    def begin_base_call(self) -> bool:
        """Count a model call at or below the base size, and return whether the method has a part in it."""
        acts = self.config.acts_at_base
        self.calls[Phase.GLOBAL.value if acts else "base"] += 1
        return acts

    def cached(self, key: Hashable, make: Callable[[], Made]) -> Made:
        """What `make` returned for the key; of more than KEPT the one that was not used for the longest is dropped."""
        made = self._made.pop(key) if key in self._made else make()  # which may itself ask for something cached
        self._made[key] = made
        if len(self._made) > KEPT:
            self._made.pop(next(iter(self._made)))
        return made

    def release(self) -> None:
        """Drop what was made; asked for again it is made again."""
        self._made.clear()
        self.fresh_noise.forget()
