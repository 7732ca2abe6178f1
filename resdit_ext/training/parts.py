"""A model to train for: what can be trained, among the models on disk."""

from __future__ import annotations

from pathlib import Path

from ..errors import ResDiTError
from ..families import Family
from ..hosts.diffusers.loading import ModelParts, located, read_json


def is_trained(family: Family) -> bool:
    """True for a family that a LoRA can be trained for."""
    return family.training is not None


def find_model(model: Path, components: Path | None) -> ModelParts:
    """Where the parts of a model are.

    Args:
        model: a folder of a diffusers pipeline, or a safetensors file of a transformer.
        components: where it is a file, a folder with all else.

    Raises:
        ResDiTError: there is no such model, or none for which a LoRA can be trained.
    """
    parts = located(model, components, is_trained, "a LoRA can be trained for")
    config = read_json(parts.folder / "transformer" / "config.json")
    channels, out = config.get("in_channels"), config.get("out_channels")
    if out not in (None, channels):
        name = "model" if parts.file is None else "components"
        raise ResDiTError(
            f"{name} is {str(parts.folder)!r}, whose transformer takes {channels} channels and makes {out}: one that "
            "is given more than a noisy picture (Fill, Depth, Canny); choose the plain model of the family"
        )
    return parts
