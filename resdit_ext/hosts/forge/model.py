"""The model of Forge, Forge Neo and ersatzForge: a clone of the unet with a chained model function wrapper.

The clone belongs to one sampling pass and is dropped by the host afterwards, so nothing has to be undone.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ...control.added import LazyResiduals, control_on
from ...families import RecognisedModel
from ...method.layout import Grid
from ...method.layout_steps import ModelCall, View
from ...method.run import Run
from ...monkeypatch import is_ours, replacing, without_ours
from .chain import WRAPPER, chain
from .control_support import ADDS, with_control_support

MEMORY = "memory_peak_estimation_modifier"
ATTACHED = "resdit_attached"  # clones have it too, another model's unet does not


def peak_memory(computation: torch.dtype, model: RecognisedModel, run: Run) -> Callable[[list[int]], float]:
    """The function Forge asks how many bytes a latent of shape (2 B, C, H, W) needs beside the weights.

    Forge's own estimate grows to 22 GB at 4096x4096 and would push most of the model off the card. It asks
    for conditional and unconditional calls together but runs them one by one where memory is short, so the least
    that is needed is B (ersatzForge asks for one image).
    """

    def estimate(shape: list[int]) -> float:
        grid = model.adapter.grid(torch.empty(shape, device="meta"))
        picture = model.family.activation_bytes(grid, computation.itemsize)
        return max(1, shape[0] / 2) * picture + run.config.chunk_mb * 2**20

    return replacing(estimate, None, MEMORY)


def for_patch(c: dict, patch: Tensor, tokens: Tensor) -> dict:
    """The arguments of a model call for a patch: control as its net sees the patch, others' is cut to its tokens."""
    control = c.get("control")
    if control is None:
        return c
    if isinstance(control, LazyResiduals):
        return c | {"control": control.on_patch(patch, tokens)}
    return c | {"control": [None if residual is None else residual[:, tokens] for residual in control]}


def for_smaller(c: dict, view: View, grid: Grid) -> dict:
    """The arguments of a model call on the view's grid in place of `grid`: what is given per latent pixel or token."""
    c = dict(c)
    if isinstance(c.get("c_concat"), Tensor):  # the picture and mask that Fill, Depth and Canny are given
        c["c_concat"] = view.shrink(c["c_concat"])
    if c.get("control") is not None:
        c["control"] = control_on(c["control"], grid, view.grid)
    return c


def attach(unet: object, model: RecognisedModel, run: Run) -> object:
    """A clone of a Forge `UnetPatcher` in which every model call runs the method.

    Other extensions' wrappers stay outside ours: one that calls the model on tiles (MultiDiffusion) then gets the
    method on each tile, and the grid is always that of the tensor at hand. Attaching twice replaces, never nests.

    Args:
        unet: the host's patcher; it is not changed.
        model: its diffusion model, recognised.
        run: the generation's parameters and plans.
    """
    clone = unet.clone()
    # What adds control to the blocks is to be inside ours, so that it has the control of the call that is made.
    adds = is_ours(clone.model_options.get(WRAPPER), ADDS)
    if adds:
        clone.model_options[WRAPPER] = without_ours(clone.model_options[WRAPPER], ADDS)

    def call(apply_model: Callable[..., Tensor], x: Tensor, t: Tensor, **c: object) -> Tensor:
        def at(grid: Grid, t: Tensor, c: dict) -> ModelCall:
            def predict(latent: Tensor, tokens: Tensor | None = None) -> Tensor:
                return apply_model(latent, t, **(c if tokens is None else for_patch(c, latent, tokens)))

            def smaller(view: View, level: float) -> ModelCall:
                return at(view.grid, torch.full_like(t, level), for_smaller(c, view, grid))

            return ModelCall(predict, smaller)

        ours = at(model.adapter.grid(x), t, c)
        return model.adapter.call_with_resdit(run, ours, x, c["c_crossattn"].shape[1], float(t.max()))

    chain(clone, call, ATTACHED)
    clone.model_options[ATTACHED] = True
    theirs = clone.model_options.get(MEMORY)
    if hasattr(clone, "set_memory_peak_estimation_modifier") and (theirs is None or is_ours(theirs, MEMORY)):
        clone.set_memory_peak_estimation_modifier(peak_memory(clone.model.computation_dtype, model, run))
    return with_control_support(clone) if adds else clone
