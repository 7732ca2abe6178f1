"""Pictures from a micro model: Euler steps of the flow, with or without the method."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from contextlib import contextmanager

import numpy as np
import torch

from ..hosts.diffusers import apply_resdit, remove_resdit
from ..method.config import ResDiTConfig
from ..method.layout import Grid
from .model import LATENT_CHANNELS, MicroModel, tokenize, tokens_to_pictures

STEPS = 35
Velocity = Callable[..., torch.Tensor]  # (tokens (B, H*W, C), sigma (B,), words, height) -> tokens


def sigmas_of(steps: int = STEPS) -> list[float]:
    """`steps` + 1 equally spaced noise levels from 1 to 0."""
    return [1 - i / steps for i in range(steps + 1)]


@contextmanager
def method(model: MicroModel, config: ResDiTConfig | None, steps: int):
    """Apply ResDiT to the model for the block; None leaves it plain."""
    if config is None:
        yield
        return
    apply_resdit(model.transformer, config, sigmas_of(steps))
    try:
        yield
    finally:
        remove_resdit(model.transformer)


def noise_for(grid: Grid, seed: int) -> torch.Tensor:
    """(1, H*W, 48) starting noise of one seed."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(1, grid.tokens, 4 * LATENT_CHANNELS, generator=generator)


def euler(
    velocity: Velocity,
    prompts: Sequence[str],
    grid: Grid,
    seeds: Sequence[int],
    steps: int = STEPS,
    tick: Callable[[], object] = lambda: None,
) -> np.ndarray:
    """(B, 4H, 4W, 3) float32 pictures in [0, 1] by Euler's steps along `velocity(tokens, sigma, words, height)`."""
    x = torch.cat([noise_for(grid, seed) for seed in seeds])
    words = tokenize(list(prompts))
    for sigma, after in itertools.pairwise(sigmas_of(steps)):
        x = x + (after - sigma) * velocity(x, torch.full((len(x),), sigma), words, grid.height)
        tick()
    pictures = tokens_to_pictures(x, grid.height).clamp(-1, 1) / 2 + 0.5
    return pictures.permute(0, 2, 3, 1).numpy()


@torch.inference_mode()
def sample(
    model: MicroModel,
    prompts: Sequence[str],
    grid: Grid,
    seeds: Sequence[int],
    config: ResDiTConfig | None = None,
    steps: int = STEPS,
    tick: Callable[[], object] = lambda: None,
) -> np.ndarray:
    """(B, 4H, 4W, 3) float32 pictures in [0, 1], one for every prompt and seed; `tick` is called after each step."""
    with method(model, config, steps):
        return euler(model, prompts, grid, seeds, steps, tick)
