"""Checks of NTK's, YaRN's and RPE-2D's positions inside the hosts' own models: FLUX and SD3."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from resdit_ext.method.run import Run
from tests import reference
from tests.attaching import attach
from tests.hosts import kit, models
from tests.hosts.bench import BASE, CONFIG, PHASES, TRIPLE, Bench, attention_error, check, same, small
from tests.hosts.checks_sd3 import at_positions, sd3_of

RANGE = 40  # positions a side, of RPE-2D
SIDES = {BASE: (8, 8), TRIPLE: (24, 24)}  # tokens
RPE_2D = replace(CONFIG, positions="rpe-2d", maximal_range=RANGE)


def equidistant(side: int) -> np.ndarray:
    """The positions of a square's tokens, row-major."""
    index = reference.equidistant(side, RANGE)
    return np.array([(row, col) for row in index for col in index])


@check
def other_positions_are_the_methods(bench: Bench) -> str:
    pe, found = bench.model.pe_embedder, []
    text, rows, cols = pe.axes_dim
    native = [reference.frequencies(d, pe.theta) for d in (text, rows, cols)]
    own = reference.positions(24, 24)
    other = {
        "ntk": dict(whole=own, laws=[native[0], *(reference.ntk(d, pe.theta, 3.0) for d in (rows, cols))]),
        "yarn": dict(whole=own, laws=[native[0], *(reference.yarn(d, pe.theta, 3.0, 8) for d in (rows, cols))]),
        "rpe-2d": dict(whole=equidistant(24), patch=equidistant(8)),
    }
    for name, places in other.items():
        unet, _ = bench.attached(replace(CONFIG, positions=name, maximal_range=RANGE))
        with bench.spied() as calls:
            kit.velocity(unet, kit.latent(*TRIPLE), PHASES["fused"])
        same(len(calls), bench.blocks, "attention calls")
        call = [calls[0][part] for part in ("q", "k", "v", "out")]
        worst = attention_error(pe, call, (24, 24), (8, 8), "fused", **places)
        found.append(small(worst, 1e-4, f"{name}: error"))
    return ", ".join(found)


@check
def rpe_2d_acts_at_the_base_size_and_in_layout_steps(bench: Bench) -> str:
    pe, found = bench.model.pe_embedder, []
    for size, config, sigma in ((BASE, RPE_2D, 0.8), (TRIPLE, replace(RPE_2D, layout="base"), 0.9)):
        unet, run = bench.attached(config)
        with bench.spied() as calls:
            kit.velocity(unet, kit.latent(*size), sigma)
        same(run.calls["blocks"], bench.blocks, "blocks")
        call = [calls[0][part] for part in ("q", "k", "v", "out")]
        same(call[0].shape[2], kit.TEXT + 64, "tokens")
        worst = attention_error(pe, call, (8, 8), (8, 8), "global", whole=equidistant(8))
        found.append(small(worst, 1e-4, f"{size}: error"))
    return ", ".join(found)


@check
def sd3_has_rpe_2ds_positions(bench: Bench) -> str:
    unet, found = sd3_of(bench), []
    for size, side in SIDES.items():
        x, run = kit.latent(*size), Run(replace(RPE_2D, attention_scale="off"))
        got = kit.velocity(attach(unet, run), x, PHASES["global"])
        index = [(models.TABLE - RANGE) // 2 + reference.equidistant(side[0], RANGE)] * 2
        expected = at_positions(unet, x, PHASES["global"], 1.0, index)
        found.append(small(kit.error(got, expected), 1e-4, f"{size}: error"))
        same(run.calls["global"], 1, "calls")
    plain = kit.velocity(unet, kit.latent(*BASE), 0.8)
    assert torch.equal(kit.velocity(attach(unet, Run(CONFIG)), kit.latent(*BASE), 0.8), plain), "something stayed"
    return ", ".join(found)
