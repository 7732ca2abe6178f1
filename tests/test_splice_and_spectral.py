import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from resdit_ext.method.blend import axis_weights, splice_into, splice_weights
from resdit_ext.method.layout import Grid, make_layout
from resdit_ext.method.lowpass import along_axes, fuse, lowpass_matrix
from tests import reference
from tests.settings import scaled

layouts = st.builds(
    lambda H, W, tokens: make_layout(Grid(H, W), scaled(base_tokens=tokens)),
    st.integers(2, 24),
    st.integers(2, 24),
    st.integers(4, 100),
)
sigmas = st.one_of(st.none(), st.floats(0.05, 2))


def spliced(layout, sigma, patches):
    """(B, H, W, C) from patches (N, B, h, w, C)."""
    canvas = torch.zeros(patches.shape[1], layout.grid.height, layout.grid.width, patches.shape[-1])
    splice_into(canvas, patches, splice_weights(layout, sigma), layout.patches)
    return canvas


@given(layouts, sigmas)
def test_splice_matches_the_equation(layout, sigma):
    grid, base = ((g.height, g.width) for g in (layout.grid, layout.base))
    patches = torch.randn(len(layout.patches), 2, *base, 3)
    expected = reference.splice(patches[:, 1].double().numpy(), grid, base, layout.patches, sigma)
    assert np.abs(spliced(layout, sigma, patches)[1].numpy() - expected).max() < 1e-5


@given(layouts, sigmas)
def test_splice_weights_sum_to_one(layout, sigma):
    ones = torch.ones(len(layout.patches), 1, layout.base.height, layout.base.width, 1)
    assert (spliced(layout, sigma, ones) - 1).abs().max() < 1e-6


def test_the_narrowest_gaussian_does_not_underflow():
    weights = axis_weights(65, 64, (0, 1), 0.05)
    assert torch.isfinite(weights).all() and weights[0, 0] == 1 and weights[1, 63] == 1


@given(st.integers(1, 70), st.floats(0, 0.6))
def test_lowpass_matrix_is_a_mask_in_frequency(n, cutoff):
    matrix = lowpass_matrix(n, cutoff)
    x = np.random.default_rng(0).standard_normal(n)
    kept = np.abs(np.fft.fftfreq(n)) <= cutoff + 1e-12
    expected = np.fft.ifft(kept * np.fft.fft(x)).real
    assert np.abs(matrix.numpy() @ x - expected).max() < 1e-12
    assert torch.allclose(matrix, matrix.T) and torch.allclose(matrix @ matrix, matrix, atol=1e-12)


def test_cutoff_units():
    def bins(config):
        return round(lowpass_matrix(64, config.cutoff_cycles(3)).trace().item())

    assert bins(scaled(cutoff=0.2, cutoff_unit="nyquist")) == 2 * 6 + 1
    assert bins(scaled(cutoff=0.2, cutoff_unit="sampling")) == 2 * 12 + 1
    assert bins(scaled(cutoff=0.75, cutoff_unit="base")) == 2 * 8 + 1
    assert bins(scaled(cutoff=0)) == 1


@given(st.integers(1, 20), st.integers(1, 20), st.floats(0, 0.5))
def test_fuse_matches_the_transforms(h, w, cutoff):
    x_g, x_l = torch.randn(2, 3, h, w, 5, dtype=torch.float64)
    rows, cols = lowpass_matrix(h, cutoff), lowpass_matrix(w, cutoff)
    got = fuse(x_g, x_l, rows, cols)
    for i in range(3):
        expected = reference.fuse(x_g[i].numpy(), x_l[i].numpy(), cutoff)
        assert np.abs(got[i].numpy() - expected).max() < 1e-12
    assert torch.equal(fuse(x_l, x_l, rows, cols), x_l)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 5e-2)])
def test_lowpass_in_low_precision(dtype, tolerance):
    x = torch.randn(2, 16, 24, 8, dtype=torch.float64)
    rows, cols = lowpass_matrix(16, 0.1), lowpass_matrix(24, 0.1)
    low = along_axes(x.to(dtype), rows.to(dtype), cols.to(dtype))
    assert low.dtype == dtype and (low.double() - along_axes(x, rows, cols)).abs().max() < tolerance
