"""SD3-medium, SD3.5-large and SD3.5-medium, whose blocks may have a second, image-only attention."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor, nn

from ..control.latent_nets import LatentNets
from ..seams.nets_diffusers import around_latent_net
from ..seams.table import TableBlocks
from ..seams.table_diffusers import around_calls
from ..seams.training_diffusers import Training, Weights, table_predictor
from . import Family, Support

NAME = "SD3"
NEEDS = ("cropped_pos_embed", "ln_q")
FORGE = Support("SD3-medium, SD3.5-large, SD3.5-medium", {"backend/nn/mmditx.py": NEEDS})
A1111 = Support(
    "SD3-medium",
    {"modules/models/sd3/mmdit.py": NEEDS, "modules/models/sd3/sd3_model.py": ("SD3Inferencer.create_denoiser",)},
)
LORA = re.compile(r"transformer\.transformer_blocks\.(\d+)\.(attn2?)\.(\w+(?:\.0)?)\.lora_([AB])\.weight")
# diffusers' layers of an attention: whose they are in the WebUIs, the layer there, and which part of it.
LAYERS = {
    "to_q": ("x_block", "qkv", 0),
    "to_k": ("x_block", "qkv", 1),
    "to_v": ("x_block", "qkv", 2),
    "to_out.0": ("x_block", "proj", 0),
    "add_q_proj": ("context_block", "qkv", 0),
    "add_k_proj": ("context_block", "qkv", 1),
    "add_v_proj": ("context_block", "qkv", 2),
    "to_add_out": ("context_block", "proj", 0),
}


def encode(pipe: object, caption: str) -> dict[str, Tensor]:
    """A caption as the transformer is given it."""
    tokens, _, pooled, _ = pipe.encode_prompt(caption, None, None, do_classifier_free_guidance=False)
    return {"encoder_hidden_states": tokens, "pooled_projections": pooled}


def webui_names(weights: Weights) -> dict[str, Tensor]:
    """A LoRA for the WebUIs' class, one of whose layers makes q, k and v: the same changes, of three times the rank.

    Forge does not know diffusers' names of SD3's layers.
    """
    parts = defaultdict(dict)
    for name, weight in weights.items():
        block, attention, layer, side = LORA.fullmatch(name).groups()
        whose, target, part = LAYERS[layer]
        parts[f"diffusion_model.joint_blocks.{block}.{whose}.{attention}.{target}.lora_{side}.weight"][part] = weight
    made = {}
    for name, found in parts.items():
        in_order = [found[part] for part in sorted(found)]
        made[name] = torch.cat(in_order) if ".lora_A." in name else torch.block_diag(*in_order)
    return made


def shared(model: nn.Module) -> Mapping[str, object]:
    """Have a model share its tokens among ranks: the plan, and processors that exchange them."""
    from ..seams.joint_processor import share

    return share(model)


FAMILY = Family(
    name=NAME,
    key="sd3",
    rank=1,
    webui=TableBlocks(),
    diffusers={"SD3Transformer2DModel": around_calls, "SD3ControlNetModel": around_latent_net},
    shares={"SD3Transformer2DModel": shared},
    control=LatentNets(
        NAME,
        "SD3ControlNetModel",
        texts=(
            ("joint_attention_dim", "text tokens", "context_embedder"),
            ("pooled_projection_dim", "text vectors", "y_embedder.mlp.0"),
        ),
    ),
    training=Training(encode, table_predictor, webui_names=webui_names),
    support={
        "Forge": FORGE,
        "ersatzForge": FORGE,
        "AUTOMATIC1111": A1111,
        "diffusers": replace(FORGE, needs={"models/transformers/transformer_sd3.py": ("SD3Transformer2DModel",)}),
    },
    hidden_size=1536,  # SD3-medium's and SD3.5-medium's
    longest_text=333,  # 77 of CLIP and 256 of T5
    live_vectors=32,  # tests/hosts/memory.py counts 30.9 in Forge at 4K, 22.9 in ersatzForge
)
