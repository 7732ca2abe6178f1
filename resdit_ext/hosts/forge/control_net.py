"""What the hosts give a control net: layers that cast, a patcher that moves it, and the VAE for its hint."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager

import torch
from torch import Tensor

from ...control.format import Checkpoint
from ...control.hint import seeded
from ...control.nets import build
from .control_pass import NetModule


def host_operations(compute: torch.dtype) -> Callable[[torch.dtype], AbstractContextManager]:
    """The host's layers for weights kept as a given type: they cast while computing, and may stay off the device."""
    from backend.operations import using_forge_operations

    return lambda stored: using_forge_operations(dtype=stored, manual_cast_enabled=stored != compute)


def hold(checkpoint: Checkpoint, compute: torch.dtype) -> object:
    """The net as the host's patcher knows models."""
    from backend import memory_management as memory
    from backend.patcher.base import ModelPatcher

    held = NetModule(build(checkpoint, compute, host_operations(compute)), compute)
    return ModelPatcher(held, load_device=memory.get_torch_device(), offload_device=memory.unet_offload_device())


def encode(p: object, checkpoint: Checkpoint, picture: Tensor) -> Tensor:
    """(B, 3, H, W) -> the latents that the net was trained with, by the host's VAE."""
    latents = seeded(p.sd_model.encode_first_stage, picture)
    if checkpoint.shifted:
        return latents
    first_stage = p.sd_model.forge_objects.vae.first_stage_model
    return latents + first_stage.shift_factor * first_stage.scaling_factor
