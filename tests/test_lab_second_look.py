"""The second look, against float64 numpy."""

import itertools

import numpy as np
import pytest
import torch

from resdit_ext.lab.sampling import noise_for
from resdit_ext.lab.second_look import LEVELS, more_patches, moved, with_second_look
from resdit_ext.method.config import ResDiTConfig
from resdit_ext.method.layout import Grid, make_layout

GRID, WORDS = Grid(20, 32), torch.zeros(1, 32, dtype=torch.long)


def estimate(velocity, x, sigma, height=20):
    return x - sigma * velocity(x, torch.tensor([sigma]), WORDS, height)


def linear(x, sigma, words, height):
    """A model whose estimate of the clean latent is .3 x + .1."""
    return (x - (0.3 * x + 0.1)) / sigma[0]


@pytest.mark.parametrize("looks", [1, 2, 3])
def test_it_is_numpys(looks):
    x, sigma = noise_for(GRID, 0), 0.7
    found = estimate(with_second_look(linear, 20, looks=[linear] * looks), x, sigma)[0].view(20, 32, 48).numpy()
    latent = x[0].view(20, 32, 48).double().numpy()
    clean = 0.3 * latent + 0.1
    for look in range(looks):
        noise = (latent - (1 - sigma) * clean) / sigma
        noise = np.roll(np.roll(noise, 10 + 7 * look, 0), 16 - 5 * look, 1)
        clean = 0.3 * ((1 - sigma) * clean + sigma * noise) + 0.1
    np.testing.assert_allclose(found, clean, atol=1e-5)


def test_an_estimate_that_needs_no_second_look_stays():
    clean, x = noise_for(GRID, 1), noise_for(GRID, 2)
    found = estimate(with_second_look(lambda x, sigma, *_: (x - clean) / sigma[0], 20), x, 0.7)
    torch.testing.assert_close(found, clean, atol=1e-5, rtol=0)


def test_the_noise_of_the_second_look_is_as_white_as_the_first_and_another():
    noise = noise_for(GRID, 3)
    other = moved(noise, 20, 0)
    assert float(other.std()) == pytest.approx(float(noise.std()))
    assert abs(float((noise * other).mean())) < 0.03
    assert abs(float((moved(noise, 20, 1) * other).mean())) < 0.03


@pytest.mark.parametrize("sigma", [LEVELS[0] - 0.05, LEVELS[1] + 0.05])
def test_one_look_is_enough_at_other_levels(sigma):
    x, calls = noise_for(GRID, 4), []

    def counted(*given):
        calls.append(given)
        return linear(*given)

    torch.testing.assert_close(estimate(with_second_look(counted, 20), x, sigma), 0.3 * x + 0.1)
    assert len(calls) == 1
    estimate(with_second_look(counted, 16), x, 0.6)
    assert len(calls) == 2


@pytest.mark.parametrize("grid", [Grid(48, 48), Grid(23, 45), Grid(16, 40)])
@pytest.mark.parametrize("extra", [1, 2])
def test_more_patches_still_cover_the_picture(grid, extra):
    layout = make_layout(grid, ResDiTConfig(base_tokens=256))
    more = more_patches(layout, extra)
    assert (more.grid, more.base) == (layout.grid, layout.base)
    sides = (
        (layout.rows, more.rows, grid.height, layout.base.height),
        (
            layout.cols,
            more.cols,
            grid.width,
            layout.base.width,
        ),
    )
    for before, after, length, patch in sides:
        assert len(after) == (1 if len(before) == 1 else len(before) + extra)
        assert after[0] == 0 and after[-1] + patch == length
        assert all(b - a <= patch for a, b in itertools.pairwise(after))
