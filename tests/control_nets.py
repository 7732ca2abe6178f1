"""Tiny control nets of every kind with random weights, by diffusers' classes, and the names others save them under."""

from __future__ import annotations

import re

import torch
from diffusers import FluxControlNetModel, SD3ControlNetModel
from torch import Tensor, nn

from resdit_ext.families import families
from tests.hosts.bfl import bfl_weights

FORMATS = [family.control for family in families() if family.control is not None]
FLUX = dict(
    in_channels=16,
    num_layers=2,
    num_single_layers=2,
    attention_head_dim=32,
    num_attention_heads=2,
    joint_attention_dim=32,
    pooled_projection_dim=16,
    guidance_embeds=True,
    axes_dims_rope=(4, 14, 14),
)
SD3 = dict(
    sample_size=8,
    in_channels=4,
    out_channels=4,
    num_layers=2,
    attention_head_dim=64,
    num_attention_heads=2,
    joint_attention_dim=32,
    caption_projection_dim=128,
    pooled_projection_dim=16,
    pos_embed_max_size=12,
)
STABILITY = dict(
    joint_attention_dim=None,
    pos_embed_max_size=None,
    pos_embed_type=None,
    use_pos_embed=False,
    force_zeros_for_pooled_projection=False,
)
KINDS = {
    "flux": (FluxControlNetModel, FLUX),
    "flux without single blocks": (FluxControlNetModel, FLUX | {"num_single_layers": 0, "guidance_embeds": False}),
    "flux union": (FluxControlNetModel, FLUX | {"num_mode": 7}),
    "flux xlabs": (
        FluxControlNetModel,
        FLUX | {"num_single_layers": 0, "conditioning_embedding_channels": 4, "patch_size": 2},
    ),
    "sd3": (SD3ControlNetModel, SD3),
    "sd3.5": (SD3ControlNetModel, SD3 | {"qk_norm": "rms_norm", "dual_attention_layers": (0,)}),
    "sd3.5 8b": (SD3ControlNetModel, SD3 | STABILITY),
}

# For the models of tests/hosts/models.py.
FITTING = {
    "flux fitting": (FluxControlNetModel, FLUX | {"in_channels": 64}),
    "sd3 fitting": (SD3ControlNetModel, SD3 | {"in_channels": 16, "out_channels": 16, "qk_norm": "rms_norm"}),
}


def net_of(kind: str, seed: int = 0, **changes: object) -> nn.Module:
    """A control net of a kind; no weight is zero, so that every one matters."""
    torch.manual_seed(seed)
    cls, arguments = (KINDS | FITTING)[kind]
    net = cls(**arguments | changes).eval().requires_grad_(False)
    for name, parameter in net.named_parameters():
        parameter.normal_(1.0 if ".norm_" in name else 0.0, 0.1)
    return net


def as_xlabs(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """A net with a hint's convolutions under XLabs' names."""
    out = {re.sub(r"_norm\.weight$", "_norm.scale", name): value for name, value in bfl_weights(state).items()}
    for kind in ("weight", "bias"):
        out[f"pos_embed_input.{kind}"] = state[f"controlnet_x_embedder.{kind}"]
        out[f"input_hint_block.0.{kind}"] = state[f"input_hint_block.conv_in.{kind}"]
        out[f"input_hint_block.14.{kind}"] = state[f"input_hint_block.conv_out.{kind}"]
        out |= {f"input_hint_block.{2 + 2 * i}.{kind}": state[f"input_hint_block.blocks.{i}.{kind}"] for i in range(6)}
    return out | {name: value for name, value in state.items() if name.startswith("controlnet_blocks.")}


def as_stability(state: dict[str, Tensor], number: float) -> dict[str, Tensor]:
    """A net over image tokens alone under Stability's names; `number` tells what it is made for."""
    names = {
        "attn.to_out.0": "attn.proj",
        "ff.net.0.proj": "mlp.fc1",
        "ff.net.2": "mlp.fc2",
        "norm1.linear": "adaLN_modulation.1",
    }
    out = {"control_type": torch.tensor(number), "using_8b_controlnet": torch.tensor(True)}
    for name, value in state.items():
        if ".attn.to_q." in name:
            parts = [state[name.replace("to_q", f"to_{x}")] for x in "qkv"]
            out[name.replace("to_q", "qkv")] = torch.cat(parts)
        elif ".attn.to_k." not in name and ".attn.to_v." not in name:
            for ours, theirs in names.items():
                name = name.replace(f".{ours}.", f".{theirs}.")
            out[name] = value
    return out
