"""What joins patches for one layout: fusion with the global branch (PSF), then the splice (GWS)."""

from __future__ import annotations

import torch
from torch import Tensor

from .config import ResDiTConfig
from .geometry import Layout
from .spectral import fuse, lowpass_matrix
from .splice import splice_into, splice_weights


class Joiner:
    """The splice's weights and the low-pass's matrices of a layout, on a device, in float32."""

    def __init__(self, layout: Layout, config: ResDiTConfig, device: torch.device | str = "cpu") -> None:
        self.layout, self.mean = layout, config.fusion == "mean"
        self.weights = splice_weights(layout, config.splice_sigma if config.splice == "gaussian" else None).to(device)
        self.rows = lowpass_matrix(layout.base.height, config.cutoff_cycles).float().to(device)
        self.cols = lowpass_matrix(layout.base.width, config.cutoff_cycles).float().to(device)

    def canvas(self, batch: int, channels: int) -> Tensor:
        """Zeros (B, H, W, C) in float32, so that up to four weighted patches add up without losing bits."""
        return self.weights.new_zeros(batch, self.layout.grid.height, self.layout.grid.width, channels)

    def fuse(self, global_patch: Tensor, local_patch: Tensor) -> Tensor:
        """Low band of the one, the rest of the other (..., h, w, C); their mean where PSF is left out."""
        if self.mean:
            return (global_patch + local_patch) / 2
        return fuse(global_patch, local_patch, self.rows.to(local_patch.dtype), self.cols.to(local_patch.dtype))

    def splice(self, canvas: Tensor, patches: Tensor, first: int) -> None:
        """Add patches (n, B, h, w, C), numbered from `first` in the layout's order, into the canvas in place."""
        part = slice(first, first + len(patches))
        splice_into(canvas, patches.float(), self.weights[part], self.layout.patches[part])
