"""A WebUI extension for tests: RESDIT_TINY_MODEL=flux, sd3 or chroma makes of every checkpoint a tiny random model.

RESDIT_TINY_HOST names the host, one of forge, neo and ersatz. All else is the host's own.
"""

import importlib
import os
import sys
import zlib
from pathlib import Path
from types import SimpleNamespace

import torch
from backend.args import dynamic_args
from backend.diffusion_engine.base import ForgeDiffusionEngine, ForgeObjects
from backend.patcher.vae import VAE
from modules import sd_models

REPOSITORY = str(Path(__file__).resolve().parents[4])
HOST, MODEL = (os.environ.get(f"RESDIT_TINY_{what}") for what in ("HOST", "MODEL"))
sys.path.append(REPOSITORY)
try:
    kit = importlib.import_module("tests.hosts.kit")
finally:
    sys.path.remove(REPOSITORY)


class FirstStage(kit.Enlarger):
    """The kit's autoencoder with the factors of SD3's."""

    scaling_factor, shift_factor = 1.5305, 0.0609

    def process_in(self, z):
        return (z - self.shift_factor) * self.scaling_factor

    def process_out(self, z):
        return z / self.scaling_factor + self.shift_factor


class TinyEngine(ForgeDiffusionEngine):
    """What the WebUI takes for a loaded checkpoint; a text's conditioning is noise seeded by the text."""

    def __init__(self):
        if HOST == "neo":
            dynamic_args.ops = ""  # its loader's to set
        first_stage = FirstStage()
        shown = SimpleNamespace(latent_rgb_factors=[[0.0] * 3] * 16)
        super().__init__(SimpleNamespace(inpaint_model=lambda: False, latent_format=shown), {"vae": first_stage})
        if MODEL == "flux":
            unet = kit.build_unet(HOST, kit.build_flux(HOST))
            self.is_flux = self.use_distilled_cfg_scale = True
        elif MODEL == "chroma":
            unet = kit.build_unet(HOST, kit.build_chroma(HOST))
        else:
            unet = kit.build_unet(HOST, kit.build_sd3(HOST), predictor=kit.discrete_flow())
            self.is_sd3 = True
        vae = VAE(first_stage, device=torch.device("cpu"), dtype=torch.float32)
        self.forge_objects = ForgeObjects(unet=unet, clip=None, vae=vae, clipvision=None)
        self.forge_objects_original = self.forge_objects.shallow_copy()
        self.forge_objects_after_applying_lora = self.forge_objects.shallow_copy()

    def get_learned_conditioning(self, prompt):
        seeds = [zlib.crc32(text.encode()) for text in prompt]
        if MODEL == "chroma":
            rows = [kit.chroma_conditioning(HOST, 1, seed) for seed in seeds]
            if HOST != "ersatz":
                return torch.cat(rows)
            return {name: torch.cat([row[name] for row in rows]) for name in rows[0]}
        rows = [kit.conditioning(1, seed) for seed in seeds]
        names = ("crossattn", "vector", "guidance") if MODEL == "flux" else ("crossattn", "vector")
        return {name: torch.cat([row[name] for row in rows]) for name in names}

    @torch.inference_mode()
    def encode_first_stage(self, x):
        vae = self.forge_objects.vae
        return vae.first_stage_model.process_in(vae.encode(x.movedim(1, -1) * 0.5 + 0.5)).to(x)

    @torch.inference_mode()
    def decode_first_stage(self, x):
        vae = self.forge_objects.vae
        return (vae.decode(vae.first_stage_model.process_out(x)).movedim(-1, 1) * 2.0 - 1.0).to(x)


if MODEL:
    sd_models.forge_loader = lambda *_, **__: TinyEngine()
