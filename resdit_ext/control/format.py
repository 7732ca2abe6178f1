"""A format of control nets, one object for each model family that has some, and a file recognised as one of them."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from torch import Tensor, nn

from .call import Call, Residuals

Weights = Mapping[str, Tensor]


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


@dataclass(frozen=True)
class Checkpoint:
    """A recognised control net, ready for diffusers' class.

    Attributes:
        format: of the nets it is one of.
        kind: of file, in words.
        arguments: of diffusers' class.
        weights: under diffusers' names.
        asks: whether it must be told what the hint shows.
        made_for: the kind of hint the file itself names, if it does.
        shifted: whether it wants the hint's latents as the model has its own, shifted and scaled, or scaled alone.
        tones: the hint's tones by what it shows, where they are not a picture's own.
    """

    format: ControlFormat
    kind: str
    arguments: dict[str, object]
    weights: Weights
    asks: bool = False
    made_for: str | None = None
    shifted: bool = True
    tones: Mapping[str, Callable[[Tensor], Tensor]] = field(default_factory=dict)

    @property
    def family(self) -> str:
        """The name of the model it controls."""
        return self.format.family

    @property
    def width(self) -> int:
        """Channels of a token."""
        return self.arguments["attention_head_dim"] * self.arguments["num_attention_heads"]


def diffusers_class(name: str) -> type[nn.Module]:
    """A class of diffusers, which is imported now; raises ImportError where it has none of this name."""
    try:
        return getattr(importlib.import_module("diffusers"), name)
    except AttributeError:
        raise ImportError(f"it has no {name}") from None
