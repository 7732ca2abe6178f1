"""Hosts: where a model call is intercepted. None of these modules imports its host.

A WebUI's module has `family_of(p)` and `attach_to(p, run)`, for its object `p` of one generation.
"""

from __future__ import annotations

from types import ModuleType

from ..errors import Unsupported
from . import a1111, forge


def host_of(p: object) -> ModuleType:
    """The module for the WebUI that made `p`; raises Unsupported where it keeps its model as none that is known."""
    if hasattr(p.sd_model, "forge_objects"):
        return forge
    if hasattr(getattr(p.sd_model, "model", None), "diffusion_model"):
        return a1111
    raise Unsupported("this WebUI is not supported: Forge, Forge Neo, ersatzForge and AUTOMATIC1111 are")
