"""Scoped changes: the only way this package touches anything it does not own."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager

from torch import Tensor, nn

_ABSENT = object()


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
def scaled_outputs(modules: Iterable[nn.Module], factor: float) -> Iterator[None]:
    """Multiply what the modules return by a factor for the duration of the block."""

    def scale(_: nn.Module, __: tuple, out: Tensor) -> Tensor:
        return out * factor

    with ExitStack() as handles:
        if factor != 1:
            for module in modules:
                handles.enter_context(module.register_forward_hook(scale))
        yield
