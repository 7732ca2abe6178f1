"""What control adds after each of a model's blocks, computed when the block asks: the nets' outputs, resampled to the
picture's tokens, weighted, masked and summed.

Kept for a 3K picture at every block this would take gigabytes; a net that ran at the base size has few tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from ..method.layout import Grid
from .hint import repeated


def pick(latent: Tensor, grid: Grid) -> Tensor:
    """The latent (B, C, 2h, 2w) of the tokens of `latent` (B, C, 2H, 2W) that lie nearest to a coarser grid's.

    Whole tokens are taken, so that the noise in them is as strong as in training; means of them would have less.
    """
    tokens = F.pixel_unshuffle(latent, 2)
    if tokens.shape[-2:] == (grid.height, grid.width):
        return latent
    for axis, side in ((2, grid.height), (3, grid.width)):
        length = tokens.shape[axis]
        index = (2 * torch.arange(side, device=latent.device) + 1) * length // (2 * side)
        tokens = tokens.index_select(axis, index)
    return F.pixel_shuffle(tokens, 2)


def token_mask(mask: Tensor, grid: Grid) -> Tensor:
    """(B, H, W, 1) means of a mask (B, 1, h, w), of any size, over the tokens of a grid."""
    return F.interpolate(mask.float(), size=(grid.height, grid.width), mode="area").movedim(1, -1)


def resample(tokens: Tensor, before: Grid, after: Grid) -> Tensor:
    """Tokens (B, h*w, C) of one grid, interpolated linearly on another; (B, H*W, C)."""
    if before == after:
        return tokens
    field = tokens.transpose(1, 2).unflatten(2, (before.height, before.width))
    return F.interpolate(field, size=(after.height, after.width), mode="bilinear").flatten(2).transpose(1, 2)


def along_depth(weights: Sequence[float], block: int, blocks: int) -> float:
    """The panel's weights, which are for a UNet's twelve levels, read along the depth of a transformer."""
    place = block / max(1, blocks - 1) * (len(weights) - 1)
    low, high = int(place), min(int(place) + 1, len(weights) - 1)
    return weights[low] + (weights[high] - weights[low]) * (place - low)


def control_on(control: object, before: Grid, after: Grid) -> object:
    """What a host's model call is given as control, for another grid of the whole picture.

    Args:
        control: for every block residuals (B, H*W, C) or none, or such lists by the kind of block.
        before: the grid that they are on.
        after: the one that they are wanted on.
    """
    if isinstance(control, Mapping):
        return {kind: control_on(added, before, after) for kind, added in control.items()}
    if isinstance(control, LazyResiduals):
        return control.on(after)
    return [resample(added, before, after) if isinstance(added, Tensor) else added for added in control]


@dataclass
class UnitShare:
    """One unit's share in one model call.

    Attributes:
        residuals: (B, h*w, C) each, of one kind of block.
        grid: the tokens they are on.
        strength: factor.
        index_of: which residual follows a block.
        cyclic: whether the residuals take turns.
        mask: (1 or B, H*W, 1) on the picture's tokens, in [0, 1].
        depth_weights: for every row of the batch its weights along the depth, or None.
    """

    residuals: Sequence[Tensor]
    grid: Grid
    strength: float
    index_of: Callable[[int, int, int, bool], int | None]
    cyclic: bool = False
    mask: Tensor | None = None
    depth_weights: Sequence[Sequence[float] | None] | None = None
    _last: tuple[int, Tensor] | None = field(default=None, repr=False)

    def on(self, before: Grid, after: Grid) -> UnitShare:
        """The same for another grid of the whole picture, its mask with it."""
        mask = self.mask if self.mask is None else resample(self.mask.float(), before, after)
        return replace(self, mask=mask, _last=None)

    def after(self, block: int, blocks: int, grid: Grid) -> Tensor | None:
        """(B, H*W, C) on the picture's grid, or None."""
        if not self.residuals or not self.strength:
            return None
        index = self.index_of(block, blocks, len(self.residuals), self.cyclic)
        if index is None:
            return None
        if self._last is None or self._last[0] != index:  # blocks that follow each other share one
            share = resample(self.residuals[index], self.grid, grid)
            if self.mask is not None:
                share = share * repeated(self.mask, len(share)).to(share)
            self._last = index, share
        share = self._last[1]
        if self.depth_weights is None:
            return share * self.strength if self.strength != 1 else share
        rows = [1.0 if w is None else along_depth(w, block, blocks) for w in self.depth_weights]
        return share * (self.strength * torch.tensor(rows, dtype=share.dtype, device=share.device)[:, None, None])


class LazyResiduals(Sequence):
    """For every block of one kind what is added to its image tokens, (B, H*W, C), or `nothing`.

    The hosts ask for `added[i]` as if it were a list of tensors.

    Args:
        parts: of the units.
        blocks: how many there are.
        grid: the picture's.
        dtype: the model's.
        nothing: stands for no addition.
        on_patch: (latent, tokens) -> the same for a call of the model on a patch, whose tokens have these indices.
        tokens: indices of those that are wanted of the grid's; None for all.
    """

    def __init__(
        self,
        parts: Sequence[UnitShare],
        blocks: int,
        grid: Grid,
        dtype: torch.dtype,
        nothing: object = None,
        on_patch: Callable[[Tensor, Tensor], LazyResiduals] | None = None,
        tokens: Tensor | None = None,
    ) -> None:
        self.parts, self.blocks, self.grid, self.dtype = tuple(parts), blocks, grid, dtype
        self.nothing, self.on_patch, self.tokens = nothing, on_patch or self.cut, tokens

    def on(self, grid: Grid) -> LazyResiduals:
        """The same on another grid of the whole picture, and on its patches what the whole has there."""
        parts = [part.on(self.grid, grid) for part in self.parts]
        return LazyResiduals(parts, self.blocks, grid, self.dtype, self.nothing)

    def cut(self, _: Tensor, tokens: Tensor) -> LazyResiduals:
        """The same for a patch with these tokens."""
        return LazyResiduals(self.parts, self.blocks, self.grid, self.dtype, self.nothing, tokens=tokens)

    def __len__(self) -> int:
        return self.blocks

    def __getitem__(self, block: int) -> object:
        if not 0 <= block < self.blocks:
            raise IndexError(block)
        total = None
        for part in self.parts:
            share = part.after(block, self.blocks, self.grid)
            if share is not None:
                total = share if total is None else total + share
        if total is None:
            return self.nothing
        return (total if self.tokens is None else total[:, self.tokens]).to(self.dtype)
