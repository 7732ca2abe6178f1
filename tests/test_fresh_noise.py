"""Fresh noise in every step: against the reference, and with every kind of sampler."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from resdit_ext import BALANCED, PAPER, SCALED, ResDiTConfig
from resdit_ext.lab.sampling import step_to
from resdit_ext.method.fresh_noise import FreshNoise, new_noise, seeds_of
from resdit_ext.method.layout import Grid, make_layout
from resdit_ext.method.run import Run
from resdit_ext.method.shift import shifted_sigmas
from tests import reference

ABOVE = make_layout(Grid(128, 128), ResDiTConfig())  # the base size
LEVELS = [1.0, 0.9, 0.75, 0.5, 0.2, 0.0]
SHAPE = (2, 4, 16, 20)
SMOOTH = torch.nn.functional.interpolate(torch.randn(2, 4, 4, 5), scale_factor=4, mode="bilinear")


def noise(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def denoise(x, level, seed=3):
    """A model's clean latent, which depends on all that it sees and, as of pictures, is smooth along the last axis."""
    size = x.shape[-1]
    waves = np.cos(np.pi * np.outer(np.arange(3), np.arange(size) + 0.5) / size)
    mix = np.random.default_rng(seed).normal(size=(size, 3)) @ waves / size**0.5
    return np.tanh(np.asarray(x, dtype=np.float64) @ mix + level)


def by_torch(x, level):
    return torch.from_numpy(denoise(x.double().numpy(), level)).float()


def euler(x, levels, predict):
    """Euler's picture; `predict(x, level)` is the clean latent."""
    for level, after in itertools.pairwise(levels):
        x = after / level * x + (1 - after / level) * predict(x, level)
    return x


def with_fresh_noise(share, model=by_torch, velocity=False):
    """`predict(x, level)` with fresh noise, the object that makes it, and what the model saw."""
    fresh, seen = FreshNoise(share), []

    def of_model(level):
        def predict(x):
            seen.append(x)
            return (x - model(x, level)) / level if velocity else model(x, level)

        return predict

    def predict(x, level):
        made = fresh.predict(of_model(level), x, level, velocity)
        return x - level * made if velocity else made

    return predict, fresh, seen


# The equation.


@given(st.floats(0, 1), st.booleans(), st.sampled_from([SHAPE, (1, 24, 8), (3, 2, 1, 6, 6)]))
def test_with_eulers_steps_it_is_the_references(share, velocity, shape):
    x = noise(*shape)
    fresh = [new_noise(x, seeds_of(x), step).double().numpy() for step in range(len(LEVELS))]
    expected = reference.under_fresh_noise(x.double().numpy(), LEVELS, share, lambda step: fresh[step], denoise)
    got = euler(x, LEVELS, with_fresh_noise(share, velocity=velocity)[0])
    np.testing.assert_allclose(got.numpy(), expected, atol=2e-4)


def test_all_of_it_fresh_the_picture_is_lcms():
    """The sampler that renews all noise itself, with the same noise."""
    x = noise(*SHAPE)
    got = euler(x, LEVELS, with_fresh_noise(1.0)[0])
    lcm = x
    for step, (level, after) in enumerate(itertools.pairwise(LEVELS)):
        velocity = (lcm - by_torch(lcm, level)) / level
        lcm = step_to(after, lcm, velocity, level, math.inf, lambda step=step: new_noise(x, seeds_of(x), step + 1))
    torch.testing.assert_close(got, lcm, atol=1e-4, rtol=0)


def test_none_of_it_fresh_the_sampler_is_left_alone():
    x = noise(*SHAPE)
    predict, _, seen = with_fresh_noise(0.0)
    assert torch.equal(euler(x, LEVELS, predict), euler(x, LEVELS, by_torch))
    almost, _, nearly = with_fresh_noise(1e-4)
    euler(x, LEVELS, almost)
    for one, other in zip(seen, nearly, strict=True):
        torch.testing.assert_close(one, other, atol=1e-3, rtol=0)


# Samplers that add no noise: whatever they take as the clean latent is seen, under the noise of its level.


def heun(x, levels, predict):
    for level, after in itertools.pairwise(levels):
        v = (x - predict(x, level)) / level
        ahead = x + (after - level) * v
        if after:
            v = (v + (ahead - predict(ahead, after)) / after) / 2
        x = x + (after - level) * v
    return x


def midpoint(x, levels, predict):
    for level, after in itertools.pairwise(levels):
        half = (level + after) / 2
        ahead = x + (half - level) * (x - predict(x, level)) / level
        x = x + (after - level) * (ahead - predict(ahead, half)) / half
    return x


def two_steps_back(x, levels, predict):
    """DPM-Solver++ 2M's kind: a step from the clean latents of two calls."""
    last = None
    for level, after in itertools.pairwise(levels):
        clean = predict(x, level)
        used = clean if last is None or not after else 1.5 * clean - 0.5 * last
        x, last = after / level * x + (1 - after / level) * used, clean
    return x


@pytest.mark.parametrize("sampler", [euler, heun, midpoint, two_steps_back])
def test_what_is_seen_is_the_clean_latent_under_fresh_noise(sampler):
    x = noise(*SHAPE)
    predict, _, seen = with_fresh_noise(1.0, lambda *_: SMOOTH)
    levels = []

    def noting(x, level):
        levels.append(level)
        return predict(x, level)

    torch.testing.assert_close(sampler(x, LEVELS, noting), SMOOTH, atol=1e-4, rtol=0)
    steps = {level: step for step, level in enumerate(sorted(set(levels), reverse=True))}
    for each, level in zip(seen, levels, strict=True):
        if steps[level]:
            fresh = new_noise(x, seeds_of(x), steps[level])
            torch.testing.assert_close(each, (1 - level) * SMOOTH + level * fresh, atol=1e-3, rtol=0)


@pytest.mark.parametrize("together", [True, False])
def test_guidance_is_between_halves_that_see_the_same(together):
    """Both halves in one call or in two: the picture is that of the guided model."""

    def without_prompt(x, level):
        return by_torch(x, level) - 0.3 * torch.from_numpy(denoise(x.double().numpy(), level, seed=8)).float()

    def guided(x, level):
        other = without_prompt(x, level)
        return other + 3 * (by_torch(x, level) - other)

    def halves(x, level):
        if together:
            return torch.cat((by_torch(x[:2], level), without_prompt(x[2:], level)))
        return next(turn)(x, level)

    turn = itertools.cycle((by_torch, without_prompt))
    predict = with_fresh_noise(1.0, halves)[0]

    def outer(x, level):
        made = predict(torch.cat((x, x)), level) if together else torch.cat((predict(x, level), predict(x, level)))
        one, other = made.chunk(2)
        return other + 3 * (one - other)

    x = noise(*SHAPE)
    expected = euler(x, LEVELS, with_fresh_noise(1.0, guided)[0])
    torch.testing.assert_close(euler(x, LEVELS, outer), expected, atol=2e-3, rtol=0)


def test_a_masked_part_is_seen_as_the_host_has_it():
    x, mask = noise(*SHAPE), torch.zeros(SHAPE)
    mask[..., :8, :] = 1
    predict, _, seen = with_fresh_noise(1.0)
    euler(x, LEVELS, lambda x, level: mask * SMOOTH + (1 - mask) * predict(x, level))
    for step, (each, level) in enumerate(zip(seen, LEVELS, strict=False)):
        if step:
            kept = (each - level * new_noise(x, seeds_of(x), step)) / (1 - level)
            torch.testing.assert_close(kept * mask, SMOOTH * mask, atol=2e-3, rtol=0)


# What is left alone.


@pytest.mark.parametrize("steps", [4, 8, 35])
@pytest.mark.parametrize("eta", [0.5, 1.0, math.inf])
def test_a_sampler_that_adds_noise_is_left_alone(steps, eta):
    levels, x = shifted_sigmas(steps), noise(*SHAPE)
    predict, _, seen = with_fresh_noise(1.0, lambda *_: SMOOTH)
    for step, (level, after) in enumerate(itertools.pairwise(levels)):
        given, v = x, (x - predict(x, level)) / level
        x = step_to(after, x, v, level, eta, lambda step=step: noise(*SHAPE, seed=50 + step))
        assert seen[-1] is given


@pytest.mark.parametrize("rows", [1, 8, 15])
def test_a_host_that_renews_the_kept_parts_noise_is_left_alone(rows):
    """Forge's kin in inpainting."""
    x, mask = noise(*SHAPE), torch.zeros(SHAPE)
    mask[..., :rows, :] = 1
    predict, _, seen = with_fresh_noise(1.0, lambda *_: SMOOTH)
    for step, (level, after) in enumerate(itertools.pairwise(shifted_sigmas(20))):
        given = (1 - mask) * x + mask * ((1 - level) * SMOOTH + level * noise(*SHAPE, seed=50 + step))
        x = after / level * given + (1 - after / level) * predict(given, level)
        assert seen[-1] is given


def test_steps_of_another_kind_are_left_alone():
    """CFG++ goes on from the unguided latent with the guided one added: not along a line between noise and picture."""
    x = noise(*SHAPE)
    predict, _, seen = with_fresh_noise(1.0, lambda *_: SMOOTH)
    for level, after in itertools.pairwise(shifted_sigmas(35)):
        given, unguided = x, 0.5 * predict(x, level)
        x = SMOOTH + after * (x - unguided) / level
        assert seen[-1] is given


def test_calls_on_tiles_are_left_alone():
    x = noise(1, 4, 16, 40)
    predict, _, seen = with_fresh_noise(1.0, lambda x, level: SMOOTH[:1])
    for level, after in itertools.pairwise(LEVELS):
        for part in (slice(0, 20), slice(20, 40)):
            tile = x[..., part].clone()
            made = predict(tile, level)
            assert seen[-1] is tile
            x[..., part] = after / level * tile + (1 - after / level) * made


def test_a_refused_models_run_is_its_own():
    x, run = noise(*SHAPE), Run(ResDiTConfig(), LEVELS, say=lambda _: None)

    def predict(x, level):
        return run.under_fresh_noise(lambda x: by_torch(x, level), x, ABOVE, level, velocity=False)

    assert not torch.equal(euler(x, LEVELS, predict), euler(x, LEVELS, by_torch))
    run.not_active("a reason")
    assert torch.equal(euler(x, LEVELS, predict), euler(x, LEVELS, by_torch))


def test_every_generation_begins_anew():
    predict, fresh, seen = with_fresh_noise(1.0)
    first = euler(noise(*SHAPE), LEVELS, predict)
    euler(noise(*SHAPE, seed=1), LEVELS[1:], predict)
    euler(noise(1, 4, 8, 8), LEVELS[2:], predict)
    assert torch.equal(euler(noise(*SHAPE), LEVELS, predict), first)
    assert torch.equal(seen[5], noise(*SHAPE, seed=1)) and torch.equal(seen[9], noise(1, 4, 8, 8))
    fresh.stop()
    assert torch.equal(euler(noise(*SHAPE), LEVELS, predict), euler(noise(*SHAPE), LEVELS, by_torch))


def test_a_call_that_failed_is_none():
    """As when the user interrupts it: the next one begins where the last that was through ended."""
    x = noise(*SHAPE)
    predict, fresh, seen = with_fresh_noise(1.0)
    half = euler(x, LEVELS[:3], predict)
    fresh.see(half, LEVELS[2])
    later = 0.3 / 0.75 * half + (1 - 0.3 / 0.75) * SMOOTH
    predict(later, 0.3)
    assert torch.isfinite(seen[-1]).all() and not torch.equal(seen[-1], later)


# The noise.


def test_a_pictures_noise_is_its_own_in_any_batch():
    x = noise(3, *SHAPE[1:])
    alone = [seeds_of(x[i : i + 1])[0] for i in range(3)]
    assert seeds_of(torch.cat((x, x))) == alone + alone and len({*alone}) == 3
    assert seeds_of(x + 1e-6 * noise(*x.shape, seed=1)) == alone
    made = new_noise(x, alone, 2)
    assert torch.equal(made[1:2], new_noise(x[1:2], alone[1:2], 2)) and not torch.equal(made, new_noise(x, alone, 3))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_rounded_latents_and_levels_add_little(dtype):
    """As in diffusers, where a step's latent and its level are of the model's type."""
    levels = shifted_sigmas(28, 1.15)
    run, x = Run(ResDiTConfig(), levels), noise(*SHAPE).to(dtype)
    for level, after in itertools.pairwise(levels):
        seen = []

        def model(each, seen=seen):
            seen.append(each)
            return SMOOTH.to(dtype)

        told = float(torch.tensor(level, dtype=dtype))
        assert run.listed(told) == level
        clean = run.under_fresh_noise(model, x, ABOVE, told, velocity=False)
        carried = (seen[0].float() - (1 - level) * SMOOTH) / level
        assert float(carried.std()) == pytest.approx(1, rel=0.1)
        x = (after / level * x.float() + (1 - after / level) * clean.float()).to(dtype)


def test_levels_in_between_are_not_taken_for_listed_ones():
    levels = shifted_sigmas(100)
    run = Run(ResDiTConfig(), levels)
    for level, after in itertools.pairwise(levels):
        assert run.listed(level) == level
        assert run.listed((level + after) / 2) == (level + after) / 2


# Where it is on.


def test_balanced_has_it_and_what_is_published_has_not():
    assert BALANCED.fresh_noise == 1 and SCALED.fresh_noise == PAPER.fresh_noise == 0
