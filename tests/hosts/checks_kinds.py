"""Checks of the models that some hosts alone have, in the host's own class, tiny and with random weights."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from resdit_ext import ResDiTConfig
from resdit_ext.families import identify
from resdit_ext.method.run import Run
from tests.attaching import attach
from tests.attentions import recorded
from tests.hosts import kinds, kit
from tests.hosts.bench import (
    BASE,
    CHECKS,
    CONFIG,
    PHASES,
    TRIPLE,
    Bench,
    Skipped,
    attention_error,
    big,
    same,
    small,
)
from tests.settings import scaled

NAMES = {
    "krea2": "Krea 2",
    "zimage": "Z-Image",
    "lumina2": "Lumina 2",
    "flux2": "Flux.2",
    "qwen": "Qwen-Image",
    "anima": "Anima",
}
NATIVE = scaled(base_tokens=64, pes=False, global_until=1, fused_until=1, attention_scale="off")
BALANCED = ResDiTConfig(base_tokens=64)
ODD = (31, 45)  # rows and columns of a latent whose last token is padded


def of_every_kind(function: Callable[[Bench, str], str]) -> Callable[[Bench, str], str]:
    """Register a check of each kind: it returns what it measured, or raises."""

    def checked(bench: Bench, kind: str) -> str:
        if bench.host not in kinds.KINDS[kind][0]:
            raise Skipped(f"{bench.host} has no {NAMES[kind]}")
        return function(bench, kind)

    CHECKS.update({f"{kind}_{function.__name__}": partial(checked, kind=kind) for kind in NAMES})
    return function


def velocity(bench: Bench, kind: str, unet: object, x: Tensor, sigma: float, cfg: float = 1.0) -> Tensor:
    """What the network said, by the host's own sampling function."""
    cond, uncond = (kinds.text_of(bench.host, kind, len(x), seed) for seed in (1, 2))
    return (x - kit.predictions(unet, x, sigma, cfg, cond, uncond)[0]) / sigma


def latent(bench: Bench, kind: str, size: tuple[int, int], batch: int = 1) -> Tensor:
    """Noise of this size."""
    return kinds.latent_of(bench.host, kind, *size, batch)


def attached(bench: Bench, kind: str, config: ResDiTConfig = CONFIG) -> tuple[object, Run]:
    run = Run(config)
    return attach(bench.of_kind(kind), run), run


@of_every_kind
def is_recognised(bench: Bench, kind: str) -> str:
    found = identify(bench.of_kind(kind).model.diffusion_model)
    same(found.family.name, NAMES[kind], "family")
    return f"{found.adapter.module.__name__}, {found.adapter.hidden_size} channels"


@of_every_kind
def at_the_base_size_is_bit_identical(bench: Bench, kind: str) -> str:
    for size in (BASE, (12, 16), (15, 15)):
        for cfg in (1.0, 4.0):
            x, (unet, run) = latent(bench, kind, size), attached(bench, kind)
            plain = velocity(bench, kind, bench.of_kind(kind), x, 0.8, cfg)
            assert torch.equal(velocity(bench, kind, unet, x, 0.8, cfg), plain), f"{size}, CFG {cfg:g}"
            same(dict(run.calls), {"base": 1}, f"{size}, CFG {cfg:g}: calls")
    return "3 sizes, CFG 1 and 4"


@of_every_kind
def runs_above_the_base_size(bench: Bench, kind: str) -> str:
    """Every phase; square, oblong and odd sizes; batch 2; CFG 1 and 4; steps at the base size and at half the size."""
    plain_unet, differences = bench.of_kind(kind), []
    runs = [(TRIPLE, 1, 1.0, phase, CONFIG) for phase in PHASES]
    runs += [((32, 64), 1, 4.0, "fused", CONFIG), (ODD, 2, 4.0, "fused", CONFIG), (ODD[::-1], 1, 1.0, "local", CONFIG)]
    runs += [
        (ODD, 2, 4.0, "layout", BALANCED),
        (ODD, 1, 1.0, "fused", BALANCED),
        ((56, 51), 2, 4.0, "middle", BALANCED),
    ]
    for size, batch, cfg, phase, config in runs:
        x, (unet, run), sigma = latent(bench, kind, size, batch), attached(bench, kind, config), PHASES.get(phase, 0.99)
        if config is BALANCED:
            sigma = {"layout": 0.99, "middle": 0.75, "fused": 0.5}[phase]
        plain = velocity(bench, kind, plain_unet, x, sigma, cfg)
        got, what = velocity(bench, kind, unet, x, sigma, cfg), f"{size}, batch {batch}, CFG {cfg:g}, {phase}"
        assert got.isfinite().all() and got.shape == x.shape, what
        assert run.calls[phase] == 1 and run.calls["blocks"] >= 2, f"{what}: calls {dict(run.calls)}"
        differences.append(kit.error(got, plain))
        big(differences[-1], 1e-3, f"{what}: difference from plain")
        assert torch.equal(velocity(bench, kind, plain_unet, x, sigma, cfg), plain), f"{what}: plain changed"
    return "differs from plain by " + ", ".join(f"{value:.2g}" for value in differences)


@of_every_kind
def takes_latents_of_a_video_model(bench: Bench, kind: str) -> str:
    """With an axis of one frame, as Forge Neo's Krea 2 is given them, the result is the same."""
    if (bench.host, kind) != ("neo", "krea2"):
        raise Skipped("its latents have no axis of frames")
    found = []
    for config, sigma in ((CONFIG, PHASES["fused"]), (BALANCED, 0.99), (BALANCED, 0.5)):
        x = latent(bench, kind, ODD)
        flat, framed = (velocity(bench, kind, attached(bench, kind, config)[0], y, sigma) for y in (x, x[:, :, None]))
        found.append(small(kit.error(framed[:, :, 0], flat), 1e-6, f"{sigma:g}: error"))
    return ", ".join(found)


@of_every_kind
def turns_as_the_host_does(bench: Bench, kind: str) -> str:
    """With native positions and no scale the method is plain attention at any size: only the rotation could differ."""
    found = []
    for size in (TRIPLE, ODD):
        x, (unet, _) = latent(bench, kind, size), attached(bench, kind, NATIVE)
        error = kit.error(velocity(bench, kind, unet, x, 0.8), velocity(bench, kind, bench.of_kind(kind), x, 0.8))
        found.append(small(error, 1e-5, f"{size}: error"))
    return ", ".join(found)


@of_every_kind
def every_attention_is_the_methods(bench: Bench, kind: str) -> str:
    """What the method is given and returns, against the float64 reference on the blocks' own q, k, v."""
    found, grids = [], {TRIPLE: ((24, 24), (8, 8)), ODD: ((16, 23), (7, 10))}  # tokens of the output and of the base
    for size, phase in [*((TRIPLE, phase) for phase in PHASES), (ODD, "fused")]:
        with recorded() as calls:
            velocity(bench, kind, attached(bench, kind)[0], latent(bench, kind, size), PHASES[phase])
        grid, base = grids[size]
        model = bench.of_kind(kind).model.diffusion_model
        embedder = kinds.embedder_of(model)
        for index in (0, -1):
            text, pads = calls[index][0].shape[2] - grid[0] * grid[1], -grid[0] * grid[1] % kinds.MULTIPLE[kind]
            ids = kinds.ids_of_others(kind, text - pads, pads, base)
            worst = attention_error(embedder, calls[index], grid, base, phase, **ids)
            found.append(small(worst, 1e-4, f"{size}, {phase}, attention {index}: error"))
    return ", ".join(found)


@of_every_kind
def is_as_exact_in_bfloat16(bench: Bench, kind: str) -> str:
    """What bfloat16 changes with the method, beside what it changes without."""
    if (bench.host, kind) == ("ersatz", "krea2"):
        raise Skipped("its class needs the host's own layers in bfloat16")
    single, half = bench.of_kind(kind), kit.build_unet(bench.host, kinds.build(bench.host, kind), torch.bfloat16)
    x, found = latent(bench, kind, TRIPLE), []
    for phase, sigma in PHASES.items():
        plain = kit.error(velocity(bench, kind, half, x, sigma), velocity(bench, kind, single, x, sigma))
        both = [velocity(bench, kind, attach(unet, Run(CONFIG)), x, sigma) for unet in (half, single)]
        found.append(small(kit.error(*both), 2 * plain, f"{phase}: error"))
    return ", ".join(found)


@of_every_kind
def is_restored_after_an_exception(bench: Bench, kind: str) -> str:
    plain_unet, (unet, _) = bench.of_kind(kind), attached(bench, kind)
    model = plain_unet.model.diffusion_model
    names = ("blocks", "layers", "single_blocks", "transformer_blocks")
    blocks = next(getattr(model, name) for name in names if hasattr(model, name))
    module, x = sys.modules[type(model).__module__], latent(bench, kind, TRIPLE)

    def functions() -> list[object]:
        return [getattr(module, name, None) for name in ("attention", "attention_function")]

    before = functions()
    plain = velocity(bench, kind, plain_unet, x, 0.8)
    for error in (RuntimeError, KeyboardInterrupt):

        def fail(*_: object, error: type[BaseException] = error) -> None:
            assert functions() != before, "ours is not in place"
            raise error

        handle = blocks[-1].register_forward_pre_hook(fail)
        try:
            velocity(bench, kind, unet, x, 0.8)
        except error:
            pass
        else:
            raise AssertionError(f"{error} did not come through")
        finally:
            handle.remove()
        assert functions() == before
        assert torch.equal(velocity(bench, kind, plain_unet, x, 0.8), plain), f"the plain result changed after {error}"
    return "RuntimeError, KeyboardInterrupt"
