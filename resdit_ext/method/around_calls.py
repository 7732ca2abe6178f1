"""The paper's two branches around whole model calls: one for the whole, one for each patch (PIPE), joined.

For models whose positions are added to the tokens (SD3) a patch cannot be given positions of its own inside a block,
which the paper leaves open. A call of the model on the patch alone gives it the spacing and the context it was trained
with, in every block. As fusion (PSF) and splice (GWS) are linear and act on each channel alone, they are applied once,
to the prediction. The call for the whole is one at scaled positions (PES), or one at the base size (`layout_steps`).
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager

import torch
import torch.nn.functional as F
from torch import Tensor

from .blend import Joiner
from .config import ResDiTConfig
from .layout import Grid, Layout
from .layout_steps import ModelCall, prediction_from
from .phases import SMALLER, Phase
from .position_table import PositionTable
from .positions import maximal_grid, patch_indices
from .randomized import equidistant_positions
from .run import Run

# A rotary position only tells distances, so that a patch may start anywhere; an added one also tells what belongs there
# (sky above), but far from the trained centre it is less familiar. Half way did best in the lab (docs/evaluation.md).
ANCHOR = 0.5


def to_grid(latent: Tensor) -> Tensor:
    """(B, C, 2H, 2W) latents -> (B, H, W, 4C) tokens."""
    return F.pixel_unshuffle(latent, 2).movedim(1, -1)


def from_grid(tokens: Tensor) -> Tensor:
    """(B, H, W, 4C) tokens -> (B, C, 2H, 2W) latents."""
    return F.pixel_shuffle(tokens.movedim(-1, 1), 2)


def crop(latent: Tensor, start: tuple[int, int], base: Grid) -> Tensor:
    """The patch of a latent (B, C, 2H, 2W) that starts at a token (row, column)."""
    row, col = start
    return latent[..., 2 * row : 2 * (row + base.height), 2 * col : 2 * (col + base.width)]


class CallPlan:
    """Everything about one output size that does not depend on the latent.

    Args:
        layout: the output grid, its base grid and patches.
        config: the method's parameters.
        text: number of text tokens, which count for the logit scale.
        table: the model's position table.
        device: where the latents live.
    """

    def __init__(
        self, layout: Layout, config: ResDiTConfig, text: int, table: PositionTable, device: torch.device | str = "cpu"
    ) -> None:
        self.layout, self.config, self.device = layout, config, device
        self.table = table
        self.joiner = Joiner(layout, config, device)
        self.tokens = patch_indices(layout).to(device)
        self.logit_scale = config.logit_scale(text + layout.grid.tokens, text + layout.base.tokens)

    def global_positions(self) -> Tensor:
        """PES or RPE-2D: (1, H*W, C) float32 positions of the whole; made anew, as they are large and made in no time.

        NTK and YaRN are for positions that rotate: with them these are PES's.
        """
        if self.config.positions == "rpe-2d":
            maximal = maximal_grid(self.config)
            return self.table.in_range(*equidistant_positions(self.layout.grid, maximal), maximal, self.device)
        scales = self.layout.scales if self.config.pes else (1.0, 1.0)
        return self.table.crop(self.layout.grid, self.layout.base, scales, self.device)

    def patch_positions(self, number: int) -> Tensor:
        """PIPE: (1, h*w, C) float32 positions of a patch, its own; without PIPE its part of the whole's."""
        if self.config.pipe:
            return self.table.patch(self.layout.patches[number], self.layout, ANCHOR, self.device)
        return self.global_positions()[:, self.tokens[number]]


def resdit_prediction(
    latent: Tensor,
    plan: CallPlan,
    phase: Phase,
    predict_whole: Callable[[Tensor], Tensor],
    predict_patch: Callable[[Tensor, int], Tensor],
) -> Tensor:
    """ResDiT's prediction in place of the model's own at a size it was not trained at: PES, PIPE, PSF and GWS.

    Args:
        latent: (B, C, 2H, 2W), on the plan's grid.
        plan: made for this grid.
        phase: what this model call computes.
        predict_whole: the model on the whole latent at scaled positions (PES), or on the base grid.
        predict_patch: the model on a patch (B, C, 2h, 2w), given also its number, at its own positions (PIPE).

    Returns:
        (B, C, 2H, 2W) in the prediction's dtype. Noise, velocity and denoised latent all do: at one noise level each is
        an affine function of the others, and fusion and splice keep such functions.
    """
    whole = None if phase is Phase.LOCAL else predict_whole(latent)
    if phase is Phase.GLOBAL:
        return whole
    base, canvas = plan.layout.base, None
    for number, start in enumerate(plan.layout.patches):
        prediction = predict_patch(crop(latent, start, base).contiguous(), number)
        patch = to_grid(prediction).float()
        if canvas is None:
            canvas = plan.joiner.canvas(len(latent), patch.shape[-1])
        if whole is not None:
            patch = plan.joiner.fuse(to_grid(crop(whole, start, base)).float(), patch)
        plan.joiner.splice(canvas, patch[None], number)
    return from_grid(canvas).to(prediction.dtype)


def call_by_patches(
    run: Run,
    call: ModelCall,
    latent: Tensor,
    text: int,
    sigma: float,
    table: Callable[[], PositionTable],
    adjusted: Callable[[Tensor, float], AbstractContextManager],
) -> Tensor:
    """One prediction of a generation for `latent` (B, C, 2H, 2W); at or below the base size the model's own call.

    Unless RPE-2D's positions are on: then that call has them, as all calls on the whole have.

    Args:
        run: the generation's parameters and plans.
        call: the host's model.
        latent: the model's input.
        text: number of text tokens.
        sigma: the call's noise level.
        table: makes the model's position table.
        adjusted: a context in which the model adds these positions (1, L, C) and scales its logits.
    """
    height, width = latent.shape[-2:]
    if height % 2 or width % 2:  # the host's to refuse
        run.calls["base"] += 1
        return call.predict(latent)
    layout = run.layout(Grid(height // 2, width // 2), sigma)
    if layout.is_base and not run.begin_base_call():
        return call.predict(latent)
    phase = Phase.GLOBAL if layout.is_base else run.begin_call(sigma, layout)

    def plan_of(layout: Layout) -> CallPlan:
        def make() -> CallPlan:
            return CallPlan(layout, run.config, text, run.cached("table", table), latent.device)

        return run.cached((layout, text, str(latent.device)), make)

    def from_smaller(call: ModelCall, latent: Tensor, layout: Layout, phase: Phase, sigma: float) -> Tensor:
        smaller = run.smaller(layout, phase, sigma)
        view = run.view(layout.grid, smaller.layout.grid, latent)

        def predict(seen: Tensor, level: float) -> Tensor:
            their = call.smaller(view, level)
            if smaller.acts:
                return by_method(their, seen, smaller.layout, smaller.phase, level)
            run.calls["model calls"] += 1
            return their.predict(seen)

        return prediction_from(predict, view, latent, sigma, call.velocity)

    def by_method(call: ModelCall, latent: Tensor, layout: Layout, phase: Phase, sigma: float) -> Tensor:
        plan = plan_of(layout)

        def predict_global(whole: Tensor) -> Tensor:
            run.calls["model calls"] += 1
            with adjusted(plan.global_positions(), plan.logit_scale):
                return call.predict(whole)

        def predict_patch(patch: Tensor, number: int) -> Tensor:
            run.calls["model calls"] += 1
            with adjusted(plan.patch_positions(number), 1.0):
                return call.predict(patch, plan.tokens[number])

        def predict_at_base(whole: Tensor) -> Tensor:
            return from_smaller(call, whole, layout, Phase.LAYOUT, sigma)

        predict_whole = predict_at_base if run.config.layout == "base" and not layout.is_base else predict_global
        return resdit_prediction(latent, plan, phase, predict_whole, predict_patch)

    made = from_smaller if phase in SMALLER else by_method

    def predict(latent: Tensor) -> Tensor:
        return made(call, latent, layout, phase, sigma)

    return run.under_fresh_noise(predict, latent, layout, sigma, call.velocity)
