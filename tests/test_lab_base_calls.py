"""SD3's fused calls on a base-size call: where the low band comes from, and what is left behind."""

from dataclasses import replace

import pytest
import torch
from diffusers import SD3Transformer2DModel

from resdit_ext.lab.base_calls import calls_on_patches
from resdit_ext.lab.layout_steps import BaseView
from resdit_ext.lab.model import BASE_TOKENS, SD3_CONFIG, MicroSD3, tokenize
from resdit_ext.lab.sampling import noise_for
from resdit_ext.method.config import ResDiTConfig
from resdit_ext.method.layout import Grid, make_layout

CONFIG = ResDiTConfig(base_tokens=BASE_TOKENS)
WORDS, SIGMA = tokenize(["red disc on green ground"]), torch.tensor([0.6])


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    small = MicroSD3()
    small.transformer = SD3Transformer2DModel(**SD3_CONFIG | dict(num_layers=2))
    return small.eval().requires_grad_(False)


def velocity(model, grid, config=CONFIG):
    view = BaseView(make_layout(grid, config))
    return calls_on_patches(model, view, config), view


def test_it_is_the_model_itself_at_the_base_size(model):
    grid = Grid(16, 16)
    x = noise_for(grid, 0)
    found = velocity(model, grid)[0](x, SIGMA, WORDS, 16)
    torch.testing.assert_close(found, model(x, SIGMA, WORDS, 16), atol=0, rtol=0)


@pytest.mark.parametrize("grid", [Grid(48, 48), Grid(24, 40), Grid(27, 27)])
def test_all_of_the_band_is_the_base_size_calls(model, grid):
    """A low-pass that lets everything through leaves the enlarged base-size estimate."""
    whole, view = velocity(model, grid, replace(CONFIG, cutoff=1.0))
    x = noise_for(grid, 1)
    clean = x - 0.6 * whole(x, SIGMA, WORDS, grid.height)
    torch.testing.assert_close(clean, view.estimate(model, x, 0.6, WORDS), atol=1e-3, rtol=0)


def test_the_patches_mean_is_the_base_size_calls(model):
    """With nothing let through but the mean, one patch's mean is the estimate's there."""
    grid = Grid(16, 32)
    config = replace(CONFIG, cutoff=0.0, splice_sigma=0.05)
    found, view = velocity(model, grid, config)
    x = noise_for(grid, 2)
    clean, its = x - 0.6 * found(x, SIGMA, WORDS, 16), view.estimate(model, x, 0.6, WORDS)
    assert float((clean - its).mean().abs()) < 0.02 < float((clean - its).abs().mean())


def test_the_models_positions_are_its_own_again(model):
    grid = Grid(32, 32)
    x, small = noise_for(grid, 3), noise_for(Grid(16, 16), 3)
    before = model(small, SIGMA, WORDS, 16)
    velocity(model, grid)[0](x, SIGMA, WORDS, 32)
    torch.testing.assert_close(model(small, SIGMA, WORDS, 16), before, atol=0, rtol=0)
