"""The layers that learn, and the LoRA's file: as diffusers writes it, with what it says of its positions."""

from __future__ import annotations

from pathlib import Path

import torch
from peft import LoraConfig
from torch import Tensor, nn

from ..positions_metadata import positions_metadata
from ..seams.training_diffusers import Training, Weights
from .cache import save_whole


def add_lora(transformer: nn.Module, layers: tuple[str, ...], rank: int, seed: int) -> None:
    """Give these layers of a frozen transformer a LoRA in float32 that does nothing yet.

    Its alpha is its rank, so that a reader who finds no alpha in the file is right to take 1 as the scale.
    """
    transformer.requires_grad_(False)
    torch.manual_seed(seed)
    transformer.add_adapter(
        LoraConfig(r=rank, lora_alpha=rank, target_modules=list(layers), init_lora_weights="gaussian")
    )
    for parameter in learning(transformer).values():
        parameter.data = parameter.data.float()


def learning(transformer: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that learn, by name."""
    return {name: parameter for name, parameter in transformer.named_parameters() if parameter.requires_grad}


def whole(tensor: Tensor) -> Tensor:
    """A tensor on the CPU, put together where FSDP keeps parts of it; then all processes have to call this."""
    together = tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor
    return together.detach().cpu().clone()


def lora_weights(transformer: nn.Module) -> dict[str, Tensor]:
    """The LoRA in float16 by diffusers' names; under FSDP all processes have to call this."""
    return {
        f"transformer.{name.replace('.default.', '.')}": whole(parameter).half()
        for name, parameter in learning(transformer).items()
    }


def webui_file(out: Path) -> Path:
    """Where the file for the WebUIs is, of a family whose names they know by others than diffusers'."""
    return out.with_name(f"{out.stem}-webui.safetensors")


def write_lora(out: Path, weights: Weights, maximal: int, training: Training) -> list[Path]:
    """Write the LoRA's file, and the one for the WebUIs where they need their own; returns which."""
    out.parent.mkdir(parents=True, exist_ok=True)
    metadata = {"format": "pt"} | positions_metadata(maximal)
    save_whole(weights, out, metadata)
    if training.webui_names is None:
        return [out]
    save_whole(training.webui_names(weights), webui_file(out), metadata)
    return [out, webui_file(out)]
