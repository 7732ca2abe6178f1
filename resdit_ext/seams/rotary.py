"""WebUI models whose blocks attend to text and image together, at rotary positions.

Only attention is touched, so LoRA and quantised weights make no difference.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType

import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import Unsupported
from ..method.layout import Grid, Layout
from ..method.layout_steps import ModelCall, prediction_from
from ..method.phases import SMALLER, Phase
from ..method.run import Run
from .ways import MethodCall, RotatingAttention, Way

LEVEL_ROUNDING = 1e-3
PACKED = 2  # pixels a side of what is packed into a latent pixel that is a token


def image_ids(text: int, positions: Tensor) -> Tensor:
    """(..., T + L, 3) ids: zeros for text, then (0, row, column) from positions (..., L, 2)."""
    return F.pad(positions, (1, 0, text, 0))


@dataclass(frozen=True)
class RotaryBlocks:
    """How such a model is recognised, and where it attends.

    Attributes:
        claims: True for a model with the family's structure.
        refusal: why a model with that structure cannot be used, or None.
        ways: in which its blocks may attend; the first that their module serves is taken.
        blocks: the attributes that hold its blocks.
        embedder: the attribute that makes rotation matrices of ids; it has `axes_dim` and `theta`.
        hidden_size: channels of a model's token.
        patch: latent pixels a side of a model's token.
        highest_level: of noise; what has higher ones is another family's model of the same structure.
    """

    claims: Callable[[object], bool]
    refusal: Callable[[object], str | None] = lambda _: None
    ways: tuple[Way, ...] = (RotatingAttention(),)
    blocks: tuple[str, ...] = ("double_blocks", "single_blocks")
    embedder: str = "pe_embedder"
    hidden_size: Callable[[object], int] = lambda model: model.hidden_size
    patch: Callable[[object], int] = lambda _: 2
    highest_level: float = math.inf

    pools = True  # the fast modes have an effect
    rotates = True  # NTK and YaRN are for such positions

    def adapter(self, model: object) -> RotaryAdapter:
        """The model with the method ready to run in it; raises Unsupported with the reason."""
        if reason := self.refusal(model):
            raise Unsupported(reason)
        modules = {type(block).__module__ for name in self.blocks for block in getattr(model, name)}
        if len(modules) != 1:
            raise Unsupported(f"its blocks come from {len(modules)} modules ({', '.join(sorted(modules))}), not one")
        module = sys.modules[modules.pop()]
        faults = [way.fault(module) for way in self.ways]
        if None not in faults:
            raise Unsupported(faults[0])
        way, embedder = self.ways[faults.index(None)], getattr(model, self.embedder)
        return RotaryAdapter(self.hidden_size(model), embedder, module, way, self.patch(model), self.highest_level)


@dataclass(frozen=True)
class RotaryAdapter:
    """A loaded model of this kind.

    Attributes:
        hidden_size: channels of a token.
        embedder: makes its rotation matrices.
        module: of its blocks.
        way: in which they attend.
        patch: latent pixels a side of a token.
        highest_level: of noise.
    """

    hidden_size: int
    embedder: nn.Module
    module: ModuleType
    way: Way
    patch: int = 2
    highest_level: float = math.inf

    def grid(self, latent: Tensor) -> Grid:
        """The token grid of a latent (B, C, H, W) or (B, C, 1, H, W); an odd side is padded by the model."""
        return Grid(-(-latent.shape[-2] // self.patch), -(-latent.shape[-1] // self.patch))

    def smaller_step(
        self, run: Run, layout: Layout, phase: Phase, call: ModelCall, latent: Tensor, text: int, sigma: float
    ) -> Tensor:
        """A call on a smaller grid; where later steps will be refused, which its attention tells, the model's own.

        A latent whose pixels are whole tokens is shrunk as the latent of 2x2 pixels a token that was packed in it.
        """
        packed, smaller = self.patch == 1, run.smaller(layout, phase, sigma)
        spread = F.pixel_shuffle(latent, PACKED) if packed else latent
        view = run.view(layout.grid, smaller.layout.grid, spread)

        def predict(seen: Tensor, level: float) -> Tensor:
            prediction = call.smaller(view, level).predict(F.pixel_unshuffle(seen, PACKED) if packed else seen)
            return F.pixel_shuffle(prediction, PACKED) if packed else prediction

        refused: list[str] = []
        method = MethodCall(run, smaller.layout, smaller.phase, text, refused.append, smaller.acts)
        with self.way.replaced(self.module, self.embedder, method):
            prediction = prediction_from(predict, view, spread, sigma, call.velocity)
        if not refused:
            return F.pixel_unshuffle(prediction, PACKED) if packed else prediction
        run.not_active(refused[0])
        return call.predict(latent)

    def call_with_resdit(self, run: Run, call: ModelCall, latent: Tensor, text: int, sigma: float) -> Tensor:
        """One model call with the method in every block, or on a smaller grid; at or below the base size its own.

        Unless RPE-2D's positions are on: then that call has them, as all attention to the whole has.

        Args:
            run: the generation's parameters and plans.
            call: the host's model.
            latent: the model's input, as `grid` takes it.
            text: number of text tokens.
            sigma: the call's noise level.
        """
        if latent.ndim == 5 and latent.shape[2] > 1:
            run.say(f"not active: a latent of {latent.shape[2]} frames is not supported, only one picture's")
            return call.predict(latent)
        if sigma > self.highest_level + LEVEL_ROUNDING:
            run.say(f"not active: the noise level is {sigma:g}, where this family's end at {self.highest_level:g}")
            return call.predict(latent)
        layout = run.layout(self.grid(latent), sigma)
        if layout.is_base and not run.begin_base_call():
            return call.predict(latent)
        phase = Phase.GLOBAL if layout.is_base else run.begin_call(sigma, layout)

        def predict(latent: Tensor) -> Tensor:
            if phase in SMALLER:
                return self.smaller_step(run, layout, phase, call, latent, text, sigma)
            with self.way.replaced(self.module, self.embedder, MethodCall(run, layout, phase, text, run.not_active)):
                return call.predict(latent)

        return run.under_fresh_noise(predict, latent, layout, sigma, call.velocity)
