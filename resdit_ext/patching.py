"""Scoped changes: the only way this package touches anything it does not own."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar

import torch
from torch import Tensor, nn

_ABSENT = object()
_redirection: ContextVar[Callable] = ContextVar("resdit_redirection")


@torch.compiler.disable
def redirection(*args: object, **kwargs: object) -> object:
    """Call what the innermost `redirected` was given.

    One function object for every model call: a compiled model (torch.compile) breaks its graph here, and finding the
    same object again it is not compiled anew.
    """
    return _redirection.get()(*args, **kwargs)


@contextmanager
def redirected(owner: object, name: str, to: Callable) -> Iterator[None]:
    """Have calls of a module's function go to another for the duration of the block, compiled callers' too."""
    token = _redirection.set(to)
    try:
        with swapped(owner, **{name: redirection}):
            yield
    finally:
        _redirection.reset(token)


@contextmanager
def swapped(owner: object, **attributes: object) -> Iterator[None]:
    """Set attributes of a module or instance for the duration of the block, then put the old state back.

    What the instance did not have of its own (a method of its class, say) is deleted again, not copied onto it.
    """
    before = {name: vars(owner).get(name, _ABSENT) for name in attributes}
    try:
        for name, value in attributes.items():
            setattr(owner, name, value)
        yield
    finally:
        for name, value in before.items():
            if value is not _ABSENT:
                setattr(owner, name, value)
            elif name in vars(owner):
                delattr(owner, name)


@contextmanager
def changed_outputs(changes: Iterable[tuple[nn.Module, Callable[[object], object]]]) -> Iterator[None]:
    """Have each module return `change(its output)` for the duration of the block."""
    with ExitStack() as handles:
        for module, change in changes:
            handles.enter_context(module.register_forward_hook(lambda _, __, out, change=change: change(out)))
        yield


@contextmanager
def scaled_outputs(modules: Iterable[nn.Module], factor: float) -> Iterator[None]:
    """Multiply what the modules return by a factor for the duration of the block."""

    def scale(out: Tensor) -> Tensor:
        return out * factor

    with changed_outputs((module, scale) for module in (modules if factor != 1 else ())):
        yield
