"""A control net above its training size: what it returns for the whole and for each patch, joined by frequency.

The net is called at the base size alone, as it was trained: on the picture's tokens nearest to the base grid, with the
whole hint, and on every patch with its part of the hint. Its residuals are joined as the method joins predictions: the
low band of the whole's (PSF), the rest of the patches', spliced (GWS). docs/evaluation.md has what else was tried.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ..method.blend import Joiner, splice_into
from ..method.layout import Layout
from ..method.lowpass import along_axes
from .added import pick
from .call import Residuals

CallNet = Callable[[Tensor, "tuple[int, int] | None"], Residuals]


def linear_matrix(before: int, after: int) -> Tensor:
    """(after, before) float32 matrix that interpolates linearly between the centres of `before` equal cells."""
    return torch.nn.functional.interpolate(torch.eye(before)[None], size=after, mode="linear")[0].T


class PatchBlender:
    """The joining of a layout's patches for residuals of any number and type, on a device."""

    def __init__(self, layout: Layout, joiner: Joiner) -> None:
        self.layout, self.joiner = layout, joiner
        device = joiner.weights.device
        self.rows = linear_matrix(layout.base.height, layout.grid.height).to(device)
        self.cols = linear_matrix(layout.base.width, layout.grid.width).to(device)

    def crop(self, whole: Tensor, start: tuple[int, int]) -> Tensor:
        """The part (B, h, w, C) of the whole's residual (B, h*w, C) under the patch at `start`, interpolated."""
        base, (row, col) = self.layout.base, start
        rows, cols = self.rows[row : row + base.height], self.cols[col : col + base.width]
        return along_axes(whole.unflatten(1, (base.height, base.width)), rows.to(whole), cols.to(whole))

    def add(self, canvas: Tensor, whole: Tensor, patch: Tensor, number: int) -> None:
        """Fuse a patch's residual (B, h*w, C) with the whole's and splice it into the canvas (B, H, W, C)."""
        start = self.layout.patches[number]
        base = self.layout.base
        fused = self.joiner.fuse(self.crop(whole, start), patch.unflatten(1, (base.height, base.width)))
        weights = self.joiner.weights[number][None].to(fused)
        splice_into(canvas, fused[None], weights, (start,))


def at_high_resolution(call_net: CallNet, latent: Tensor, layout: Layout, blender: PatchBlender | None) -> Residuals:
    """A net's residuals for a latent above its training size.

    Args:
        call_net: (latent at the base size, first token of its patch or None for the whole) -> the net's residuals.
        latent: (B, C, 2H, 2W), on the layout's grid.
        layout: with the base grid and the patches.
        blender: for this layout; None leaves the patches out.

    Returns:
        Residuals on the layout's grid, or on its base grid without the patches.
    """
    whole = call_net(pick(latent, layout.base), None)
    if blender is None:
        return whole
    base, grid = layout.base, layout.grid
    canvases: list[Tensor] = []
    for number, (row, col) in enumerate(layout.patches):
        part = latent[..., 2 * row : 2 * (row + base.height), 2 * col : 2 * (col + base.width)]
        patch = call_net(part.contiguous(), (row, col))
        # In the net's own type: at 4K each of them has hundreds of megabytes.
        canvases = canvases or [r.new_zeros(len(r), grid.height, grid.width, r.shape[2]) for r in patch.both]
        for canvas, ours, theirs in zip(canvases, whole.both, patch.both, strict=True):
            blender.add(canvas, ours, theirs, number)
    flat = tuple(canvas.flatten(1, 2) for canvas in canvases)
    return Residuals(flat[: len(whole.double)], flat[len(whole.double) :], whole.cyclic)
