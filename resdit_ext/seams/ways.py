"""In which ways the blocks of WebUIs' models attend, and how the method takes the place of their attention.

Each way knows where q, k and v are found before their rotation, and how the tokens lie.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from functools import partial
from types import ModuleType
from typing import Protocol

import torch
from torch import Tensor, nn

from ..errors import Unsupported
from ..method.in_attention import Attend
from ..method.layout import Grid, Layout
from ..method.phases import Phase
from ..method.positions import grid_positions
from ..method.rotary import RotaryTable, rotate
from ..method.run import Run
from ..monkeypatch import intercepted, redirected
from .sequence import REFERENCES, Arrangement, Rotation, TokenSequence, attend_by_method, too_few

KERNEL = "attention_function"


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
        return f"attention has {tokens - whole} more tokens than it is known to; another extension adds some"
    if tokens < whole:
        return too_few(tokens, whole)
    return None if mask is None else "attention masks are not supported"


def home_of_kernel(module: ModuleType) -> ModuleType:
    """The module whose kernel the blocks' attention calls: theirs, or the one that they have `attention` from."""
    if hasattr(module, KERNEL):
        return module
    return sys.modules.get(getattr(getattr(module, "attention", None), "__module__", None), module)


@dataclass(frozen=True)
class MethodCall:
    """The method in place of every attention of one call of the model.

    Attributes:
        run: the generation's parameters and plans.
        layout, phase: of the call.
        text: tokens of text, where the model does not tell.
        refuse: told why the method cannot take an attention's place, which is then the model's own.
        acts: False where attention is the model's own in any case, and it is only seen whether it could be replaced.
    """

    run: Run
    layout: Layout
    phase: Phase
    text: int
    refuse: Callable[[str], None]
    acts: bool = True

    def attention(
        self,
        sequence: TokenSequence,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        attend: Attend,
        mask: object,
        plain: Callable[[], Tensor],
    ) -> Tensor:
        """The method on q, k, v (B, heads, L, D), not rotated, or what `plain()` returns."""
        if reason := why_not(q.shape[2], len(sequence.others), self.layout.grid, mask):
            self.refuse(reason)
            return plain()
        self.run.calls["blocks"] += 1
        if not self.acts:
            return plain()
        return attend_by_method(self.run, self.layout, sequence, self.phase, q, k, v, attend)


class Way(Protocol):
    """How the blocks of a module attend."""

    def fault(self, module: ModuleType) -> str | None:
        """What the module lacks, or None."""

    def replaced(self, module: ModuleType, embedder: nn.Module, method: MethodCall) -> AbstractContextManager[None]:
        """Have the method called in place of every attention of this thread for the duration of the block."""


@dataclass(frozen=True)
class RotatingAttention:
    """A module with `attention(q, k, v, pe, ...)`, which rotates q and k and calls the kernel in its own module.

    Attributes:
        arrangement: of the tokens whose ids the embedder is given.
    """

    arrangement: Arrangement = field(default_factory=partial(Arrangement, references=True))

    def fault(self, module: ModuleType) -> str | None:
        """What the module lacks, or None."""
        homes = {"attention": module, KERNEL: home_of_kernel(module)}
        if missing := [name for name, home in homes.items() if not callable(getattr(home, name, None))]:
            return f"{module.__name__} has no {' and no '.join(missing)} (Nunchaku and fused builds are not supported)"
        if list(inspect.signature(module.attention).parameters)[:4] != ["q", "k", "v", "pe"]:
            return f"{module.__name__}.attention does not begin with (q, k, v, pe)"
        return None

    @contextmanager
    def replaced(self, module: ModuleType, embedder: nn.Module, method: MethodCall) -> Iterator[None]:
        """Have the method called in place of every attention of this thread for the duration of the block."""
        rotation, home, seen = self.arrangement.rotation(embedder), home_of_kernel(module), []

        def embed(call: Callable, ids: Tensor, *args: object, **kwargs: object) -> Tensor:
            seen.clear()
            try:
                seen.append(self.arrangement.find(rotation, ids, method.layout.grid, method.text))
            except Unsupported as reason:
                method.refuse(str(reason))
            return call(ids, *args, **kwargs)

        def around(attention: Callable, q: Tensor, k: Tensor, v: Tensor, pe: Tensor, **kwargs: object) -> Tensor:
            def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
                return getattr(home, KERNEL)(q, k, v, q.shape[1], skip_reshape=True, **kwargs)

            def plain() -> Tensor:
                return attention(q, k, v, pe, **kwargs)

            if not seen:
                return plain()
            return method.attention(seen[0], q, k, v, attend, kwargs.get("mask"), plain)

        with intercepted([(embedder, "__call__", embed)]), redirected(module, "attention", around):
            yield


@dataclass(frozen=True)
class KernelAfterRotation:
    """A module whose blocks rotate q and k in their own code and call `attention_function(q, k, v, heads, mask, ...)`.

    The embedder is given ids of zero, whose rotation is none, so that q and k arrive as the method wants them. What
    calls the kernel before the embedder was called does not rotate, and is left alone.

    Attributes:
        arrangement: of the tokens whose ids the embedder is given.
        flat: True where q, k and v are (B, L, heads*D), False where they are (B, heads, L, D).
    """

    arrangement: Arrangement = field(default_factory=Arrangement)
    flat: bool = False

    def fault(self, module: ModuleType) -> str | None:
        """What the module lacks, or None."""
        if not callable(getattr(module, KERNEL, None)):
            return f"{module.__name__} has no {KERNEL}"
        return None

    @contextmanager
    def replaced(self, module: ModuleType, embedder: nn.Module, method: MethodCall) -> Iterator[None]:
        """Have the method called in place of every attention of this thread for the duration of the block."""
        rotation, seen = self.arrangement.rotation(embedder), []

        def embed(call: Callable, ids: Tensor, *args: object, **kwargs: object) -> Tensor:
            seen.clear()
            try:
                seen.append((self.arrangement.find(rotation, ids, method.layout.grid, method.text), ids))
            except Unsupported as reason:
                method.refuse(str(reason))
                return call(ids, *args, **kwargs)
            return call(ids * 0, *args, **kwargs)

        def around(kernel: Callable, q: Tensor, k: Tensor, v: Tensor, *args: object, **kwargs: object) -> Tensor:
            if not seen:
                return kernel(q, k, v, *args, **kwargs)
            if self.flat:
                heads = args[0] if args else kwargs["heads"]
                q, k, v = (x.unflatten(2, (heads, -1)).transpose(1, 2) for x in (q, k, v))
                kwargs = kwargs | {"skip_reshape": True}
            (sequence, ids), length = seen[0], q.shape[2]
            q, k = q.to(v.dtype), k.to(v.dtype)  # which the rotation may have made float32
            alone = self.arrangement.refines and length == ids.shape[-2] - sequence.before

            def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
                return kernel(q, k, v, *args, **kwargs)

            def plain() -> Tensor:
                own = ids[..., sequence.before :, :] if alone else ids[..., :length, :]
                table = RotaryTable(*(x.unsqueeze(-3) for x in rotation.table(own)))
                return attend(*(rotate(rotation.in_pairs(x), table) for x in (q, k)), v)

            if self.arrangement.refines and length == sequence.before:  # text alone
                return plain()
            mask = args[1] if len(args) > 1 else kwargs.get("mask")
            of_call = sequence.without_those_before() if alone else sequence
            return method.attention(of_call, q, k, v, attend, mask, plain)

        with intercepted([(embedder, "__call__", embed)]), redirected(module, KERNEL, around):
            yield


@dataclass(frozen=True)
class KernelOverPicture:
    """A module whose blocks attend to the picture alone and then to text, both by `attention_function(q, k, v, ...)`.

    The embedder is given the tokens (B, 1, H, W, C), and its matrices (H*W, D/2, 2, 2) are replaced by ones that do not
    rotate. It is the picture's attention that has as many keys as queries.

    Attributes:
        rotation: an embedder's.
    """

    rotation: Callable[[nn.Module], Rotation]

    def fault(self, module: ModuleType) -> str | None:
        """What the module lacks, or None."""
        return KernelAfterRotation().fault(module)

    @contextmanager
    def replaced(self, module: ModuleType, embedder: nn.Module, method: MethodCall) -> Iterator[None]:
        """Have the method called in place of every attention of this thread for the duration of the block."""
        rotation, grid, seen = self.rotation(embedder), method.layout.grid, []
        sequence = TokenSequence.text_first(rotation, 0)

        def embed(call: Callable, tokens: Tensor, *args: object, **kwargs: object) -> Tensor:
            matrices = call(tokens, *args, **kwargs)
            seen.clear()
            if tuple(tokens.shape[1:4]) != (1, grid.height, grid.width):
                method.refuse(f"{tokens.shape[1]} frames of tokens are more than a picture; {REFERENCES}")
                return matrices
            if method.text == grid.tokens:
                method.refuse(f"text and picture have {grid.tokens} tokens each, so that they cannot be told apart")
                return matrices
            seen.append(grid)
            return torch.eye(2).to(matrices).expand_as(matrices)

        def around(kernel: Callable, q: Tensor, k: Tensor, v: Tensor, *args: object, **kwargs: object) -> Tensor:
            def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
                return kernel(q, k, v, *args, **kwargs)

            def plain() -> Tensor:
                table = sequence(grid_positions(grid)[: q.shape[2]], None, grid).to(q.device)
                return attend(*(rotate(rotation.in_pairs(x), table) for x in (q, k)), v)

            if not seen or q.shape[2] != k.shape[2]:
                return attend(q, k, v)
            mask = args[1] if len(args) > 1 else kwargs.get("mask")
            return method.attention(sequence, q, k, v, attend, mask, plain)

        with intercepted([(embedder, "__call__", embed)]), redirected(module, KERNEL, around):
            yield
