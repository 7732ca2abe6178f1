"""Pictures on the way, to see what the training does: at RPE-2D's positions for inference."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from ..method.shift import shifted_sigmas
from ..seams.training_diffusers import Places, Text
from .trainer import Trainer


def sampled(velocity: Callable[[Tensor, float], Tensor], noise: Tensor, sigmas: Sequence[float]) -> Tensor:
    """The latent by Euler's steps along `velocity(latent, sigma)` from noise (1, C, 2H, 2W)."""
    latent = noise
    for sigma, after in itertools.pairwise(sigmas):
        latent = latent + (after - sigma) * velocity(latent, sigma).to(latent)
    return latent


def decoded(vae: nn.Module, latent: Tensor, device: torch.device) -> Image.Image:
    """A latent (1, C, 2H, 2W) as a picture, by an autoencoder that is on the device no longer than that."""
    vae.to(device)
    try:
        clean = latent.to(device) / vae.config.scaling_factor + vae.config.shift_factor
        pixels = vae.decode(clean).sample[0].clamp(-1, 1).add(1).mul(127.5).round()
    finally:
        vae.to("cpu")
    return Image.fromarray(pixels.permute(1, 2, 0).cpu().numpy().astype(np.uint8))


def guided(trainer: Trainer, places: Places, prompt: Text, empty: Text) -> Callable[[Tensor, float], Tensor]:
    """The velocity for a prompt; a model that is told no guidance is guided by a call with an empty caption."""
    guidance = trainer.options.validation_guidance
    told = getattr(trainer.transformer.config, "guidance_embeds", False)

    def velocity(latent: Tensor, sigma: float) -> Tensor:
        level = torch.full((1,), sigma)
        with_prompt = trainer.velocity(latent, level, prompt, places, guidance)
        if told or guidance == 1:
            return with_prompt
        without = trainer.velocity(latent, level, empty, places, guidance)
        return without + guidance * (with_prompt - without)

    return velocity


@torch.no_grad()  # and not inference_mode, in which FSDP cannot put a model together
def validation_latents(
    trainer: Trainer, places: Places, channels: int, shift: float, prompts: Iterable[Text], empty: Text
) -> list[Tensor]:
    """(1, C, 2H, 2W) latents of all prompts, from the seed's noise; FSDP needs all processes to call this."""
    options = trainer.options
    shape = 1, channels, 2 * len(places.rows), 2 * len(places.cols)
    noise = torch.randn(shape, generator=torch.Generator().manual_seed(options.seed))
    sigmas = shifted_sigmas(options.validation_steps, shift)
    trainer.network.eval()
    try:
        return [sampled(guided(trainer, places, prompt, empty), noise, sigmas) for prompt in prompts]
    finally:
        trainer.network.train()


@torch.no_grad()
def save_pictures(vae: nn.Module, latents: Iterable[Tensor], device: torch.device, folder: Path, step: int) -> None:
    """Write the pictures of a step's latents into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, latent in enumerate(latents):
        decoded(vae, latent, device).save(folder / f"step-{step:07d}-{number}.png")
