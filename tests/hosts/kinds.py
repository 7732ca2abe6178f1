"""Tiny models of the kinds that some hosts alone have, and what those give them: text, latents, reference images."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace

import torch
from torch import Tensor, nn

from resdit_ext.monkeypatch import swapped
from tests.hosts.kit import TEXT, latent
from tests.hosts.models import FLUX_CLASS, TINY, construct

# Models that some hosts alone have: their classes there, and what makes one tiny.
KREA2 = dict(features=64, heads=2, kvheads=1, tdim=16, txtdim=32, txtheads=2, txtkvheads=2, txtlayers=3, layers=2)
NEXT = dict(in_channels=16, n_layers=2, n_refiner_layers=1, multiple_of=32, ffn_dim_multiplier=1.0)
NEXT |= dict(qk_norm=True, cap_feat_dim=32)
NEXT_CLASSES = {"neo": "backend.nn.lumina:NextDiT", "ersatz": "backend.nn.lumina2:Lumina2DiT"}
ZIMAGE = NEXT | dict(dim=256, n_heads=4, n_kv_heads=4, axes_dims=(16, 24, 24), rope_theta=256.0)
ZIMAGE |= dict(pad_tokens_multiple=32, z_image_modulation=True, z_modulation=True)
KINDS = {
    "krea2": ({"neo": "backend.nn.krea:SingleStreamDiT", "ersatz": "backend.nn.krea2:SingleStreamDiT"}, KREA2),
    "zimage": (NEXT_CLASSES, ZIMAGE),
    "lumina2": (NEXT_CLASSES, NEXT | dict(dim=72, n_heads=2, n_kv_heads=1, axes_dims=(12, 12, 12), rope_theta=10000.0)),
}
FLUX2 = TINY | dict(axes_dim=[8, 8, 8, 8], theta=2000, depth=1, depth_single_blocks=1, guidance_embed=False)
FLUX2 |= dict(vec_in_dim=None, qkv_bias=False, ops_bias=False, global_modulation=True, mlp_silu_act=True)
FLUX2 |= dict(mlp_ratio=3.0, txt_ids_dims=[3], default_ref_method="index", ref_index_scale=10.0)
KINDS["flux2"] = ({"neo": FLUX_CLASS, "ersatz": "backend.nn.flux2:IntegratedFlux2Transformer2DModel"}, FLUX2)
QWEN = dict(in_channels=64, num_layers=2, attention_head_dim=32, num_attention_heads=2, joint_attention_dim=32)
KINDS["qwen"] = ({"neo": "backend.nn.qwen:QwenImageTransformer2DModel"}, QWEN | dict(axes_dims_rope=(8, 12, 12)))
# The ratios make theta 2^14 for rows and columns: Forge Neo rounds their frequencies, here to themselves.
ANIMA = dict(in_channels=16, out_channels=16, patch_spatial=2, patch_temporal=1, model_channels=24, num_heads=2)
ANIMA |= dict(num_blocks=2, crossattn_emb_channels=32, adaln_lora_dim=8, use_adaln_lora=True, pos_emb_cls="rope3d")
ANIMA |= dict(max_img_h=240, max_img_w=240, max_frames=8, rope_h_extrapolation_ratio=1.28)
ANIMA |= dict(rope_w_extrapolation_ratio=1.28)
ANIMA_CLASSES = {"neo": "backend.nn.anima:Anima", "ersatz": "backend.nn.cosmos_predict2:MiniTrainDIT"}
KINDS["anima"] = (ANIMA_CLASSES, ANIMA)
# Of which pads make a picture's tokens one.
MULTIPLE = {"krea2": 1, "zimage": 32, "lumina2": 1, "flux2": 1, "qwen": 1, "anima": 1}


def build(host: str, kind: str, seed: int = 0, **changes: object) -> nn.Module:
    """The host's model of a kind with random weights, in plain torch layers, its queries and keys with a gain."""
    torch.manual_seed(seed)
    if host == "ersatz":
        from modules import shared

        shared.opts.data |= {"dynamicPE_lumina2": 0, "scalePE_lumina2": 0}
    classes, config = KINDS[kind]
    if kind == "flux2" and host == "neo":  # whose latents are packed
        config = config | dict(patch_size=1, in_channels=64, out_channels=64)
    model = construct(classes[host], config | changes)
    for name, parameter in model.named_parameters():
        if re.search("knorm|qnorm", name):
            parameter.data.fill_(0.6)  # of 1 and this
        elif re.search("[kq]_norm|(query|key)_norm|norm(_added)?_[qk]", name):
            parameter.data.fill_(1.6)
        elif re.search("norm.*scale|lin$|pad_token", name):  # what a checkpoint alone fills
            parameter.data.normal_(std=0.1)
    return model


def text_of(host: str, kind: str, batch: int, seed: int, length: int = TEXT) -> Tensor:
    """Random text as the host's engine of a kind returns it."""
    generator = torch.Generator().manual_seed(seed)
    if kind == "krea2":
        layers = torch.randn(batch, length, 3, 32, generator=generator)
        return layers.flatten(2) if host == "neo" else layers
    return torch.randn(batch, length, 32, generator=generator)


def ids_of_others(kind: str, text: int, pads: int, base: tuple[int, int]) -> dict[str, object]:
    """The ids of a kind's text, if any, and pads, and of the picture's first token, for `reference.resdit`.

    `base` is the grid of the base size, by which some models place their text.
    """
    if kind in ("", "krea2", "anima"):
        return {"others": [(0, 0, 0)] * text}
    if kind == "flux2":
        return {"others": [(0, 0, 0, i) for i in range(text)], "first": (0, 0, 0, 0)}
    if kind == "qwen":
        behind = max(base) // 2
        return {"others": [(behind + i,) * 3 for i in range(text)], "first": (0, -(base[0] // 2), -(base[1] // 2))}
    whole = TEXT + -TEXT % MULTIPLE[kind]
    return {"others": [(i + 1, 0, 0) for i in range(text)] + [(0, 0, 0)] * pads, "first": (whole + 1, 0, 0)}


def embedder_of(model: nn.Module) -> object:
    """What has the channels of a model's position axes, as `axes_dim`, and their `theta`."""
    if hasattr(model, "pos_embedder"):
        return SimpleNamespace(axes_dim=(4, 4, 4), theta=2**14)
    return model.pe_embedder if hasattr(model, "pe_embedder") else model.rope_embedder


def latent_of(host: str, kind: str, height: int, width: int, batch: int = 1, seed: int = 5) -> Tensor:
    """Noise as a kind's model in a host takes it, of this many pixels of an autoencoder that makes 8x8 one."""
    # Where the class makes odd sides smaller, or cannot take them.
    even = host == "ersatz" and kind in ("zimage", "lumina2", "anima")
    packed = kind == "flux2" and host == "neo"
    if even or packed:
        height, width = height + height % 2, width + width % 2
    made = latent(height, width, batch, seed)
    if kind == "qwen" or (kind == "anima" and host == "neo"):
        return made[:, :, None]
    return nn.functional.pixel_unshuffle(made, 2) if packed else made


@contextmanager
def references(host: str, latents: list[Tensor]) -> Iterator[None]:
    """The host's model is given reference images, in the block."""
    from backend.args import dynamic_args
    from modules import shared

    if host == "neo":
        changed = swapped(dynamic_args, ref_latents=latents)
    else:
        changed = swapped(shared, klein_latents=latents, klein_strength=[1.0] * len(latents))
    with changed:
        yield
