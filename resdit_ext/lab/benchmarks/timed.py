"""Rows that are timed: the method's parts around attention, and calls against each other, in the same run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ... import SCALED
from ...method.frequencies import Law
from ...method.in_attention import AttentionPlan, global_attention, local_attention, resdit_attention
from ...method.layout import Grid, make_layout
from ...method.phases import Phase
from ...method.rotary import RotaryTable, rotary_table
from ...seams.rotary import image_ids
from .flux import FLUX_DEV, TEXT
from .table import Row, ratio

AXES, THETA = FLUX_DEV["axes_dims_rope"], 10000


@dataclass(frozen=True)
class Shape:
    """What a device can time in reasonable time."""

    heads: int
    side: int
    dtype: torch.dtype
    rounds: int


SHAPES = {"cpu": Shape(2, 128, torch.float32, 5), "cuda": Shape(24, 256, torch.bfloat16, 20)}


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """PyTorch's attention, heads merged."""
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)


def nothing(_q: Tensor, _k: Tensor, v: Tensor) -> Tensor:
    """In place of attention: its output without its work."""
    return v.transpose(1, 2).flatten(2)


def plan_of(side: int, device: str) -> AttentionPlan:
    """Exact attention at side x side tokens."""
    layout = make_layout(Grid(side, side), SCALED)

    def embed(positions: Tensor, laws: tuple[Law, Law] | None, _: Grid) -> RotaryTable:
        return rotary_table(image_ids(TEXT, positions), AXES, THETA, laws)

    return AttentionPlan(layout, SCALED, TEXT, embed, device)


def qkv(side: int, shape: Shape, device: str) -> Tensor:
    return torch.randn(3, 1, shape.heads, TEXT + side * side, sum(AXES), device=device, dtype=shape.dtype)


def straightforward_join(plan: AttentionPlan, global_image: Tensor, patches: Tensor) -> Tensor:
    """Fusion and splice as the equations are written: transforms, a mask, weighted sums, their norm.

    Args:
        plan: the layout and its weights.
        global_image: (B, H*W, C).
        patches: (N, B, h, w, C).
    """
    _, B, h, w, C = patches.shape
    index = plan.gather[:, TEXT:] - TEXT
    f_h, f_w = (torch.fft.fftfreq(n, device=patches.device).abs() for n in (h, w))
    rows, cols = (plan.config.cutoff_cycles(scale) + 1e-6 for scale in plan.layout.scales)
    mask = ((f_h[:, None] <= rows) & (f_w <= cols)[: w // 2 + 1])[..., None]
    x_g = global_image[:, index].movedim(1, 0).unflatten(2, (h, w)).float()
    both = torch.where(mask, torch.fft.rfft2(x_g, dim=(2, 3)), torch.fft.rfft2(patches.float(), dim=(2, 3)))
    fused = torch.fft.irfft2(both, s=(h, w), dim=(2, 3)) * plan.joiner.weights[:, None]
    out = torch.zeros(B, plan.layout.grid.tokens, C, device=patches.device)
    norm = torch.zeros(plan.layout.grid.tokens, 1, device=patches.device)
    out.index_add_(1, index.flatten(), fused.movedim(1, 0).flatten(1, 3))
    norm.index_add_(0, index.flatten(), plan.joiner.weights.flatten(0, 2))
    return out / norm


def our_join(plan: AttentionPlan, global_image: Tensor, patches: Tensor, at_once: int) -> Tensor:
    """The same by the package's Joiner, in chunks as the method makes them."""
    base = plan.layout.base
    canvas = plan.joiner.canvas(patches.shape[1], patches.shape[-1])
    for first in range(0, len(patches), at_once):
        index = plan.gather[first : first + at_once, TEXT:] - TEXT
        under = global_image[:, index].movedim(1, 0).unflatten(2, (base.height, base.width))
        plan.joiner.splice(canvas, plan.joiner.fuse(under, patches[first : first + at_once]), first)
    return canvas.flatten(1, 2)


def joining(device: str) -> Row:
    """Low-pass and splice, the straightforward way over ours; the two agree."""
    shape = SHAPES[device]
    plan = plan_of(shape.side, device)
    base, C = plan.layout.base, shape.heads * sum(AXES)
    make = dict(device=device, dtype=shape.dtype)
    image = torch.randn(1, plan.layout.grid.tokens, C, **make)
    patches = torch.randn(len(plan.gather), 1, base.height, base.width, C, **make)
    at_once = plan.patches_at_once(qkv(shape.side, shape, device)[0])
    ours, theirs = our_join(plan, image, patches, at_once), straightforward_join(plan, image, patches)
    if not torch.allclose(ours, theirs, atol=1e-4 if shape.dtype == torch.float32 else 0.1):
        raise AssertionError("the two forms differ")
    value, *spread = ratio(
        lambda: straightforward_join(plan, image, patches),
        lambda: our_join(plan, image, patches, at_once),
        device,
        shape.rounds,
    )
    return Row("low-pass and splice: rfft2 + index_add / ours", ">= 3", value, tuple(spread), how=f"timed, {device}")


def around_attention(device: str) -> Row:
    """Gather, rotation, low-pass and splice as a share of what a fused call adds to a global one."""
    shape = SHAPES[device]
    plan, (q, k, v) = plan_of(shape.side, device), qkv(shape.side, shape, device)
    image = global_attention(q, k, v, plan, Phase.FUSED, nothing)[:, TEXT:]
    value, *spread = ratio(
        lambda: local_attention(q, k, v, plan, nothing, image),
        lambda: local_attention(q, k, v, plan, attend, image),
        device,
        shape.rounds,
    )
    return Row(
        "gather, RoPE, low-pass, splice: share of a fused call's added time",
        "<= 8 %",
        100 * value,
        tuple(100 * x for x in spread),
        " %",
        f"timed, {device}",
    )


def local_against_plain(side: int, device: str) -> list[Row]:
    """A local call's attention over plain attention: by time, and by count."""
    shape = SHAPES[device]
    plan, (q, k, v) = plan_of(side, device), qkv(side, shape, device)
    layout = plan.layout
    flops = len(layout.patches) * (TEXT + layout.base.tokens) ** 2 / (TEXT + layout.grid.tokens) ** 2

    def plain() -> Tensor:
        return global_attention(q, k, v, plan, Phase.GLOBAL, attend)

    def local() -> Tensor:
        return resdit_attention(q, k, v, plan, Phase.LOCAL, attend)

    value, *spread = ratio(local, plain, device, shape.rounds)
    what, aim = f"attention of a local call / plain, {side}x{side} tokens", f"{0.75 * flops:.2f} to {1.25 * flops:.2f}"
    return [Row(f"{what} ({flops:.2f} by FLOPs)", aim, value, tuple(spread), how=f"timed, {device}")]


def rows(device: str) -> list[Row]:
    """All of them, on a device."""
    sides = (96, 128) if device == "cpu" else (128, 192, 256)
    timings: list[Callable[[], list[Row]]] = [lambda: [joining(device)], lambda: [around_attention(device)]]
    timings += [lambda side=side: local_against_plain(side, device) for side in sides]
    with torch.inference_mode():
        return [row for timing in timings for row in timing()]
