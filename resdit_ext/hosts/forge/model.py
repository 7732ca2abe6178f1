"""Forge, Forge Neo and ersatzForge: a clone of the unet with a chained model function wrapper.

The clone belongs to one sampling pass and is dropped by the host afterwards, so nothing has to be undone.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ...control.added import LazyResiduals
from ...families import Family, identify
from ...method.cost import activation_bytes
from ...method.run import Run
from .vae import prepare_decode, release_decode

__all__ = ["accept", "attach", "attach_to", "family_of", "is_attached", "prepare_decode", "release_decode"]

WRAPPER = "model_function_wrapper"
MEMORY = "memory_peak_estimation_modifier"
ATTACHED = "resdit_attached"  # clones have it too, another model's unet does not


def peak_memory(model: object, family: Family, run: Run) -> Callable[[list[int]], float]:
    """The function Forge asks how many bytes a latent of shape (2 B, C, H, W) needs beside the weights.

    Forge's own estimate grows to 22 GB at 4096x4096 and would push most of the model off the card. It asks
    for conditional and unconditional calls together but runs them one by one where memory is short, so the least
    that is needed is B (ersatzForge asks for one image).
    """

    def estimate(shape: list[int]) -> float:
        grid = family.grid(torch.empty(shape, device="meta"))
        picture = activation_bytes(grid, family, model.computation_dtype.itemsize)
        return max(1, shape[0] / 2) * picture + run.config.chunk_mb * 2**20

    estimate.resdit = True
    return estimate


def for_patch(c: dict, patch: Tensor, tokens: Tensor) -> dict:
    """The arguments of a model call for a patch: control as its net sees the patch, others' is cut to its tokens."""
    control = c.get("control")
    if control is None:
        return c
    if isinstance(control, LazyResiduals):
        return c | {"control": control.on_patch(patch, tokens)}
    return c | {"control": [None if residual is None else residual[:, tokens] for residual in control]}


def attach(unet: object, run: Run) -> object:
    """A clone of a Forge `UnetPatcher` in which every model call runs the method.

    Other extensions' wrappers stay outside ours: one that calls the model on tiles (MultiDiffusion) then gets the
    method on each tile, and the grid is always that of the tensor at hand. Attaching twice replaces, never nests.

    Args:
        unet: the host's patcher; it is not changed.
        run: the generation's parameters and plans.

    Raises:
        Unsupported: the model is of no supported family; the message says why.
    """
    family = identify(unet.model.diffusion_model)
    clone = unet.clone()
    outer = clone.model_options.get(WRAPPER)
    outer = getattr(outer, "resdit_outer", outer)

    # Only plain functions may live in model_options: the host deep-copies what is stored there.
    def wrapper(apply_model: Callable[..., Tensor], args: dict) -> Tensor:
        def innermost(x: Tensor, t: Tensor, **c: object) -> Tensor:
            def predict(latent: Tensor, tokens: Tensor | None = None) -> Tensor:
                return apply_model(latent, t, **(c if tokens is None else for_patch(c, latent, tokens)))

            return family.denoise(run, predict, x, c["c_crossattn"].shape[1], float(t.max()))

        if outer is not None:
            return outer(innermost, args)
        return innermost(args["input"], args["timestep"], **args["c"])

    wrapper.resdit_outer = outer
    clone.set_model_unet_function_wrapper(wrapper)
    clone.model_options[ATTACHED] = True
    theirs = clone.model_options.get(MEMORY)
    if hasattr(clone, "set_memory_peak_estimation_modifier") and (theirs is None or hasattr(theirs, "resdit")):
        clone.set_memory_peak_estimation_modifier(peak_memory(clone.model, family, run))
    return clone


def family_of(p: object) -> Family:
    """The family of a generation's model; raises Unsupported with the reason."""
    return identify(p.sd_model.forge_objects.unet.model.diffusion_model)


accept = family_of  # nothing else can be refused before the sampling


def is_attached(p: object) -> bool:
    """True where the unet that is about to be called comes from one that was attached to."""
    return ATTACHED in p.sd_model.forge_objects.unet.model_options


def attach_to(p: object, run: Run) -> None:
    """Attach to the unet of this pass."""
    p.sd_model.forge_objects.unet = attach(p.sd_model.forge_objects.unet, run)
