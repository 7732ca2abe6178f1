"""ControlNet for FLUX and SD3: which files are control nets, and what they add to a model. One module a family.

A family's module has `FAMILY`, the model's name; `MODEL_ON_PATCHES`, whether ResDiT calls the model on patches;
`claims(weights)` and `read(weights)`, which recognise a file from its tensors' names and shapes; `maker(arguments)`,
which makes the net with diffusers; `sees_pixels(net)`; `residuals(net, call)`; and
`index_of(block, blocks, count, cyclic)`.
"""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

from ..errors import Unsupported
from . import flux, sd3
from .checkpoint import Checkpoint, Weights, check_finite, describe, is_for_transformer, with_shards, without_prefix

FAMILIES: tuple[ModuleType, ...] = (flux, sd3)


def family_module(name: str) -> ModuleType | None:
    """The module for a model family's name; None where it has no control nets."""
    return next((module for module in FAMILIES if name == module.FAMILY), None)


def recognise(weights: Weights, path: Path) -> Checkpoint | None:
    """The control net in a file's tensors; None where they are no control net of a transformer at all.

    Raises:
        Unsupported: it is one, but incomplete, damaged or of a kind that is not supported; the message says what.
    """
    weights = with_shards(weights, path)
    if not is_for_transformer(weights):
        return None
    weights = without_prefix(weights)
    for module in FAMILIES:
        if module.claims(weights):
            checkpoint = module.read(weights)
            check_finite(checkpoint.weights)
            return checkpoint
    names = ", ".join(module.FAMILY for module in FAMILIES)
    raise Unsupported(f"it is no control net of a supported family ({names}): {describe(weights)}")
