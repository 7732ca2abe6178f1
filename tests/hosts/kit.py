"""A tiny FLUX inside a real host: its own model class, patcher, predictor and sampling function, on a CPU.

Used in a process of its own, one host per process: every host calls its package `backend`. Call `enter` first and
import nothing of the host before it.
"""

from __future__ import annotations

import importlib
import inspect
import math
import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import SimpleNamespace

import torch
from torch import Tensor, nn

from resdit_ext.monkeypatch import swapped
from tests import reference

PACKAGES = {
    "forge": ("packages_3rdparty", "repositories/huggingface_guess"),
    "neo": ("modules_forge/packages",),
    "ersatz": ("packages",),
}
CPU_FLAG = {"forge": "--always-cpu", "neo": "--cpu", "ersatz": "--always-cpu"}
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
# Models that some hosts alone have: their classes there, and what makes one tiny.
KREA2 = dict(features=64, heads=2, kvheads=1, tdim=16, txtdim=32, txtheads=2, txtkvheads=2, txtlayers=3, layers=2)
NEXT = dict(in_channels=16, n_layers=2, n_refiner_layers=1, multiple_of=32, ffn_dim_multiplier=1.0)
NEXT |= dict(qk_norm=True, cap_feat_dim=32)
NEXT_CLASSES = {"neo": "backend.nn.lumina:NextDiT", "ersatz": "backend.nn.lumina2:Lumina2DiT"}
KINDS = {
    "krea2": ({"neo": "backend.nn.krea:SingleStreamDiT", "ersatz": "backend.nn.krea2:SingleStreamDiT"}, KREA2),
    "zimage": (NEXT_CLASSES, NEXT | dict(dim=256, n_heads=4, n_kv_heads=4, axes_dims=(16, 24, 24), rope_theta=256.0)),
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
KINDS["zimage"][1].update(pad_tokens_multiple=32, z_image_modulation=True, z_modulation=True)
MULTIPLE = {
    "krea2": 1,
    "zimage": 32,
    "lumina2": 1,
    "flux2": 1,
    "qwen": 1,
    "anima": 1,
}  # of which a picture's tokens are made one by pads
TEXT = 24  # text tokens of `conditioning`
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


def enter(host: str, folder: str) -> None:
    """Make the host in `folder` importable and set what its launcher or its model loader would have set."""
    os.chdir(folder)
    os.environ |= {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}
    sys.path.insert(0, folder)
    sys.path.extend(os.path.join(folder, package) for package in PACKAGES[host])
    sys.argv = ["webui.py", CPU_FLAG[host]]
    from backend.args import dynamic_args
    from modules import shared  # before its neighbours: they import each other in circles

    if getattr(shared, "opts", None) is None:
        from modules import options, shared_options

        shared.opts = options.Options(shared_options.options_templates, shared_options.restricted_opts)
    if host == "neo":
        dynamic_args.ops = ""
    else:
        dynamic_args.setdefault("online_lora", False)


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


class Enlarger(nn.Module):
    """What the hosts' VAE patchers ask of an autoencoder; a tile's picture depends on the whole tile.

    Latents and pictures may have an axis of frames before the rows.
    """

    def __init__(self, channels: int = 16, factor: int = 8) -> None:
        super().__init__()
        blocks = ["DownEncoderBlock2D"] * (1 + round(math.log2(factor)))
        self.config = SimpleNamespace(latent_channels=channels, z_dim=channels, down_block_types=blocks)
        self.factor, self.weight = factor, nn.Parameter(torch.ones(()), requires_grad=False)

    def decode(self, z: Tensor) -> Tensor:
        z = z[:, :3] - z[:, :3].mean((-2, -1), keepdim=True)
        large = nn.functional.interpolate(z.flatten(1, -3), scale_factor=self.factor)
        return large.reshape(*z.shape[:-2], *large.shape[-2:]) * self.weight

    def encode(self, x: Tensor, *_: object) -> Tensor:
        x = x - x.mean((-2, -1), keepdim=True)
        small = nn.functional.avg_pool2d(x.flatten(1, -3), self.factor)
        small = small.reshape(*x.shape[:-2], *small.shape[-2:])
        channels = self.config.latent_channels
        return torch.cat([small] * (1 + channels // 3), 1)[:, :channels] * self.weight


def build_vae() -> object:
    """The host's VAE patcher around an autoencoder that costs nothing."""
    from backend.patcher.vae import VAE

    return VAE(Enlarger(), device=torch.device("cpu"), dtype=torch.float32)


def discrete_flow(shift: float = 3.0, **more: float) -> object:
    """The predictor that the hosts give SD3 and, with its own numbers, ersatzForge most others."""
    from backend.modules.k_prediction import PredictionDiscreteFlow

    return PredictionDiscreteFlow(shift=shift, **more)


def build_unet(
    host: str,
    model: nn.Module,
    dtype: torch.dtype = torch.float32,
    predictor: object | None = None,
    storage: torch.dtype | str | None = None,
) -> object:
    """The host's UnetPatcher around its KModel and a predictor, FLUX's by default, as its loader makes them.

    The model becomes one of `dtype`, unless its layers already store their weights as `storage`.
    """
    from backend.modules.k_prediction import PredictionFlux
    from backend.patcher.unet import UnetPatcher

    if storage is None:
        model, storage = model.to(dtype), dtype
    model.eval().requires_grad_(False)
    model.storage_dtype, model.computation_dtype = storage, dtype
    model.load_device = model.initial_device = model.offload_device = torch.device("cpu")
    config = SimpleNamespace(memory_usage_factor=3.1, sampling_settings={})  # only Neo reads them
    if predictor is None:
        predictor = PredictionFlux(config) if host == "neo" else PredictionFlux()
    return UnetPatcher.from_model(model=model, diffusers_scheduler=None, config=config, k_predictor=predictor)


def conditioning(batch: int, seed: int) -> dict[str, Tensor]:
    """Random text as the hosts' text engines return it."""
    generator = torch.Generator().manual_seed(seed)
    return dict(
        crossattn=torch.randn(batch, TEXT, TINY["context_in_dim"], generator=generator),
        vector=torch.randn(batch, TINY["vec_in_dim"], generator=generator),
        guidance=torch.full((batch,), 3.5),
    )


def chroma_conditioning(host: str, batch: int, seed: int) -> Tensor | dict[str, Tensor]:
    """Random text as the hosts' Chroma engines return it."""
    text = conditioning(batch, seed)["crossattn"]
    return dict(crossattn=text, guidance=torch.zeros(batch)) if host == "ersatz" else text


def latent(height: int, width: int, batch: int = 1, seed: int = 5) -> Tensor:
    """Noise (batch, 16, height, width)."""
    return torch.randn(batch, 16, height, width, generator=torch.Generator().manual_seed(seed))


@contextmanager
def failing_inside(model: nn.Module, error: type[BaseException] | None) -> Iterator[None]:
    """SD3's last block finds our positions in place and raises `error`, which ends here; None lets it go on."""

    def fail(*_: object) -> None:
        assert "cropped_pos_embed" in vars(model), "ours is not in place"
        if error is not None:
            raise error

    handle = model.joint_blocks[-1].register_forward_pre_hook(fail)
    try:
        with suppress(error or ()):
            yield
    finally:
        handle.remove()


@torch.inference_mode()
def predictions(
    unet: object, x: Tensor, sigma: float, cfg: float = 1.0, cond: object = None, uncond: object = None
) -> tuple[Tensor, Tensor, Tensor]:
    """(result, cond, uncond) denoised latents from one call of the host's own sampling function."""
    from backend.sampling.condition import compile_conditions
    from backend.sampling.sampling_function import sampling_cleanup, sampling_function_inner, sampling_prepare

    cond = compile_conditions(conditioning(len(x), seed=1) if cond is None else cond)
    uncond = compile_conditions(conditioning(len(x), seed=2) if uncond is None else uncond)
    if unet.controlnet_linked_list is not None:
        for each in (*cond, *uncond):
            each["control"] = unet.controlnet_linked_list
    sampling_prepare(unet, x)
    try:
        return sampling_function_inner(
            unet.model, x, torch.full((len(x),), sigma), uncond, cond, cfg, unet.model_options, 0, return_full=True
        )
    finally:
        sampling_cleanup(unet)


def denoise(unet: object, x: Tensor, sigma: float, cfg: float = 1.0, cond: dict | None = None) -> Tensor:
    """The host's denoised latent."""
    return predictions(unet, x, sigma, cfg, cond)[0]


def velocity(unet: object, x: Tensor, sigma: float, cfg: float = 1.0, cond: dict | None = None) -> Tensor:
    """What the network said: errors are measured on it, as `x` would hide them in the denoised latent."""
    return (x - denoise(unet, x, sigma, cfg, cond)) / sigma


def error(got: Tensor, expected: Tensor) -> float:
    """Norm of the difference relative to the norm of `expected`."""
    return float((got.double() - expected.double()).norm() / expected.double().norm())


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
