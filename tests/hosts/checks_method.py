"""Checks that the adapter computes the method inside the host's model, and nothing at the base size."""

from __future__ import annotations

import dataclasses
import math
import sys
from types import SimpleNamespace

import numpy as np
import torch
from safetensors.torch import load_file
from torch import nn

from resdit_ext import Unsupported
from resdit_ext.families import identify
from resdit_ext.method.phases import Phase
from resdit_ext.method.run import Run
from tests import reference
from tests.attaching import attach
from tests.hosts import bfl, kit, models
from tests.hosts.bench import BASE, CONFIG, PHASES, TRIPLE, Bench, Skipped, attention_error, big, check, same, small
from tests.settings import scaled

NATIVE = scaled(base_tokens=64, pes=False, global_until=1, fused_until=1, attention_scale="off")


@check
def at_the_base_size_it_is_bit_identical(bench: Bench) -> str:
    for size in (BASE, (12, 16), (15, 15)):
        for cfg in (1.0, 4.0):
            plain = bench.plain(size, cfg=cfg)
            unet, run = bench.attached()
            original = bench.flux.attention
            with bench.spied() as calls:
                got = kit.velocity(unet, kit.latent(*size), 0.8, cfg)
            assert torch.equal(got, plain), f"{size}, CFG {cfg:g}: not bit-identical"
            same(dict(run.calls), {"base": 1}, f"{size}, CFG {cfg:g}: calls")
            assert {call["function"] for call in calls} == {original}, "an attention was replaced"
    return "3 sizes, CFG 1 and 4"


@check
def above_the_base_size_it_runs(bench: Bench) -> str:
    """Every phase; square, oblong and odd sizes; batch 2; CFG 1 and 4."""
    runs = [(TRIPLE, 1, 1.0, phase) for phase in PHASES]
    runs += [((32, 64), 1, 4.0, "fused"), ((31, 45), 2, 4.0, "fused"), ((45, 31), 1, 1.0, "local")]
    differences = []
    for size, batch, cfg, phase in runs:
        sigma, what = PHASES[phase], f"{size}, batch {batch}, CFG {cfg:g}, {phase}"
        unet, run = bench.attached()
        got = kit.velocity(unet, kit.latent(*size, batch), sigma, cfg)
        same(tuple(got.shape), (batch, 16, *size), what)
        assert got.isfinite().all(), f"{what}: not finite"
        same(dict(run.calls), {phase: 1, "blocks": bench.blocks}, f"{what}: calls")
        differences.append(kit.error(got, bench.plain(size, sigma, cfg, batch)))
        big(differences[-1], 1e-3, f"{what}: difference from plain")
    return "differs from plain by " + ", ".join(f"{value:.2g}" for value in differences)


@check
def the_rotation_is_the_hosts(bench: Bench) -> str:
    """With native positions and no scale the method is plain attention at any size: only the rotation could differ."""
    found = []
    for size in (TRIPLE, (31, 45)):
        with bench.spied() as theirs:
            plain = bench.plain(size)
        unet, run = bench.attached(NATIVE)
        found.append(small(kit.error(kit.velocity(unet, kit.latent(*size), 0.8), plain), 1e-5, f"{size}: error"))
        same(run.calls["blocks"], bench.blocks, "blocks")
        (plan,) = run._made.values()
        rotary = plan.branches[Phase.FUSED].keys
        cos, sin = rotary.cos[:, ::2], rotary.sin[:, 1::2]
        matrices = torch.stack((cos, -sin, sin, cos), -1).unflatten(-1, (2, 2))
        found.append(small(float((matrices - theirs[0]["pe"]).abs().max()), 1e-5, f"{size}: matrices' error"))
    return ", ".join(found)


@check
def every_attention_is_the_methods(bench: Bench) -> str:
    """What the blocks receive, against the float64 reference (no code shared) on the blocks' own q, k, v."""
    pe, found = bench.model.pe_embedder, []
    grids = {TRIPLE: ((24, 24), (8, 8)), (31, 45): ((16, 23), (7, 10))}  # tokens of the output and of the base
    for size, phase in [*((TRIPLE, phase) for phase in PHASES), ((31, 45), "fused")]:
        unet, _ = bench.attached()
        with bench.spied() as calls:
            kit.velocity(unet, kit.latent(*size), PHASES[phase])
        same(len(calls), bench.blocks, "attention calls")
        grid, base = grids[size]
        for index in (0, -1):  # a double and a single block
            worst = attention_error(pe, [calls[index][name] for name in ("q", "k", "v", "out")], grid, base, phase)
            found.append(small(worst, 1e-4, f"{size}, {phase}, block {index}: error"))
    return ", ".join(found)


@check
def the_fast_mode_is_the_methods(bench: Bench) -> str:
    """The global branch on means of tokens, in both phases that have one, against its own reference."""
    pe, found = bench.model.pe_embedder, []
    grid, base = (24, 24), (8, 8)
    for phase in ("global", "fused"):
        unet, _ = bench.attached(dataclasses.replace(CONFIG, speed="fastest"))
        with bench.spied() as calls:
            kit.velocity(unet, kit.latent(*TRIPLE), PHASES[phase])
        same(len(calls), bench.blocks, "attention calls")
        for index in (0, -1):
            q, k, v, got = (calls[index][name][0].double().numpy() for name in ("q", "k", "v", "out"))
            expected = reference.resdit_fast(
                *(q, k, v, kit.TEXT, grid, base, phase),
                axes_dim=pe.axes_dim,
                theta=pe.theta,
                scale=np.log(kit.TEXT + math.prod(grid) / 4) / np.log(kit.TEXT + math.prod(base)),
                cutoff=CONFIG.cutoff / 2,
                sigma=CONFIG.splice_sigma,
            )
            worst = np.abs(got - expected).max() / np.abs(expected).max()
            found.append(small(float(worst), 1e-4, f"{phase}, block {index}: error"))
    return ", ".join(found)


@check
def bfloat16_stays_close(bench: Bench) -> str:
    """The same (rounded) weights in bfloat16 and in float32: within 3 %, and no worse than the host does alone."""
    rounded = models.build_flux(bench.host).to(torch.bfloat16)
    low = kit.build_unet(bench.host, rounded, torch.bfloat16)
    exact = models.build_flux(bench.host)
    exact.load_state_dict({name: value.float() for name, value in rounded.state_dict().items()})
    high, x, found = kit.build_unet(bench.host, exact), kit.latent(*TRIPLE), []
    for phase, sigma in PHASES.items():
        run = Run(CONFIG)
        got, expected = (kit.denoise(unet, x, sigma) for unet in (attach(low, run), attach(high, Run(CONFIG))))
        same(dict(run.calls), {phase: 1, "blocks": bench.blocks}, "calls")
        found.append(small(kit.error(got, expected), 3e-2, f"{phase}: error"))
        alone = kit.error(*(kit.velocity(unet, x, sigma) for unet in (low, high)))
        ours = kit.error(x - got, x - expected)
        found.append(small(ours, 1.25 * alone, f"its velocity's, where the host's own is {alone:.2g},"))
    return ", ".join(found)


@check
def it_equals_diffusers(bench: Bench) -> str:
    """The lab's micro FLUX: same weights, same velocity here and in diffusers, plain and in every phase."""
    if bench.host == "ersatz":
        raise Skipped("ersatzForge's FLUX code has 24 heads of 128 channels written in; the micro FLUX has 4 of 32")
    if bench.handed is None:
        raise Skipped("diffusers 0.35 or newer is not installed where pytest runs")
    data = load_file(bench.handed)
    model = models.build_flux(bench.host, **models.MICRO)
    prefix = "weights/"
    bfl.load_bfl(model, bfl.bfl_weights({k.removeprefix(prefix): v for k, v in data.items() if k.startswith(prefix)}))
    unet = kit.build_unet(bench.host, model)
    cond = {name: data[name] for name in ("crossattn", "vector")}
    config, found = scaled(base_tokens=256, fused_until=0.57), []
    for phase, sigma in PHASES.items():
        run = Run(config)
        for kind, patched in (("plain", unet), ("resdit", attach(unet, run))):
            got = kit.velocity(patched, data["latent"], sigma, cond=cond)
            found.append(small(kit.error(got, data[f"{kind}/{phase}"]), 1e-4, f"{kind}, {phase}: error"))
        same(dict(run.calls), {phase: 1, "blocks": 6}, "calls")
        big(kit.error(data[f"resdit/{phase}"], data[f"plain/{phase}"]), 1e-2, f"{phase}: what the method changes")
    return ", ".join(found)


def reason_against(model: object) -> str:
    """Why the model is refused."""
    try:
        identify(model)
    except Unsupported as reason:
        return str(reason)
    raise AssertionError(f"{type(model).__name__} was accepted")


@check
def other_models_are_refused(bench: Bench) -> str:
    """The host's FLUX class with FLUX.2's four axes, and what is no such transformer."""
    same(identify(bench.model).adapter.module.__name__, "backend.nn.flux", "module of FLUX")
    with torch.device("meta"):
        four = models.construct(models.FLUX_CLASS, models.TINY | dict(axes_dim=[8, 8, 8, 8]))
    assert "4 position axes" in reason_against(four)
    assert "Linear is not a model" in reason_against(nn.Linear(2, 2))
    block = type("Block", (), {"__module__": __name__})()
    stranger = SimpleNamespace(double_blocks=[block], single_blocks=[block], pe_embedder=bench.model.pe_embedder)
    assert not hasattr(sys.modules[__name__], "attention")
    assert "has no attention" in reason_against(stranger)
    return "four axes, Linear, foreign blocks"
