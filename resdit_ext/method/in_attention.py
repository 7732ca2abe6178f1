"""The paper's two branches inside a block: one attention split into a global (PES) and a local one (PIPE), joined.

Per patch x = F^-1(M . F(x_g) + (1-M) . F(x_l)) (PSF), then f(p) = sum_i w_i(p) f_i(p) / sum_i w_i(p) (GWS), before the
block's output projection, which commutes with both.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from einops import rearrange
from torch import Tensor

from .blend import Joiner
from .config import ResDiTConfig
from .frequencies import Law, laws_of
from .layout import Grid, Layout
from .memory import OutOfMemory, working_bytes
from .phases import Phase
from .pooling import POOL, Pooling
from .positions import patch_indices, spanned_grid, whole_positions
from .rotary import RotaryTable, rotate
from .run import Run

TOLERANCE = 0.05  # in scale: one side of an odd frame falls a little short of 2x
Attend = Callable[[Tensor, Tensor, Tensor], Tensor]
Embed = Callable[[Tensor, tuple[Law, Law] | None, Grid], RotaryTable]


def pooled_phases(layout: Layout, config: ResDiTConfig) -> tuple[Phase, ...]:
    """The phases whose global branch sees the image in means of POOL x POOL tokens.

    None below 2x: the means would be coarser than the tokens of training.
    """
    if min(layout.scales) < POOL - TOLERANCE:
        return ()
    return {"exact": (), "fast": (Phase.FUSED,), "fastest": (Phase.FUSED, Phase.GLOBAL)}[config.speed]


@dataclass(frozen=True)
class GlobalBranch:
    """PES, or what is in its place: positions and logit scale of the global branch, over all tokens or means (ours).

    Attributes:
        queries, keys: rotary tables of the queries and keys attended with.
        logit_scale: the attention temperature for this number of keys.
        pooling: makes the means; None over all tokens.
    """

    queries: RotaryTable
    keys: RotaryTable
    logit_scale: float
    pooling: Pooling | None = None


class AttentionPlan:
    """Everything about one output size that does not depend on q, k, v: made once, used by every block.

    Args:
        layout: the output grid, its base grid and patches.
        config: the method's parameters.
        text: number of text tokens, which precede the image tokens.
        embed: makes of (..., L, 2) float32 image positions, of the frequencies of rows and columns where they are
            not the model's own, and of the grid whose positions reach as far, the rotary table of text and image
            tokens.
        device: where the tensors live.
        say: receives a message for the user.
    """

    def __init__(
        self,
        layout: Layout,
        config: ResDiTConfig,
        text: int,
        embed: Embed,
        device: torch.device | str = "cpu",
        say: Callable[[str], None] = lambda _: None,
    ) -> None:
        self.layout, self.config, self.text, self._say = layout, config, text, say
        grid, base = layout.grid, layout.base
        whole, laws, spanned = whole_positions(layout, config), laws_of(layout, config), spanned_grid(layout, config)
        rotary = embed(whole, laws, spanned).to(device)

        def logit_scale(keys: int) -> float:
            return config.logit_scale(text + keys, text + base.tokens)

        self.branches = dict.fromkeys(Phase, GlobalBranch(rotary, rotary, logit_scale(grid.tokens)))
        if pooled := pooled_phases(layout, config):
            pooling = Pooling(grid, POOL, tuple(map(config.cutoff_cycles, layout.scales)), device)
            centres = embed(pooling.positions(whole), laws, spanned).to(device)
            scale = logit_scale(pooling.coarse.tokens)
            for phase in pooled:
                # Where all of the branch is used and not its low band alone, every token keeps its own query.
                queries = rotary if phase is Phase.GLOBAL else centres
                self.branches[phase] = GlobalBranch(queries, centres, scale, pooling)
        indices = patch_indices(layout)
        if config.pipe:
            at_base = layout.at_base  # to the model a patch is a whole picture of the base size
            local = embed(whole_positions(at_base, config), None, spanned_grid(at_base, config))
        else:
            local = embed(whole[indices], laws, spanned)
        self.patch_rotary = local.to(device)  # with an axis of patches only where their positions differ
        # Text precedes the image in every sequence, so a patch's sequence is one gather.
        self.gather = torch.cat((torch.arange(text).expand(len(indices), text), indices + text), 1).to(device)
        self.joiner = Joiner(layout, config, device)
        self._chunk: int | None = None

    def patches_at_once(self, q: Tensor) -> int:
        """Patches per chunk so that the gathered q, k, v, their rotated copies and the output fit the memory."""
        if self._chunk is None:
            per_patch = 8 * q.shape[0] * q.shape[1] * self.gather.shape[1] * q.shape[3] * q.element_size()
            self._chunk = max(1, working_bytes(q.device, self.config.chunk_mb * 2**20) // per_patch)
        return self._chunk

    def shrink(self) -> bool:
        """Halve the chunk after running out of memory, saying so; False where it is a single patch already."""
        if self._chunk == 1:
            return False
        self._chunk = min(self._chunk, len(self.gather)) // 2
        height, width = self.layout.grid.height, self.layout.grid.width
        patches = "1 patch" if self._chunk == 1 else f"{self._chunk} patches"
        self._say(f"out of memory at {width}x{height} tokens: going on with {patches} at once")
        return True


def plan_for(run: Run, layout: Layout, text: int, embed: Embed, device: torch.device) -> AttentionPlan:
    """The run's plan for a size and for what embeds its positions, made when it is first asked for.

    Args:
        embed: as `AttentionPlan` takes it; equal ones share a plan.
    """
    make = partial(AttentionPlan, layout, run.config, text, embed, device, run.say)
    return run.cached((layout, text, embed, str(device)), make)


def global_attention(q: Tensor, k: Tensor, v: Tensor, plan: AttentionPlan, phase: Phase, attend: Attend) -> Tensor:
    """PES: attention of text and image at positions i / s (or the configuration's own), to all tokens or to means.

    Returns (B, T + queries, C).

    The logit scale (attention temperature, not of the paper) is folded into the queries' rotary table.
    """
    branch = plan.branches[phase]
    if branch.pooling is not None:
        k, v = (branch.pooling.tokens(x, plan.text) for x in (k, v))
        if phase is Phase.FUSED:
            q = branch.pooling.tokens(q, plan.text)
    return attend(rotate(q, branch.queries, branch.logit_scale), rotate(k, branch.keys), v)


def patch_attention(q: Tensor, k: Tensor, v: Tensor, plan: AttentionPlan, attend: Attend, first: int) -> Tensor:
    """PIPE: a chunk of patches, each attending to itself and the text at a base-size picture's positions.

    Returns (n, B, T + h*w, C).
    """
    index = plan.gather[first : first + plan.patches_at_once(q)]
    rotary = plan.patch_rotary
    if not plan.config.pipe:
        part = slice(first, first + len(index))
        rotary = RotaryTable(*(x[part].repeat_interleave(len(q), 0)[:, None] for x in rotary))
    q, k, v = (rearrange(x[:, :, index], "B heads n L D -> (n B) heads L D") for x in (q, k, v))
    return rearrange(attend(rotate(q, rotary), rotate(k, rotary), v), "(n B) L C -> n B L C", n=len(index))


def local_attention(
    q: Tensor, k: Tensor, v: Tensor, plan: AttentionPlan, attend: Attend, global_image: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """PIPE, PSF and GWS: the local branch's text rows (B, T, C) and its spliced image (B, H, W, C), in float32.

    With `global_image` (B, H*W, C) each patch is first fused with the same patch of it. The paper leaves the text's
    rows open; here they are the mean over the patches.
    """
    T, base = plan.text, plan.layout.base
    canvas, text_sum, first = plan.joiner.canvas(len(q), q.shape[1] * q.shape[3]), 0.0, 0
    while first < len(plan.gather):
        try:
            out = patch_attention(q, k, v, plan, attend, first)
            image = rearrange(out[:, :, T:], "n B (h w) C -> n B h w C", h=base.height)
            if global_image is not None:
                index = plan.gather[first : first + len(out), T:] - T
                under = rearrange(global_image[:, index], "B n (h w) C -> n B h w C", h=base.height)
                image = plan.joiner.fuse(under, image)
        except OutOfMemory:
            if not plan.shrink():
                raise
            continue
        plan.joiner.splice(canvas, image, first)
        text_sum = text_sum + out[:, :, :T].float().sum(0)
        first += len(out)
    return text_sum / len(plan.gather), canvas


def resdit_attention(q: Tensor, k: Tensor, v: Tensor, plan: AttentionPlan, phase: Phase, attend: Attend) -> Tensor:
    """ResDiT's attention in place of softmax(q k^T) v: the branches that the schedule's phase asks for, joined.

    Args:
        q, k, v: (B, heads, T + H*W, D), text first, positions not yet applied to q and k.
        plan: made for this grid and text length.
        phase: what this model call computes.
        attend: the host's own attention of rotated q and k, `attend(q, k, v)` -> (B, queries, heads*D).

    Returns:
        (B, T + H*W, heads*D) in q's dtype.
    """
    if phase is Phase.LOCAL:
        text, canvas = local_attention(q, k, v, plan, attend)
    else:
        whole = global_attention(q, k, v, plan, phase, attend)
        if phase is Phase.GLOBAL:
            return whole
        text, image, pooling = whole[:, : plan.text], whole[:, plan.text :], plan.branches[phase].pooling
        _, canvas = local_attention(q, k, v, plan, attend, image if pooling is None else None)
        if pooling is not None:
            pooling.move_low_band(canvas, image)
    out = q.new_empty(len(q), q.shape[2], canvas.shape[-1])
    out[:, : plan.text] = text
    out[:, plan.text :] = rearrange(canvas, "B H W C -> B (H W) C")
    return out
