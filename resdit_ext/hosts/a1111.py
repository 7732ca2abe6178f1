"""AUTOMATIC1111: the denoiser that every sampler makes for itself.

The replaced `forward` is an attribute of that one object and goes with it, however the sampling ends.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec

import torch
from torch import Tensor, nn

from ..errors import Unsupported
from ..families import Family, RecognisedModel, families, identify
from ..method.layout_steps import ModelCall, View
from ..method.run import Run
from ..monkeypatch import is_ours, replacing, without_ours
from .protocol import ControlServices, Say

ATTACHED = "denoiser"
CONTROL_NOTE = (
    "ControlNet has no effect on ResDiT's models in this WebUI, whose ControlNet extension does not support them. It "
    "works in Forge, Forge Neo and ersatzForge."
)


def attach(denoiser: nn.Module, model: RecognisedModel, run: Run) -> None:
    """Run the method in every call of a denoiser, `p.sampler.model_wrap`. Attaching twice replaces, never nests."""
    inner = without_ours(denoiser.forward, ATTACHED)

    def forward(x: Tensor, sigma: Tensor, cond: dict) -> Tensor:
        def at(sigma: Tensor) -> ModelCall:
            def predict(latent: Tensor, _: Tensor | None = None) -> Tensor:
                return inner(latent, sigma, cond=cond)

            def smaller(_: View, level: float) -> ModelCall:
                return at(torch.full_like(sigma, level))

            return ModelCall(predict, smaller)

        return model.adapter.call_with_resdit(run, at(sigma), x, cond["crossattn"].shape[1], float(sigma.max()))

    denoiser.forward = replacing(forward, inner, ATTACHED)


def denoiser_of(sampler: object) -> nn.Module:
    """The denoiser that a sampler calls, which is another one after a change of model; raises Unsupported."""
    guidance = getattr(sampler, "model_wrap_cfg", None)
    denoiser = getattr(sampler, "model_wrap", None) if guidance is None else guidance.inner_model
    if denoiser is None:
        raise Unsupported("this sampler calls the model in its own way; choose Euler")
    return denoiser


def asks_for_control(p: object) -> bool:
    """True where units of this host's ControlNet extension are on beside a model of ours, for which it has no nets."""
    scripts = getattr(getattr(p, "scripts", None), "alwayson_scripts", ())
    panels = [script for script in scripts if script.title() == "ControlNet"]
    units = [unit for panel in panels for unit in p.script_args[panel.args_from : panel.args_to]]
    return any(unit.get("enabled") if isinstance(unit, dict) else getattr(unit, "enabled", False) for unit in units)


class A1111:
    """The `Host` of AUTOMATIC1111."""

    name = "AUTOMATIC1111"

    def is_running(self) -> bool:
        return find_spec("modules") is not None and find_spec("modules_forge") is None

    def made(self, p: object) -> bool:
        return hasattr(getattr(p.sd_model, "model", None), "diffusion_model") and not hasattr(
            p.sd_model, "forge_objects"
        )

    def model_of(self, p: object) -> object:
        return p.sd_model.model.diffusion_model

    def advice(self) -> str:
        models = ", ".join(family.support[self.name].models for family in families() if self.name in family.support)
        return f"; {self.name} has {models} only, other models need Forge, Forge Neo or ersatzForge"

    def check_samplers(self, p: object) -> None:
        """Raise Unsupported for a sampler that calls no denoiser, made by its name as the host will make it."""
        try:
            from modules.sd_samplers import create_sampler
        except ImportError:  # no host
            return
        hires = getattr(p, "hr_sampler_name", None) if getattr(p, "enable_hr", False) else None
        for name in {p.sampler_name, hires or p.sampler_name}:
            denoiser_of(create_sampler(name, p.sd_model))

    def attach(self, p: object, model: RecognisedModel, run: Run) -> None:
        attach(denoiser_of(p.sampler), model, run)

    def is_attached(self, p: object) -> bool:
        return is_ours(denoiser_of(p.sampler).forward, ATTACHED)

    def prepare_decode(self, _: object, __: int, ___: int, policy: str, say: Say) -> None:
        """Nothing can be done here: this host has no tiles of its own, and one VAE for all generations."""
        if policy == "Always":
            say(f"{self.name} has no tiled VAE of its own: the picture is decoded at once")

    def release_decode(self, _: object) -> None:
        """Nothing was changed."""

    def register_control(self, _: ControlServices) -> None:
        """This host's ControlNet extension knows no transformers."""

    def unregister_control(self) -> None:
        """Nothing was registered."""

    def before_units_are_prepared(self, _: object, __: Callable[[object], None]) -> None:
        """No unit is ours."""

    def review_units(self, _: object, __: int | None, ___: Family | None, ____: Say) -> None:
        """No unit is ours."""

    def control_note(self) -> str:
        """What the page and the picture's messages say of ControlNet."""
        return CONTROL_NOTE

    def report_units(self, p: object, say: Say) -> None:
        """Say that units have no effect on the model."""
        if not asks_for_control(p):
            return
        try:
            identify(self.model_of(p))
        except Unsupported:
            return
        say(self.control_note())
