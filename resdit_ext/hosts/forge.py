"""Forge, Forge Neo and ersatzForge: a clone of the unet with a chained model function wrapper.

The clone belongs to one sampling pass and is dropped by the host afterwards, so nothing has to be undone.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ..families import identify
from ..families.flux import Flux
from ..run import Run

WRAPPER = "model_function_wrapper"
MEMORY = "memory_peak_estimation_modifier"
# Live activations at a block's peak, in hidden vectors per token, a little above what tests/hosts/memory.py counts with
# the method at 2K to 4K: 23.4 in Forge (22.2 without it), 29.5 in ersatzForge (27.2).
PEAK_VECTORS = 30
LONGEST_TEXT = 512


def peak_memory(model: object, family: Flux, run: Run) -> Callable[[list[int]], float]:
    """The function Forge asks how many bytes a latent of shape (2 B, C, H, W) needs beside the weights.

    Forge's own estimate for FLUX grows to 22 GB at 4096x4096 and would push most of the model off the card. It asks
    for conditional and unconditional calls together but runs them one by one where memory is short, so the least
    that is needed is B (ersatzForge asks for one image).
    """

    def estimate(shape: list[int]) -> float:
        tokens = family.grid(torch.empty(shape, device="meta")).tokens + LONGEST_TEXT
        vector = model.diffusion_model.hidden_size * model.computation_dtype.itemsize
        return max(1, shape[0] / 2) * tokens * PEAK_VECTORS * vector + run.config.chunk_mb * 2**20

    estimate.resdit = True
    return estimate


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
            with family.attention_at(run, x, c["c_crossattn"].shape[1], float(t.max())):
                return apply_model(x, t, **c)

        if outer is not None:
            return outer(innermost, args)
        return innermost(args["input"], args["timestep"], **args["c"])

    wrapper.resdit_outer = outer
    clone.set_model_unet_function_wrapper(wrapper)
    theirs = clone.model_options.get(MEMORY)
    if hasattr(clone, "set_memory_peak_estimation_modifier") and (theirs is None or hasattr(theirs, "resdit")):
        clone.set_memory_peak_estimation_modifier(peak_memory(clone.model, family, run))
    return clone
