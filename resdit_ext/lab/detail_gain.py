"""A gain on the high band of the clean latent's estimate, while texture forms.

Where patches disagree or are unsure of a texture's phase their estimate is a mean, which has less of it than any
picture has. Texture that is there stays, so a gain at middle noise levels is enough; the last steps go without it.
"""

from __future__ import annotations

import torch
from scipy import ndimage
from torch import Tensor

from .layout_steps import BaseView, Velocity, enlarging_matrix, level_at_base, lowpass

LEVELS = (0.25, 0.9)  # noise levels between which the gain is applied
CUTOFF = 0.1  # cycles per token, the fusion's
NEARBY = 2.0  # tokens, the standard deviation of the window in which energy is measured


def with_gain(
    velocity: Velocity, height: int, gain: float, levels: tuple[float, float] = LEVELS, cutoff: float = CUTOFF
) -> Velocity:
    """`velocity` whose estimate of the clean latent (B, H*W, C) has its band above `cutoff` times `gain`.

    x0' = x0 + (gain - 1) (x0 - LP(x0)), so v' = v - (gain - 1) (x0 - LP(x0)) / sigma; calls of other heights are left.
    """

    def gained(x: Tensor, sigma: Tensor, words: Tensor, rows: int) -> Tensor:
        v, level = velocity(x, sigma, words, rows), float(sigma[0])
        if rows != height or not levels[0] < level < levels[1]:
            return v
        clean = x - level * v
        return v - (gain - 1) * (clean - lowpass(clean, rows, cutoff)) / level

    return gained


def detail_energy(tokens: Tensor, height: int, cutoff: float = CUTOFF) -> tuple[Tensor, Tensor]:
    """The band of tokens (B, H*W, C) above `cutoff`, and its mean square nearby (B, H, W)."""
    detail = tokens - lowpass(tokens, height, cutoff)
    energy = detail.square().mean(-1).unflatten(1, (height, -1))
    near = [ndimage.gaussian_filter(image, NEARBY, mode="nearest") for image in energy.numpy()]
    return detail, torch.stack([torch.from_numpy(image) for image in near])


def with_matched_detail(
    velocity: Velocity, view: BaseView, most: float = 2.0, levels: tuple[float, float] = LEVELS
) -> Velocity:
    """`velocity` whose detail has at every place the energy, per token, that a base-size call's has there.

    Pictures have about the same energy in each octave, so detail at the token's scale is as strong at any size. The
    gain is the root of the energies' ratio, from 1 to `most`.
    """
    grid, base = view.layout.grid, view.layout.base
    sides = (base.height, grid.height), (base.width, grid.width)
    rows, cols = (enlarging_matrix(m, n, "bilinear").float() for m, n in sides)

    def matched(x: Tensor, sigma: Tensor, words: Tensor, height: int) -> Tensor:
        v, level = velocity(x, sigma, words, height), float(sigma[0])
        if height != grid.height or not levels[0] < level < levels[1]:
            return v
        at_base = level_at_base(level, view.gain)
        seen = view.average(x) / (1 - level + level * view.gain)
        small = seen - at_base * velocity(seen, torch.full((len(x),), at_base), words, base.height)
        wanted = rows @ detail_energy(small, base.height)[1] @ cols.T
        detail, energy = detail_energy(x - level * v, height)
        gain = (wanted.clamp(min=1e-8) / energy.clamp(min=1e-8)).sqrt().clamp(1, most)
        return v - (gain.flatten(1)[..., None] - 1) * detail / level

    return matched
