"""A second look: the model is asked again about its own estimate, under other noise of the same level.

An estimate of the clean latent made of patches is a mean over the ways in which their textures may go on. Noised anew
and denoised once more it moves to one of them: texture forms in fewer and larger domains. The sampler's latent is left
alone, so that any sampler may call.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from ..method.layout import Layout
from .sampling import Velocity

LEVELS = (0.6, 0.85)  # noise levels between which it is looked again: where texture forms


def moved(noise: Tensor, height: int, look: int) -> Tensor:
    """Noise (B, H*W, C) moved by about half the picture along both axes, differently in every look."""
    grid = noise.unflatten(1, (height, -1))
    down, across = height // 2 + 7 * look, grid.shape[2] // 2 - 5 * look
    return torch.roll(grid, (down, across), (1, 2)).flatten(1, 2)


def evenly(span: int, count: int) -> list[int]:
    """`count` whole numbers from 0 to `span`, as evenly as they can be, halves rounded up."""
    return [(2 * k * span + count - 1) // (2 * (count - 1)) for k in range(count)]


def more_patches(layout: Layout, extra: int = 1) -> Layout:
    """The layout with `extra` patches more along each axis that has several, so that the borders lie elsewhere."""
    grid, base = layout.grid, layout.base
    sides = (layout.rows, grid.height - base.height), (layout.cols, grid.width - base.width)
    rows, cols = (starts if len(starts) == 1 else tuple(evenly(span, len(starts) + extra)) for starts, span in sides)
    return replace(layout, rows=rows, cols=cols)


def with_second_look(
    velocity: Velocity, height: int, levels: tuple[float, float] = LEVELS, looks: Sequence[Velocity] | None = None
) -> Velocity:
    """`velocity` of x0' = D'((1 - sigma) D(x) + sigma e'), where D is the estimate and e' its own noise, moved.

    e = (x - (1 - sigma) D(x)) / sigma, so no random numbers are drawn; calls of other heights are left as they are.
    `looks` are the velocities of D', one after another, by default `velocity` once: two looks, the first of them with
    other patches, did best.
    """
    others = (velocity,) if looks is None else looks

    def looked(x: Tensor, sigma: Tensor, words: Tensor, rows: int) -> Tensor:
        v, level = velocity(x, sigma, words, rows), float(sigma[0])
        if rows != height or not levels[0] < level < levels[1]:
            return v
        clean = x - level * v
        for look, other in enumerate(others):
            noise = moved((x - (1 - level) * clean) / level, rows, look)
            again = (1 - level) * clean + level * noise
            clean = again - level * other(again, sigma, words, rows)
        return (x - clean) / level

    return looked
