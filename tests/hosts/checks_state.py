"""Checks of what surrounds the method: other extensions, errors, samplers, and that nothing is left behind."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from torch._dynamo.testing import CompileCounter

from resdit_ext.method.memory import OutOfMemory
from resdit_ext.method.run import Run
from resdit_ext.method.shift import shifted_sigmas
from resdit_ext.monkeypatch import swapped
from tests.attaching import attach
from tests.hosts import kit
from tests.hosts.bench import CONFIG, PHASES, TRIPLE, Bench, Skipped, check, same, small

SIZE = (32, 32)
STEPS = 7


class Stopped(BaseException):
    """Like KeyboardInterrupt, which the runner itself should still obey."""


@contextmanager
def in_place_of_the_model(bench: Bench, compiled: object) -> Iterator[None]:
    """Have the host call a compiled wrapper, which is a module and not to become a part of it."""
    inner, unregistered = bench.unet.model, bench.unet.model._modules.pop("diffusion_model")
    try:
        with swapped(inner, diffusion_model=Wrapped(compiled)):
            yield
    finally:
        inner._modules["diffusion_model"] = unregistered


class Wrapped:
    """A module that is no module to those who collect them; all else shows through."""

    def __init__(self, module: object) -> None:
        self.module = module

    def __call__(self, *args: object, **kwargs: object) -> object:
        return self.module(*args, **kwargs)

    def __getattr__(self, name: str) -> object:
        return getattr(self.module, name)


@check
def cond_and_uncond_may_come_in_one_call_or_two(bench: Bench) -> str:
    """The host splits them where memory is short, and asks the model how much it needs."""
    x, found = kit.latent(*TRIPLE), []
    for phase, sigma in PHASES.items():
        unet, run = bench.attached()
        together = kit.predictions(unet, x, sigma, 4.0)
        same(run.calls[phase], 1, "calls with memory enough")
        with swapped(bench.unet.model, memory_required=lambda input_shape: 2**60 * (input_shape[0] > len(x))):
            apart = kit.predictions(unet, x, sigma, 4.0)
        same(run.calls[phase], 3, "calls, two more with memory short")
        # The two predictions; the guided sum magnifies their rounding four times.
        worst = max(kit.error(x - a, x - b) for a, b in zip(apart[1:], together[1:], strict=True))
        found.append(small(worst, 1e-5, f"{phase}: error"))
    return ", ".join(found)


@check
def nothing_is_left_behind(bench: Bench) -> str:
    """Plain, ResDiT, plain: the first and the third are the same bits, also after errors inside a block."""
    x, original = kit.latent(*TRIPLE), bench.flux.attention
    before = dict(vars(bench.flux)), dict(bench.unet.model_options), dict(vars(bench.model))
    plain = kit.denoise(bench.unet, x, 0.8, 4.0)

    def clean(after: str) -> None:
        assert bench.flux.attention is original, f"the replaced attention is left after {after}"
        assert torch.equal(kit.denoise(bench.unet, x, 0.8, 4.0), plain), f"the plain result changed after {after}"

    unet, _ = bench.attached()
    assert not torch.equal(kit.denoise(unet, x, 0.8, 4.0), plain)
    clean("a normal call")
    for error in (RuntimeError, Stopped):

        def fail(*_: object, error: type[BaseException] = error) -> None:
            assert bench.flux.attention is not original, "ours is not installed inside the block"
            raise error

        with bench.hooked(fail, before=False):
            try:
                kit.denoise(unet, x, 0.8, 4.0)
            except error:
                pass
            else:
                raise AssertionError(f"{error.__name__} was swallowed")
        clean(error.__name__)
    after = dict(vars(bench.flux)), dict(bench.unet.model_options), dict(vars(bench.model))
    assert after == before, "the module, the unet's options or the model differ from before"
    return "after a normal call, RuntimeError and a BaseException"


def tiles(apply_model: object, args: dict) -> Tensor:
    """Another extension's wrapper: the model on a left and a right tile, averaged where they meet."""
    x, t, c = args["input"], args["timestep"], args["c"]
    total, count = torch.zeros_like(x), torch.zeros_like(x)
    for start in (0, 16):
        part = slice(start, start + 32)
        total[..., part] += apply_model(x[..., part], t, **c)
        count[..., part] += 1
    return total / count


@check
def a_compiled_model_is_the_same(bench: Bench) -> str:
    """As Forge Neo's own extension compiles it: inside the call, after everything is attached."""
    x, model, counter, found = kit.latent(*TRIPLE), bench.model, CompileCounter(), []
    plain = kit.velocity(bench.unet, x, 0.8)
    expected = [kit.velocity(bench.attached()[0], x, sigma) for sigma in PHASES.values()]
    torch.compiler.reset()
    compiled, frames = torch.compile(model, backend=counter), []
    with in_place_of_the_model(bench, compiled):
        for _ in range(3):
            unet = bench.attached()[0]
            for sigma, wanted in zip(PHASES.values(), expected, strict=True):
                found.append(kit.error(kit.velocity(unet, x, sigma), wanted))
            found.append(kit.error(kit.velocity(bench.unet, x, 0.8), plain))
            frames.append(counter.frame_count)
    torch.compiler.reset()
    assert frames[0] > 0, "nothing was compiled"
    same(frames[1], frames[2], "frames compiled by the second and the third generation")
    return small(max(found), 1e-5, "error") + f", {frames} frames"


@check
def running_out_of_memory_loses_nothing(bench: Bench) -> str:
    """The host's attention has no room for more than two patches: fewer at once, the same picture, told once."""
    x, said, theirs = kit.latent(*TRIPLE), [], bench.flux.attention_function
    expected = kit.velocity(bench.attached()[0], x, PHASES["fused"])

    def tight(q: Tensor, *args: object, **kwargs: object) -> Tensor:
        if len(q) > 2:
            raise OutOfMemory("no room")
        return theirs(q, *args, **kwargs)

    unet, _ = bench.attached(say=said.append)
    with swapped(bench.flux, attention_function=tight):
        got = kit.velocity(unet, x, PHASES["fused"])
    same(len(said), len(set(said)), "different messages")
    assert said and said[-1].endswith(("going on with 2 patches at once", "going on with 1 patch at once")), said
    return small(kit.error(got, expected), 1e-5, "error") + f", {len(said)} messages"


@check
def another_extensions_wrapper_stays_outside(bench: Bench) -> str:
    """With tiles of 48 x 32 our grid is 24 x 16 tokens, twice per step."""
    x, sigma = kit.latent(*TRIPLE), PHASES["fused"]
    other = bench.unet.clone()
    other.set_model_unet_function_wrapper(tiles)
    run = Run(CONFIG)
    with bench.spied() as calls:
        got = kit.denoise(attach(other, run), x, sigma)
    same(dict(run.calls), {"fused": 2, "blocks": 2 * bench.blocks}, "calls")
    same({call["q"].shape[2] for call in calls}, {kit.TEXT + 24 * 16}, "tokens")

    alone, _ = bench.attached()

    def on_tile(part: Tensor, t: Tensor) -> Tensor:
        return kit.denoise(alone, part.contiguous(), float(t[0]))

    expected = tiles(on_tile, {"input": x, "timestep": torch.full((1,), sigma), "c": {}})
    return small(kit.error(x - got, x - expected), 1e-5, "error against tiles by hand")


@check
def attaching_twice_replaces(bench: Bench) -> str:
    x = kit.latent(*SIZE)
    once, _ = bench.attached()
    expected = kit.denoise(once, x, 0.8)
    other = bench.unet.clone()
    other.set_model_unet_function_wrapper(tiles)
    for start, per_step in ((bench.unet, 1), (other, 2)):
        runs = [Run(CONFIG) for _ in range(3)]
        unet = start
        for run in runs:
            unet = attach(unet, run)
        got = kit.denoise(unet, kit.latent(*TRIPLE) if start is other else x, 0.8)
        same([dict(run.calls) for run in runs[:-1]], [{}, {}], "calls of the replaced runs")
        same(dict(runs[-1].calls), {"fused": per_step, "blocks": per_step * bench.blocks}, "calls")
        if start is not other:
            assert torch.equal(got, expected), "attached thrice differs from once"
    return "thrice, alone and below tiles"


@check
def it_survives_cloning(bench: Bench) -> str:
    """A clone deep-copies its options: the Run must not be copied with them, nor its tensors."""
    unet, run = bench.attached()
    expected = kit.denoise(unet, kit.latent(*SIZE), 0.8)
    clone = unet.clone().clone()
    assert torch.equal(kit.denoise(clone, kit.latent(*SIZE), 0.8), expected)
    same(dict(run.calls), {"fused": 2, "blocks": 2 * bench.blocks}, "calls of the one Run")
    same(len(run._made), 1, "plans")
    bench.plain(SIZE)
    same(run.calls["fused"], 2, "calls after a plain one")
    return "a clone of a clone"


def euler(unet: object, x: Tensor, sigmas: tuple[float, ...]) -> Tensor:
    for sigma, after in itertools.pairwise(sigmas):
        x = x + (after - sigma) * kit.velocity(unet, x, sigma)
    return x


def heun(unet: object, x: Tensor, sigmas: tuple[float, ...]) -> Tensor:
    """k-diffusion's: a second call at the next noise level, except in the last step."""
    for sigma, after in itertools.pairwise(sigmas):
        slope = kit.velocity(unet, x, sigma)
        if after:
            slope = (slope + kit.velocity(unet, x + (after - sigma) * slope, after)) / 2
        x = x + (after - sigma) * slope
    return x


@check
def samplers_meet_the_right_phases(bench: Bench) -> str:
    """Seven steps are 2 global, 2 fused and 3 local; Heun calls again at all noise levels but the first."""
    expected = {euler: dict(zip(PHASES, (2, 2, 3), strict=True)), heun: dict(zip(PHASES, (3, 4, 6), strict=True))}
    for sampler, phases in expected.items():
        sigmas = shifted_sigmas(STEPS)
        unet, run = bench.attached(sigmas=torch.tensor(sigmas))
        out = sampler(unet, kit.latent(*SIZE), sigmas)
        assert out.isfinite().all(), f"{sampler.__name__}: not finite"
        same(dict(run.calls), phases | {"blocks": bench.blocks * sum(phases.values())}, sampler.__name__)
        same(len(run._made), 1, "plans made")
    return "Euler and Heun"


@check
def odd_noise_levels_are_survived(bench: Bench) -> str:
    """Forge's default pair of sampler and schedule starts FLUX at 9999."""
    said = []
    unet, run = bench.attached(say=said.append)
    for sigma in (9999.0, 9999.0):
        assert kit.denoise(unet, kit.latent(*SIZE) * sigma, sigma).isfinite().all()
    same(dict(run.calls), {"global": 2, "blocks": 2 * bench.blocks}, "calls")
    same(len(said), 1, "messages")
    return said[0]


@check
def the_memory_estimate_reaches_the_host(bench: Bench) -> str:
    """Forge and ersatzForge ask ours how much to keep free; it spares Forge's excess."""
    if not hasattr(bench.unet, "set_memory_peak_estimation_modifier"):
        raise Skipped("Neo's patcher has no place for an extension's estimate")
    import backend.sampling.sampling_function as sampling

    kept = []
    unet, _ = bench.attached()
    with swapped(sampling.memory_management, load_models_gpu=lambda **kwargs: kept.append(kwargs["memory_required"])):
        for patched in (bench.unet, unet, unet.clone()):
            sampling.sampling_prepare(patched, torch.empty(1, 16, 512, 512, device="meta"))
    host, ours, cloned = kept
    assert 0 < ours and (ours < host or bench.host == "ersatz"), f"ours {ours:g}, the host's {host:g}"
    same(cloned, ours, "a clone's")
    return f"{ours / 2**30:.2f} GiB for 4096 x 4096, the host's own {host / 2**30:.2f} GiB"
