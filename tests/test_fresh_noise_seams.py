"""Fresh noise in every seam: diffusers' tiny models and a WebUI's, against the reference around their own calls."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch

from resdit_ext import ResDiTConfig, apply_resdit, remove_resdit
from resdit_ext.method.fresh_noise import new_noise, seeds_of
from resdit_ext.method.layout import Grid, make_layout
from resdit_ext.method.run import FRESH, Run
from resdit_ext.seams.rotary_diffusers import under_fresh_noise
from tests import pipelines, reference, test_diffusers, test_diffusers_sd3, test_latents_diffusers, test_qwen
from tests.test_forge_adapter import attached, latent, unet  # noqa: F401 (a fixture)
from tests.test_fresh_noise import LEVELS, euler, noise

model, sd3 = test_diffusers.model, test_diffusers_sd3.model
of_latents, of_sides = test_latents_diffusers.model, test_qwen.model
CONFIG = ResDiTConfig(base_tokens=16, borders="fixed")
KEPT = replace(CONFIG, fresh_noise=0.0)


def check_seam(apply, predict, x):
    """Euler's picture with fresh noise, against the reference around calls without it; `predict` -> clean latents."""
    apply(KEPT)
    fresh = [new_noise(x, seeds_of(x), step).double().numpy() for step in range(len(LEVELS))]

    def clean(seen, level):
        return predict(torch.from_numpy(np.ascontiguousarray(seen)).to(x), level).double().numpy()

    with torch.inference_mode():
        expected = reference.under_fresh_noise(x.double().numpy(), LEVELS, 1.0, lambda step: fresh[step], clean)
        plain = euler(x, LEVELS, predict)
        apply(CONFIG)
        got = euler(x, LEVELS, predict)
    assert np.abs(got.double().numpy() - expected).max() < 2e-3 * np.abs(expected).max()
    assert (got - plain).abs().max() > 0.05 * plain.abs().max()


def applied_to(model):
    def apply(config):
        remove_resdit(model)
        apply_resdit(model, config, LEVELS)

    return apply


@pytest.mark.parametrize("size", [(12, 12), (16, 16)])
def test_of_flux_in_diffusers(model, size):
    data = test_diffusers.inputs(*size, 1.0, 2)

    def predict(x, level):
        return x - level * model(**data | dict(hidden_states=x, timestep=torch.full((2,), level)))[0]

    check_seam(applied_to(model), predict, data["hidden_states"])


def test_of_sd3_in_diffusers(sd3):
    data = test_diffusers_sd3.inputs(12, 12, 1.0)

    def predict(x, level):
        return x - level * sd3(**data | dict(hidden_states=x, timestep=torch.tensor([1000 * level])))[0]

    check_seam(applied_to(sd3), predict, data["hidden_states"])


@pytest.mark.parametrize("texts", [(5, 5), (5, 3)])
def test_of_what_is_given_latents_in_diffusers(of_latents, texts):
    """Pictures with texts of two lengths are called one by one."""

    def predict(x, level):
        return x + level * test_latents_diffusers.run(of_latents, 12, 12, level, texts, x)

    check_seam(applied_to(of_latents), predict, noise(2, 4, 24, 24))


def test_of_what_is_given_sides_in_diffusers(of_sides):
    def predict(x, level):
        return x - level * test_qwen.run(of_sides, 12, 12, level, batch=2, picture=x)

    check_seam(applied_to(of_sides), predict, noise(2, 144, 64))


def test_in_a_webui(unet):  # noqa: F811
    now = {}

    def apply(config):
        now["patched"], now["run"], _ = attached(unet, config, LEVELS)

    check_seam(apply, lambda x, level: now["patched"].sample(x, level), latent(24, 24, batch=2))
    assert now["run"].calls[FRESH] == len(LEVELS) - 2  # all but the first


def test_what_stands_beside_and_after_the_picture_stays():
    """Fill's picture and mask, and reference images, which have no noise; what is made of these comes through."""
    run, layout = Run(CONFIG, LEVELS), make_layout(Grid(8, 8), CONFIG)
    hidden, seen = noise(1, 64 + 5, 12), []

    def predict(given):
        seen.append(given["hidden_states"])
        return given["hidden_states"][..., :8] * 0.5

    for level, after in itertools.pairwise(LEVELS[:4]):
        made = under_fresh_noise(predict, {"hidden_states": hidden}, layout, 8, run, level)
        assert torch.equal(made[:, 64:], hidden[:, 64:, :8] * 0.5)
        hidden = hidden.clone()
        hidden[:, :64, :8] += (after - level) * made[:, :64]
    first, *later = seen
    for each in later:
        assert torch.equal(each[:, :64, 8:], first[:, :64, 8:]) and torch.equal(each[:, 64:], first[:, 64:])
    assert run.calls[FRESH] == 2


@pytest.mark.parametrize("family", ["flux", "sd3"])
def test_after_a_pipelines_call_nothing_is_kept(family):
    pipe = pipelines.pipeline(family)
    run = apply_resdit(pipe, CONFIG)
    pipelines.picture(pipe)
    assert run.calls[FRESH] > 0 and run.fresh_noise._now is run.fresh_noise._before is None


def test_at_the_base_size_nothing_is_changed(model):
    data = test_diffusers.inputs(4, 4, 1.0)

    def predict(x, level):
        with torch.inference_mode():
            return x - level * model(**data | dict(hidden_states=x, timestep=torch.tensor([level])))[0]

    plain = euler(data["hidden_states"], LEVELS, predict)
    apply_resdit(model, CONFIG, LEVELS)
    assert torch.equal(euler(data["hidden_states"], LEVELS, predict), plain)
