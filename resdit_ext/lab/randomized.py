"""RPE-2D in the training of a micro model: random positions of a larger range, and pictures cut out of larger ones.

Each part can be left out, so that the lab can say what it does. A share of the steps stays as it is without RPE-2D, so
that the model keeps its own positions.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from ..families import family_of_class
from ..method.config import check_number
from ..method.layout import Grid
from ..method.randomized import randomized_positions
from ..seams.training_diffusers import Places
from .methods import RANGE
from .model import POOLED, MicroModel, to_latent, to_tokens
from .scenes import Patterns, Scene, render


@dataclass(frozen=True)
class RPE2D:
    """The parts of RPE-2D that a training has.

    Attributes:
        maximal: positions that rows and columns are drawn from, on each axis.
        native_share: share of the steps at the model's own positions, with whole pictures.
        crops: resize-and-crop.
        told_crops: micro-conditioning, the model is told what part of the picture it sees.
    """

    maximal: int = RANGE
    native_share: float = 0.5
    crops: bool = True
    told_crops: bool = True

    def __post_init__(self) -> None:
        check_number("range", self.maximal, 32, 4096, whole=True)
        check_number("native_share", self.native_share, 0, 1)


class Crop(NamedTuple):
    """A part of a picture that is `zoom` times as high and wide as it: its first row and column of pixels."""

    zoom: float = 1.0
    top: int = 0
    left: int = 0

    def numbers(self, height: int, width: int) -> tuple[float, float, float]:
        """What the model is told: log2 of the zoom and the corner in sides of the part; zeros for a whole picture."""
        return math.log2(self.zoom), self.top / height, self.left / width


def random_crop(rng: np.random.Generator, height: int, width: int, least: float = 1.0, largest: float = 2.0) -> Crop:
    """Resize-and-crop: a zoom between the two, and a place."""
    zoom = least * (largest / least) ** rng.random()
    top, left = (int(rng.integers(round(zoom * side) - side + 1)) for side in (height, width))
    return Crop(zoom, top, left)


def render_crop(scene: Scene, height: int, width: int, patterns: Patterns, crop: Crop) -> np.ndarray:
    """(height, width, 3) float32 in [0, 1]: that part of the scene; its textures keep their size in pixels."""
    whole = render(scene, round(crop.zoom * height), round(crop.zoom * width), patterns)
    return whole[crop.top : crop.top + height, crop.left : crop.left + width]


class Randomized(NamedTuple):
    """What one step of RPE-2D's training has.

    Attributes:
        places: of the tokens, the same for the whole batch.
        crops: (B, 3) what the model is told of each picture.
    """

    places: Places
    crops: Tensor


def draw(config: RPE2D, grid: Grid, batch: int, pixels: tuple[int, int], seed: Sequence[int]):
    """The crops of a batch's pictures and the step's Randomized, of the seed alone; whole and None in a native step."""
    rng = np.random.default_rng(seed)
    if rng.random() < config.native_share:
        return [Crop()] * batch, None
    maximal = Grid(config.maximal, config.maximal)
    generator = torch.Generator().manual_seed(int(rng.integers(2**62)))
    places = Places(*randomized_positions(grid, maximal, generator), maximal)
    crops = [random_crop(rng, *pixels) if config.crops else Crop() for _ in range(batch)]
    told = [crop.numbers(*pixels) if config.told_crops else Crop().numbers(*pixels) for crop in crops]
    return crops, Randomized(places, torch.tensor(told, dtype=torch.float32))


class AnyPositions(nn.Module):
    """A micro model in training: `forward(tokens, sigma, words, height, randomized)`, at its own positions with None.

    Micro-conditioning adds a vector of the crop's numbers to the text's pooled one. It is nothing for a whole picture,
    so that the trained model is used, and saved, without it.
    """

    def __init__(self, model: MicroModel) -> None:
        super().__init__()
        self.net = model
        self.crop = nn.Linear(3, POOLED, bias=False)
        nn.init.zeros_(self.crop.weight)
        self.training_rate = model.training_rate
        self.predict = family_of_class(type(model.transformer).__name__).training.predictor(model.transformer)

    def forward(
        self, tokens: Tensor, sigma: Tensor, words: Tensor, height: int, randomized: Randomized | None = None
    ) -> Tensor:
        if randomized is None:
            return self.net(tokens, sigma, words, height)
        joint, pooled = self.net.encode(words)
        text = {"encoder_hidden_states": joint, "pooled_projections": pooled + self.crop(randomized.crops)}
        latent = to_latent(tokens, height)
        return to_tokens(self.predict(self.net.transformer, latent, sigma, text, randomized.places, 1.0))
