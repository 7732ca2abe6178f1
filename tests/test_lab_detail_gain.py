"""The gain on detail, against float64 numpy."""

import numpy as np
import pytest
import torch

from resdit_ext.lab.detail_gain import LEVELS, with_gain, with_matched_detail
from resdit_ext.lab.layout_steps import BaseView
from resdit_ext.lab.model import BASE_TOKENS
from resdit_ext.lab.sampling import noise_for
from resdit_ext.method.config import ResDiTConfig
from resdit_ext.method.layout import Grid, make_layout

GRID, WORDS = Grid(32, 32), torch.zeros(1, 32, dtype=torch.long)
VIEW = BaseView(make_layout(GRID, ResDiTConfig(base_tokens=BASE_TOKENS)))


def knowing(clean):
    """The velocity of a model that knows the clean tokens at any grid."""
    return lambda x, sigma, words, height: (x - clean[height]) / sigma[0]


def estimate(velocity, x, sigma):
    return x - sigma * velocity(x, torch.tensor([sigma]), WORDS, GRID.height)


def numpy_detail(tokens, cutoff=0.1):
    """Tokens (H, W, C) without their cosines of at most `cutoff` cycles per token."""
    n = len(tokens)
    k, i = np.arange(n)[:, None], np.arange(n)
    unit = np.cos(np.pi * k * (i + 0.5) / n)
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    low = unit[: int(2 * n * cutoff + 1e-9) + 1]
    onto = low.T @ low
    return tokens - np.einsum("ij,jkc,lk->ilc", onto, tokens, onto)


def test_the_gain_is_numpys():
    clean, x = {32: noise_for(GRID, 0)}, noise_for(GRID, 1)
    mine = estimate(with_gain(knowing(clean), 32, 1.5), x, 0.6)[0].view(32, 32, 48).numpy()
    truth = clean[32][0].view(32, 32, 48).double().numpy()
    np.testing.assert_allclose(mine, truth + 0.5 * numpy_detail(truth), atol=1e-4)


@pytest.mark.parametrize("wrap", [lambda v: with_gain(v, 32, 3.0), lambda v: with_matched_detail(v, VIEW, 3.0)])
def test_a_flat_picture_stays_flat(wrap):
    flat = torch.linspace(-1, 1, 48)
    clean = {n: flat.expand(1, n * n, 48) for n in (16, 32)}
    found = estimate(wrap(knowing(clean)), noise_for(GRID, 2), 0.6)
    torch.testing.assert_close(found, clean[32], atol=1e-4, rtol=0)


@pytest.mark.parametrize("sigma", [LEVELS[0] - 0.05, LEVELS[1] + 0.05])
def test_nothing_is_changed_at_other_levels(sigma):
    clean, x = {n: noise_for(Grid(n, n), 3) for n in (16, 32)}, noise_for(GRID, 4)
    for velocity in (with_gain(knowing(clean), 32, 2.0), with_matched_detail(knowing(clean), VIEW)):
        torch.testing.assert_close(estimate(velocity, x, sigma), clean[32], atol=1e-5, rtol=0)


def test_the_base_size_call_is_left_alone():
    clean = {n: noise_for(Grid(n, n), 5) for n in (16, 32)}
    x = noise_for(Grid(16, 16), 6)
    v = with_gain(knowing(clean), 32, 2.0)(x, torch.tensor([0.5]), WORDS, 16)
    torch.testing.assert_close(x - 0.5 * v, clean[16], atol=1e-5, rtol=0)


def test_detail_gets_the_energy_that_the_base_size_has():
    clean = {16: noise_for(Grid(16, 16), 7), 32: 0.6 * noise_for(GRID, 8)}
    detail = numpy_detail(clean[32][0].view(32, 32, 48).double().numpy())
    for most, expected in ((3.0, 1 / 0.6), (1.2, 1.2)):
        found = estimate(with_matched_detail(knowing(clean), VIEW, most), noise_for(GRID, 9), 0.6)
        ratio = numpy_detail(found[0].view(32, 32, 48).double().numpy()).std() / detail.std()
        assert ratio == pytest.approx(expected, rel=0.03)


def test_it_never_takes_detail_away():
    clean = {16: 0.1 * noise_for(Grid(16, 16), 7), 32: noise_for(GRID, 8)}
    found = estimate(with_matched_detail(knowing(clean), VIEW), noise_for(GRID, 9), 0.6)
    torch.testing.assert_close(found, clean[32], atol=1e-5, rtol=0)
