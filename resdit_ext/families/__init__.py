"""Model families: which models the method can run in, and how it gets into them. One module each."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from torch import Tensor

from ..errors import Unsupported
from ..method.layout import Grid
from ..method.run import Run
from .flux import Flux
from .sd3 import SD3


class Family(Protocol):
    """What a host needs of a family; `__init__(model)` raises Unsupported with the reason.

    Attributes:
        name: as users know it.
        hidden_size: channels of a token.
        pools: True where the fast modes have an effect.
        peak_vectors: live activations at a block's peak with the method, in hidden vectors per token.
    """

    name: str
    hidden_size: int
    pools: bool
    peak_vectors: int

    @staticmethod
    def claims(model: object) -> bool:
        """True for a model with this family's structure."""

    @staticmethod
    def grid(latent: Tensor) -> Grid:
        """The token grid of a latent (B, C, H, W)."""

    def denoise(self, run: Run, predict: Callable[..., Tensor], latent: Tensor, text: int, sigma: float) -> Tensor:
        """The prediction for `latent` at noise level `sigma`, with `text` tokens of text.

        `predict(latent, tokens=None)` is the host's model call; `tokens` are the indices of a patch's tokens, by which
        the host cuts to size what it passes per token (ControlNet's residuals).
        """


FAMILIES: tuple[type[Family], ...] = (Flux, SD3)


def identify(model: object) -> Family:
    """The family adapter of a diffusion model; raises Unsupported with the reason where there is none."""
    for family in FAMILIES:
        if family.claims(model):
            return family(model)
    names = ", ".join(family.name for family in FAMILIES)
    raise Unsupported(f"{type(model).__name__} is not a model of a supported family ({names})")
