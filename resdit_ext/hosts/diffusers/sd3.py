"""diffusers' SD3Transformer2DModel: its position table and queries, for calls on the whole latent and on each patch."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from torch import Tensor, nn

from ...errors import Unsupported
from ...patching import scaled_outputs, swapped
from ...patchwise import denoise_by_patches
from ...run import Run
from ...tables import PositionTable
from .control import OnPatches

ARGUMENTS = (
    "hidden_states",
    "encoder_hidden_states",
    "pooled_projections",
    "timestep",
    "block_controlnet_hidden_states",
    "joint_attention_kwargs",
    "return_dict",
    "skip_layers",
)
TIMESTEPS = 1000  # SD3's timestep at noise level 1


def last_of_queries(transformer: object) -> list[nn.Module]:
    """The modules that every query passes through last, before it is attended with; raises Unsupported."""
    blocks = transformer.transformer_blocks
    attentions = [a for block in blocks for a in (block.attn, block.attn2) if a is not None]
    if any(attention.fused_projections for attention in attentions):
        raise Unsupported("fused projections are not supported: call unfuse_qkv_projections() first")
    own = [attention.norm_q or attention.to_q for attention in attentions]
    texts = [block.attn.norm_added_q or block.attn.add_q_proj for block in blocks]
    return own + texts


def resdit_forward(transformer: object, run: Run, forward: Callable) -> Callable:
    """`forward` made of calls of itself, on the whole latent and on each patch; raises Unsupported."""
    last_of_queries(transformer)
    embedder = transformer.pos_embed
    side = embedder.pos_embed_max_size
    if not side or embedder.pos_embed is None:
        raise Unsupported("its pos_embed has no table that is cropped (pos_embed_max_size)")
    output = sys.modules[type(transformer).__module__].Transformer2DModelOutput

    @contextmanager
    def adjusted(positions: Tensor, logit_scale: float) -> Iterator[None]:
        ours = swapped(embedder, cropped_pos_embed=lambda height, width: positions)  # noqa: ARG005
        # Asked for anew: an adapter (LoRA) loaded since may have wrapped a projection.
        with ours, scaled_outputs(last_of_queries(transformer), logit_scale):
            yield

    def wrapped(*args: object, **kwargs: object) -> object:
        given = dict(zip(ARGUMENTS, args, strict=False)) | kwargs
        control, options = given.get("block_controlnet_hidden_states"), given.get("joint_attention_kwargs")

        def predict(latent: Tensor, tokens: Tensor | None = None) -> Tensor:
            call = given | {"hidden_states": latent, "return_dict": False}
            if control is not None and tokens is not None:
                call["block_controlnet_hidden_states"] = (
                    control.on_patch(latent, tokens)
                    if isinstance(control, OnPatches)
                    else [residual[:, tokens] for residual in control]
                )
            if options is not None:
                call["joint_attention_kwargs"] = dict(options)  # a call takes the IP-Adapter's images out of it
            return forward(**call)[0]

        latent, text = given["hidden_states"], given["encoder_hidden_states"].shape[1]
        sigma = float(given["timestep"].max()) / TIMESTEPS
        sample = denoise_by_patches(
            run,
            predict,
            latent,
            text,
            sigma,
            lambda: PositionTable(embedder.pos_embed[0].unflatten(0, (side, side))),
            adjusted,
        )
        return output(sample=sample) if given.get("return_dict", True) else (sample,)

    return wrapped
