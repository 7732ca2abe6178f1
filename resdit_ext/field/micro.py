"""The field test on a micro model of the lab: it needs a minute and no GPU, and shows that the test itself works."""

from __future__ import annotations

import itertools
import time
from dataclasses import replace

import numpy as np

from ..errors import Unsupported
from ..lab.evaluate import FIRST_SEED, prompt_of
from ..lab.heap import keep_heap
from ..lab.methods import METHODS
from ..lab.model import BASE_TOKENS, load_micro
from ..lab.pixels import PIXELS_PER_TOKEN
from ..lab.rivals import hires_pass
from ..lab.sampling import SAMPLERS, sample, sigmas_of
from ..method.layout import Grid, make_layout
from ..method.phases import make_schedule
from ..watch import Watch
from .making import Made
from .plan import HIRES, PLAIN, STRENGTH, VARIANTS, FieldOptions, Order, Scene

PREFIX = "micro-"


class MicroMaker:
    """Pictures of a micro model, of the lab's held-out prompts."""

    token = PIXELS_PER_TOKEN
    base = int(BASE_TOKENS**0.5) * PIXELS_PER_TOKEN

    def __init__(self, name: str, options: FieldOptions) -> None:
        keep_heap()
        self.model, self.options = load_micro(name.removeprefix(PREFIX)), options
        self.scenes = [Scene(prompt_of(FIRST_SEED + n), FIRST_SEED + n) for n in range(12)]

    def about(self) -> dict[str, object]:
        return {"model": f"{PREFIX}{self.model.name}", "made by": "the lab"}

    def make(self, order: Order) -> Made:
        steps, eta = self.options.steps, SAMPLERS[self.options.sampler]
        grid = Grid(order.height // self.token, order.width // self.token)
        given = self.model, [order.scene.prompt], grid, [order.scene.seed]
        began, watch = time.perf_counter(), Watch("cpu")
        if order.method in (PLAIN, HIRES) and not self.model.reaches(grid):
            raise Unsupported(f"the plain model has positions for {self.model.largest_side} tokens a side only")
        if order.method == HIRES:
            picture = hires_pass(*given, steps, eta=eta, strength=STRENGTH)[0]
            watch.mark("both passes")
        else:
            preset, changes = VARIANTS.get(order.method, (PLAIN, {}))
            config = METHODS[preset] and replace(METHODS[preset], **changes)
            levels, step = sigmas_of(steps), itertools.count()
            schedule = None
            if config is not None:
                schedule = make_schedule(config, levels, make_layout(grid, config).middle is not None)

            def tick() -> None:
                level = levels[next(step)]
                watch.mark(PLAIN if schedule is None else schedule.phase(level).value)

            picture = sample(*given, config, steps, tick, eta)[0]
        return Made((picture * 255).round().astype(np.uint8), time.perf_counter() - began, watch.parts)
