"""What goes into a control net and what comes out of it, for every family."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from ..method.layout import Grid


@dataclass(frozen=True)
class Call:
    """One call of a control net, on the grid that it runs at.

    Attributes:
        latent: (B, C, 2h, 2w), noisy.
        hint: (B, C, 2h, 2w) latents of the hint, or its pixels (B, 3, 16h, 16w) in [-1, 1].
        grid: h x w tokens.
        sigma: (B,) noise levels in [0, 1].
        text: (B, T, D).
        pooled: (B, P).
        guidance: (B,) of a guidance-distilled model.
        shows: what the hint shows, of `token_nets.MODES`; only a union net asks.
        embed: makes the (B, h*w, C) tokens of `latent` by the model's own embedding; only Stability's nets ask.
    """

    latent: Tensor
    hint: Tensor
    grid: Grid
    sigma: Tensor
    text: Tensor
    pooled: Tensor
    guidance: Tensor | None = None
    shows: str | None = None
    embed: Callable[[], Tensor] | None = None


@dataclass(frozen=True)
class Residuals:
    """What a net adds to the image tokens, (B, h*w, C) each, after the model's double and single blocks."""

    double: tuple[Tensor, ...]
    single: tuple[Tensor, ...] = ()
    cyclic: bool = False

    @property
    def both(self) -> tuple[Tensor, ...]:
        """All of them."""
        return self.double + self.single
