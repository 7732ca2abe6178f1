"""`enable_parallelism(model, config)`: diffusers' parallelism, for the families that it has no plan for as well."""

from __future__ import annotations

from contextlib import ExitStack

import torch
from torch import nn

from ...errors import Unsupported
from ...families import family_of_class
from ...monkeypatch import swapped


def without_accelerator() -> ExitStack:
    """A context in which diffusers finds one device, the CPU, on a machine without any; on others it does nothing."""
    stack = ExitStack()
    if not torch.accelerator.is_available():
        stack.enter_context(swapped(torch.accelerator, device_count=lambda: 1))
        stack.enter_context(swapped(torch._C, _get_accelerator=lambda *_: torch.device("cpu")))
    return stack


def enable_parallelism(model: nn.Module, config: object) -> None:
    """`model.enable_parallelism(config=config)`, also where diffusers has no plan for the model (Chroma, SD3).

    Args:
        model: a transformer of a supported family.
        config: diffusers' ContextParallelConfig with a `ulysses_degree`, or its TensorParallelConfig.

    Raises:
        Unsupported: a diffusers that is too old, or a model whose tokens cannot be shared.

    Example:
        >>> enable_parallelism(pipe.transformer, ContextParallelConfig(ulysses_degree=2))  # doctest: +SKIP
    """
    if not (hasattr(model, "enable_parallelism") and hasattr(torch, "accelerator")):
        raise Unsupported("several devices need diffusers 0.36 or newer and torch 2.6 or newer")
    plan = {}
    if hasattr(config, "ulysses_degree") and type(model)._cp_plan is None:
        family = family_of_class(type(model).__name__)
        share = None if family is None else family.shares.get(type(model).__name__)
        if share is None:
            raise Unsupported(f"there is no plan for sharing the tokens of a {type(model).__name__}")
        plan = {"cp_plan": share(model)}
    with without_accelerator():
        model.enable_parallelism(config=config, **plan)
