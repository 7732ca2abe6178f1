"""FLUX weights under the names of Black Forest Labs, which the hosts and XLabs use."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def bfl_weights(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """diffusers' FLUX weights under the names and in the shapes of Black Forest Labs, whose the hosts and XLabs use."""
    out = {}

    def move(theirs: str, *ours: str) -> None:
        """Join layers into one, along their outputs."""
        for kind in ("weight", "bias"):
            if f"{ours[0]}.{kind}" in state:
                out[f"{theirs}.{kind}"] = torch.cat([state[f"{name}.{kind}"] for name in ours])

    embedders = {"time_in": "timestep_embedder", "vector_in": "text_embedder", "guidance_in": "guidance_embedder"}
    for theirs, ours in embedders.items():
        move(f"{theirs}.in_layer", f"time_text_embed.{ours}.linear_1")
        move(f"{theirs}.out_layer", f"time_text_embed.{ours}.linear_2")
    move("img_in", "x_embedder")
    move("txt_in", "context_embedder")

    def count(prefix: str) -> int:
        return 1 + max((int(key.split(".")[1]) for key in state if key.startswith(f"{prefix}.")), default=-1)

    for i in range(count("transformer_blocks")):
        theirs, ours = f"double_blocks.{i}", f"transformer_blocks.{i}"
        streams = {"img": ("norm1", "to_{}", "norm_{}", "to_out.0", "ff")}
        streams["txt"] = ("norm1_context", "add_{}_proj", "norm_added_{}", "to_add_out", "ff_context")
        for stream, (modulation, qkv, norm, out_layer, mlp) in streams.items():
            move(f"{theirs}.{stream}_mod.lin", f"{ours}.{modulation}.linear")
            move(f"{theirs}.{stream}_attn.qkv", *(f"{ours}.attn.{qkv.format(x)}" for x in "qkv"))
            move(f"{theirs}.{stream}_attn.norm.query_norm", f"{ours}.attn.{norm.format('q')}")
            move(f"{theirs}.{stream}_attn.norm.key_norm", f"{ours}.attn.{norm.format('k')}")
            move(f"{theirs}.{stream}_attn.proj", f"{ours}.attn.{out_layer}")
            move(f"{theirs}.{stream}_mlp.0", f"{ours}.{mlp}.net.0.proj")
            move(f"{theirs}.{stream}_mlp.2", f"{ours}.{mlp}.net.2")
    for i in range(count("single_transformer_blocks")):
        theirs, ours = f"single_blocks.{i}", f"single_transformer_blocks.{i}"
        move(f"{theirs}.modulation.lin", f"{ours}.norm.linear")
        move(f"{theirs}.linear1", *(f"{ours}.attn.to_{x}" for x in "qkv"), f"{ours}.proj_mlp")
        move(f"{theirs}.linear2", f"{ours}.proj_out")
        move(f"{theirs}.norm.query_norm", f"{ours}.attn.norm_q")
        move(f"{theirs}.norm.key_norm", f"{ours}.attn.norm_k")
    if "proj_out.weight" not in state:  # a control net
        return out
    move("final_layer.linear", "proj_out")
    for kind in ("weight", "bias"):  # diffusers keeps (scale, shift), BFL (shift, scale)
        scale, shift = state[f"norm_out.linear.{kind}"].chunk(2)
        out[f"final_layer.adaLN_modulation.1.{kind}"] = torch.cat((shift, scale))
    return out


def load_bfl(model: nn.Module, weights: dict[str, Tensor]) -> None:
    """Load every weight, whatever the host calls the gain of its query and key norms (`scale` or `weight`)."""
    scales = {key.replace("_norm.scale", "_norm.weight"): key for key in model.state_dict()}
    model.load_state_dict({scales[key]: value for key, value in weights.items()})
