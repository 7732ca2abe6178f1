"""Forge, Forge Neo and ersatzForge: a clone of the unet with a chained model function wrapper.

The clone belongs to one sampling pass and is dropped by the host afterwards, so nothing has to be undone.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from ..families import identify
from ..run import Run

WRAPPER = "model_function_wrapper"


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
            listed = c.get("transformer_options", {}).get("sampling_sigmas")
            if listed is not None:
                run.set_sigmas(listed)
            with family.attention_at(run, x, c["c_crossattn"].shape[1], float(t.max())):
                return apply_model(x, t, **c)

        if outer is not None:
            return outer(innermost, args)
        return innermost(args["input"], args["timestep"], **args["c"])

    wrapper.resdit_outer = outer
    clone.set_model_unet_function_wrapper(wrapper)
    return clone
