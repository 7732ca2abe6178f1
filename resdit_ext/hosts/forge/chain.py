"""The unet's one model function of Forge and its forks, which several extensions want: ours is the innermost."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from torch import Tensor

from ...monkeypatch import replacing, without_ours

WRAPPER = "model_function_wrapper"


def chain(unet: object, call: Callable[..., Tensor], kind: str) -> None:
    """Have a unet's model called as `call(apply_model, x, t, **c)`, within what another extension has set.

    Args:
        unet: a clone of the host's patcher.
        call: what is called in the model's place.
        kind: which of our calls this is; one of the same kind is replaced, never nested.
    """
    outer = without_ours(unet.model_options.get(WRAPPER), kind)

    # Only plain functions may live in model_options: the host deep-copies what is stored there.
    def wrapper(apply_model: Callable[..., Tensor], args: dict) -> Tensor:
        innermost = partial(call, apply_model)
        if outer is not None:
            return outer(innermost, args)
        return innermost(args["input"], args["timestep"], **args["c"])

    unet.set_model_unet_function_wrapper(replacing(wrapper, outer, kind))
