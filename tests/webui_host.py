"""A WebUI of Forge's kin from the request to the answer: its hooks in their order, its rounding and its steps."""

import sys
from types import ModuleType, SimpleNamespace

import torch

from resdit_ext.webui import lifecycle
from tests.fakes import CHANNELS, FakeProcessing, FakeSampler


class FakeHost:
    """One WebUI; the model outlives the generations.

    Args:
        monkeypatch: pytest's; puts the host's modules in place.
        unet: the host's patcher.
        rounding: what the host rounds the sides of a picture to, after `before_process`.
        counts_from: the number of the first step in the host's rule of img2img: 0, or ersatzForge's 1.
        fixed: True where img2img runs as many steps as are ordered, which is a setting; ersatzForge always does.
    """

    def __init__(self, monkeypatch, unet, rounding=8, counts_from=0, fixed=False):
        self.unet, self.rounding, self.counts_from, self.fixed = unet, rounding, counts_from, fixed
        vae = SimpleNamespace(decode=None, encode=None)
        self.sd_model = SimpleNamespace(forge_objects=SimpleNamespace(unet=unet, vae=vae))
        self.state = SimpleNamespace(textinfo=None, interrupted=False, skipped=False)
        self.make_sampler, self.before_step = FakeSampler, lambda number: None
        self.ran, self.shown = [], []  # noise levels, and texts of the progress bar, of the last pass
        shared = SimpleNamespace(state=self.state, opts=SimpleNamespace())
        modules, common = ModuleType("modules"), ModuleType("modules.sd_samplers_common")
        modules.shared, modules.__path__ = shared, []
        common.setup_img2img_steps = self.steps_from_picture
        for module in (modules, common):
            monkeypatch.setitem(sys.modules, module.__name__, module)

    def steps_from_picture(self, p, steps=None):
        """(steps of the list, number of the last one that is run)."""
        strength = min(p.denoising_strength, 0.999)
        if steps is None and not self.fixed and not self.counts_from:
            return p.steps, int(strength * p.steps)
        return int((steps or p.steps) / strength), (steps or p.steps) - 1 + self.counts_from

    def generate(self, *args, batches=1, **attributes):
        """What comes of a request: (width, height) and parameters of every picture, comments, and the API's info."""
        p = FakeProcessing(sd_model=self.sd_model, **attributes)
        lifecycle.before_process(p, *args)
        p.width, p.height = (side // self.rounding * self.rounding for side in (p.width, p.height))
        lifecycle.process(p, *args)
        pictures = []
        for _ in range(batches):
            p.is_hr_pass, p.sampler = False, self.make_sampler()
            strength = getattr(p, "init_images", None)
            listed, last = self.steps_from_picture(p) if strength else (p.steps, p.steps - 1 + self.counts_from)
            out = self.sample(p, p.width, p.height, listed, last, *args)
            if getattr(p, "enable_hr", False):
                p.is_hr_pass, p.sampler = True, self.make_sampler()
                listed, last = self.steps_from_picture(p, p.hr_second_pass_steps or p.steps)
                sides = (p.hr_resize_x, p.hr_resize_y) if p.hr_resize_x else (2 * p.width, 2 * p.height)
                out = self.sample(p, *sides, listed, last, *args)
            lifecycle.after_batch(p)
            size = out.shape[-1] * 8, out.shape[-2] * 8
            pictures.append(SimpleNamespace(size=size, latent=out, parameters=dict(p.extra_generation_params)))
        processed = SimpleNamespace(extra_generation_params=p.extra_generation_params)
        lifecycle.postprocess(p, processed)
        return SimpleNamespace(
            pictures=pictures, comments=list(p.comments), info=processed.extra_generation_params, p=p
        )

    def sample(self, p, width, height, listed, last, *args):
        """One pass; the picture is the last step's answer to the same noise."""
        self.sd_model.forge_objects.unet = self.unet
        self.ran.clear()
        self.shown.clear()
        x = torch.randn(1, CHANNELS, height // 8, width // 8, generator=torch.Generator().manual_seed(7))
        lifecycle.before_sampling(p, *args, x=x, noise=x, c=None, uc=None)
        levels = p.sampler.levels if hasattr(p.sampler, "levels") else p.sampler.get_sigmas(p, listed)
        out = x
        for number, sigma in enumerate(levels[listed - (last - self.counts_from + 1) : -1]):
            if self.state.interrupted:
                break
            self.before_step(number)
            lifecycle.before_step(p)
            out = self.sd_model.forge_objects.unet.sample(x, sigma)
            self.ran.append(float(sigma))
            self.shown.append(self.state.textinfo)
        return out
