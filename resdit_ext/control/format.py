"""What a kind of control nets is, to the hosts: one object of a class with these attributes for each model family."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Protocol

from torch import nn

from .call import Call, Residuals

if TYPE_CHECKING:
    from .checkpoint import Checkpoint, Weights


class ControlFormat(Protocol):
    """A family's control nets.

    Attributes:
        family: the model's name.
        texts: of each text input the net's argument, what it counts the channels of, and the model's layer that takes
            as many.
        latent_inputs: a net's inputs for a latent channel.
        model_on_patches: whether ResDiT calls the model on patches.
        blocks: the model's attributes that hold the blocks after which is added.
    """

    family: str
    texts: tuple[tuple[str, str, str], ...]
    latent_inputs: int
    model_on_patches: bool
    blocks: tuple[str, ...]

    def claims(self, weights: Weights) -> bool:
        """True for tensors of such a net, by their names."""

    def read(self, weights: Weights) -> Checkpoint:
        """Recognise a file; raises Unsupported with what was found."""

    def maker(self, arguments: Mapping[str, object]) -> Callable[..., nn.Module]:
        """What makes the net with diffusers; raises ImportError where it is too old."""

    def sees_pixels(self, net: nn.Module) -> bool:
        """True where the net takes the hint's pixels in place of the autoencoder's latents of them."""

    def residuals(self, net: nn.Module, call: Call) -> Residuals:
        """What the net adds after the model's blocks; raises Unsupported with the reason."""

    def index_of(self, block: int, blocks: int, count: int, cyclic: bool) -> int | None:
        """Which of `count` residuals follows block `block` of `blocks`."""


def diffusers_class(name: str) -> type[nn.Module]:
    """A class of diffusers, which is imported now; raises ImportError where it has none of this name."""
    try:
        return getattr(importlib.import_module("diffusers"), name)
    except AttributeError:
        raise ImportError(f"it has no {name}") from None
