"""Tiny FLUX, SD3 and Chroma of a real host's own classes, with random weights."""

from __future__ import annotations

import importlib
import inspect

import torch
from torch import nn

from tests import reference

FLUX_CLASS, SD3_CLASS = "backend.nn.flux:IntegratedFluxTransformer2DModel", "backend.nn.mmditx:MMDiTX"
CHROMA_CLASS = "backend.nn.chroma:IntegratedChromaTransformer2DModel"
TINY = dict(
    in_channels=16,
    out_channels=16,
    patch_size=2,
    vec_in_dim=16,
    context_in_dim=32,
    hidden_size=64,
    mlp_ratio=4.0,
    num_heads=2,
    depth=2,
    depth_single_blocks=2,
    axes_dim=[4, 14, 14],
    theta=10000,
    qkv_bias=True,
    guidance_embed=True,
)
# ersatzForge's forward allocates scratch buffers of 24 heads x 128 and 15360 channels, written into its code.
FULL_WIDTH = TINY | dict(hidden_size=3072, num_heads=24, axes_dim=[16, 56, 56], depth=1, depth_single_blocks=1)
MICRO = TINY | dict(  # the lab's micro FLUX (resdit_ext.lab.model.FLUX_CONFIG) in the hosts' words
    in_channels=12,
    out_channels=12,
    vec_in_dim=32,
    context_in_dim=64,
    hidden_size=128,
    num_heads=4,
    depth=2,
    depth_single_blocks=4,
    guidance_embed=False,
)
# The layer that makes Chroma's modulation: Forge's names and Neo's.
APPROXIMATOR = dict(guidance_out_dim=64, guidance_hidden_dim=32, guidance_n_layers=1)
APPROXIMATOR |= dict(in_dim=64, out_dim=64, hidden_dim=32, n_layers=1, txt_ids_dims=[])
TABLE, TABLE_STEP = 24, 1 / 3  # SD3's table: indices a side, and how far apart two of them are
SD3 = dict(
    input_size=None,
    in_channels=16,
    depth=2,
    adm_in_channels=16,
    context_embedder_config=dict(target="torch.nn.Linear", params=dict(in_features=32, out_features=128)),
    pos_embed_max_size=TABLE,
    num_patches=TABLE**2,
    qk_norm="rms",
    x_block_self_attn_layers=[0],
)


def low_rank(model: nn.Module, limit: int = 1 << 20, rank: int = 8) -> None:
    """Replace every linear layer of more than `limit` weights by two thin ones: the blocks' code stays as it is."""
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, nn.Linear) and child.in_features * child.out_features > limit:
                thin = nn.Linear(child.in_features, rank, bias=False)
                setattr(module, name, nn.Sequential(thin, nn.Linear(rank, child.out_features, child.bias is not None)))


def construct(path: str, config: dict) -> nn.Module:
    """The host's class `module:name` from the part of `config` that its constructor knows."""
    module, name = path.split(":")
    cls = getattr(importlib.import_module(module), name)
    known = inspect.signature(cls).parameters
    if list(known) == ["kwargs"]:  # Neo's Chroma hands them to a dataclass
        known = inspect.signature(importlib.import_module(module).ChromaParams).parameters
    return cls(**{key: value for key, value in config.items() if key in known})


def build_flux(host: str, seed: int = 0, **changes: object) -> nn.Module:
    """The host's FLUX with random weights, outside its lazy-loading operations: plain torch layers.

    Queries and keys get a gain, so that attention is far from uniform and an error in it shows in the output.
    """
    torch.manual_seed(seed)
    model = thin(FLUX_CLASS, FULL_WIDTH | changes) if host == "ersatz" else construct(FLUX_CLASS, TINY | changes)
    for name, parameter in model.named_parameters():
        if "query_norm" in name or "key_norm" in name:
            parameter.data.fill_(1.6)
    return model


def thin(path: str, config: dict) -> nn.Module:
    """The host's class at its full width, with low-rank random weights: its millions are never allocated."""
    with torch.device("meta"):
        model = construct(path, config)
        low_rank(model)
    model = model.to_empty(device="cpu")
    for module in model.modules():
        if hasattr(module, "reset_parameters"):
            module.reset_parameters()
        else:  # a gain of the host's own
            for parameter in module.parameters(recurse=False):
                parameter.data.fill_(1.0)
    return model


def build_chroma(host: str, seed: int = 0) -> nn.Module:
    """The host's Chroma with random weights, in plain torch layers, its queries and keys with a gain as FLUX's."""
    torch.manual_seed(seed)
    if host == "ersatz":
        from modules import shared

        shared.opts.data.setdefault("use_dynamicPE", False)  # a setting that this host reads and no longer has
        model = thin(CHROMA_CLASS, FULL_WIDTH)
    else:
        channels = 64 if host == "neo" else 16  # before the latent is packed, or after it
        config = TINY | APPROXIMATOR | dict(in_channels=channels, out_channels=channels)
        model = construct(CHROMA_CLASS, config)
    for name, parameter in model.named_parameters():
        if ("query_norm" in name or "key_norm" in name) and parameter.ndim == 1:
            parameter.data.fill_(1.6)
    return model


def build_sd3(host: str, seed: int = 0) -> nn.Module:
    """The host's MMDiT-X with random weights and SD3's table, in plain torch layers; Neo has none."""
    torch.manual_seed(seed)
    model = construct(SD3_CLASS, SD3)
    for name, parameter in model.named_parameters():
        if "ln_q" in name or "ln_k" in name:
            parameter.data.fill_(1.3)
    index = range(TABLE)
    table = reference.sincos_table(index, index, model.pos_embed.shape[-1], TABLE_STEP)
    model.pos_embed.copy_(torch.from_numpy(table).reshape(1, TABLE**2, -1))
    return model
