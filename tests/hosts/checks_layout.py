"""Checks of steps at the base size and at half the size inside the hosts' own models: FLUX, Chroma and SD3."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from resdit_ext.families import identify
from resdit_ext.method.layout import Grid, base_grid
from resdit_ext.method.run import Run
from tests import reference
from tests.attaching import attach
from tests.hosts import kit
from tests.hosts.bench import CONFIG, TRIPLE, Bench, check, same, small
from tests.hosts.checks_sd3 import sd3_of

BALANCED = replace(CONFIG, layout="base", speed="fast", borders="moving", fused_until=1.0)
SIGMA = 0.9  # above `layout_until`
MIDDLE = 0.75  # above `middle_until`
FIXED = replace(BALANCED, borders="fixed")
FUSED = replace(FIXED, layout_until=1.0, middle_until=1.0)
LARGE = [((56, 56), 1, 1.0), ((52, 76), 2, 4.0)]  # more than three times the base size; half of it has the same patch
RUNS = [(TRIPLE, 1, 1.0), ((32, 64), 1, 4.0), ((48, 32), 2, 4.0)]
ODD = [((31, 45), 2, 1.0)]  # a latent of FLUX's kin may have odd sides


def error_of(
    unet: object, size: tuple[int, int], batch: int, cfg: float, denoise: Callable[..., Tensor], **given: object
) -> str:
    """How far a layout step is from the reference around the host's own call at the base size."""
    x, run = kit.latent(*size, batch), Run(BALANCED)
    grid = identify(unet.model.diffusion_model).adapter.grid(x)
    base = base_grid(Grid(grid.height, grid.width), BALANCED.base_tokens)
    got = denoise(attach(unet, run), x, SIGMA, cfg, **given)

    def plain(seen: object, level: float) -> object:
        return denoise(unet, torch.from_numpy(seen).float(), float(level), cfg, **given).double().numpy()

    expected = reference.layout_estimate(x.double().numpy(), SIGMA, (base.height, base.width), plain)
    same(run.calls["layout"], 1, f"{size}: calls")
    return small(kit.error(got, torch.from_numpy(expected)), 1e-5, f"{size}, batch {batch}, CFG {cfg:g}: error")


def middle_error_of(
    unet: object, size: tuple[int, int], batch: int, cfg: float, denoise: Callable[..., Tensor], **given: object
) -> str:
    """How far a middle step is from the reference around the host's own call, with the method, at half the size."""
    x, run, half = kit.latent(*size, batch), Run(FIXED), attach(unet, Run(FUSED))
    grid = identify(unet.model.diffusion_model).adapter.grid(x)
    got = denoise(attach(unet, run), x, MIDDLE, cfg, **given)

    def fused(seen: object, level: float) -> object:
        return denoise(half, torch.from_numpy(seen).float(), float(level), cfg, **given).double().numpy()

    sides = (-(-grid.height // 2), -(-grid.width // 2))
    same(base_grid(Grid(*sides), 64), base_grid(grid, 64), "base grid at half the size")
    expected = reference.layout_estimate(x.double().numpy(), MIDDLE, sides, fused)
    same(run.calls["middle"], 1, f"{size}: calls")
    return small(kit.error(got, torch.from_numpy(expected)), 1e-5, f"{size}, batch {batch}, CFG {cfg:g}: error")


@check
def a_middle_step_is_a_fused_call_at_half_the_size(bench: Bench) -> str:
    return ", ".join(middle_error_of(bench.unet, *run, kit.denoise) for run in LARGE)


@check
def sd3_takes_middle_steps(bench: Bench) -> str:
    return ", ".join(middle_error_of(sd3_of(bench), *run, kit.denoise) for run in LARGE)


@check
def a_layout_step_is_the_models_own_call_at_the_base_size(bench: Bench) -> str:
    return ", ".join(error_of(bench.unet, *run, kit.denoise) for run in RUNS + ODD)


@check
def chroma_takes_layout_steps(bench: Bench) -> str:
    def denoise(unet: object, x: Tensor, sigma: float, cfg: float) -> Tensor:
        conditions = (kit.chroma_conditioning(bench.host, len(x), seed) for seed in (1, 2))
        return kit.predictions(unet, x, sigma, cfg, *conditions)[0]

    return ", ".join(error_of(bench.chroma, *run, denoise) for run in RUNS + ODD)


@check
def sd3_takes_layout_steps(bench: Bench) -> str:
    return ", ".join(error_of(sd3_of(bench), *run, kit.denoise) for run in RUNS)


@check
def after_layout_steps_nothing_is_patched(bench: Bench) -> str:
    """At both ends of the boundary in one run, and at the base size bit-identical."""
    x, run = kit.latent(*TRIPLE), Run(BALANCED)
    unet, before = attach(bench.unet, run), bench.plain()
    for sigma in (0.95, 0.9, 0.7, 0.1):
        assert kit.denoise(unet, x, sigma).isfinite().all(), f"{sigma}: not finite"
    same(dict(run.calls), {"layout": 2, "fused": 2, "blocks": 4 * bench.blocks}, "calls")
    assert torch.equal(bench.plain(), before), "the host's model is not as it was"
    small_x = kit.latent(16, 16)
    assert torch.equal(kit.denoise(unet, small_x, SIGMA), kit.denoise(bench.unet, small_x, SIGMA)), "base size"
    return "2 layout steps, 2 fused"
