"""WebUI models whose blocks attend to text and image together, text first, at rotary positions.

Only attention is touched, so LoRA and quantised weights make no difference.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import ModuleType
from typing import Protocol

import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import Unsupported
from ..method.frequencies import Law
from ..method.in_attention import Attend, Embed, plan_for, resdit_attention
from ..method.layout import Grid, Layout
from ..method.layout_steps import ModelCall, layout_prediction
from ..method.phases import Phase
from ..method.rotary import RotaryTable, rotary_table, rotate
from ..method.run import Run
from ..monkeypatch import intercepted, redirected

KERNEL = "attention_function"
PATCH = 2  # latent pixels per token and axis


def image_ids(text: int, positions: Tensor) -> Tensor:
    """(..., T + L, 3) ids: zeros for text, then (0, row, column) from positions (..., L, 2)."""
    return F.pad(positions, (1, 0, text, 0))


def embedding(embedder: nn.Module, text: int) -> Embed:
    """The rotary tables of `text` tokens of text and of image tokens, as a model's own embedder makes its."""

    def embed(positions: Tensor, laws: tuple[Law, Law] | None) -> RotaryTable:
        return rotary_table(image_ids(text, positions), tuple(embedder.axes_dim), embedder.theta, laws)

    return embed


def why_not(tokens: int, text: int, grid: Grid, mask: object) -> str | None:
    """Why the method cannot take an attention's place, or None.

    Args:
        tokens: that attention is given.
        text: tokens of the text.
        grid: of the picture.
        mask: that attention is given, or None.
    """
    whole = text + grid.tokens
    if tokens > whole:
        more = tokens - whole
        return f"attention has {more} more tokens than text and picture; reference images (Kontext) are not supported"
    if tokens < whole:
        return f"attention has {tokens} tokens of the {whole} of text and picture; another extension takes some out"
    return None if mask is None else "attention masks are not supported"


class Method(Protocol):
    """The method in place of one attention of q, k, v (B, heads, L, D), not rotated; `plain()` is that attention."""

    def __call__(
        self, q: Tensor, k: Tensor, v: Tensor, attend: Attend, mask: object, plain: Callable[[], Tensor]
    ) -> Tensor: ...


class RotatingAttention:
    """A module with `attention(q, k, v, pe, ...)`, which rotates q and k and calls the kernel in the same module."""

    def fault(self, module: ModuleType) -> str | None:
        """What the module lacks, or None."""
        if missing := [name for name in ("attention", KERNEL) if not callable(getattr(module, name, None))]:
            return f"{module.__name__} has no {' and no '.join(missing)} (Nunchaku and fused builds are not supported)"
        if list(inspect.signature(module.attention).parameters)[:4] != ["q", "k", "v", "pe"]:
            return f"{module.__name__}.attention does not begin with (q, k, v, pe)"
        return None

    @contextmanager
    def replaced(self, module: ModuleType, embedder: nn.Module, method: Method) -> Iterator[None]:  # noqa: ARG002
        """Have the method called in place of every attention of this thread for the duration of the block."""

        def around(attention: Callable, q: Tensor, k: Tensor, v: Tensor, pe: Tensor, **kwargs: object) -> Tensor:
            def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
                return getattr(module, KERNEL)(q, k, v, q.shape[1], skip_reshape=True, **kwargs)

            return method(q, k, v, attend, kwargs.get("mask"), lambda: attention(q, k, v, pe, **kwargs))

        with redirected(module, "attention", around):
            yield


class KernelAfterRotation:
    """A module whose blocks rotate q and k in their own code and call `attention_function(q, k, v, heads, mask, ...)`.

    The embedder is given ids of zero, whose rotation is none, so that q and k arrive as the method wants them.
    """

    def fault(self, module: ModuleType) -> str | None:
        """What the module lacks, or None."""
        if not callable(getattr(module, KERNEL, None)):
            return f"{module.__name__} has no {KERNEL}"
        return None

    @contextmanager
    def replaced(self, module: ModuleType, embedder: nn.Module, method: Method) -> Iterator[None]:
        """Have the method called in place of every attention of this thread for the duration of the block."""
        seen: list[Tensor] = []

        def embed(call: Callable, ids: Tensor, *args: object, **kwargs: object) -> Tensor:
            seen[:] = [ids]
            return call(ids * 0, *args, **kwargs)

        def around(kernel: Callable, q: Tensor, k: Tensor, v: Tensor, *args: object, **kwargs: object) -> Tensor:
            q, k = q.to(v.dtype), k.to(v.dtype)  # which the rotation may have made float32

            def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
                return kernel(q, k, v, *args, **kwargs)

            def plain() -> Tensor:
                table = rotary_table(seen[0], tuple(embedder.axes_dim), embedder.theta)
                table = RotaryTable(*(x[:, None] for x in table))
                return attend(rotate(q, table), rotate(k, table), v)

            mask = args[1] if len(args) > 1 else kwargs.get("mask")
            return method(q, k, v, attend, mask, plain)

        with intercepted([(embedder, "__call__", embed)]), redirected(module, KERNEL, around):
            yield


@dataclass(frozen=True)
class RotaryBlocks:
    """How such a model is recognised, and where it attends.

    Attributes:
        claims: True for a model with the family's structure.
        refusal: why a model with that structure cannot be used, or None.
        ways: in which its blocks may attend; the first that their module serves is taken.
        blocks: the attributes that hold its blocks.
        embedder: the attribute that makes rotation matrices of ids; it has `axes_dim` and `theta`.
    """

    claims: Callable[[object], bool]
    refusal: Callable[[object], str | None] = lambda _: None
    ways: tuple[RotatingAttention | KernelAfterRotation, ...] = (RotatingAttention(),)
    blocks: tuple[str, ...] = ("double_blocks", "single_blocks")
    embedder: str = "pe_embedder"

    pools = True  # the fast modes have an effect
    rotates = True  # NTK and YaRN are for such positions

    def adapter(self, model: object) -> RotaryAdapter:
        """The model with the method ready to run in it; raises Unsupported with the reason."""
        if reason := self.refusal(model):
            raise Unsupported(reason)
        modules = {type(block).__module__ for name in self.blocks for block in getattr(model, name)}
        if len(modules) != 1:
            raise Unsupported(f"its blocks come from {len(modules)} modules ({', '.join(sorted(modules))}), not one")
        module = sys.modules[modules.pop()]
        faults = [way.fault(module) for way in self.ways]
        if None not in faults:
            raise Unsupported(faults[0])
        return RotaryAdapter(model.hidden_size, getattr(model, self.embedder), module, self.ways[faults.index(None)])


@dataclass(frozen=True)
class RotaryAdapter:
    """A loaded model of this kind.

    Attributes:
        hidden_size: channels of a token.
        embedder: makes its rotation matrices.
        module: of its blocks.
        way: in which they attend.
    """

    hidden_size: int
    embedder: nn.Module
    module: ModuleType
    way: RotatingAttention | KernelAfterRotation

    def grid(self, latent: Tensor) -> Grid:
        """The token grid of a latent (B, C, H, W); an odd side is padded by the model."""
        return Grid(-(-latent.shape[-2] // PATCH), -(-latent.shape[-1] // PATCH))

    def layout_step(self, run: Run, layout: Layout, call: ModelCall, latent: Tensor, text: int, sigma: float) -> Tensor:
        """A call on the base grid; where later steps will be refused, which its attention tells, the model's own."""
        refused = []

        def watched(
            q: Tensor, k: Tensor, v: Tensor, attend: Attend, mask: object, plain: Callable[[], Tensor]
        ) -> Tensor:
            reason = why_not(q.shape[2], text, layout.base, mask)
            refused.extend([reason] if reason else [])
            run.calls["blocks"] += not reason
            if reason or not run.config.acts_at_base:
                return plain()
            plan = plan_for(run, layout.at_base, text, embedding(self.embedder, text), q.device)
            return resdit_attention(q, k, v, plan, Phase.GLOBAL, attend)

        with self.way.replaced(self.module, self.embedder, watched):
            prediction = layout_prediction(call.predict_at_base, run.view(layout, latent), latent, sigma, call.velocity)
        if not refused:
            return prediction
        run.say(f"not active: {refused[0]}")
        return call.predict(latent)

    def call_with_resdit(self, run: Run, call: ModelCall, latent: Tensor, text: int, sigma: float) -> Tensor:
        """One model call with the method in every block, or on the base grid; at or below its size the model's own.

        Unless RPE-2D's positions are on: then that call has them, as all attention to the whole has.

        Args:
            run: the generation's parameters and plans.
            call: the host's model.
            latent: the model's input (B, C, H, W).
            text: number of text tokens.
            sigma: the call's noise level.
        """
        layout = run.layout(self.grid(latent), sigma)
        if layout.is_base and not run.begin_base_call():
            return call.predict(latent)
        phase = Phase.GLOBAL if layout.is_base else run.begin_call(sigma)
        if phase is Phase.LAYOUT:
            return self.layout_step(run, layout, call, latent, text, sigma)

        embed = embedding(self.embedder, text)

        def method(
            q: Tensor, k: Tensor, v: Tensor, attend: Attend, mask: object, plain: Callable[[], Tensor]
        ) -> Tensor:
            if reason := why_not(q.shape[2], text, layout.grid, mask):
                run.say(f"not active: {reason}")
                return plain()
            run.calls["blocks"] += 1
            return resdit_attention(q, k, v, plan_for(run, layout, text, embed, q.device), phase, attend)

        with self.way.replaced(self.module, self.embedder, method):
            return call.predict(latent)
