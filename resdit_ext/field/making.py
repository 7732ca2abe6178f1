"""What makes a field test's pictures: micro models, diffusers' pipelines and WebUIs in the same form."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from ..watch import Part
from .plan import Order, Scene


@dataclass(frozen=True)
class Made:
    """A picture, what its parts took, and what was said.

    Attributes:
        picture: (H, W, 3) uint8.
        seconds: from the order to the picture.
        parts: by name, in the order of their beginnings; empty where nothing but the whole is known.
        notes: messages for the user.
    """

    picture: np.ndarray
    seconds: float
    parts: Mapping[str, Part] = field(default_factory=dict)
    notes: Sequence[str] = ()


class Maker(Protocol):
    """Makes pictures one by one.

    Attributes:
        base: pixels a side of the model's base size.
        token: pixels a side of a token.
        scenes: twelve prompts and seeds that it can make.
    """

    base: int
    token: int
    scenes: Sequence[Scene]

    def about(self) -> dict[str, object]:
        """What the figures depend on: model, device, versions; nothing of whose computer it is."""

    def make(self, order: Order) -> Made:
        """The picture; whatever it raises is the picture's result, but for ConnectionError, which ends the test."""
