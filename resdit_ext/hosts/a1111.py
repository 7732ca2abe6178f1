"""AUTOMATIC1111: the denoiser that every sampler makes for itself; it serves SD3, the only transformer this host has.

The replaced `forward` is an attribute of that one object and goes with it, however the sampling ends.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from ..errors import Unsupported
from ..families import Family, identify
from ..method.run import Run


def family_of(p: object) -> Family:
    """The family of a generation's model; raises Unsupported with the reason."""
    try:
        return identify(p.sd_model.model.diffusion_model)
    except Unsupported as reason:
        raise Unsupported(
            f"{reason}; AUTOMATIC1111 has SD3-medium only, FLUX needs Forge, Forge Neo or ersatzForge"
        ) from None


def attach(denoiser: object, family: Family, run: Run) -> None:
    """Run the method in every call of a denoiser, `p.sampler.model_wrap`. Attaching twice replaces, never nests."""
    inner = getattr(denoiser.forward, "resdit_inner", denoiser.forward)

    def forward(x: Tensor, sigma: Tensor, cond: dict) -> Tensor:
        def predict(latent: Tensor, _: Tensor | None = None) -> Tensor:
            return inner(latent, sigma, cond=cond)

        return family.denoise(run, predict, x, cond["crossattn"].shape[1], float(sigma.max()))

    forward.resdit_inner = inner
    denoiser.forward = forward


def denoiser_of(sampler: object) -> object:
    """The denoiser that a sampler calls, which is another one after a change of model; raises Unsupported."""
    guidance = getattr(sampler, "model_wrap_cfg", None)
    denoiser = getattr(sampler, "model_wrap", None) if guidance is None else guidance.inner_model
    if denoiser is None:
        raise Unsupported("this sampler calls the model in its own way; choose Euler")
    return denoiser


def accept(p: object) -> Family:
    """As `family_of`; refuses samplers too, made by their names as the host will make them."""
    family = family_of(p)
    try:
        from modules.sd_samplers import create_sampler
    except ImportError:  # no host
        return family
    hires = getattr(p, "hr_sampler_name", None) if getattr(p, "enable_hr", False) else None
    for name in {p.sampler_name, hires or p.sampler_name}:
        denoiser_of(create_sampler(name, p.sd_model))
    return family


def is_attached(p: object) -> bool:
    """True where the denoiser that is about to be called has the method."""
    return hasattr(denoiser_of(p.sampler).forward, "resdit_inner")


def attach_to(p: object, run: Run) -> None:
    """Attach to the sampler of this pass; raises Unsupported with the reason."""
    attach(denoiser_of(p.sampler), family_of(p), run)


def orders_control(p: object) -> bool:
    """True where units of this host's ControlNet extension are on beside an SD3 model, for which it has no nets."""
    model = getattr(p, "sd_model", None)
    if not getattr(model, "is_sd3", False) or hasattr(model, "forge_objects"):
        return False
    scripts = getattr(getattr(p, "scripts", None), "alwayson_scripts", ())
    panels = [script for script in scripts if script.title() == "ControlNet"]
    units = [unit for panel in panels for unit in p.script_args[panel.args_from : panel.args_to]]
    return any(unit.get("enabled") if isinstance(unit, dict) else getattr(unit, "enabled", False) for unit in units)


def prepare_decode(_: object, __: int, ___: int, policy: str, say: Callable[[str], None]) -> None:
    """Nothing can be done here: this host has no tiles of its own, and one VAE for all generations."""
    if policy == "Always":
        say("AUTOMATIC1111 has no tiled VAE of its own: the picture is decoded at once")


def release_decode(_: object) -> None:
    """Nothing was changed."""
