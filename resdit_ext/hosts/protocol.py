"""What the WebUIs' hosts have in common: the hooks and the page reach them through this alone.

`p` is everywhere the host's object of one generation.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from ..families import Family, RecognisedModel
from ..method.config import ResDiTConfig
from ..method.layout import Grid, Layout
from ..method.run import Run

Say = Callable[[str], None]  # tells the user once
ActiveMethod = tuple[Layout, ResDiTConfig]  # ResDiT's layout of a picture and parameters, where it acts


@dataclass(frozen=True)
class ControlServices:
    """What ControlNet's units ask of the pass that is about to begin.

    Attributes:
        recognise: p -> its model; raises Unsupported.
        method: (p, grid of the picture) -> ResDiT's layout of it and parameters, or None where it does not act.
        sigmas: p -> its full list of noise levels, or None.
        steps: p -> its number of steps.
        default_shows: () -> what a hint shows where neither control type nor preprocessor tells.
        say: (p, message) tells the user once.
    """

    recognise: Callable[[object], RecognisedModel]
    method: Callable[[object, Grid], ActiveMethod | None]
    sigmas: Callable[[object], Sequence[float] | None]
    steps: Callable[[object], int]
    default_shows: Callable[[], str]
    say: Callable[[object, str], None]


class Host(Protocol):
    """A kind of WebUI.

    Attributes:
        name: as users know it.
    """

    name: str

    def is_running(self) -> bool:
        """True where this process is such a WebUI."""

    def made(self, p: object) -> bool:
        """True for a generation of such a WebUI."""

    def model_of(self, p: object) -> object:
        """The diffusion model that makes the pass that is about to begin, or that is running."""

    def advice(self) -> str:
        """What to add to the reason why a model is refused."""

    def check_samplers(self, p: object) -> None:
        """Raise Unsupported with the reason where a sampler that will be used cannot be served."""

    def attach(self, p: object, model: RecognisedModel, run: Run) -> None:
        """Have every model call of this pass run the method; raises Unsupported with the reason."""

    def is_attached(self, p: object) -> bool:
        """True where the model call that is about to be made runs the method."""

    def prepare_decode(self, p: object, width: int, height: int, policy: str, say: Say) -> None:
        """Have the VAE tile pictures of `width` x `height` as the policy ("Auto", "Always", "Never") asks for it."""

    def release_decode(self, p: object) -> None:
        """Put the host's VAE back."""

    def register_control(self, services: ControlServices) -> None:
        """Have the panel know our control nets, once, if this is the running WebUI."""

    def unregister_control(self) -> None:
        """Have the panel forget them."""

    def before_units_are_prepared(self, p: object, act: Callable[[object], None]) -> None:
        """Have `act(p)` called once the model is loaded and before the panel prepares its units."""

    def control_note(self) -> str | None:
        """What the page says of ControlNet where the panel takes no nets of ours; None where it does."""

    def review_units(self, p: object, most: int | None, family: Family | None, say: Say) -> None:
        """Switch off units that cannot work, and keep preprocessors at `most` pixels, for this generation."""

    def report_units(self, p: object, say: Say) -> None:
        """Tell which units the panel could not prepare, or that it has no effect."""
