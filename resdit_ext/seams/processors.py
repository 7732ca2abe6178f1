"""What diffusers' attention processors call, replaced for one processor object and one call."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from types import FunctionType

import torch

from ..errors import Unsupported
from ..monkeypatch import rebound


def names_used(processor: object) -> tuple[str, ...]:
    """The names that a processor's `__call__` uses; none where it is no Python function."""
    function = type(processor).__call__
    return function.__code__.co_names if isinstance(function, FunctionType) else ()


def check_names(processors: Iterable[object], needed: Iterable[str]) -> None:
    """Raise Unsupported naming a processor whose `__call__` does not use all these names."""
    for processor in processors:
        used = names_used(processor)
        if missing := [name for name in needed if name not in used]:
            raise Unsupported(
                f"its attention processor {type(processor).__name__} does not call {', '.join(missing)}: "
                "reset it with set_default_attn_processor(), or install diffusers 0.35 or newer"
            )


def calling(
    processor: object, replaced: Mapping[str, Callable[[object], object]], dropped: str | None = None
) -> tuple[object, str, Callable]:
    """For `intercepted`: have a processor call other functions than its module's.

    Args:
        processor: that attends.
        replaced: by name in the module, own function -> the one to call.
        dropped: a keyword argument for which it is given None, or none such.
    """
    function = type(processor).__call__
    own = function.__globals__
    mine = partial(rebound(function, **{name: make(own[name]) for name, make in replaced.items()}), processor)

    @torch.compiler.disable  # a compiled model would look the names up in the module again
    def around(_: Callable, *args: object, **kwargs: object) -> object:
        return mine(*args, **kwargs if dropped is None else kwargs | {dropped: None})

    return processor, "__call__", around
