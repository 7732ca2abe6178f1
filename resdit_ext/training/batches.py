"""What a step sees, of the seed and its number alone: a training that is taken up again goes on as if never stopped."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from ..method.layout import Grid
from ..method.randomized import equidistant_positions, randomized_positions
from ..seams.training_diffusers import Places
from .cache import Example
from .options import TrainingOptions


@dataclass(frozen=True)
class Batch:
    """Pictures of one bucket.

    Attributes:
        latent, noise: (B, C, 2H, 2W) float32.
        sigma: (B,) noise levels.
        text: of all pictures.
        places: of their tokens, the same for all.
    """

    latent: Tensor
    noise: Tensor
    sigma: Tensor
    text: dict[str, Tensor]
    places: Places


def own_places(grid: Grid) -> Places:
    """The model's own positions of a grid."""
    return Places(*equidistant_positions(grid, grid), grid)


def inference_places(grid: Grid, maximal: int) -> Places:
    """RPE-2D's positions at inference, from a range of `maximal` tokens an axis."""
    return Places(*equidistant_positions(grid, Grid(maximal, maximal)), Grid(maximal, maximal))


class Batches:
    """The batches of a training by their numbers, which count through all processes.

    Every picture comes once in an epoch, in another order each time; a bucket's last batch is filled up from its first
    pictures.

    Args:
        examples: the pictures.
        empty: the text of an empty caption.
        options: of the training.
        maximal: the range of the positions, in tokens an axis.
        shift: mu of the noise levels.
    """

    def __init__(
        self, examples: list[Example], empty: dict[str, Tensor], options: TrainingOptions, maximal: int, shift: float
    ) -> None:
        self.examples, self.empty, self.options = examples, empty, options
        self.maximal, self.shift = Grid(maximal, maximal), shift
        self._epoch = lru_cache(maxsize=2)(self._make_epoch)

    def _make_epoch(self, epoch: int) -> list[list[Example]]:
        rng = np.random.default_rng((self.options.seed, epoch))
        buckets = defaultdict(list)
        for place in rng.permutation(len(self.examples)):
            example = self.examples[place]
            buckets[example.bucket].append(example)
        size, batches = self.options.batch, []
        for pictures in buckets.values():
            filled = pictures + [pictures[i % len(pictures)] for i in range(-len(pictures) % size)]
            batches += [filled[first : first + size] for first in range(0, len(filled), size)]
        return [batches[i] for i in rng.permutation(len(batches))]

    def __len__(self) -> int:
        return len(self._epoch(0))

    def __getitem__(self, number: int) -> Batch:
        options = self.options
        epoch, place = divmod(number, len(self))
        examples = self._epoch(epoch)[place]
        rng = np.random.default_rng((options.seed, epoch, place, 1))
        generator = torch.Generator().manual_seed(int(rng.integers(2**63)))
        seen = [example.read(int(rng.integers(example.views))) for example in examples]
        texts = [self.empty if rng.random() < options.text_dropout else text for _, text in seen]
        latent = torch.cat([latent for latent, _ in seen]).float()
        grid = examples[0].bucket
        native = rng.random() < options.native_share
        drawn = randomized_positions(grid, self.maximal, generator)
        return Batch(
            latent=latent,
            noise=torch.randn(latent.shape, generator=generator),
            # Logit-normal; to add mu to the logit is to shift the level as a sampler's are.
            sigma=torch.sigmoid(self.shift + torch.randn(len(latent), generator=generator)),
            text={name: torch.cat([text[name] for text in texts]) for name in self.empty},
            places=own_places(grid) if native else Places(*drawn, self.maximal),
        )
