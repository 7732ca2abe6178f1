"""Checks of Chroma inside the host's own class, tiny (ersatzForge: thin) and with random weights."""

from __future__ import annotations

import sys

import torch
from torch import Tensor

from resdit_ext import ResDiTConfig
from resdit_ext.families import identify
from resdit_ext.method.run import Run
from tests.attaching import attach
from tests.attentions import recorded
from tests.hosts import kit
from tests.hosts.bench import BASE, CONFIG, PHASES, TRIPLE, Bench, attention_error, big, check, same, small
from tests.settings import scaled

NATIVE = scaled(base_tokens=64, pes=False, global_until=1, fused_until=1, attention_scale="off")


def velocity(bench: Bench, unet: object, x: Tensor, sigma: float, cfg: float = 1.0) -> Tensor:
    """What the network said, by the host's own sampling function."""
    cond, uncond = (kit.chroma_conditioning(bench.host, len(x), seed) for seed in (1, 2))
    return (x - kit.predictions(unet, x, sigma, cfg, cond, uncond)[0]) / sigma


def attached(bench: Bench, config: ResDiTConfig = CONFIG) -> tuple[object, Run]:
    run = Run(config)
    return attach(bench.chroma, run), run


@check
def chroma_is_recognised(bench: Bench) -> str:
    found = identify(bench.chroma.model.diffusion_model)
    same(found.family.name, "Chroma", "family")
    return f"{found.adapter.module.__name__}, {type(found.adapter.way).__name__}"


@check
def chroma_at_the_base_size_is_bit_identical(bench: Bench) -> str:
    for size in (BASE, (12, 16), (15, 15)):
        for cfg in (1.0, 4.0):
            x, (unet, run) = kit.latent(*size), attached(bench)
            plain = velocity(bench, bench.chroma, x, 0.8, cfg)
            assert torch.equal(velocity(bench, unet, x, 0.8, cfg), plain), f"{size}, CFG {cfg:g}: not bit-identical"
            same(dict(run.calls), {"base": 1}, f"{size}, CFG {cfg:g}: calls")
    return "3 sizes, CFG 1 and 4"


@check
def chroma_runs_above_the_base_size(bench: Bench) -> str:
    """Every phase; square, oblong and odd sizes; batch 2; CFG 1 and 4."""
    model, differences = bench.chroma.model.diffusion_model, []
    blocks = len(model.double_blocks) + len(model.single_blocks)
    runs = [(TRIPLE, 1, 1.0, phase) for phase in PHASES]
    runs += [((32, 64), 1, 4.0, "fused"), ((31, 45), 2, 4.0, "fused"), ((45, 31), 1, 1.0, "local")]
    for size, batch, cfg, phase in runs:
        x, (unet, run) = kit.latent(*size, batch), attached(bench)
        plain = velocity(bench, bench.chroma, x, PHASES[phase], cfg)
        got, what = velocity(bench, unet, x, PHASES[phase], cfg), f"{size}, batch {batch}, CFG {cfg:g}, {phase}"
        assert got.isfinite().all() and got.shape == x.shape, what
        same(dict(run.calls), {phase: 1, "blocks": blocks}, f"{what}: calls")
        differences.append(kit.error(got, plain))
        big(differences[-1], 1e-3, f"{what}: difference from plain")
        assert torch.equal(velocity(bench, bench.chroma, x, PHASES[phase], cfg), plain), f"{what}: plain changed"
    return "differs from plain by " + ", ".join(f"{value:.2g}" for value in differences)


@check
def chromas_rotation_is_the_hosts(bench: Bench) -> str:
    """With native positions and no scale the method is plain attention at any size: only the rotation could differ."""
    found = []
    for size in (TRIPLE, (31, 45)):
        x, (unet, _) = kit.latent(*size), attached(bench, NATIVE)
        error = kit.error(velocity(bench, unet, x, 0.8), velocity(bench, bench.chroma, x, 0.8))
        found.append(small(error, 1e-5, f"{size}: error"))
    return ", ".join(found)


@check
def every_attention_of_chroma_is_the_methods(bench: Bench) -> str:
    """What the method is given and returns, against the float64 reference on the blocks' own q, k, v."""
    pe, found = bench.chroma.model.diffusion_model.pe_embedder, []
    grids = {TRIPLE: ((24, 24), (8, 8)), (31, 45): ((16, 23), (7, 10))}  # tokens of the output and of the base
    for size, phase in [*((TRIPLE, phase) for phase in PHASES), ((31, 45), "fused")]:
        with recorded() as calls:
            velocity(bench, attached(bench)[0], kit.latent(*size), PHASES[phase])
        grid, base = grids[size]
        for index in (0, -1):  # a double and a single block
            worst = attention_error(pe, calls[index], grid, base, phase)
            found.append(small(worst, 1e-4, f"{size}, {phase}, block {index}: error"))
    return ", ".join(found)


@check
def chroma_is_restored_after_an_exception(bench: Bench) -> str:
    model = bench.chroma.model.diffusion_model
    module = sys.modules[type(model.double_blocks[0]).__module__]
    names = [name for name in ("attention", "attention_function") if hasattr(module, name)]
    before, embedder = [getattr(module, name) for name in names], type(model.pe_embedder)
    x = kit.latent(*TRIPLE)
    plain = velocity(bench, bench.chroma, x, 0.8)
    for error in (RuntimeError, KeyboardInterrupt):

        def fail(*_: object, error: type[BaseException] = error) -> None:
            raise error

        handle = model.single_blocks[-1].register_forward_pre_hook(fail)
        try:
            velocity(bench, attached(bench)[0], x, 0.8)
        except error:
            pass
        else:
            raise AssertionError(f"{error} did not come through")
        finally:
            handle.remove()
        assert [getattr(module, name) for name in names] == before and type(model.pe_embedder) is embedder
        assert torch.equal(velocity(bench, bench.chroma, x, 0.8), plain), f"the plain result changed after {error}"
    return "RuntimeError, KeyboardInterrupt"
