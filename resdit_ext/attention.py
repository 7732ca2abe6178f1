"""The method: one attention, split into a global and a local branch and joined by frequency."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from .config import ResDiTConfig
from .geometry import Layout
from .joining import Joiner
from .positions import grid_positions, patch_indices
from .schedule import Phase

Attend = Callable[[Tensor, Tensor, Tensor, object], Tensor]
Embed = Callable[[Tensor], object]


class Plan:
    """Everything about one output size that does not depend on q, k, v: made once, used by every block.

    Args:
        layout: the output grid, its base grid and patches.
        config: the method's parameters.
        text: number of text tokens, which precede the image tokens.
        embed: turns (..., L, 2) float32 image positions into what `attend` takes for the positions of text and
            image tokens; with a leading patch axis only where the patches' positions differ (`config.pipe` off).
        device: where the tensors live.
    """

    def __init__(
        self, layout: Layout, config: ResDiTConfig, text: int, embed: Embed, device: torch.device | str = "cpu"
    ) -> None:
        self.layout, self.config, self.text = layout, config, text
        grid, base = layout.grid, layout.base
        indices = patch_indices(layout)
        scaled = grid_positions(grid, layout.scales if config.pes else (1.0, 1.0))
        self.global_positions = embed(scaled.to(device))
        self.patch_positions = (
            embed(grid_positions(base).to(device))
            if config.pipe
            else [embed(positions.to(device)) for positions in grid_positions(grid, layout.scales)[indices]]
        )
        # Text precedes the image in every sequence, so a patch's sequence is one gather.
        self.gather = torch.cat((torch.arange(text).expand(len(indices), text), indices + text), 1).to(device)
        self.joiner = Joiner(layout, config, device)
        self.logit_scale = config.logit_scale(text + grid.tokens, text + base.tokens)

    def patches_at_once(self, q: Tensor) -> int:
        """Patches per chunk so that the gathered q, k, v, their rotated copies and the output fit `chunk_mb`."""
        per_patch = 8 * q.shape[0] * q.shape[1] * self.gather.shape[1] * q.shape[3] * q.element_size()
        share_positions = self.config.pipe
        return max(1, self.config.chunk_mb * 2**20 // per_patch) if share_positions else 1


def global_attention(q: Tensor, k: Tensor, v: Tensor, plan: Plan, attend: Attend) -> Tensor:
    """Attention over all tokens at scaled positions (PES), the logit scale folded into q; (B, L, C)."""
    if plan.logit_scale != 1.0:
        q = q * plan.logit_scale
    return attend(q, k, v, plan.global_positions)


def local_attention(
    q: Tensor, k: Tensor, v: Tensor, plan: Plan, attend: Attend, global_out: Tensor | None = None
) -> Tensor:
    """Every patch attends to itself and the text at its own positions (PIPE); spliced, (B, L, C).

    With `global_out` (B, L, C), each patch is first fused with the same patch of the global branch (PSF) and the
    text rows are the global branch's; without it they are the mean over the patches.
    """
    B, T = q.shape[0], plan.text
    base, count = plan.layout.base, len(plan.layout.patches)
    chunk = plan.patches_at_once(q)
    canvas = text_sum = None
    for first in range(0, count, chunk):
        index = plan.gather[first : first + chunk]
        n = len(index)
        # (B, heads, n, l, D) -> (n * B, heads, l, D)
        gathered = [x[:, :, index].movedim(2, 0).flatten(0, 1) for x in (q, k, v)]
        out = attend(*gathered, plan.patch_positions if plan.config.pipe else plan.patch_positions[first])
        del gathered
        out = out.unflatten(0, (n, B))
        image = out[:, :, T:].unflatten(2, (base.height, base.width))
        if canvas is None:
            canvas = plan.joiner.canvas(B, out.shape[-1])
            text_sum = out.new_zeros(B, T, out.shape[-1], dtype=torch.float32)
        if global_out is None:
            text_sum += out[:, :, :T].float().sum(0)
        else:
            window = global_out[:, index[:, T:]].movedim(1, 0).unflatten(2, (base.height, base.width))
            image = plan.joiner.fuse(window, image)
        plan.joiner.splice(canvas, image, first)
    text = text_sum / count if global_out is None else global_out[:, :T].float()
    return torch.cat((text, canvas.flatten(1, 2)), 1).to(q.dtype)


def resdit_attention(q: Tensor, k: Tensor, v: Tensor, plan: Plan, phase: Phase, attend: Attend) -> Tensor:
    """ResDiT's attention in place of softmax(q k^T) v.

    Args:
        q, k, v: (B, heads, T + H*W, D), text first, positions not yet applied to q and k.
        plan: made for this grid and text length.
        phase: what this model call computes.
        attend: the host's own attention, `attend(q, k, v, positions)` -> (B, L, heads*D); `positions` is what the
            plan's `embed` returned.

    Returns:
        (B, T + H*W, heads*D) in q's dtype.
    """
    if phase is Phase.GLOBAL:
        return global_attention(q, k, v, plan, attend)
    global_out = global_attention(q, k, v, plan, attend) if phase is Phase.FUSED else None
    return local_attention(q, k, v, plan, attend, global_out)
