"""Rivals that change rotary positions alone: NTK, YaRN, DyPE, SEGA and I-Max's clip, for the micro FLUX.

NTK and YaRN are the method's own options; the others are written here from the papers' formulas. L0 is the base grid's
side, s the scale of an axis, d its channels; frequency j of an axis is theta^(-2j/d).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from ..method import frequencies as laws
from ..method.layout import Grid, base_grid
from ..method.positions import grid_positions
from ..method.rotary import RotaryTable, rotate
from .model import BASE_TOKENS, TEXT_TOKENS, MicroModel
from .open_attention import AXES, THETA, opened, softmax_attention, with_text
from .sampling import Velocity

# (axis channels d, scale s, base side L0, sigma) -> (d/2,) float64 frequencies in radians per token
Frequencies = Callable[[int, float, int, float], Tensor]


def native(d: int, *_: float, theta: float = THETA) -> Tensor:
    """The frequencies of training."""
    return laws.native(d, theta)


def ntk(d: int, s: float, *_: float) -> Tensor:
    """NTK's, as the method has them."""
    return laws.ntk(d, THETA, s)


def clipped_ntk(d: int, s: float, *_: float, factor: float = 10.0) -> Tensor:
    """I-Max: 10 theta for theta, but no frequency lower than a scaled one; native at s = 1."""
    return native(d) if s == 1 else torch.maximum(native(d, theta=factor * THETA), native(d) / s)


def yarn(d: int, s: float, base: int, *_: float) -> Tensor:
    """YaRN's by parts, as the method has them."""
    return laws.yarn(d, THETA, s, base)


def dype(d: int, s: float, base: int, sigma: float) -> Tensor:
    """DyPE: YaRN whose limits fall with 2 sigma^2, so that the last steps have native frequencies."""
    return laws.yarn(d, THETA, s, base, pace=2 * sigma**2)


def yarn_temperature(s: float) -> float:
    """YaRN's factor on the rotations of q and k."""
    return 0.1 * math.log(s) + 1


def axis_energy(tokens: Tensor, axis: int, frequencies: Tensor) -> Tensor:
    """(d/2,) mean power of tokens (B, H, W, C) along an axis at these frequencies (radians per token)."""
    lines = tokens.double().movedim(axis, -1)
    place = torch.arange(lines.shape[-1], dtype=torch.float64)
    waves = torch.exp(1j * frequencies[:, None] * place) / len(place) ** 0.5
    return torch.einsum("...n,fn->...f", lines.to(waves.dtype), waves).abs().square().flatten(0, -2).mean(0)


def spectral_temperature(tokens: Tensor, axis: int, s: float, frequencies: Tensor) -> Tensor:
    """SEGA, simplified: YaRN's temperature, given more to the frequencies that hold more of the latent's energy.

    1 + .1 ln s * 2 e / (e + mean e) for the energy e at each frequency; the paper's own law is not public.
    """
    energy = axis_energy(tokens, axis, frequencies)
    return 1 + 0.2 * math.log(s) * energy / (energy + energy.mean())


def rotary(
    law: Frequencies, grid: Grid, sigma: float, temperature: str = "yarn", tokens: Tensor | None = None
) -> RotaryTable:
    """The rotary table (T + H*W, D) of text and image by a law of frequencies, rows and columns times a temperature.

    `temperature`: "none", "yarn", or "spectrum", which needs the latent's tokens (B, H*W, C).
    """
    base = base_grid(grid, BASE_TOKENS)
    ids = with_text(grid_positions(grid)).double()
    angles, scales = [ids[:, :1] * native(AXES[0])], [torch.ones(AXES[0] // 2, dtype=torch.float64)]
    sides = ((1, grid.height, base.height), (2, grid.width, base.width))
    for axis, n, m in sides:
        d, s = AXES[axis], n / m
        frequencies = law(d, s, m, sigma)
        angles.append(ids[:, axis, None] * frequencies)
        scale = torch.full((d // 2,), yarn_temperature(s) if temperature == "yarn" else 1.0, dtype=torch.float64)
        if temperature == "spectrum":
            scale = spectral_temperature(tokens.unflatten(1, (grid.height, -1)), axis, s, frequencies)
        scales.append(scale)
    angle, scale = torch.cat(angles, -1), torch.cat(scales)
    cos, sin = (angle.cos() * scale).float(), (angle.sin() * scale).float()
    return RotaryTable(torch.stack((cos, cos), -1).flatten(-2), torch.stack((-sin, sin), -1).flatten(-2))


def proportional(grid: Grid) -> float:
    """Proportional attention: sqrt(ln N / ln N_0) on the logits, text counted."""
    base = base_grid(grid, BASE_TOKENS)
    return math.sqrt(math.log(TEXT_TOKENS + grid.tokens) / math.log(TEXT_TOKENS + base.tokens))


def at_positions(
    model: MicroModel, law: Frequencies, temperature: str = "yarn", scale: Callable[[Grid], float] = lambda _: 1.0
) -> Velocity:
    """The model's velocity with rotary positions by a law of frequencies, above the base size."""

    def velocity(tokens: Tensor, sigma: Tensor, words: Tensor, height: int) -> Tensor:
        grid = Grid(height, tokens.shape[1] // height)
        if grid.tokens <= BASE_TOKENS:
            return model(tokens, sigma, words, height)
        table = rotary(law, grid, float(sigma[0]), temperature, tokens)
        factor = scale(grid)

        def attention(q: Tensor, k: Tensor, v: Tensor, block: int) -> Tensor:  # noqa: ARG001
            return softmax_attention(rotate(q, table, factor), rotate(k, table), v)

        with opened(model.transformer, attention):
            return model(tokens, sigma, words, height)

    return velocity


#: Velocities by name, each of a micro FLUX.
POSITIONS: dict[str, Callable[[MicroModel], Velocity]] = {
    "NTK": partial(at_positions, law=ntk, temperature="none"),
    "YaRN": partial(at_positions, law=yarn),
    "DyPE": partial(at_positions, law=dype),
    "SEGA": partial(at_positions, law=yarn, temperature="spectrum"),
}
