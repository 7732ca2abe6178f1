"""diffusers' FluxTransformer2DModel: the rotation and the attention inside its processors, for one call."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor

from ...errors import Unsupported
from ...families.flux import flux_rotary_table
from ...method.in_attention import plan_for, resdit_attention
from ...method.layout import Grid, Layout
from ...method.phases import Phase
from ...method.rotary import RotaryTable
from ...method.run import Run
from ...monkeypatch import intercepted
from .processors import calling, check_names

NEEDED = ("apply_rotary_emb", "dispatch_attention_fn")
ARGUMENTS = ("hidden_states", "encoder_hidden_states", "pooled_projections", "timestep", "img_ids")


def grid_of(img_ids: Tensor, tokens: int) -> Grid:
    """The token grid of FLUX ids (L, 3), read from where the first row ends; raises Unsupported if it is no grid.

    The ids' values are not trusted beyond that: in bfloat16 rows past 256 collide.
    """
    ids = img_ids[0] if img_ids.ndim == 3 else img_ids
    if ids[:, 0].any():
        raise Unsupported("reference images (Kontext) are not supported yet")
    below_first = ids[:, 1].nonzero()
    width = int(below_first[0]) if len(below_first) else tokens
    if len(ids) != tokens or tokens % width:
        raise Unsupported(f"{tokens} image tokens are not a grid of rows of {width}")
    return Grid(tokens // width, width)


def text_mask(mask: Tensor, text: int, tokens: int) -> Tensor:
    """(B or 1, heads or 1, 1, T) text part of an attention mask that leaves all image tokens in.

    Such a mask means the same to every branch: text comes first in all of them, and no branch has masked image tokens.

    Raises:
        Unsupported: the mask differs between queries, or takes image tokens out.
    """
    if mask.ndim == 2:
        mask = mask[:, None, None]
    if mask.ndim != 4 or mask.shape[2] != 1 or mask.shape[3] != text + tokens:
        raise Unsupported(f"an attention mask of shape {tuple(mask.shape)} is not supported, only one over the text")
    image = mask[..., text:]
    if not bool(image.all() if mask.dtype == torch.bool else (image == 0).all()):
        raise Unsupported("an attention mask that takes image tokens out is not supported, only one over the text")
    return mask[..., :text]


def mask_for(text: Tensor, batch: int, keys: int) -> Tensor:
    """The mask for `batch` sequences of `keys` keys, that many patches of each picture after one another."""
    kept = text.new_ones if text.dtype == torch.bool else text.new_zeros
    whole = torch.cat((text, kept(*text.shape[:3], keys - text.shape[3])), 3)
    return whole if len(text) == 1 else whole.repeat(batch // len(text), 1, 1, 1)


@contextmanager
def attention_at(
    transformer: object, run: Run, layout: Layout, text: int, phase: Phase, words: Tensor | None = None
) -> Iterator[None]:
    """Run the method in every block of the one call made inside this context; `words` is a `text_mask`."""
    rotary, whole = transformer.pos_embed, text + layout.grid.tokens

    def embed(positions: Tensor) -> RotaryTable:
        return flux_rotary_table(text, positions, tuple(rotary.axes_dim), rotary.theta)

    def method(dispatch: Callable, q: Tensor, k: Tensor, v: Tensor, *args: object, **given: object) -> Tensor:
        if q.shape[1] != k.shape[1]:  # IP-Adapter's own attention
            return dispatch(q, k, v, *args, **given)
        if q.shape[1] != whole:
            raise Unsupported(
                f"attention is given {q.shape[1]} tokens of {whole}: an engine that divides the tokens among devices "
                "is at work, beside which ResDiT cannot run; switch one of the two off"
            )

        def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            q, k, v = (x.transpose(1, 2) for x in (q, k, v))
            mask = {} if words is None else {"attn_mask": mask_for(words, len(q), k.shape[1])}
            return dispatch(q, k, v, *args, **given | mask).flatten(2, 3)

        q, k, v = (x.transpose(1, 2) for x in (q, k, v))
        plan = plan_for(run, layout, text, embed, q.device)
        return resdit_attention(q, k, v, plan, phase, attend).unflatten(2, (q.shape[1], -1))

    # The processors rotate q and k before they attend; the method rotates them itself, per branch.
    replaced = {"apply_rotary_emb": lambda _: unrotated, "dispatch_attention_fn": lambda own: partial(method, own)}
    with intercepted(calling(processor, replaced) for processor in processors_of(transformer)):
        yield


def unrotated(x: Tensor, *_: object, **__: object) -> Tensor:
    """In place of diffusers' rotation."""
    return x


def processors_of(transformer: object) -> list[object]:
    """What attends in the blocks; raises Unsupported where one does it in a way that is not known."""
    blocks = (*transformer.transformer_blocks, *transformer.single_transformer_blocks)
    processors = [block.attn.processor for block in blocks]
    check_names(processors, NEEDED)
    return processors


def mask_given(given: Mapping[str, object]) -> Tensor | None:
    """The attention mask in a call's arguments."""
    return (given.get("joint_attention_kwargs") or {}).get("attention_mask")


def around_calls(transformer: object, run: Run) -> Callable:
    """`around(call, ...)` that makes a call of the transformer with the method in its attention; raises Unsupported."""
    processors_of(transformer)

    def around(call: Callable, *args: object, **kwargs: object) -> object:
        given = dict(zip(ARGUMENTS, args, strict=False)) | kwargs
        tokens, text = given["hidden_states"].shape[1], given["encoder_hidden_states"].shape[1]
        mask, words = mask_given(given), None
        try:
            layout = run.layout(grid_of(given["img_ids"], tokens))
            if mask is not None and not layout.is_base:
                words = text_mask(mask, text, tokens)
        except Unsupported as reason:
            run.say(f"not active: {reason}")
            return call(*args, **kwargs)
        if layout.is_base:
            run.calls["base"] += 1
            return call(*args, **kwargs)
        phase = run.begin_call(float(given["timestep"].max()))
        with attention_at(transformer, run, layout, text, phase, words):
            return call(*args, **kwargs)

    return around
