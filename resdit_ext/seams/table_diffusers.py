"""diffusers' transformers that add a position table to the embedded latent, for calls on the whole and on patches."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from types import SimpleNamespace

import torch
import torch.nn.functional as F
from torch import Tensor

from ..control.added import control_on
from ..errors import Unsupported
from ..method.around_calls import call_by_patches
from ..method.layout import Grid
from ..method.layout_steps import ModelCall, View
from ..method.position_table import PositionTable
from ..method.run import Run
from ..monkeypatch import intercepted
from .nets_diffusers import OnPatches
from .processors import calling, check_names, names_used
from .ranks import check_call
from .ulysses_diffusers import Ranks, check_exchange, ranks_of

TIMESTEPS = 1000  # the timestep at noise level 1
CONTROL = "block_controlnet_hidden_states"
DISPATCH = "dispatch_attention_fn"


def processors_of(transformer: object) -> list[object]:
    """What attends in the blocks; raises Unsupported where one does it in a way that is not known."""
    blocks = transformer.transformer_blocks
    processors = [a.processor for block in blocks for a in (block.attn, block.attn2) if a is not None]
    check_names((p for p in processors if not dispatches(p)), ("F", "scaled_dot_product_attention"))
    return processors


def dispatches(processor: object) -> bool:
    """True for a processor that attends by diffusers' dispatcher, as the one for several ranks does."""
    return DISPATCH in names_used(processor)


def ranks_sharing(transformer: object) -> Ranks | None:
    """The ranks that share the transformer's tokens, if any do; raises Unsupported where they would not exchange."""
    ranks = ranks_of(transformer)
    if ranks is not None:
        check_exchange(processors_of(transformer), transformer)
    return ranks


def functional_with(factor: float) -> SimpleNamespace:
    """torch.nn.functional with the logits multiplied by a factor where a sequence attends to itself."""

    def attend(q: Tensor, k: Tensor, v: Tensor, *args: object, **kwargs: object) -> Tensor:
        itself = q.shape[-2] == k.shape[-2]  # and not to an IP-Adapter's picture
        return F.scaled_dot_product_attention(q * factor if itself else q, k, v, *args, **kwargs)

    return SimpleNamespace(**vars(F) | {"scaled_dot_product_attention": attend})


def dispatch_with(factor: float, dispatch: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """diffusers' dispatcher with the logits multiplied by a factor."""

    def attend(q: Tensor, k: Tensor, v: Tensor, **given: object) -> Tensor:
        return dispatch(q * factor, k, v, **given)

    return attend


def around_calls(transformer: object, run: Run) -> Callable:
    """`around(call, ...)` that makes calls on the whole and on each patch in place of one call; raises Unsupported."""
    processors_of(transformer), ranks_sharing(transformer)
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
        by_sdpa, by_dispatch = {"F": lambda _: functional}, {DISPATCH: partial(dispatch_with, logit_scale)}
        kinds = {id(p): (p, by_dispatch if dispatches(p) else by_sdpa) for p in scaled}  # blocks may share one
        changes = [calling(processor, replaced) for processor, replaced in kinds.values()]
        with intercepted([(embedder, "cropped_pos_embed", lambda *_: positions), *changes]):
            yield

    def around(whole_call: Callable, *args: object, **kwargs: object) -> object:
        given, ranks = dict(zip(names, args, strict=False)) | kwargs, ranks_sharing(transformer)
        options = given.get("joint_attention_kwargs")

        def call(**given: object) -> object:
            return whole_call(**(given if ranks is None else ranks.parts_of(given, (CONTROL,))))

        def at(grid: Grid, given: Mapping[str, object]) -> ModelCall:
            control = given.get(CONTROL)

            def predict(latent: Tensor, tokens: Tensor | None = None) -> Tensor:
                mine = {**given, "hidden_states": latent, "return_dict": False}
                if control is not None and tokens is not None:
                    mine[CONTROL] = (
                        control.on_patch(latent, tokens)
                        if isinstance(control, OnPatches)
                        else [residual[:, tokens] for residual in control]
                    )
                if options is not None:
                    mine["joint_attention_kwargs"] = dict(options)  # a call takes the IP-Adapter's images out of it
                return call(**mine)[0]

            def smaller(view: View, level: float) -> ModelCall:
                theirs = {**given, "timestep": torch.full_like(given["timestep"], TIMESTEPS * level)}
                if control is not None:
                    theirs[CONTROL] = control_on(control, grid, view.grid)
                return at(view.grid, theirs)

            return ModelCall(predict, smaller, velocity=True)

        latent, text = given["hidden_states"], given["encoder_hidden_states"].shape[1]
        sigma, grid = float(given["timestep"].max()) / TIMESTEPS, Grid(latent.shape[-2] // 2, latent.shape[-1] // 2)
        if ranks is not None:
            layout = run.layout(grid)
            if not layout.is_base:
                check_call(run, given, sigma, ranks.group)
                ranks.check_lengths(transformer.config.num_attention_heads, text, layout)
        sample = call_by_patches(
            run,
            at(grid, given),
            latent,
            text,
            sigma,
            lambda: PositionTable(embedder.pos_embed[0].unflatten(0, (side, side))),
            adjusted,
        )
        return output(sample=sample) if given.get("return_dict", True) else (sample,)

    return around
