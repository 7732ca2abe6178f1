"""FLUX.1: dev, schnell, Krea, Kontext, Fill, Depth and Canny, which differ in their weights and inputs alone."""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor

from ..control.token_nets import TokenNets
from ..seams.nets_diffusers import around_token_net
from ..seams.rotary import RotaryBlocks
from ..seams.rotary_diffusers import NEEDED, RotaryProcessors
from ..seams.training_diffusers import Training, rotary_predictor
from . import Family, Support

NAME = "FLUX.1"


def has_blocks(model: object) -> bool:
    """True for a transformer with FLUX's two kinds of blocks."""
    return all(len(getattr(model, name, ())) > 0 for name in ("double_blocks", "single_blocks"))


def claims(model: object) -> bool:
    """True for a transformer with FLUX's two kinds of blocks, each of which makes its own modulation."""
    shared = ("distilled_guidance_layer", "double_stream_modulation_img")
    return has_blocks(model) and not any(hasattr(model, name) for name in shared)


def refusal(model: object) -> str | None:
    """Why a FLUX-like model is not FLUX.1, or None."""
    axes = len(getattr(getattr(model, "pe_embedder", None), "axes_dim", ()))
    if axes != 3:
        return f"a FLUX with {axes} position axes where FLUX.1 has 3 is not supported"
    if getattr(model, "txt_ids_dims", None):
        return "a FLUX whose text has positions of its own is not supported yet"
    return None


def attention_mask(given: dict) -> object | None:
    """The attention mask in the arguments of a call of diffusers' transformer."""
    return (given.get("joint_attention_kwargs") or {}).get("attention_mask")


def with_mask(given: dict, mask: object | None) -> dict:
    """The arguments with another attention mask."""
    return {**given, "joint_attention_kwargs": {**given["joint_attention_kwargs"], "attention_mask": mask}}


def encode(pipe: object, caption: str) -> dict[str, Tensor]:
    """A caption as the transformer is given it."""
    tokens, pooled, _ = pipe.encode_prompt(caption, None)
    return {"encoder_hidden_states": tokens, "pooled_projections": pooled}


TRANSFORMER = "models/transformers/transformer_flux.py"
FORGE = Support("dev, schnell, Krea, Fill, Depth, Canny", {"backend/nn/flux.py": ("attention(q, k, v, pe)",)})
KONTEXT = replace(FORGE, note="Kontext too")
FAMILY = Family(
    name=NAME,
    key="flux",
    rank=0,
    webui=RotaryBlocks(claims, refusal),
    diffusers={
        "FluxTransformer2DModel": RotaryProcessors(
            mask=attention_mask, with_mask=with_mask, ranks_known=True
        ).around_calls,
        "FluxControlNetModel": around_token_net,
    },
    control=TokenNets(
        NAME,
        "FluxControlNetModel",
        texts=(
            ("joint_attention_dim", "text tokens", "txt_in"),
            ("pooled_projection_dim", "text vectors", "vector_in.in_layer"),
        ),
    ),
    training=Training(encode, rotary_predictor),
    support={
        "Forge": FORGE,
        "Forge Neo": KONTEXT,
        "ersatzForge": FORGE,
        "diffusers": replace(KONTEXT, needs={TRANSFORMER: NEEDED}),
    },
    hidden_size=3072,
    longest_text=512,
    # A little above what tests/hosts/memory.py counts at 2K to 4K: 18.4 in Forge (22.2 without the method) and at most
    # 24.1 in ersatzForge (27.2).
    live_vectors=25,
)
