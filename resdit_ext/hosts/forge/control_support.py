"""Control in a model whose forward drops it, as of some models Forge's and ersatzForge's do, and Neo's does not."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from contextlib import AbstractContextManager

from torch import Tensor, nn

from ...control.added import LazyResiduals
from ...monkeypatch import changed_outputs, is_ours
from .chain import WRAPPER, chain

ADDS = "control"


def adding(model: nn.Module, control: dict[str, LazyResiduals], text: int) -> AbstractContextManager:
    """Have a model whose forward drops `control` add it to the image tokens after each of its blocks, for one call.

    Args:
        model: the host's.
        control: what is added after "input" (double) and "output" (single) blocks.
        text: number of text tokens, which precede the image's in a single block.
    """

    def after_double(block: int) -> Callable:
        def change(out: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
            image, words = out
            share = control["input"][block]
            return (image if share is None else image + share), words

        return change

    def after_single(block: int) -> Callable:
        def change(out: Tensor) -> Tensor:
            share = control["output"][block]
            if share is not None:
                out[:, text : text + share.shape[1]] += share
            return out

        return change

    double = ((block, after_double(i)) for i, block in enumerate(model.double_blocks))
    single = ((block, after_single(i)) for i, block in enumerate(model.single_blocks))
    return changed_outputs([*double, *single])


def with_control_support(unet: object) -> object:
    """The unet where its model takes control itself; else a clone whose model function adds it, chained as ours are."""
    model = unet.model.diffusion_model
    if "control" in inspect.signature(model.forward).parameters or is_ours(unet.model_options.get(WRAPPER), ADDS):
        return unet
    clone = unet.clone()

    def call(apply_model: Callable[..., Tensor], x: Tensor, t: Tensor, **c: object) -> Tensor:
        control = c.get("control")
        if control is None:
            return apply_model(x, t, **c)
        with adding(model, control, c["c_crossattn"].shape[1]):
            return apply_model(x, t, **c)

    chain(clone, call, ADDS)
    return clone
