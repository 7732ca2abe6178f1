"""Model families: which models the method can run in. One file each, found by listing this folder.

A file has `FAMILY`: the facts of the family, and by the descriptions in `resdit_ext.seams` where its WebUI class and
its diffusers classes use positions. No other file of the package names a family.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Protocol

from torch import Tensor, nn

from ..control.format import ControlFormat
from ..errors import Unsupported
from ..method.config import ResDiTConfig
from ..method.layout import Grid
from ..method.layout_steps import ModelCall
from ..method.run import Run
from ..seams.training_diffusers import Training

LATENT_PATCH = 2  # latent pixels a side of a token, in all families so far


class Adapter(Protocol):
    """A loaded WebUI model in which the method can run; `resdit_ext.seams` has them."""

    hidden_size: int

    def grid(self, latent: Tensor) -> Grid:
        """The token grid of a latent (B, C, H, W)."""

    def call_with_resdit(self, run: Run, call: ModelCall, latent: Tensor, text: int, sigma: float) -> Tensor:
        """The prediction of the host's model for `latent` at noise level `sigma`, with `text` tokens of text."""


class WebUIClass(Protocol):
    """A description of a family's class in the WebUIs.

    Attributes:
        pools: True where the fast modes have an effect.
        rotates: True where positions are rotary, for which NTK and YaRN are.
    """

    pools: bool
    rotates: bool

    def claims(self, model: object) -> bool:
        """True for a model with the family's structure."""

    def adapter(self, model: object) -> Adapter:
        """The model with the method ready to run in it; raises Unsupported with the reason."""


@dataclass(frozen=True)
class Support:
    """A family in one WebUI, or in diffusers.

    Attributes:
        models: as users know them.
        needs: by file in its folder, first the one that defines the family's class, what must stand there: a
            function as `name(first, arguments)`, or a word.
        note: what a user should know, for the README's table.
    """

    models: str
    needs: Mapping[str, tuple[str, ...]]
    note: str = ""


@dataclass(frozen=True)
class Family:
    """The facts of a model family, and where its models attend.

    Attributes:
        name: as users know it.
        key: in the API.
        rank: its place in lists; the page assumes the first until a model is loaded.
        webui: its class in the WebUIs.
        hidden_size: channels of a token, of the model that is most in use.
        longest_text: tokens of text.
        live_vectors: live activations at a block's peak with the method, in hidden vectors per token.
        diffusers: by the name of a class of diffusers, what makes `around(call, ...)` for a model and a run.
        shares: by the name of such a class that diffusers has no plan for context parallelism for, what makes a model
            of it ready and returns the plan.
        control: its control nets, if there are any.
        training: how a LoRA for it is trained in diffusers; None where it cannot be.
        support: by the name of a WebUI that loads the family, or "diffusers".
        base_size: pixels a side of the pictures it was trained on.
        vae_scale: pixels a side of a latent pixel.
        shift: mu of its noise levels at the training size.
        tokens_of_shift: the number of image tokens for which diffusers' pipeline asks for a shift, 0 for one that it
            gives to the training size too; None where it stands in the scheduler's configuration.
        steps: how many are usual.
    """

    name: str
    key: str
    rank: int
    webui: WebUIClass
    hidden_size: int
    longest_text: int
    live_vectors: int
    diffusers: Mapping[str, Callable[[nn.Module, Run], Callable]] = field(default_factory=dict)
    shares: Mapping[str, Callable[[nn.Module], Mapping[str, object]]] = field(default_factory=dict)
    control: ControlFormat | None = None
    training: Training | None = None
    support: Mapping[str, Support] = field(default_factory=dict)
    base_size: int = 1024
    vae_scale: int = 8
    shift: float = 1.15
    tokens_of_shift: Callable[[float], float] | None = None
    steps: int = 20

    def activation_bytes(self, grid: Grid, itemsize: int = 2) -> int:
        """Bytes that one picture's activations need at their peak beside the weights, at `itemsize` bytes a number."""
        return (self.longest_text + grid.tokens) * self.hidden_size * self.live_vectors * itemsize

    @property
    def base_tokens(self) -> int:
        """Tokens of the pictures that it was trained on."""
        return (self.base_size // self.pixels_per_token) ** 2

    @property
    def pixels_per_token(self) -> int:
        """Pixels a side of a token."""
        return self.vae_scale * LATENT_PATCH


@dataclass(frozen=True)
class RecognisedModel:
    """A loaded WebUI model of one of the families.

    Attributes:
        family: with this model's `hidden_size`.
        adapter: runs the method in it.
    """

    family: Family
    adapter: Adapter


@cache
def families() -> tuple[Family, ...]:
    """All families, in the order of their ranks."""
    files = (importlib.import_module(f"{__name__}.{module.name}") for module in pkgutil.iter_modules(__path__))
    return tuple(sorted((file.FAMILY for file in files), key=lambda family: family.rank))


def family_of_class(name: str) -> Family | None:
    """The family that has this class of diffusers, or None."""
    return next((family for family in families() if name in family.diffusers), None)


def fitting_positions(config: ResDiTConfig, family: Family) -> tuple[ResDiTConfig, str | None]:
    """The parameters with scaled positions where the family cannot have those chosen, and what to say then."""
    if family.webui.rotates or config.positions not in ("ntk", "yarn"):
        return config, None
    return (
        replace(config, positions="scaled"),
        f"positions {config.positions} are for rotary ones, which {family.name} does not have: scaled ones are used",
    )


def names_of_all() -> str:
    """The families' names, for a message."""
    return ", ".join(family.name for family in families())


def identify(model: object) -> RecognisedModel:
    """What a WebUI's diffusion model is; raises Unsupported with the reason where it is of no family."""
    for family in families():
        if family.webui.claims(model):
            adapter = family.webui.adapter(model)
            return RecognisedModel(replace(family, hidden_size=adapter.hidden_size), adapter)
    raise Unsupported(f"{type(model).__name__} is not a model of a supported family ({names_of_all()})")
