"""Model families: which models the method can run in, and how it gets into their attention.

A family is one module with a class that has `name`, `claims(model)`, `__init__(model)` (raising Unsupported with
the reason), `grid(latent)` and `attention_at(run, latent, text, sigma)`, a context manager for one model call.
"""

from __future__ import annotations

from ..errors import Unsupported
from .flux import Flux

FAMILIES = (Flux,)


def identify(model: object) -> Flux:
    """The family adapter of a diffusion model; raises Unsupported with the reason where there is none."""
    for family in FAMILIES:
        if family.claims(model):
            return family(model)
    names = ", ".join(family.name for family in FAMILIES)
    raise Unsupported(f"{type(model).__name__} is not a model of a supported family ({names})")
