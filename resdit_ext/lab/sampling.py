"""Pictures from a micro model: steps of the flow by Euler, Euler a or LCM, with or without the method."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from functools import partial

import numpy as np
import torch

from ..hosts.diffusers import apply_resdit, remove_resdit
from ..method.config import ResDiTConfig
from ..method.fresh_noise import new_noise
from ..method.layout import Grid
from ..method.shift import shifted
from .model import LATENT_CHANNELS, MicroModel, tokenize, tokens_to_pictures

STEPS = 35
SAMPLERS = {"Euler": 0.0, "Euler a": 1.0, "LCM": math.inf}  # their eta
Velocity = Callable[..., torch.Tensor]  # (tokens (B, H*W, C), sigma (B,), words, height) -> tokens
Guide = Callable[[torch.Tensor, torch.Tensor, float], torch.Tensor]  # (x, v, sigma) -> v


def sigmas_of(steps: int = STEPS, shift: float = 0.0) -> list[float]:
    """`steps` + 1 noise levels from 1 to 0, equally spaced before the timestep shift (mu)."""
    return [shifted(1 - i / steps, shift) if shift else 1 - i / steps for i in range(steps + 1)]


@contextmanager
def method(model: MicroModel, config: ResDiTConfig | None, levels: Sequence[float]):
    """Apply ResDiT to the model for the block; None leaves it plain."""
    if config is None:
        yield
        return
    apply_resdit(model.transformer, config, levels)
    try:
        yield
    finally:
        remove_resdit(model.transformer)


def noise_for(grid: Grid, seed: int) -> torch.Tensor:
    """(1, H*W, 48) starting noise of one seed."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(1, grid.tokens, 4 * LATENT_CHANNELS, generator=generator)


def noises(grid: Grid, seeds: Sequence[int]) -> torch.Tensor:
    """(B, H*W, 48) starting noise, one for every seed."""
    return torch.cat([noise_for(grid, seed) for seed in seeds])


def fresh_noise(like: torch.Tensor, seeds: Sequence[int], step: int) -> torch.Tensor:
    """Noise of a step for every picture, of its seed and the step's number alone; no seed's begins as `noise_for`'s."""
    return new_noise(like, [seed + 1 for seed in seeds], step)


def step_to(
    after: float, x: torch.Tensor, v: torch.Tensor, sigma: float, eta: float, noise: Callable[[], torch.Tensor]
) -> torch.Tensor:
    """The latent one step on: Euler's at `eta` 0, and at 1 the WebUIs' Euler a for flow models.

    Euler a goes further down, to sigma_d = r sigma_a with r = 1 + eta (sigma_a / sigma - 1), and comes back up to
    sigma_a by fresh noise of variance sigma_a^2 - (sigma_d (1 - sigma_a) / (1 - sigma_d))^2. Infinite, it goes all the
    way down, as LCM and diffusers' `stochastic_sampling` do.
    """
    if not eta or not after:
        return x + (after - sigma) * v
    down = max(0.0, after * (1 + eta * (after / sigma - 1)))
    shrink = (1 - after) / (1 - down)
    return shrink * (x + (down - sigma) * v) + max(0.0, after**2 - (shrink * down) ** 2) ** 0.5 * noise()


def flow(
    velocity: Velocity,
    x: torch.Tensor,
    words: torch.Tensor,
    height: int,
    levels: Sequence[float],
    seeds: Sequence[int],
    eta: float = 0.0,
    guide: Guide | None = None,
    tick: Callable[[], object] = lambda: None,
) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """x (B, L, C) along a velocity through the noise levels, and the clean latent that each step saw."""
    seen = []
    for step, (sigma, after) in enumerate(itertools.pairwise(levels)):
        v = velocity(x, torch.full((len(x),), sigma), words, height)
        v = v if guide is None else guide(x, v, sigma)
        seen.append(x - sigma * v)
        x = step_to(after, x, v, sigma, eta, partial(fresh_noise, x, seeds, step))
        tick()
    return x, seen


def pictures_of(tokens: torch.Tensor, height: int) -> np.ndarray:
    """(B, 4H, 4W, 3) float32 in [0, 1] of clean tokens."""
    return (tokens_to_pictures(tokens, height).clamp(-1, 1) / 2 + 0.5).permute(0, 2, 3, 1).numpy()


def euler(
    velocity: Velocity,
    prompts: Sequence[str],
    grid: Grid,
    seeds: Sequence[int],
    steps: int = STEPS,
    tick: Callable[[], object] = lambda: None,
    eta: float = 0.0,
    shift: float = 0.0,
) -> np.ndarray:
    """(B, 4H, 4W, 3) float32 pictures in [0, 1] by steps along `velocity(tokens, sigma, words, height)`."""
    words, levels = tokenize(list(prompts)), sigmas_of(steps, shift)
    x, _ = flow(velocity, noises(grid, seeds), words, grid.height, levels, seeds, eta, tick=tick)
    return pictures_of(x, grid.height)


@torch.inference_mode()
def sample(
    model: MicroModel,
    prompts: Sequence[str],
    grid: Grid,
    seeds: Sequence[int],
    config: ResDiTConfig | None = None,
    steps: int = STEPS,
    tick: Callable[[], object] = lambda: None,
    eta: float = 0.0,
    shift: float = 0.0,
) -> np.ndarray:
    """(B, 4H, 4W, 3) float32 pictures in [0, 1], one for every prompt and seed; `tick` is called after each step."""
    with method(model, config, sigmas_of(steps, shift)):
        return euler(model, prompts, grid, seeds, steps, tick, eta, shift)
