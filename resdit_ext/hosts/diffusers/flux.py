"""diffusers' FluxTransformer2DModel: the rotation and the attention that its processors call, for one forward."""

from __future__ import annotations

import sys
from collections.abc import Callable

from torch import Tensor

from ...attention import Plan, resdit_attention
from ...errors import Unsupported
from ...families.flux import text_first_ids
from ...geometry import Grid
from ...patching import swapped
from ...run import Run

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


def resdit_forward(transformer: object, run: Run, forward: Callable) -> Callable:
    """`forward` with the method in its attention for the duration of each call; raises Unsupported."""
    module = sys.modules[type(transformer).__module__]
    if missing := [name for name in NEEDED if not hasattr(module, name)]:
        raise Unsupported(f"{module.__name__} lacks {', '.join(missing)}: install diffusers 0.35 or newer")

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
        phase = run.phase(float(given["timestep"].max()))
        rotate, dispatch = module.apply_rotary_emb, module.dispatch_attention_fn

        def embed(positions: Tensor) -> tuple[Tensor, Tensor]:
            return transformer.pos_embed(text_first_ids(text, positions))

        def attention(q: Tensor, k: Tensor, v: Tensor, *args: object, **kwargs: object) -> Tensor:
            if not q.shape[1] == k.shape[1] == text + tokens:  # IP-Adapter's own attention, say
                return dispatch(q, k, v, *args, **kwargs)

            def attend(q: Tensor, k: Tensor, v: Tensor, positions: tuple[Tensor, Tensor]) -> Tensor:
                q, k, v = (x.transpose(1, 2) for x in (q, k, v))
                q, k = (rotate(x, positions, sequence_dim=1) for x in (q, k))
                return dispatch(q, k, v, *args, **kwargs).flatten(2, 3)

            plan = run.cached((layout, text, str(q.device)), lambda: Plan(layout, run.config, text, embed, q.device))
            q, k, v = (x.transpose(1, 2) for x in (q, k, v))
            return resdit_attention(q, k, v, plan, phase, attend).unflatten(2, (q.shape[1], -1))

        # The processors rotate q and k before they attend; the method rotates them itself, per branch.
        unrotated = {"apply_rotary_emb": lambda x, *_, **__: x, "dispatch_attention_fn": attention}
        with swapped(module, **unrotated):
            return forward(*args, **kwargs)

    return wrapped
