"""NTK's and YaRN's frequencies against an independent reference, and what must hold of them at any scale."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from resdit_ext import ResDiTConfig
from resdit_ext.method.frequencies import laws_of, native, ntk, yarn
from resdit_ext.method.layout import Grid, make_layout
from resdit_ext.method.rotary import rotary_table
from tests import reference

channels = st.sampled_from([4, 12, 14, 56, 64])
thetas = st.sampled_from([100.0, 10_000.0])
scales = st.floats(1, 8)
sides = st.integers(4, 128)


@given(channels, thetas, scales, sides, st.sampled_from([0.0, 0.02, 0.5, 1.0, 2.0]))
def test_they_are_the_references(d, theta, s, base, pace):
    np.testing.assert_allclose(native(d, theta).numpy(), reference.frequencies(d, theta), rtol=1e-12)
    np.testing.assert_allclose(ntk(d, theta, s).numpy(), reference.ntk(d, theta, s), rtol=1e-12)
    np.testing.assert_allclose(yarn(d, theta, s, base).numpy(), reference.yarn(d, theta, s, base), rtol=1e-12)
    np.testing.assert_allclose(
        yarn(d, theta, s, base, pace).numpy(), reference.yarn(d, theta, s, base, pace), rtol=1e-12
    )


@given(channels, thetas, scales, sides)
def test_they_lie_between_native_and_scaled(d, theta, s, base):
    own = native(d, theta)
    for found in (ntk(d, theta, s), yarn(d, theta, s, base)):
        assert (found <= own * (1 + 1e-12)).all() and (found >= own / s * (1 - 1e-12)).all()


@given(channels, thetas, sides)
def test_at_scale_one_they_are_the_models_own(d, theta, base):
    assert torch.equal(ntk(d, theta, 1.0), native(d, theta))
    assert torch.equal(yarn(d, theta, 1.0, base), native(d, theta))


@given(channels, thetas, scales)
def test_ntk_keeps_the_highest_and_divides_the_lowest(d, theta, s):
    own, found = native(d, theta), ntk(d, theta, s)
    assert found[0] == own[0] == 1
    assert found[-1] == pytest.approx(own[-1] / s)


def test_fast_frequencies_stay_and_slow_ones_are_scaled():
    """FLUX.1's axis of 56 channels on a base of 64: more than 16 turns at none, fewer than .75 at most of them."""
    own, found = native(56, 10_000.0), yarn(56, 10_000.0, 3.0, 64)
    turns = own * 64 / (2 * np.pi)
    assert torch.allclose(found[turns < 0.5], own[turns < 0.5] / 3) and (turns < 0.5).sum() > 10
    assert found[0] / own[0] > 0.7


@pytest.mark.parametrize("name", ["ntk", "yarn"])
def test_a_table_has_them_along_rows_and_columns(name):
    """With another scale on either axis; the text's axis is the model's own."""
    axes, theta, grid = (4, 6, 8), 100.0, Grid(12, 24)
    config = ResDiTConfig(positions=name, base_tokens=36, base_shape="square")
    layout = make_layout(grid, config)
    assert layout.scales == (2, 4)
    ids = torch.randint(0, 20, (9, 3), generator=torch.Generator().manual_seed(0)).float()
    table = rotary_table(ids, axes, theta, laws_of(layout, config))
    law = {"ntk": lambda d, s: reference.ntk(d, theta, s), "yarn": lambda d, s: reference.yarn(d, theta, s, 6)}[name]
    expected = np.concatenate(
        [
            ids[:, [0]].numpy() * reference.frequencies(4, theta),
            ids[:, [1]].numpy() * law(6, 2.0),
            ids[:, [2]].numpy() * law(8, 4.0),
        ],
        1,
    )
    np.testing.assert_allclose(table.cos[:, ::2].numpy(), np.cos(expected), atol=1e-6)
    np.testing.assert_allclose(table.sin[:, 1::2].numpy(), np.sin(expected), atol=1e-6)


@pytest.mark.parametrize("name", ["automatic", "scaled", "rpe-2d"])
def test_other_positions_leave_the_frequencies(name):
    config = ResDiTConfig(positions=name, base_tokens=36)
    assert laws_of(make_layout(Grid(12, 24), config), config) is None
