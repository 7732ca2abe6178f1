"""A tiny FLUX inside a real host: its own model class, patcher, predictor and sampling function, on a CPU.

Used in a process of its own, one host per process: every host calls its package `backend`. Call `enter` first and
import nothing of the host before it.
"""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import SimpleNamespace

import torch
from torch import Tensor, nn

from tests.hosts.models import TINY

PACKAGES = {
    "forge": ("packages_3rdparty", "repositories/huggingface_guess"),
    "neo": ("modules_forge/packages",),
    "ersatz": ("packages",),
}
CPU_FLAG = {"forge": "--always-cpu", "neo": "--cpu", "ersatz": "--always-cpu"}
TEXT = 24  # text tokens of `conditioning`


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
