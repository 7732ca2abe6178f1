"""What a user would pick instead, on the micro FLUX: each a function `(model, prompts, grid, seeds, steps, eta=0)`.

Written from the papers' formulas, simplified where it says so. At the base size every rival is the plain model.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..method.blend import splice_into, splice_weights
from ..method.config import BALANCED, ResDiTConfig
from ..method.layout import Grid, make_layout
from ..method.positions import patch_indices
from ..method.shift import shifted
from .model import BASE_TOKENS, MicroModel, to_latent, to_tokens, tokenize
from .neighbourhoods import in_neighbourhoods
from .rival_positions import POSITIONS, at_positions, clipped_ntk, proportional
from .sampling import STEPS, Velocity, euler, flow, method, noises, pictures_of, sigmas_of

Rival = Callable[..., np.ndarray]  # (model, prompts, grid, seeds, steps, eta=0) -> (B, 4H, 4W, 3)
RESDIT = replace(BALANCED, base_tokens=BASE_TOKENS)
# Scaled positions and the log scale alone.
SCALED = replace(RESDIT, layout="scaled", speed="exact", global_until=1.0, fused_until=1.0)


def enlarged(tokens: Tensor, before: Grid, after: Grid) -> Tensor:
    """Tokens (B, h*w, C), bicubically as a latent: (B, H*W, C)."""
    size = 2 * after.height, 2 * after.width
    return to_tokens(F.interpolate(to_latent(tokens, before.height), size=size, mode="bicubic"))


def base_picture(
    model: Velocity, words: Tensor, grid: Grid, seeds: Sequence[int], levels: Sequence[float], eta: float
) -> tuple[Tensor, list[Tensor]]:
    """The model's own picture at the base size, enlarged to the grid (B, H*W, C), and what its steps saw, enlarged."""
    base = make_layout(grid, RESDIT).base
    x, seen = flow(model, noises(base, seeds), words, base.height, levels, seeds, eta)
    return enlarged(x, base, grid), [enlarged(clean, base, grid) for clean in seen]


def lower(levels: Sequence[float], strength: float) -> list[float]:
    """The last `strength` of a run's steps, as the WebUI's denoising strength chooses them."""
    return list(levels[len(levels) - 1 - max(1, int(strength * (len(levels) - 1))) :])


def unchanged(model: MicroModel) -> Velocity:
    """The model's own velocity."""
    return model


@torch.inference_mode()
def one_pass(
    model: MicroModel,
    prompts: Sequence[str],
    grid: Grid,
    seeds: Sequence[int],
    steps: int = STEPS,
    *,
    eta: float = 0.0,
    config: ResDiTConfig | None = None,
    change: Callable[[MicroModel], Velocity] = unchanged,
) -> np.ndarray:
    """From noise in one go, with the method in the model or along its changed velocity."""
    with method(model, config, sigmas_of(steps)):
        velocity = model if grid.tokens <= BASE_TOKENS else change(model)
        return euler(velocity, prompts, grid, seeds, steps, eta=eta)


@torch.inference_mode()
def hires_pass(
    model: MicroModel,
    prompts: Sequence[str],
    grid: Grid,
    seeds: Sequence[int],
    steps: int = STEPS,
    *,
    eta: float = 0.0,
    strength: float = 0.5,
    config: ResDiTConfig | None = None,
    change: Callable[[MicroModel], Velocity] = unchanged,
) -> np.ndarray:
    """The WebUI's hires pass: a base picture, enlarged bicubically as a latent, noised to the strength, denoised."""
    words, levels = tokenize(list(prompts)), sigmas_of(steps)
    if grid.tokens <= BASE_TOKENS:
        return one_pass(model, prompts, grid, seeds, steps, eta=eta)
    clean, _ = base_picture(model, words, grid, seeds, levels, eta)
    rest = lower(levels, strength)
    x = (1 - rest[0]) * clean + rest[0] * noises(grid, seeds)
    with method(model, config, sigmas_of(steps)):
        x, _ = flow(change(model), x, words, grid.height, rest, seeds, eta)
    return pictures_of(x, grid.height)


def by_patches(model: MicroModel) -> Velocity:
    """MultiDiffusion: the model on every patch alone, the velocities averaged where patches overlap."""

    def velocity(tokens: Tensor, sigma: Tensor, words: Tensor, height: int) -> Tensor:
        layout = make_layout(Grid(height, tokens.shape[1] // height), RESDIT)
        base, weights = layout.base, splice_weights(layout, None)
        canvas = tokens.new_zeros(len(tokens), height, layout.grid.width, tokens.shape[2])
        for number, index in enumerate(patch_indices(layout)):
            v = model(tokens[:, index], sigma, words, base.height).unflatten(1, (base.height, base.width))
            splice_into(canvas, v[None], weights[number : number + 1], layout.patches[number : number + 1])
        return canvas.flatten(1, 2)

    return velocity


def butterworth(tokens: Tensor, height: int, ratio: float = 0.2, order: int = 4) -> Tensor:
    """The low band of tokens (B, H*W, C) by Butterworth's response, half at `ratio` of the Nyquist frequency."""
    spectrum = torch.fft.fft2(tokens.unflatten(1, (height, -1)), dim=(1, 2))
    rows, cols = (torch.fft.fftfreq(n) / 0.5 for n in spectrum.shape[1:3])
    radius = torch.hypot(rows[:, None], cols)
    response = 1 / (1 + (radius / ratio) ** (2 * order))
    return torch.fft.ifft2(spectrum * response[..., None], dim=(1, 2)).real.flatten(1, 2)


@torch.inference_mode()
def hiflow(
    model: MicroModel,
    prompts: Sequence[str],
    grid: Grid,
    seeds: Sequence[int],
    steps: int = STEPS,
    *,
    eta: float = 0.0,
    strength: float = 0.7,
    direction: float = 1.0,
    acceleration: float = 0.5,
) -> np.ndarray:
    """HiFlow in one stage: the low band of the clean latent, and the change of the velocity, are the base flow's.

    Starts from the noised base picture; both weights fall to zero with the noise level; 10 theta for theta and
    proportional attention, as its authors set them.
    """
    words, levels = tokenize(list(prompts)), sigmas_of(steps)
    if grid.tokens <= BASE_TOKENS:
        return one_pass(model, prompts, grid, seeds, steps, eta=eta)
    clean, seen = base_picture(model, words, grid, seeds, levels, eta)
    seen_at = dict(zip(levels, seen, strict=False))
    noise, rest = noises(grid, seeds), lower(levels, strength)
    last: dict[str, Tensor] = {}

    def guide(x: Tensor, v: Tensor, sigma: float) -> Tensor:
        share, its = sigma / rest[0], seen_at[sigma]
        v = v - direction * share * butterworth(its - (x - sigma * v), grid.height) / sigma
        flow_there = noise - its  # the base flow's velocity, enlarged, from the same noise
        if last:
            v = v + acceleration * share * (last["mine"] + flow_there - last["its"] - v)
        last.update(mine=v, its=flow_there)
        return v

    velocity = at_positions(model, clipped_ntk, "none", proportional)
    x, _ = flow(velocity, (1 - rest[0]) * clean + rest[0] * noise, words, grid.height, rest, seeds, eta, guide)
    return pictures_of(x, grid.height)


def haar_low(tokens: Tensor, height: int) -> Tensor:
    """The first Haar level's low band of tokens (B, H*W, C): means of 2 x 2, an odd last row or column by itself."""
    grid = tokens.unflatten(1, (height, -1))
    for axis in (1, 2):
        n = grid.shape[axis]
        pair = torch.arange(n) // 2
        sums = grid.new_zeros([*grid.shape[:axis], -(-n // 2), *grid.shape[axis + 1 :]]).index_add_(axis, pair, grid)
        count = torch.bincount(pair).view([-1 if a == axis else 1 for a in range(4)])
        grid = (sums / count).index_select(axis, pair)
    return grid.flatten(1, 2)


@torch.inference_mode()
def i_max(
    model: MicroModel,
    prompts: Sequence[str],
    grid: Grid,
    seeds: Sequence[int],
    steps: int = STEPS,
    *,
    eta: float = 0.0,
    shift: float = 2.0,
) -> np.ndarray:
    """I-Max: from noise, the velocity's low band pulled to the flow that ends in the enlarged base picture.

    v + c P(v_G - v) with a Haar low band P and c falling as a cosine; clipped 10 theta, proportional attention, a
    timestep shift (twice the native one, as its authors set it).
    """
    words, levels = tokenize(list(prompts)), sigmas_of(steps)
    if grid.tokens <= BASE_TOKENS:
        return one_pass(model, prompts, grid, seeds, steps, eta=eta)
    clean, _ = base_picture(model, words, grid, seeds, levels, eta)

    def guide(x: Tensor, v: Tensor, sigma: float) -> Tensor:
        c = (1 - math.cos(math.pi * sigma)) / 2
        return v + c * haar_low((x - clean) / sigma - v, grid.height)

    further = [shifted(s, math.log(shift)) for s in levels]
    velocity = at_positions(model, clipped_ntk, "none", proportional)
    x, _ = flow(velocity, noises(grid, seeds), words, grid.height, further, seeds, eta, guide)
    return pictures_of(x, grid.height)


STRENGTHS = (0.3, 0.5, 0.7)
#: The table's rows.
RIVALS: dict[str, Rival] = {
    **{f"hires pass {s}": partial(hires_pass, strength=s) for s in STRENGTHS},
    **{f"hires pass {s} + scaled positions": partial(hires_pass, strength=s, config=SCALED) for s in STRENGTHS},
    **{f"hires pass {s} + Balanced": partial(hires_pass, strength=s, config=RESDIT) for s in STRENGTHS},
    "MultiDiffusion": partial(one_pass, change=by_patches),
    **{name: partial(one_pass, change=change) for name, change in POSITIONS.items()},
    "HiFlow": hiflow,
    "I-Max": i_max,
    "ScaleDiff": partial(hires_pass, strength=0.7, change=in_neighbourhoods),
    "scaled positions + log scale": partial(one_pass, config=SCALED),
}
