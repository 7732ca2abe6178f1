"""What every check needs: the registry of checks, a host's FLUX at hand, and spies."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path

import numpy as np
from torch import Tensor

from resdit_ext import ResDiTConfig
from resdit_ext.method.run import Run
from tests import attentions
from tests.attaching import attach
from tests.hosts import kinds, kit, models
from tests.settings import scaled

CHECKS: dict[str, Callable[[Bench], str]] = {}
# Base size 8 x 8 tokens (a latent of 16 x 16), and steps of all three phases.
CONFIG = scaled(base_tokens=64, fused_until=0.57)
PHASES = {"global": 0.99, "fused": 0.8, "local": 0.1}  # a noise level of each on FLUX's own list of 35 steps
BASE, TRIPLE = (16, 16), (48, 48)


class Skipped(Exception):
    """The check does not apply to this host, with the reason."""


def check(function: Callable[[Bench], str]) -> Callable[[Bench], str]:
    """Register a check: it returns what it measured, or raises."""
    CHECKS[function.__name__] = function
    return function


def small(value: float, limit: float, what: str) -> str:
    """Raise unless `value` < `limit` (NaN never is)."""
    assert value < limit, f"{what}: {value:.3g} is not below {limit:g}"
    return f"{what} {value:.2g}"


def big(value: float, limit: float, what: str) -> str:
    """Raise unless `value` > `limit` (NaN never is)."""
    assert value > limit, f"{what}: {value:.3g} is not above {limit:g}"
    return f"{what} {value:.2g}"


def same(got: object, expected: object, what: str) -> None:
    """Raise unless the two are equal; both are shown."""
    assert got == expected, f"{what}: {got!r} instead of {expected!r}"


def attention_error(
    pe: object, call: Sequence[Tensor], grid: tuple[int, int], base: tuple[int, int], phase: str, **other: object
) -> float:
    """How far the first picture's q, k, v -> out of `call` is from the float64 reference (no code shared).

    Args:
        pe: the host's embedder, with `axes_dim` and `theta`.
        call: q, k, v before their rotation, and what came of them, as `attentions.recorded` has them.
        grid, base: (rows, columns) of tokens, of the output and of a patch.
        phase: of the call.
        other: positions of the global branch, their frequencies and the others' ids, as `reference.resdit` takes them.
    """
    q, k, v, got = (x[0].double().numpy() for x in call[:4])
    text = len(other["others"]) if "others" in other else kit.TEXT
    wanted = attentions.expected(q, k, v, text, grid, base, phase, axes_dim=pe.axes_dim, theta=pe.theta, **other)
    return float(np.abs(got - wanted).max() / np.abs(wanted).max())


class Bench:
    """One host in this process.

    Attributes:
        host: "forge", "neo" or "ersatz".
        handed: a file of weights, inputs and outputs made with diffusers, or None.
    """

    def __init__(self, host: str, handed: Path | None = None) -> None:
        self.host, self.handed, self._kinds = host, handed, {}

    @cached_property
    def unet(self) -> object:
        """A tiny float32 FLUX in the host's patcher; checks leave it as they found it."""
        return kit.build_unet(self.host, models.build_flux(self.host))

    @cached_property
    def sd3(self) -> object:
        """A tiny float32 SD3.5-medium in the host's patcher; checks leave it as they found it."""
        return kit.build_unet(self.host, models.build_sd3(self.host), predictor=kit.discrete_flow())

    @cached_property
    def chroma(self) -> object:
        """A tiny float32 Chroma in the host's patcher; checks leave it as they found it."""
        return kit.build_unet(self.host, models.build_chroma(self.host))

    def of_kind(self, kind: str) -> object:
        """A tiny float32 model of `kinds.KINDS` in the host's patcher; checks leave it as they found it."""
        if kind not in self._kinds:
            self._kinds[kind] = kit.build_unet(self.host, kinds.build(self.host, kind))
        return self._kinds[kind]

    @property
    def model(self) -> object:
        return self.unet.model.diffusion_model

    @property
    def flux(self) -> object:
        """The host's module whose `attention` is replaced."""
        return sys.modules["backend.nn.flux"]

    @property
    def blocks(self) -> int:
        return len(self.model.double_blocks) + len(self.model.single_blocks)

    def attached(self, config: ResDiTConfig = CONFIG, **kwargs: object) -> tuple[object, Run]:
        """A patched clone of the unet and its Run."""
        run = Run(config, **kwargs)
        return attach(self.unet, run), run

    def plain(self, size: tuple[int, int] = TRIPLE, sigma: float = 0.8, cfg: float = 1.0, batch: int = 1) -> Tensor:
        """The unpatched velocity."""
        return kit.velocity(self.unet, kit.latent(*size, batch), sigma, cfg)

    @contextmanager
    def hooked(self, hook: Callable[..., object], before: bool = True) -> Iterator[None]:
        """Call `hook` at the start of every forward of the whole model, or at the end of its last block's."""
        handle = (
            self.model.register_forward_pre_hook(hook)
            if before
            else self.model.single_blocks[-1].register_forward_hook(hook)
        )
        try:
            yield
        finally:
            handle.remove()

    @contextmanager
    def spied(self) -> Iterator[list[dict]]:
        """Record q, k, v, pe and the result of every call the blocks make, beneath whatever is installed.

        The spy is set from inside the model, so it lies over our replacement, whose own `finally` removes it; where
        nothing is installed it is removed here.
        """
        calls, original = [], self.flux.attention

        def install(*_: object) -> None:
            inner = self.flux.attention
            if hasattr(inner, "spy"):  # a second model call, with nothing of ours installed in between
                return

            def attention(q: Tensor, k: Tensor, v: Tensor, pe: Tensor, *args: object, **kwargs: object) -> Tensor:
                taken = dict(q=q.clone(), k=k.clone(), v=v.clone(), pe=pe.clone())  # ersatzForge reuses its buffers
                out = inner(q, k, v, pe, *args, **kwargs)
                calls.append(taken | {"out": out.clone(), "function": inner})
                return out

            attention.spy = True
            self.flux.attention = attention

        with self.hooked(install):
            try:
                yield calls
            finally:
                self.flux.attention = original
