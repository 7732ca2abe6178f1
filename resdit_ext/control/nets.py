"""diffusers' control nets, made for a checkpoint: every tensor is accounted for before anything is allocated."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import nn

from ..errors import Unsupported
from .format import Checkpoint

# What diffusers makes itself and files need not hold.
MADE_BY_DIFFUSERS = ("pos_embed.pos_embed",)
EIGHT_BIT = tuple(getattr(torch, name) for name in ("float8_e4m3fn", "float8_e5m2") if hasattr(torch, name))


def listed(names: list[str]) -> str:
    """The first two names and how many more there are."""
    more = f" and {len(names) - 2} more" if len(names) > 2 else ""
    return ", ".join(names[:2]) + more


def maker_of(checkpoint: Checkpoint) -> Callable[..., nn.Module]:
    """What makes the checkpoint's net; raises Unsupported where the installed diffusers is too old for it."""
    try:
        return checkpoint.format.maker(checkpoint.arguments)
    except ImportError as error:
        raise Unsupported(f"the installed diffusers has no control nets for {checkpoint.family} ({error})") from None


def check_shapes(checkpoint: Checkpoint) -> None:
    """Raise Unsupported naming the tensors that are missing, left over or of another shape."""
    make = maker_of(checkpoint)
    try:
        with torch.device("meta"):
            net = make(**checkpoint.arguments)
    except Exception as error:  # diffusers' own, on sizes from a damaged file
        raise Unsupported(f"its tensors' shapes make no net ({error})") from None
    expected = {name: value.shape for name, value in net.state_dict().items()}
    found = {name: value.shape for name, value in checkpoint.weights.items()}
    if missing := [name for name in expected if name not in found and name not in MADE_BY_DIFFUSERS]:
        raise Unsupported(f"it lacks {listed(missing)}")
    if unknown := [name for name in found if name not in expected]:
        raise Unsupported(f"it has {listed(unknown)}, which such a net does not have")
    for name, shape in found.items():
        if shape != expected[name]:
            raise Unsupported(f"{name} is {tuple(shape)} where such a net has {tuple(expected[name])}")


def stored_as(checkpoint: Checkpoint, compute: torch.dtype) -> torch.dtype:
    """The type to keep the weights in: eight bits where the file has them, else the one computed with."""
    kinds = {value.dtype for value in checkpoint.weights.values()}
    return next((kind for kind in EIGHT_BIT if kind in kinds), compute)


def build(
    checkpoint: Checkpoint,
    compute: torch.dtype = torch.float32,
    operations: Callable[[torch.dtype], AbstractContextManager] = lambda _: nullcontext(),
) -> nn.Module:
    """diffusers' control net with the checkpoint's weights, on the CPU.

    Args:
        checkpoint: as `recognise` returned it.
        compute: the type to compute with.
        operations: a context in which torch's layers are the host's, which keep their weights as the given type.

    Raises:
        Unsupported: tensors are missing, left over or misshapen, or diffusers is too old; the message names them.
    """
    check_shapes(checkpoint)
    with operations(stored_as(checkpoint, compute)):
        net = maker_of(checkpoint)(**checkpoint.arguments)

    net.load_state_dict(dict(checkpoint.weights), strict=False)
    for path, module in net.named_modules():
        casts = hasattr(module, "parameters_manual_cast")  # a layer of the host's
        for name, tensor in (*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)):
            given = checkpoint.weights.get(f"{path}.{name}".lstrip("."), tensor)
            # The host's may have made eight bits of what the file has in more.
            if tensor.is_floating_point() and not (casts and given.dtype in EIGHT_BIT):
                kept = given.to(compute)
                setattr(module, name, nn.Parameter(kept, False) if isinstance(tensor, nn.Parameter) else kept)
    return net.eval().requires_grad_(False)
