"""The lab's table and its samplers: rows, resumption, costs, and steps that add noise."""

import math

import numpy as np
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from hypothesis import given
from hypothesis import strategies as st

from resdit_ext import PAPER, ResDiTConfig, apply_resdit
from resdit_ext.lab.evaluate import OWN, TRUTH, costs, evaluate, method_and_eta, prompt_of, summary, table
from resdit_ext.lab.methods import METHODS
from resdit_ext.lab.model import BASE_TOKENS, MODELS, load_micro
from resdit_ext.lab.sampling import sample, step_to
from resdit_ext.lab.scenes import random_scene, render
from resdit_ext.method.layout import Grid, layouts_in_turn
from tests import pipelines
from tests.settings import differences


@pytest.fixture(scope="module")
def model():
    return load_micro("flux")


@pytest.fixture(scope="module")
def sd3():
    return load_micro("sd3")


@pytest.mark.parametrize(
    ("row", "method", "eta"),
    [
        ("Balanced", "Balanced", 0),
        ("Balanced, Euler a", "Balanced", 1),
        ("1x, LCM", "1x", math.inf),
        ("Scaled positions, fast", "Scaled positions, fast", 0),
        ("Scaled positions, fast, Euler a", "Scaled positions, fast", 1),
    ],
)
def test_a_row_may_name_its_sampler(row, method, eta):
    assert method_and_eta(row) == (method, eta)


def test_evaluation_resumes_and_tabulates(tmp_path, monkeypatch):
    from resdit_ext.lab import evaluate as module

    made = []

    def picture(_, name, grid, prompt, seed, patterns, steps):
        made.append((name, seed))
        return render(random_scene(np.random.default_rng(seed), prompt), 4 * grid.height, 4 * grid.width, patterns)

    monkeypatch.setattr(module, "picture_of", picture)
    monkeypatch.setattr(module, "costs", lambda _: lambda name, grid, of: grid.tokens / of.tokens)
    results = tmp_path / "results.jsonl"
    model = MODELS["flux"]()
    first = evaluate(model, [2], results, seeds=2, chosen=[TRUTH, "Paper"])
    assert len(made) == 4 and len(first) == 4
    again = evaluate(model, [2], results, seeds=3, chosen=[TRUTH, "Paper"])
    assert len(made) == 6 and len(again) == 6
    cells = summary(again)
    assert cells["1:1/2/Paper"]["ok"][2] == 3
    assert "| 2x | Paper | 3 | 1.00±0.00 |" in table(cells)
    own = summary(evaluate(model, [2], results, seeds=2, chosen=[OWN]))["1:1/2/1x"]
    assert own["ok"][0] == 1 and own["flops"][0] == 0.25 and own["seam"][0] == 1  # of the base size


def test_evaluation_of_photographs(tmp_path):
    results = tmp_path / "results.jsonl"
    measured = evaluate(MODELS["flux"](), [2], results, seeds=1, chosen=[TRUTH], textures="photographs")
    text = table(summary(measured))
    assert "far_object" in text and "tex_object" not in text
    assert summary(measured)["1:1/2/true render"]["far_ground"][0] < 0.25


def test_the_cost_of_a_row_is_counted(sd3, monkeypatch):
    """On the micro SD3, which has no attention between patches: calls at the base size, of 32 + 256 tokens."""
    from resdit_ext.lab import evaluate as module

    monkeypatch.setattr(module, "sample", lambda *a, **k: sample(*a[:-1], 5, **k))
    grid, cost = Grid(24, 24), costs(sd3)
    patches = [len(layout.patches) for layout in layouts_in_turn(grid, METHODS["Balanced"])]
    calls = 1 + 2 * (1 + patches[0]) + 2 * (1 + patches[1])  # of the five steps the first is a layout step
    assert cost("plain", grid, grid) == pytest.approx(1, rel=1e-3)
    assert cost("Balanced", grid, grid) == pytest.approx(calls / 5 * cost("1x", Grid(16, 16), grid), rel=0.02)


@given(st.floats(0.02, 0.99), st.floats(0.02, 0.99), st.floats(0, 1))
def test_a_step_leads_to_a_latent_of_its_noise_level(a, b, eta):
    """Where the model knows the clean latent, (1 - sigma) of it is left, and noise of standard deviation sigma."""
    sigma, after = max(a, b), min(a, b)
    clean, noise, fresh = torch.tensor([2.0, 0.0, 0.0]), torch.tensor([0.0, 1.0, 0.0]), torch.tensor([0.0, 0.0, 1.0])
    x = (1 - sigma) * clean + sigma * noise
    found = step_to(after, x, noise - clean, sigma, eta, lambda: fresh)
    assert float(found[0]) == pytest.approx(2 * (1 - after), abs=1e-5)
    assert float(found[1:].norm()) == pytest.approx(after, abs=1e-5)
    if eta == 0:
        assert float(found[2]) == 0
    if eta == 1 and after > 0:
        assert float(found[1]) == pytest.approx(after**2 / sigma * (1 - after) / (1 - after**2 / sigma), abs=1e-5)


def test_euler_a_draws_the_same_from_the_same_seed_alone_and_in_a_batch(model):
    prompts = [prompt_of(seed) for seed in (3, 4)]
    both = sample(model, prompts, Grid(16, 16), [3, 4], steps=3, eta=1.0)
    alone = sample(model, prompts[1:], Grid(16, 16), [4], steps=3, eta=1.0)
    assert np.abs(both[1] - alone[0]).max() < 1e-4
    assert np.abs(alone - sample(model, prompts[1:], Grid(16, 16), [4], steps=3)).max() > 0.01


def test_without_any_of_the_old_noise_it_is_diffusers_stochastic_sampling():
    """Which the README's example sets."""
    scheduler = FlowMatchEulerDiscreteScheduler(stochastic_sampling=True)
    scheduler.set_timesteps(sigmas=[1.0, 0.7, 0.3])
    x, v = torch.randn(2, 1, 4, 6, generator=torch.Generator().manual_seed(9))
    for step in range(3):
        sigma, after = (float(scheduler.sigmas[i]) for i in (step, step + 1))
        again, generator = (torch.Generator().manual_seed(step) for _ in range(2))
        expected = scheduler.step(v, scheduler.timesteps[step], x, generator=generator, return_dict=False)[0]
        found = step_to(after, x, v, sigma, math.inf, lambda again=again: torch.randn(x.shape, generator=again))
        torch.testing.assert_close(found, expected)


def test_a_pipeline_with_such_a_scheduler_has_the_methods_phases():
    pipe = pipelines.pipeline("flux", stochastic_sampling=True)
    run = apply_resdit(pipe, ResDiTConfig(base_tokens=16))
    assert torch.isfinite(pipelines.picture(pipe)).all()
    phases = [sigma > 0.8 for sigma in pipe.scheduler.sigmas[:-1].tolist()]
    assert run.calls["layout"] == phases.count(True) > 0 < run.calls["fused"] == phases.count(False)


def test_the_ablation_is_the_papers():
    off = {name: differences(config, METHODS["Paper"]) for name, config in METHODS.items() if config}
    assert off["Paper w/o PES"] == {"pes": False}
    assert off["Paper w/o PIPE"] == {"pipe": False}
    assert off["Paper w/o PSF"] == {"fusion": "mean"}
    assert off["Paper w/o MOP and GWS"] == {"overlap": False, "splice": "mean"}
    assert off["Paper w/o GWS"] == {"splice": "mean"}
    assert differences(METHODS["Paper"], PAPER) == {"base_tokens": BASE_TOKENS}
