"""diffusers' FluxTransformer2DModel: the rotation and the attention that its processors call, for one forward."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor

from ...attention import plan_for, resdit_attention
from ...errors import Unsupported
from ...families.flux import flux_turns
from ...geometry import Grid, Layout
from ...patching import redirected, swapped
from ...positions import Turns
from ...run import Run
from ...schedule import Phase

NEEDED = ("apply_rotary_emb", "dispatch_attention_fn")


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


def unrotated(x: Tensor, *_: object, **__: object) -> Tensor:
    """In place of diffusers' rotation."""
    return x


@contextmanager
def attention_at(transformer: object, run: Run, layout: Layout, text: int, phase: Phase) -> Iterator[None]:
    """Run the method in every block of the one forward made inside this context."""
    module, rotary = sys.modules[type(transformer).__module__], transformer.pos_embed
    dispatch = module.dispatch_attention_fn

    def embed(positions: Tensor) -> Turns:
        return flux_turns(text, positions, tuple(rotary.axes_dim), rotary.theta)

    def method(q: Tensor, k: Tensor, v: Tensor, *args: object, **kwargs: object) -> Tensor:
        if not q.shape[1] == k.shape[1] == text + layout.grid.tokens:  # IP-Adapter's own attention, say
            return dispatch(q, k, v, *args, **kwargs)

        def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            q, k, v = (x.transpose(1, 2) for x in (q, k, v))
            return dispatch(q, k, v, *args, **kwargs).flatten(2, 3)

        q, k, v = (x.transpose(1, 2) for x in (q, k, v))
        plan = plan_for(run, layout, text, embed, q.device)
        return resdit_attention(q, k, v, plan, phase, attend).unflatten(2, (q.shape[1], -1))

    # The processors rotate q and k before they attend; the method rotates them itself, per branch.
    with swapped(module, apply_rotary_emb=unrotated), redirected(module, "dispatch_attention_fn", method):
        yield


def resdit_forward(transformer: object, run: Run, forward: Callable) -> Callable:
    """`forward` with the method in its attention for the duration of each call; raises Unsupported."""
    module = sys.modules[type(transformer).__module__]
    if missing := [name for name in NEEDED if not hasattr(module, name)]:
        raise Unsupported(f"{module.__name__} lacks {', '.join(missing)}: install diffusers 0.35 or newer")

    @partial(torch.compiler.disable, recursive=False)
    def wrapped(*args: object, **kwargs: object) -> object:
        names = ("hidden_states", "encoder_hidden_states", "pooled_projections", "timestep", "img_ids")
        given = dict(zip(names, args, strict=False)) | kwargs
        tokens, text = given["hidden_states"].shape[1], given["encoder_hidden_states"].shape[1]
        try:
            layout = run.layout(grid_of(given["img_ids"], tokens))
        except Unsupported as reason:
            run.say(f"not active: {reason}")
            return forward(*args, **kwargs)
        if layout.is_base:
            run.calls["base"] += 1
            return forward(*args, **kwargs)
        with attention_at(transformer, run, layout, text, run.phase(float(given["timestep"].max()))):
            return forward(*args, **kwargs)

    return wrapped
