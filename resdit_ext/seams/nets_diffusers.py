"""diffusers' control nets: calls at the base size in place of one at the picture's, joined as the patches are."""

from __future__ import annotations

import sys
from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor, nn

from ..control.added import pick, resample
from ..control.call import Residuals
from ..control.token_nets import to_tokens
from ..control.treatment import PatchBlender, at_high_resolution
from ..errors import Unsupported
from ..method.around_calls import crop
from ..method.blend import Joiner
from ..method.layout import Grid, Layout
from ..method.positions import grid_positions
from ..method.run import Run
from .places_diffusers import grid_of
from .rotary import image_ids
from .rotary_diffusers import to_latent
from .ulysses_diffusers import refuse_ranks

WHOLE = "a control net is called whole on every process: enable context parallelism for the transformer alone"
HINT_PIXELS = 16  # a side of a token, of a hint that is given as pixels


class OnPatches(list):
    """A net's residuals for the whole, with the function (patch, tokens) that returns those for a call on a patch.

    diffusers sums the lists of several nets into a plain one, which is then cut to the patch's tokens.
    """

    def __init__(self, whole: list[Tensor], on_patch: Callable[[Tensor, Tensor], list[Tensor]]) -> None:
        super().__init__(whole)
        self.on_patch = on_patch


def output_of(model: nn.Module) -> Callable:
    """The class of what a net returns, which stands in its module under the net's name."""
    return getattr(sys.modules[type(model).__module__], type(model).__name__.replace("Model", "Output"))


def shrunk(hint: Tensor, size: tuple[int, int]) -> Tensor:
    """A hint's latents or pixels (B, C, H, W) at a smaller size."""
    return F.interpolate(hint, size=size, mode="bicubic", antialias=True)


def around_token_net(model: nn.Module, run: Run) -> Callable:
    """`around(call, ...)` for a control net that is fed with tokens, on the whole and on each patch."""
    refuse_ranks(model, WHOLE)

    def around(net: Callable, *args: object, **given: object) -> object:
        refuse_ranks(model, WHOLE)
        tokens, hint = given.get("hidden_states"), given.get("controlnet_cond")
        if args or tokens is None or hint is None:
            return net(*args, **given)  # not as the pipelines call it
        try:
            layout = run.layout(grid_of(given["img_ids"], tokens.shape[1]))
        except Unsupported:
            return net(**given)
        if layout.is_base:
            return net(**given)
        grid, base = layout.grid, layout.base
        picture = to_latent(tokens, grid)
        sees_pixels = hint.ndim == 4
        side = HINT_PIXELS if sees_pixels else 2
        hint = hint if sees_pixels else to_latent(hint, grid)
        whole = shrunk(hint, (side * base.height, side * base.width))
        ids = image_ids(0, grid_positions(base)).to(tokens)

        def call(latent: Tensor, start: tuple[int, int] | None) -> Residuals:
            part = whole
            if start is not None:
                (row, col), (h, w) = start, (base.height, base.width)
                part = hint[..., side * row : side * (row + h), side * col : side * (col + w)]
            mine = dict(
                hidden_states=to_tokens(latent),
                controlnet_cond=part if sees_pixels else to_tokens(part),
                img_ids=ids,
                return_dict=False,
            )
            double, single = net(**given | mine)
            return Residuals(tuple(double or ()), tuple(single or ()))

        exact = run.config.speed == "exact"
        blender = run.cached(("control", layout), lambda: blender_for(run, layout, tokens)) if exact else None
        found = at_high_resolution(call, picture, layout, blender)
        if not exact:
            found = Residuals(*(tuple(resample(r, base, grid) for r in side) for side in (found.double, found.single)))
        double, single = (list(side) or None for side in (found.double, found.single))
        if not given.get("return_dict", True):
            return double, single
        return output_of(model)(controlnet_block_samples=double, controlnet_single_block_samples=single)

    return around


def blender_for(run: Run, layout: Layout, like: Tensor) -> PatchBlender:
    """The joining of a layout's patches on a tensor's device."""
    return PatchBlender(layout, Joiner(layout, run.config, like.device))


def around_latent_net(model: nn.Module, run: Run) -> Callable:
    """`around(call, ...)` for a control net that is fed with latents: the whole, and a patch when its call comes."""
    refuse_ranks(model, WHOLE)

    def around(net: Callable, *args: object, **given: object) -> object:
        refuse_ranks(model, WHOLE)
        latent, hint = given.get("hidden_states"), given.get("controlnet_cond")
        if args or latent is None or latent.ndim != 4 or hint is None:
            return net(*args, **given)
        layout = run.layout(Grid(latent.shape[-2] // 2, latent.shape[-1] // 2))
        if layout.is_base:
            return net(**given)
        base, grid = layout.base, layout.grid

        def call(latent: Tensor, hint: Tensor) -> list[Tensor]:
            return net(**given | dict(hidden_states=latent, controlnet_cond=hint, return_dict=False))[0]

        def on_patch(patch: Tensor, tokens: Tensor) -> list[Tensor]:
            start = divmod(int(tokens[0]), grid.width)
            return call(patch, crop(hint, start, base).contiguous())

        whole = call(pick(latent, base), shrunk(hint, (2 * base.height, 2 * base.width)))
        found = OnPatches([resample(residual, base, grid) for residual in whole], on_patch)
        if not given.get("return_dict", True):
            return (found,)
        return output_of(model)(controlnet_block_samples=found)

    return around
