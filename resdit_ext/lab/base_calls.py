"""SD3 with a base-size call in place of the call on the whole: patches at their own positions, the low band from it.

The base-size call is in the domain that the model was trained in, and needs no position beyond those of training.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor

from ..method.around_calls import CallPlan, resdit_prediction
from ..method.config import ResDiTConfig
from ..method.phases import Phase
from ..method.position_table import PositionTable
from .layout_steps import BaseView, Velocity
from .model import TEXT_TOKENS, MicroSD3, to_latent, to_tokens


@contextmanager
def positioned(model: MicroSD3, positions: Tensor) -> Iterator[None]:
    """Have the micro SD3 add `positions` (1, L, C) in place of its own crop for the block of code."""
    embedder = model.transformer.pos_embed
    embedder.cropped_pos_embed = lambda *_: positions
    try:
        yield
    finally:
        del embedder.cropped_pos_embed


def calls_on_patches(model: MicroSD3, view: BaseView, config: ResDiTConfig) -> Velocity:
    """The velocity of a fused call: each patch alone, its low band from the base-size call's, spliced; (B, H*W, C)."""
    embedder = model.transformer.pos_embed
    side = embedder.pos_embed_max_size
    table = PositionTable(embedder.pos_embed[0].unflatten(0, (side, side)))
    plan = CallPlan(view.layout, config, TEXT_TOKENS, table)
    base = view.layout.base

    def velocity(x: Tensor, sigma: Tensor, words: Tensor, height: int) -> Tensor:
        if height == base.height and x.shape[1] == base.tokens:
            return model(x, sigma, words, height)

        def of_base(_: Tensor) -> Tensor:
            level = float(sigma[0])
            clean = view.estimate(model, x, level, words)
            return to_latent((x - clean) / level, height)

        def of_patch(latent: Tensor, number: int) -> Tensor:
            with positioned(model, plan.patch_positions(number)):
                return to_latent(model(to_tokens(latent), sigma, words, base.height), base.height)

        return to_tokens(resdit_prediction(to_latent(x, height), plan, Phase.FUSED, of_base, of_patch))

    return velocity
