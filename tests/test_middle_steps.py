"""Steps at half the size, between those at the base size and the fused ones: where there are any, and what they do."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from resdit_ext import BALANCED, PAPER, ResDiTConfig, apply_resdit, remove_resdit
from resdit_ext.method.cost import attention_cost
from resdit_ext.method.layout import Grid, make_layout
from resdit_ext.method.phases import Phase, make_schedule, steps_per_phase
from resdit_ext.method.run import Run
from resdit_ext.method.shift import shifted_sigmas
from tests import reference, test_diffusers, test_diffusers_sd3, test_latents_diffusers, test_qwen
from tests.settings import scaled
from tests.test_forge_adapter import attached, latent, spied_calls, unet  # noqa: F401 (a fixture)
from tests.test_layout_steps import latents, tokens_of

model, sd3 = test_diffusers.model, test_diffusers_sd3.model
of_latents, of_sides = test_latents_diffusers.model, test_qwen.model
CONFIG = ResDiTConfig(base_tokens=16, borders="fixed")
FUSED = replace(CONFIG, layout_until=1.0, middle_until=1.0)
LEVELS = shifted_sigmas(35)
SIGMA = 0.75  # between `layout_until` and `middle_until`
SIZES = [(16, 16), (14, 18), (13, 19), (11, 27)]


def half_of(size):
    return tuple(math.ceil(side / 2) for side in size)


# Which pictures have them, and when.


@given(st.integers(1, 300), st.integers(1, 300))
def test_pictures_above_three_times_the_base_size_have_them(height, width):
    layout = make_layout(Grid(height, width), CONFIG)
    middle = layout.middle
    assert (middle is None) == (min(layout.scales) <= 3.05)
    if middle is not None:
        assert (middle.height, middle.width) == half_of((height, width))
        half = Run(CONFIG).smaller(layout, Phase.MIDDLE, SIGMA).layout
        assert half.base == layout.base and min(half.scales) > 1.5
        assert half.middle is None or max(layout.scales) > 6


@pytest.mark.parametrize("mu", [0, 1.15, 2])
def test_they_end_at_their_noise_level(mu):
    sigmas = shifted_sigmas(35, mu)
    schedule = make_schedule(BALANCED, sigmas, middle=True)
    for sigma in sigmas[:-1]:
        expected = Phase.LAYOUT if sigma > 0.8 else Phase.MIDDLE if sigma > 0.7 else Phase.FUSED
        assert schedule.phase(sigma) is expected
        assert make_schedule(BALANCED, sigmas).phase(sigma) is (expected if sigma > 0.8 else Phase.FUSED)


@pytest.mark.parametrize("config", [replace(BALANCED, middle_until=1.0), replace(BALANCED, middle_until=0.8), PAPER])
def test_none_where_none_are_asked_for(config):
    assert steps_per_phase(config, 35, middle=True) == steps_per_phase(config, 35)


@pytest.mark.parametrize("steps", [1, 4, 8, 9, 12, 20, 35])
@pytest.mark.parametrize("until", [0.0, 0.7])
@pytest.mark.parametrize("mu", [0, 1.15])
def test_the_last_eight_steps_are_at_the_full_size(steps, until, mu):
    sigmas = shifted_sigmas(steps, mu)
    phases = make_schedule(replace(BALANCED, middle_until=until), sigmas, middle=True).steps(sigmas)
    without = steps_per_phase(BALANCED, steps, mu=mu)
    assert phases[Phase.LAYOUT] == without[Phase.LAYOUT] and sum(phases.values()) == steps
    assert phases[Phase.FUSED] >= min(8, without[Phase.FUSED])
    if until == 0:
        assert phases[Phase.MIDDLE] == max(0, without[Phase.FUSED] - 8)


def test_a_run_knows_which_of_its_pictures_have_them():
    run, large, small = Run(CONFIG), *(make_layout(Grid(side, side), CONFIG) for side in (16, 12))
    assert [run.begin_call(SIGMA, layout) for layout in (large, small)] == [Phase.MIDDLE, Phase.FUSED]
    assert run.calls == {"middle": 1, "fused": 1}


def test_their_cost_is_that_of_a_fused_call_at_half_the_size():
    """Of 35 steps the middle ones alone: all others' cost is the same in two configurations."""
    layout, text, without = make_layout(Grid(256, 256), BALANCED), 512, replace(BALANCED, middle_until=1.0)
    n = steps_per_phase(BALANCED, 35, middle=True)[Phase.MIDDLE]
    assert (
        n
        == steps_per_phase(without, 35, middle=True)[Phase.FUSED]
        - steps_per_phase(BALANCED, 35, middle=True)[Phase.FUSED]
    )
    saved = (attention_cost(layout, without, 35, text) - attention_cost(layout, BALANCED, 35, text)) * 35 / n
    patch, whole = (text + 4096) ** 2, (text + 256 * 256) ** 2
    at_full = (text + 128 * 128) ** 2 + (5 * 5 + 6 * 6) / 2 * patch
    at_half = (text + 64 * 64) ** 2 + (3 * 3 + 4 * 4) / 2 * patch
    assert saved == pytest.approx((at_full - at_half) / whole)


# What they do: a fused call at half the size, seen from there.


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("batch", [1, 2])
def test_of_flux_in_diffusers(model, size, batch):
    data, half = test_diffusers.inputs(*size, SIGMA, batch), half_of(size)
    x = latents(data["hidden_states"], size)
    apply_resdit(model, FUSED)
    assert make_layout(Grid(*half), CONFIG).base == make_layout(Grid(*size), CONFIG).base

    @torch.inference_mode()
    def fused(seen, level):
        mine = dict(timestep=torch.full_like(data["timestep"], level), img_ids=test_diffusers.ids(*half))
        v = model(**data | mine | {"hidden_states": tokens_of(seen)})[0]
        return seen - level * latents(v, half)

    clean = reference.layout_estimate(x, SIGMA, half, fused)
    remove_resdit(model)
    made = apply_resdit(model, CONFIG)
    got = test_diffusers.run(model, *size, SIGMA, batch)
    torch.testing.assert_close(got, tokens_of((x - clean) / SIGMA), atol=3e-5, rtol=1e-4)
    assert made.calls["middle"] == made.calls["model calls"] == 1


@pytest.mark.parametrize("size", SIZES)
def test_of_sd3_in_diffusers(sd3, size):
    data, half = test_diffusers_sd3.inputs(*size, SIGMA), half_of(size)
    apply_resdit(sd3, FUSED)

    @torch.inference_mode()
    def fused(seen, level):
        mine = dict(timestep=torch.full_like(data["timestep"], 1000 * level))
        v = sd3(**data | mine | {"hidden_states": torch.from_numpy(seen).float()})[0].double().numpy()
        return seen - level * v

    x = data["hidden_states"].double().numpy()
    expected = (x - reference.layout_estimate(x, SIGMA, half, fused)) / SIGMA
    remove_resdit(sd3)
    made = apply_resdit(sd3, CONFIG)
    got = test_diffusers_sd3.run(sd3, *size, SIGMA).double().numpy()
    assert np.abs(got - expected).max() < 5e-5 * np.abs(expected).max()
    patches = len(Run(CONFIG).smaller(make_layout(Grid(*size), CONFIG), Phase.MIDDLE, SIGMA).layout.patches)
    assert made.calls == {"middle": 1, "model calls": patches + 1}


@pytest.mark.parametrize("size", SIZES[:2])
def test_of_what_is_given_latents_in_diffusers(of_latents, size):
    """Whose tokens may be padded to a multiple, of another number at half the size."""
    x, half = torch.randn(1, 4, *(2 * side for side in size)), half_of(size)
    apply_resdit(of_latents, FUSED)

    def fused(seen, level):  # what such a model predicts is minus the velocity
        seen = torch.from_numpy(np.ascontiguousarray(seen)).float()
        return (seen + level * test_latents_diffusers.run(of_latents, *half, level, (5,), seen)).double().numpy()

    clean = reference.layout_estimate(x.double().numpy(), SIGMA, half, fused)
    remove_resdit(of_latents)
    made = apply_resdit(of_latents, CONFIG)
    got = test_latents_diffusers.run(of_latents, *size, SIGMA, (5,), x).double().numpy()
    expected = (clean - x.double().numpy()) / SIGMA
    assert np.abs(got - expected).max() < 1e-4 * np.abs(expected).max() and made.calls["middle"] == 1


@pytest.mark.parametrize("size", SIZES[:2])
def test_of_what_is_given_sides_in_diffusers(of_sides, size):
    """Qwen-Image, with masks over its text, which stands behind the picture."""
    half, picture = half_of(size), torch.randn(2, math.prod(size), 64)
    apply_resdit(of_sides, FUSED)

    def fused(seen, level):
        v = test_qwen.run(of_sides, *half, level, batch=2, picture=tokens_of(seen))
        return seen - level * latents(v, half)

    x = latents(picture, size)
    expected = tokens_of((x - reference.layout_estimate(x, SIGMA, half, fused)) / SIGMA)
    remove_resdit(of_sides)
    made = apply_resdit(of_sides, CONFIG)
    got = test_qwen.run(of_sides, *size, SIGMA, batch=2, picture=picture)
    torch.testing.assert_close(got, expected, atol=3e-5, rtol=1e-4)
    assert made.calls["middle"] == 1


@pytest.mark.parametrize("size", [(32, 32), (27, 31)])
def test_in_a_webui(unet, monkeypatch, size):  # noqa: F811
    seen = spied_calls(unet, monkeypatch)
    x, half = latent(*size, batch=2), half_of(-(-side // 2) for side in size)
    fused = attached(unet, FUSED, LEVELS)[0]

    def denoise(small, level):
        return fused.sample(torch.from_numpy(small).float(), level).double().numpy()

    expected = reference.layout_estimate(x.double().numpy(), SIGMA, half, denoise)
    seen.clear()
    patched, run, said = attached(unet, CONFIG, LEVELS)
    got = patched.sample(x, SIGMA)
    assert np.abs(got.double().numpy() - expected).max() < 1e-4
    assert [tuple(call.shape[-2:]) for call in seen] == [tuple(2 * side for side in half)]
    assert run.calls == {"middle": 1, "blocks": 3} and not said


def test_control_comes_to_half_the_size(sd3):
    """Residuals that do not vary over the picture are the same on any grid, and on any part of it."""
    size, data = (16, 16), test_diffusers_sd3.inputs(16, 16, SIGMA)
    residual = torch.randn(1, 1, sd3.inner_dim, generator=torch.Generator().manual_seed(1))

    def run_with(tokens, given):
        control = dict(block_controlnet_hidden_states=[residual.expand(1, tokens, -1)])
        with torch.inference_mode():
            return sd3(**data | control | given)[0].double().numpy()

    apply_resdit(sd3, FUSED)

    def fused(seen, level):
        latent = torch.from_numpy(np.ascontiguousarray(seen)).float()
        return seen - level * run_with(64, dict(hidden_states=latent, timestep=torch.tensor([1000 * level]).float()))

    x = data["hidden_states"].double().numpy()
    expected = (x - reference.layout_estimate(x, SIGMA, (8, 8), fused)) / SIGMA
    remove_resdit(sd3)
    apply_resdit(sd3, CONFIG)
    got = run_with(math.prod(size), {})
    assert np.abs(got - expected).max() < 5e-5 * np.abs(expected).max()


def test_with_scaled_positions_a_large_picture_is_as_before(model):
    """`middle_until` is of no account there."""
    config = scaled(base_tokens=16)
    apply_resdit(model, config)
    before = test_diffusers.run(model, 16, 16, SIGMA)
    remove_resdit(model)
    made = apply_resdit(model, replace(config, middle_until=0.1))
    assert torch.equal(test_diffusers.run(model, 16, 16, SIGMA), before) and "middle" not in made.calls
