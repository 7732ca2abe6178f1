import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from resdit_ext import ResDiTError
from resdit_ext.method.layout import Grid
from resdit_ext.method.pooling import Pooling, cosine_basis
from tests import reference
from tests.settings import scaled

sides, blocks = st.integers(1, 13), st.integers(1, 4)


@given(sides, sides, blocks)
def test_means_are_the_blocks_means(H, W, p):
    x = torch.randn(2, H, W, 3, dtype=torch.float64)
    got = Pooling(Grid(H, W), p, (0.1, 0.1)).means(x)
    for sample, expected in zip(got, x, strict=True):
        assert np.abs(sample.numpy() - reference.block_means(expected.numpy(), p)).max() < 1e-6


@given(st.integers(2, 13), st.integers(2, 13), blocks, st.sampled_from([0.0, 0.1, 0.2]))
def test_the_low_band_is_moved_and_only_it(H, W, p, cutoff):
    pooling, image = Pooling(Grid(H, W), p, (cutoff, cutoff)), torch.randn(2, H, W, 3)
    means, before = torch.randn(2, pooling.coarse.tokens, 3), image.clone()
    pooling.move_low_band(image, means)
    for got, old, wanted in zip(image, before, means, strict=True):
        missing = wanted.view(pooling.coarse.height, -1, 3).numpy() - reference.block_means(old.numpy(), p)
        expected = old.numpy() + reference.band_limited(missing, (H, W), p, cutoff)
        assert np.abs(got.numpy() - expected).max() < 1e-4


@given(st.integers(4, 40), st.sampled_from([1, 2, 3]), st.floats(0.01, 0.15))
def test_a_signal_in_the_band_is_recovered_from_its_means(n, p, cutoff):
    """0.15 cycles per token is below the Nyquist frequency of blocks of three."""
    basis = cosine_basis(n, cutoff)
    signal = (basis @ torch.randn(basis.shape[1], 5, dtype=torch.float64)).float()[None, :, None]
    grid = Grid(n, 1)
    pooling, image = Pooling(grid, p, (cutoff, cutoff)), torch.zeros(1, n, 1, 5)
    pooling.move_low_band(image, pooling.means(signal).flatten(1, 2))
    assert torch.allclose(image, signal, atol=1e-4)


def test_text_is_left_as_it_is():
    x = torch.randn(2, 4, 3 + 30, 8)
    pooled = Pooling(Grid(5, 6), 2, (0.1, 0.1)).tokens(x, 3)
    assert pooled.shape == (2, 4, 3 + 9, 8) and torch.equal(pooled[:, :, :3], x[:, :, :3])


def test_bfloat16_stays_bfloat16():
    x = torch.randn(1, 1, 2 + 36, 8, dtype=torch.float64)
    pooling = Pooling(Grid(6, 6), 2, (0.1, 0.1))
    low = pooling.tokens(x.bfloat16(), 2)
    assert low.dtype == torch.bfloat16 and (low - pooling.tokens(x, 2)).abs().max() < 0.02


def test_fast_needs_fusion_by_frequency():
    with pytest.raises(ResDiTError, match="fusion is 'mean'"):
        scaled(speed="fast", fusion="mean")
    with pytest.raises(ResDiTError, match="speed is 'faster'"):
        scaled(speed="faster")


def test_autocast_takes_no_bits_away():
    pooling, image, means = Pooling(Grid(8, 8), 2, (0.1, 0.1)), torch.randn(1, 8, 8, 3), torch.randn(1, 16, 3)
    expected = image.clone()
    pooling.move_low_band(expected, means)
    with torch.autocast("cpu", torch.bfloat16):
        pooling.move_low_band(image, means)
        assert pooling.means(image).dtype == torch.float32
    assert torch.equal(image, expected)
