"""Whether a control net goes with the loaded model and its latents, from the shapes of their layers."""

from __future__ import annotations

from operator import attrgetter

from torch import nn

from ...control.format import Checkpoint
from ...families import Family


def channels_into(model: nn.Module, layer: str) -> int | None:
    """How many channels a layer takes; None where the model has no such layer or it does not say (4-bit weights)."""
    try:
        return attrgetter(f"{layer}.in_features")(model)
    except AttributeError:
        return None


def misfit(checkpoint: Checkpoint, family: Family, model: nn.Module, latent_channels: int) -> str | None:
    """Why a net does not go with the loaded model, or None where nothing speaks against it.

    Args:
        checkpoint: of the net.
        family: of the model.
        model: the host's diffusion model.
        latent_channels: of what it denoises.
    """
    if checkpoint.family != family.name:
        return f"it is for {checkpoint.family}, and the model is {family.name}"
    arguments = checkpoint.arguments
    counts = [
        ("tokens", checkpoint.width, family.hidden_size),
        ("latents", arguments["in_channels"] / checkpoint.format.latent_inputs, latent_channels),
        *((what, arguments[name], channels_into(model, layer)) for name, what, layer in checkpoint.format.texts),
    ]
    for what, mine, theirs in counts:
        if None not in (mine, theirs) and mine != theirs:
            return f"its {what} have {mine:g} channels and the model's {theirs}: it is for another size"
    return None
