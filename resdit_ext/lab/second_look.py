"""A second look: the model is asked again about its own estimate, under other noise of the same level.

An estimate of the clean latent made of patches is a mean over the ways in which their textures may go on. Noised anew
and denoised once more it moves to one of them: texture forms in fewer and larger domains. The sampler's latent is left
alone, so that any sampler may call.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .layout_steps import Velocity

LEVELS = (0.45, 0.9)  # noise levels between which it is looked twice


def moved(noise: Tensor, height: int, look: int) -> Tensor:
    """Noise (B, H*W, C) moved by about half the picture along both axes, differently in every look."""
    grid = noise.unflatten(1, (height, -1))
    down, across = height // 2 + 7 * look, grid.shape[2] // 2 - 5 * look
    return torch.roll(grid, (down, across), (1, 2)).flatten(1, 2)


def with_second_look(velocity: Velocity, height: int, levels: tuple[float, float] = LEVELS, looks: int = 1) -> Velocity:
    """`velocity` of x0' = D((1 - sigma) D(x) + sigma e'), where D is the estimate and e' its own noise, moved.

    e = (x - (1 - sigma) D(x)) / sigma, so no random numbers are drawn; calls of other heights are left as they are.
    """

    def looked(x: Tensor, sigma: Tensor, words: Tensor, rows: int) -> Tensor:
        v, level = velocity(x, sigma, words, rows), float(sigma[0])
        if rows != height or not levels[0] < level < levels[1]:
            return v
        clean = x - level * v
        for look in range(looks):
            noise = moved((x - (1 - level) * clean) / level, rows, look)
            other = (1 - level) * clean + level * noise
            clean = other - level * velocity(other, sigma, words, rows)
        return (x - clean) / level

    return looked
