"""A WebUI extension for tests: RESDIT_TINY_MODEL makes of every checkpoint a tiny random model.

It is flux, sd3, chroma or one of the KINDS of tests/hosts/kinds.py, whose engine is the host's own but for its text
encoder and VAE, or micro: the lab's trained micro FLUX, whose pictures show something (its training size is 256x256).

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
    bfl, kinds, kit, models = (importlib.import_module(f"tests.hosts.{x}") for x in ("bfl", "kinds", "kit", "models"))
finally:
    sys.path.remove(REPOSITORY)


class FirstStage(kit.Enlarger):
    """The kit's autoencoder with the factors of SD3's."""

    scaling_factor, shift_factor = 1.5305, 0.0609

    def process_in(self, z):
        return (z - self.shift_factor) * self.scaling_factor

    def process_out(self, z):
        return z / self.scaling_factor + self.shift_factor


class MicroStage(kit.Enlarger):
    """The lab's latents, four pixels of its pictures each, every pixel shown as 4x4."""

    scaling_factor, shift_factor = 1.0, 0.0

    def __init__(self):
        super().__init__(channels=12)

    def process_in(self, z):
        return z

    process_out = process_in

    def decode(self, z):
        return torch.nn.functional.interpolate(torch.nn.functional.pixel_shuffle(z, 2), scale_factor=4) * self.weight

    def encode(self, x, *_):
        return torch.nn.functional.pixel_unshuffle(torch.nn.functional.avg_pool2d(x, 4), 2) * self.weight


def seeds_of(prompt):
    """A seed of each of the texts."""
    return [zlib.crc32(text.encode()) for text in prompt]


def keep(engine, unet, vae):
    """Give an engine its parts, as the constructor of each of the host's does."""
    engine.forge_objects = ForgeObjects(unet=unet, clip=None, vae=vae, clipvision=None)
    engine.forge_objects_original = engine.forge_objects.shallow_copy()
    engine.forge_objects_after_applying_lora = engine.forge_objects.shallow_copy()


class TinyEngine(ForgeDiffusionEngine):
    """What the WebUI takes for a loaded checkpoint; a text's conditioning is noise seeded by the text."""

    def __init__(self):
        if HOST == "neo":
            dynamic_args.ops = ""  # its loader's to set
        first_stage = MicroStage() if MODEL == "micro" else FirstStage()
        shown = SimpleNamespace(latent_rgb_factors=[[0.0] * 3] * 16)
        super().__init__(SimpleNamespace(inpaint_model=lambda: False, latent_format=shown), {"vae": first_stage})
        if MODEL == "flux":
            unet = kit.build_unet(HOST, models.build_flux(HOST))
            self.is_flux = self.use_distilled_cfg_scale = True
        elif MODEL == "micro":
            from resdit_ext.lab.model import load_micro

            self.micro = load_micro("flux")
            model = models.construct(models.FLUX_CLASS, models.MICRO)
            bfl.load_bfl(model, bfl.bfl_weights(self.micro.transformer.state_dict()))
            unet = kit.build_unet(HOST, model)
            self.is_flux = True
        elif MODEL == "chroma":
            unet = kit.build_unet(HOST, models.build_chroma(HOST))
        else:
            unet = kit.build_unet(HOST, models.build_sd3(HOST), predictor=kit.discrete_flow())
            self.is_sd3 = True
        vae = VAE(first_stage, device=torch.device("cpu"), dtype=torch.float32)
        keep(self, unet, vae)

    def get_learned_conditioning(self, prompt):
        if MODEL == "micro":
            from resdit_ext.lab.model import tokenize

            joint, pooled = self.micro.encode(tokenize([text.strip() for text in prompt]))
            return dict(crossattn=joint, vector=pooled)
        seeds = seeds_of(prompt)
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


# By kind and host the engine's class and what its constructor says of it.
ENGINES = {
    "krea2": {"neo": ("krea:Krea2", ("is_wan", "krea2")), "ersatz": ("krea2:Krea2", ("is_krea2",))},
    "zimage": {"neo": ("zimage:ZImage", ("use_shift",)), "ersatz": ("lumina2:Zimage", ("is_lumina2",))},
    "lumina2": {"neo": ("lumina:Lumina2", ("use_shift",)), "ersatz": ("lumina2:Lumina2", ("is_lumina2",))},
    "flux2": {"neo": ("flux2:Flux2", ()), "ersatz": ("flux2:Flux2", ("is_flux2",))},
    "qwen": {"neo": ("qwen:QwenImage", ("is_wan",))},
    "anima": {"neo": ("anima:Anima", ("is_wan", "use_shift")), "ersatz": ("anima:Anima", ("is_cosmos_predict2",))},
}


def tiny_engine(kind):
    """The host's engine of a kind around a tiny model, encoding and decoding as it does."""
    path, said = ENGINES[kind][HOST]
    module, name = path.split(":")
    own = getattr(importlib.import_module(f"backend.diffusion_engine.{module}"), name)

    class TinyKind(own):
        def __init__(self):
            config = own.matched_guesses[0]({})
            packed = kind == "flux2" and HOST == "neo"
            first_stage = kit.Enlarger(channels=64, factor=16) if packed else kit.Enlarger()
            first_stage.process_in = first_stage.process_out = lambda latent: latent
            ForgeDiffusionEngine.__init__(self, config, {"vae": first_stage})
            for name in said:
                setattr(self, name, True)
            if HOST == "neo":
                dynamic_args.ops = ""  # its loader's to set
                config.model_type = config.model_type({})
                predictor = self._get_predictor()
            else:
                predictor = kit.discrete_flow(config.sampling_settings["shift"], multiplier=1.0)
            unet = kit.build_unet(HOST, kinds.build(HOST, kind), predictor=predictor)
            sort = dict(is_wan=self.is_wan, is_flux2=packed) if HOST == "neo" else {}
            vae = VAE(first_stage, device=torch.device("cpu"), dtype=torch.float32, **sort)
            vae.latent_channels = first_stage.config.latent_channels  # not the full-size one's 128
            keep(self, unet, vae)
            self.ref_images = []

        def get_learned_conditioning(self, prompt):
            text = torch.cat([kinds.text_of(HOST, kind, 1, seed) for seed in seeds_of(prompt)])
            return {"crossattn": text} if (kind, HOST) == ("lumina2", "ersatz") else text

    return TinyKind()


if MODEL:
    sd_models.forge_loader = lambda *_, **__: tiny_engine(MODEL) if MODEL in ENGINES else TinyEngine()
