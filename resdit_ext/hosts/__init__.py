"""Hosts: where a model call is intercepted. None of these modules imports its host.

A WebUI's module has, for its object `p` of one generation, `family_of(p)`, `accept(p)`, which also refuses what can be
known before the sampling, `attach_to(p, run)`, `is_attached(p)`, and for the VAE
`prepare_decode(p, width, height, policy, say)` and `release_decode(p)`. `progress` is the same in all of them.
"""

from __future__ import annotations

from types import ModuleType

from ..errors import Unsupported
from . import a1111
from .forge import model as forge


def host_of(p: object) -> ModuleType:
    """The module for the WebUI that made `p`; raises Unsupported where it keeps its model as none that is known."""
    if hasattr(p.sd_model, "forge_objects"):
        return forge
    if hasattr(getattr(p.sd_model, "model", None), "diffusion_model"):
        return a1111
    raise Unsupported("this WebUI is not supported: Forge, Forge Neo, ersatzForge and AUTOMATIC1111 are")


def fixed_size(model: object, width: int, height: int) -> tuple[int, int]:
    """A size as the host rounds it by the model's own rule, where it has one: A1111's SD3 takes multiples of 16."""
    fix = getattr(model, "fix_dimensions", None)
    return (width, height) if fix is None else fix(width, height)


def loaded_model() -> object | None:
    """The host's model, without having it loaded; None outside a host."""
    try:
        from modules.sd_models import model_data
    except ImportError:
        return None
    return getattr(model_data, "sd_model", None)
