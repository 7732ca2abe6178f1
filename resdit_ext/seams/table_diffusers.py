"""diffusers' transformers that add a position table to the embedded latent, for calls on the whole and on patches."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace

import torch
import torch.nn.functional as F
from torch import Tensor

from ..control.added import control_on
from ..errors import Unsupported
from ..method.around_calls import call_by_patches
from ..method.layout import Grid
from ..method.layout_steps import BaseView, ModelCall
from ..method.position_table import PositionTable
from ..method.run import Run
from ..monkeypatch import intercepted
from .nets_diffusers import OnPatches
from .processors import calling, check_names

TIMESTEPS = 1000  # the timestep at noise level 1


def processors_of(transformer: object) -> list[object]:
    """What attends in the blocks; raises Unsupported where one does it in a way that is not known."""
    blocks = transformer.transformer_blocks
    processors = [a.processor for block in blocks for a in (block.attn, block.attn2) if a is not None]
    check_names(processors, ("F", "scaled_dot_product_attention"))
    return processors


def functional_with(factor: float) -> SimpleNamespace:
    """torch.nn.functional with the logits multiplied by a factor where a sequence attends to itself."""

    def attend(q: Tensor, k: Tensor, v: Tensor, *args: object, **kwargs: object) -> Tensor:
        itself = q.shape[-2] == k.shape[-2]  # and not to an IP-Adapter's picture
        return F.scaled_dot_product_attention(q * factor if itself else q, k, v, *args, **kwargs)

    return SimpleNamespace(**vars(F) | {"scaled_dot_product_attention": attend})


def around_calls(transformer: object, run: Run) -> Callable:
    """`around(call, ...)` that makes calls on the whole and on each patch in place of one call; raises Unsupported."""
    processors_of(transformer)
    embedder = transformer.pos_embed
    side = embedder.pos_embed_max_size
    if not side or embedder.pos_embed is None:
        raise Unsupported("its pos_embed has no table that is cropped (pos_embed_max_size)")
    output = sys.modules[type(transformer).__module__].Transformer2DModelOutput
    names = list(inspect.signature(type(transformer).forward).parameters)[1:]

    @contextmanager
    def adjusted(positions: Tensor, logit_scale: float) -> Iterator[None]:
        # Asked for anew: processors may have been replaced since (IP-Adapter, fused projections).
        scaled, functional = processors_of(transformer) if logit_scale != 1 else (), functional_with(logit_scale)
        changes = [calling(processor, {"F": lambda _: functional}) for processor in scaled]
        with intercepted([(embedder, "cropped_pos_embed", lambda *_: positions), *changes]):
            yield

    def around(call: Callable, *args: object, **kwargs: object) -> object:
        given = dict(zip(names, args, strict=False)) | kwargs
        control, options = given.get("block_controlnet_hidden_states"), given.get("joint_attention_kwargs")

        def predict(latent: Tensor, tokens: Tensor | None = None, **changed: object) -> Tensor:
            mine = given | {"hidden_states": latent, "return_dict": False} | changed
            if control is not None and tokens is not None:
                mine["block_controlnet_hidden_states"] = (
                    control.on_patch(latent, tokens)
                    if isinstance(control, OnPatches)
                    else [residual[:, tokens] for residual in control]
                )
            if options is not None:
                mine["joint_attention_kwargs"] = dict(options)  # a call takes the IP-Adapter's images out of it
            return call(**mine)[0]

        def predict_at_base(latent: Tensor, level: float, _: BaseView) -> Tensor:
            changed = {"timestep": torch.full_like(given["timestep"], TIMESTEPS * level)}
            if control is not None:
                grids = (Grid(x.shape[-2] // 2, x.shape[-1] // 2) for x in (given["hidden_states"], latent))
                changed["block_controlnet_hidden_states"] = control_on(control, *grids)
            return predict(latent, **changed)

        latent, text = given["hidden_states"], given["encoder_hidden_states"].shape[1]
        sigma = float(given["timestep"].max()) / TIMESTEPS
        sample = call_by_patches(
            run,
            ModelCall(predict, predict_at_base, velocity=True),
            latent,
            text,
            sigma,
            lambda: PositionTable(embedder.pos_embed[0].unflatten(0, (side, side))),
            adjusted,
        )
        return output(sample=sample) if given.get("return_dict", True) else (sample,)

    return around
