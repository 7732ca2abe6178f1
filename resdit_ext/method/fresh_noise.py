"""Fresh noise, not of the paper: in every step the model sees the picture so far under new noise, with any sampler.

A sampler that adds no noise carries what it began with to the end, and patches that have begun a texture in different
directions keep them. Under new noise they find a common one. The sampler's own latent is left alone:

    d = (x - r x_b) / (1 - r),  r = sigma / sigma_b
    n = (y_b - (1 - sigma_b) d) / sigma_b
    y = (1 - sigma) d + sigma (sqrt(1 - share^2) n + share e)

x is the sampler's latent and x_b that of the level before, so that d is what it took as the clean latent in between,
guidance and masks included; y is what the model sees, y_b what it saw before, e new noise. The clean latent that it
makes of y is the prediction for x. At share 0 y is x; at 1 the pictures are those of a sampler that renews all noise.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

MUCH = 0.25  # of the clean latent's size, above what rounding to bfloat16 makes of it
WHITE = 0.2  # correlation of neighbours: of noise it is 0, of what a picture's latent may change by much more
MOST = 3.0  # of the clean latent's size, above what guidance makes of it


def seeds_of(latent: Tensor) -> list[int]:
    """A seed for every picture of (B, ...), of itself alone: where its smallest and its largest values are.

    Copies of one picture (guidance) have one seed, and rounding elsewhere hardly ever changes it.
    """
    flat = latent.flatten(1)
    places = zip(flat.argmin(1).tolist(), flat.argmax(1).tolist(), strict=True)
    return [low * flat.shape[1] + high for low, high in places]


def new_noise(like: Tensor, seeds: list[int], step: int) -> Tensor:
    """Float32 noise for a step: made on the CPU, so that it is the same on every device."""
    generators = (torch.Generator().manual_seed(seed * 1000 + step) for seed in seeds)
    return torch.stack([torch.randn(like.shape[1:], generator=generator) for generator in generators]).to(like.device)


def is_of_the_model(taken: Tensor, clean: Tensor) -> bool:
    """Whether the clean latent that a sampler took can have come of the model's, `clean`.

    It cannot where the change is large and noise, its neighbours (of tokens or of pixels) unrelated, or is larger than
    the latent by far.
    """
    change = taken - clean
    axis = 1 if change.ndim == 3 else -1
    ahead, behind = change.narrow(axis, 1, change.shape[axis] - 1), change.narrow(axis, 0, change.shape[axis] - 1)
    power = change.square().mean()
    noise = (power > MUCH**2 * taken.square().mean()) & ((ahead * behind).mean() < WHITE * power)
    return not bool(noise | (power > MOST**2 * clean.square().mean()))


@dataclass(frozen=True)
class Seen:
    """The model calls at one noise level.

    Attributes:
        level: the noise level.
        latent: the sampler's, of the last of them; a copy, as samplers may go on in place.
        seen: what the model saw in its place.
        clean: what the first of them made of it; None until it has been made.
    """

    level: float
    latent: Tensor
    seen: Tensor
    clean: Tensor | None = None


class FreshNoise:
    """The noise that is renewed in one denoising.

    It leaves a run alone where what the sampler took as the clean latent is not of the model: where it adds noise of
    its own, where its steps are of another kind, and where the calls of one level are on different pictures (tiles).

    Args:
        share: of the noise that is new, 0 to 1, as its amplitude.
    """

    def __init__(self, share: float) -> None:
        self.share = share
        self.forget()

    def forget(self) -> None:
        """Begin anew."""
        self._before: Seen | None = None  # at the level before
        self._now: Seen | None = None
        self._step, self._seeds, self._left_alone = 0, [], False

    def stop(self) -> None:
        """Leave the sampler's latent alone from now on."""
        self.share = 0.0

    def see(self, latent: Tensor, sigma: float) -> Tensor:
        """What the model is to see in place of the sampler's `latent` (B, ...) at `sigma`; the first time it itself."""
        now = self._now
        begins = now is None or sigma > now.level or latent.shape != now.latent.shape
        if self._left_alone and not begins:
            return latent
        kept = latent.clone()
        if begins:
            self.forget()
            self._now, self._seeds = Seen(sigma, kept, kept), seeds_of(latent)
            return latent
        if sigma < now.level and now.clean is not None:
            self._before, self._step = now, self._step + 1
        seen = kept if self._before is None else self._under_new_noise(kept, sigma, self._before)
        self._now = Seen(sigma, kept, seen, now.clean if sigma == now.level else None)
        return latent if seen is kept else seen

    def _under_new_noise(self, latent: Tensor, sigma: float, before: Seen) -> Tensor:
        x, x_b, y_b = (each.float() for each in (latent, before.latent, before.seen))
        r = sigma / before.level
        taken = (x - r * x_b) / (1 - r)
        if not is_of_the_model(taken, before.clean):
            self._left_alone = True
            return latent
        noise = (y_b - (1 - before.level) * taken) / before.level
        noise = (1 - self.share**2) ** 0.5 * noise + self.share * new_noise(x, self._seeds, self._step)
        return ((1 - sigma) * taken + sigma * noise).to(latent.dtype)

    def made(self, clean: Tensor) -> None:
        """Take note of the clean latent that the model has made of what it saw."""
        if self._now.clean is None:
            self._now = replace(self._now, clean=clean.float())

    def predict(self, predict: Callable[[Tensor], Tensor], latent: Tensor, sigma: float, velocity: bool) -> Tensor:
        """The prediction for `latent` that a model makes of the same picture under fresh noise.

        Args:
            predict: latent -> the prediction, a velocity or a clean latent.
            latent: the sampler's.
            sigma: its noise level.
            velocity: whether predictions are velocities.
        """
        if not self.share:
            return predict(latent)
        seen = self.see(latent, sigma)
        prediction = predict(seen)
        clean = seen - sigma * prediction if velocity else prediction
        self.made(clean)
        if seen is latent:
            return prediction
        return (latent - clean) / sigma if velocity else prediction
