"""diffusers' transformers that make their tokens of latents themselves, and have blocks over the picture alone.

Their processors rotate q and k only where they are given a rotation, and attend by a function of their module; for one
call they are given none, and the method is put in place of the function. Pictures whose sequences differ are called one
by one, so that no mask is needed.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from types import SimpleNamespace

import torch
from torch import Tensor, nn

from ..errors import Unsupported
from ..method.in_attention import Attend
from ..method.layout import Grid, Layout
from ..method.layout_steps import prediction_from
from ..method.phases import SMALLER, Phase
from ..method.run import Run
from ..monkeypatch import intercepted
from .places_diffusers import Call
from .processors import calling, check_names
from .sequence import Rotation, TokenSequence, attend_by_method, divided
from .ulysses_diffusers import refuse_ranks

PATCH = 2  # latent pixels a side of a token
ONE_DEVICE = "several devices cannot make one picture with this model yet: use one device"
Kernels = Mapping[str, Callable[[object], object]]  # by name in the processor's module: its own -> ours
Method = Callable[[Tensor, Tensor, Tensor, Attend], Tensor]  # of q, k, v (B, heads, L, D) and the kernel


def by_dispatcher(method: Method) -> Kernels:
    """diffusers' own dispatcher, of q, k, v (B, L, heads, D), replaced by the method."""

    def make(own: Callable) -> Callable:
        def dispatch(q: Tensor, k: Tensor, v: Tensor, *args: object, **given: object) -> Tensor:
            def attend(*parts: Tensor) -> Tensor:
                return own(*(x.transpose(1, 2) for x in parts), *args, **given).flatten(2, 3)

            out = method(*(x.transpose(1, 2) for x in (q, k, v)), attend)
            return out.unflatten(2, (q.shape[2], -1))

        return dispatch

    return {"dispatch_attention_fn": make}


def by_torch(method: Method) -> Kernels:
    """torch's kernel, of q, k, v (B, heads, L, D), replaced by the method."""

    def make(own: object) -> object:
        def kernel(q: Tensor, k: Tensor, v: Tensor, **given: object) -> Tensor:
            def attend(*parts: Tensor) -> Tensor:
                return own.scaled_dot_product_attention(*parts, **given).transpose(1, 2).flatten(2)

            return method(q, k, v, attend).unflatten(2, (q.shape[1], -1)).transpose(1, 2)

        return SimpleNamespace(scaled_dot_product_attention=kernel)

    return {"F": make}


@dataclass(frozen=True)
class LatentProcessors:
    """How such a transformer is called, and how it attends.

    Its prediction is minus the velocity, and its time 1 minus the noise level.

    Attributes:
        latents: the argument that has the pictures: latents (B, C, H, W), or a list of (C, 1, H, W).
        time: the argument that has the time.
        texts: how many tokens of text each picture of a call has in the joint attention.
        only: the arguments of a call for one picture alone, by its number.
        refusal: why the method cannot be used in a call, or None.
        sequence: (rotation, tokens of text, grid) -> the sequence of the joint attention.
        alone: (rotation, tokens of text, grid) -> the sequence of the attention to the picture alone.
        axes_dim: the attribute of its embedder that has the channels of each axis.
        rotation: the argument of its processors that has the rotation.
        attention: the attribute of its blocks that has the processor.
        kernels: makes of the method what the processors are to call instead.
        needed: names that the processors use.
    """

    latents: str
    time: str
    texts: Callable[[Call], Sequence[int]]
    only: Callable[[Call, int], Call]
    refusal: Callable[[Call], str | None]
    sequence: Callable[[Rotation, int, Grid], TokenSequence]
    alone: Callable[[Rotation, int, Grid], TokenSequence]
    axes_dim: str
    rotation: str
    attention: str
    kernels: Callable[[Method], Kernels]
    needed: tuple[str, ...]

    def processors(self, transformer: nn.Module) -> dict[str, list[object]]:
        """What attends to the picture alone and to all; raises Unsupported where it does so in an unknown way."""
        found = {
            name: [getattr(block, self.attention).processor for block in getattr(transformer, name)]
            for name in ("noise_refiner", "layers")
        }
        check_names([each for processors in found.values() for each in processors], self.needed)
        return found

    def stacked(self, given: Call) -> Tensor:
        """The latents (B, C, H, W) of a call."""
        latents = given[self.latents]
        return latents if isinstance(latents, Tensor) else torch.stack(list(latents)).squeeze(2)

    def with_latents(self, given: Call, latents: Tensor) -> Call:
        """The arguments with other latents (B, C, H, W)."""
        own = given[self.latents]
        return {**given, self.latents: latents if isinstance(own, Tensor) else list(latents.unsqueeze(2))}

    @contextmanager
    def attention_at(self, transformer: nn.Module, run: Run, layout: Layout, text: int, phase: Phase) -> Iterator[None]:
        """Run the method in every block of the one call made inside this context."""
        embedder = transformer.rope_embedder
        axes = tuple(getattr(embedder, self.axes_dim))
        rotation = Rotation(axes, (embedder.theta,) * len(axes))
        changes = []
        for name, processors in self.processors(transformer).items():
            make = self.sequence if name == "layers" else self.alone
            method = partial(in_place, run, layout, make(rotation, text, layout.grid), phase)
            changes += [calling(each, self.kernels(method), dropped=self.rotation) for each in processors]
        with intercepted(changes):
            yield

    def prediction(
        self, transformer: nn.Module, run: Run, call: Callable, given: Call, layout: Layout, phase: Phase, sigma: float
    ) -> Tensor:
        """The prediction (B, C, H, W) of a call whose pictures have sequences of one length."""
        latents, (text, *_) = self.stacked(given), self.texts(given)

        def out(given: Call) -> Tensor:
            sample = call(**given | {"return_dict": False})[0]
            return sample if isinstance(sample, Tensor) else torch.stack(list(sample)).squeeze(2)

        if phase not in SMALLER:
            with self.attention_at(transformer, run, layout, text, phase):
                return out(given)
        smaller = run.smaller(layout, phase, sigma)

        def predict(seen: Tensor, level: float) -> Tensor:
            place = self.attention_at(transformer, run, smaller.layout, text, smaller.phase)
            theirs = self.with_latents(given, seen) | {self.time: torch.full_like(given[self.time], 1 - level)}
            with place if smaller.acts else nullcontext():
                return -out(theirs)

        run.calls["model calls"] += 1
        view = run.view(layout.grid, smaller.layout.grid, latents)
        return -prediction_from(predict, view, latents, sigma, velocity=True)

    def sample(self, transformer: nn.Module, run: Run, call: Callable, given: Call) -> Tensor | None:
        """What `prediction` makes of a call's pictures together, or of each alone where their texts differ in length.

        None where the call is to be the model's own.

        Raises:
            Unsupported: the method cannot be used in this call.
        """
        if reason := self.refusal(given):
            raise Unsupported(reason)
        latents, texts = self.stacked(given), self.texts(given)
        if latents.shape[-2] % PATCH or latents.shape[-1] % PATCH:
            raise Unsupported(f"a latent of {latents.shape[-1]}x{latents.shape[-2]} is not made of whole tokens")
        sigma = 1 - float(given[self.time].min())  # which waits for the device
        layout = run.layout(Grid(latents.shape[-2] // PATCH, latents.shape[-1] // PATCH), sigma)
        if layout.is_base and not run.begin_base_call():
            return None
        phase = Phase.GLOBAL if layout.is_base else run.begin_call(sigma, layout)

        def velocity(latents: Tensor) -> Tensor:
            mine = self.with_latents(given, latents)
            calls = [mine] if len({*texts}) == 1 else [self.only(mine, i) for i in range(len(texts))]
            return -torch.cat([self.prediction(transformer, run, call, each, layout, phase, sigma) for each in calls])

        return -run.under_fresh_noise(velocity, latents, layout, sigma, velocity=True)

    def around_calls(self, transformer: nn.Module, run: Run) -> Callable:
        """`around(call, ...)` that calls the transformer with the method in its attention; raises Unsupported."""
        self.processors(transformer), refuse_ranks(transformer, ONE_DEVICE)
        names = list(inspect.signature(type(transformer).forward).parameters)[1:]

        def around(call: Callable, *args: object, **kwargs: object) -> object:
            given = dict(zip(names, args, strict=False)) | kwargs
            refuse_ranks(transformer, ONE_DEVICE)
            try:
                sample = self.sample(transformer, run, call, given)
            except Unsupported as reason:
                run.say(f"not active: {reason}")
                return call(*args, **kwargs)
            if sample is None:
                return call(*args, **kwargs)
            if not isinstance(given[self.latents], Tensor):
                sample = list(sample.unsqueeze(2))
            if not given.get("return_dict", True):
                return (sample,)
            return sys.modules[type(transformer).__module__].Transformer2DModelOutput(sample=sample)

        return around


def in_place(
    run: Run, layout: Layout, sequence: TokenSequence, phase: Phase, q: Tensor, k: Tensor, v: Tensor, attend: Attend
) -> Tensor:
    """The method in place of `attend(q, k, v)` of a sequence, q, k, v (B, heads, L, D) not rotated."""
    if q.shape[2] != (whole := len(sequence.others) + layout.grid.tokens):
        raise Unsupported(divided(q.shape[2], whole))
    run.calls["blocks"] += 1
    return attend_by_method(run, layout, sequence, phase, q, k, v, attend)
