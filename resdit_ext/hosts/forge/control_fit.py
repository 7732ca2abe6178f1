"""Whether a control net goes with the loaded model and its latents, from the shapes of their layers."""

from __future__ import annotations

from operator import attrgetter

from torch import nn

from ...control.checkpoint import Checkpoint
from ...families import Family

# A net's argument, what it counts the channels of, and the model's layer that takes as many; the hosts' names.
TEXTS = {
    "FLUX.1": (
        ("joint_attention_dim", "text tokens", "txt_in"),
        ("pooled_projection_dim", "text vectors", "vector_in.in_layer"),
    ),
    "SD3": (
        ("joint_attention_dim", "text tokens", "context_embedder"),
        ("pooled_projection_dim", "text vectors", "y_embedder.mlp.0"),
    ),
}
LATENT_INPUTS = {"FLUX.1": 4, "SD3": 1}  # a net's inputs for a latent channel: FLUX's tokens are packed before it


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
    inputs = LATENT_INPUTS[family.name]
    counts = [
        ("tokens", checkpoint.width, family.hidden_size),
        ("latents", arguments["in_channels"] / inputs, latent_channels),
        *((what, arguments[name], channels_into(model, layer)) for name, what, layer in TEXTS[family.name]),
    ]
    for what, mine, theirs in counts:
        if None not in (mine, theirs) and mine != theirs:
            return f"its {what} have {mine:g} channels and the model's {theirs}: it is for another size"
    return None
