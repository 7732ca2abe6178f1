"""RPE-2D's positions against an independent reference, and what must hold of them for any grid and range."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from resdit_ext import ResDiTError
from resdit_ext.method.layout import Grid
from resdit_ext.method.position_table import PositionTable
from resdit_ext.method.positions import grid_positions, token_positions
from resdit_ext.method.randomized import equidistant_positions, randomized_positions
from tests import reference

sides = st.integers(1, 200)
extra = st.integers(0, 300)


def drawn(grid, maximal, seed=0):
    return randomized_positions(grid, maximal, torch.Generator().manual_seed(seed))


@given(sides, sides, extra, extra)
def test_equidistant_positions_are_the_reference(H, W, more_rows, more_cols):
    maximal = Grid(H + more_rows, W + more_cols)
    rows, cols = equidistant_positions(Grid(H, W), maximal)
    assert rows.dtype == cols.dtype == torch.float64
    assert np.array_equal(rows.numpy(), reference.equidistant(H, maximal.height))
    assert np.array_equal(cols.numpy(), reference.equidistant(W, maximal.width))


@given(sides, sides, extra, extra, st.integers(0, 2**32))
def test_positions_are_sorted_distinct_whole_and_in_range(H, W, more_rows, more_cols, seed):
    grid, maximal = Grid(H, W), Grid(H + more_rows, W + more_cols)
    for axes in (drawn(grid, maximal, seed), equidistant_positions(grid, maximal)):
        for positions, tokens, most in zip(axes, (H, W), (maximal.height, maximal.width), strict=True):
            assert positions.shape == (tokens,) and torch.equal(positions, positions.round())
            assert (positions.diff() > 0).all() and positions[0] >= 0 and positions[-1] < most


@given(sides, sides, extra)
def test_equidistant_gaps_differ_by_at_most_one(H, W, more):
    for positions in equidistant_positions(Grid(H, W), Grid(H + more, W + more)):
        gaps = positions.diff()
        assert not len(gaps) or gaps.max() - gaps.min() <= 1


@given(sides, sides)
def test_where_the_range_is_the_grid_positions_are_the_models_own(H, W):
    grid = Grid(H, W)
    for axes in (drawn(grid, grid), equidistant_positions(grid, grid)):
        assert torch.equal(token_positions(*axes), grid_positions(grid))


def test_inference_is_deterministic_and_training_a_matter_of_its_generator():
    grid, maximal = Grid(8, 8), Grid(64, 64)
    for one, two in zip(equidistant_positions(grid, maximal), equidistant_positions(grid, maximal), strict=True):
        assert torch.equal(one, two)
    (rows, cols), (again, _), (other, _) = (drawn(grid, maximal, seed) for seed in (0, 0, 1))
    assert torch.equal(rows, again) and not torch.equal(rows, other) and not torch.equal(rows, cols)


def test_every_position_is_drawn_as_often_and_the_means_are_the_equidistant_ones():
    grid, maximal, draws = Grid(4, 3), Grid(9, 9), 4000
    generator = torch.Generator().manual_seed(0)
    rows = torch.stack([randomized_positions(grid, maximal, generator)[0] for _ in range(draws)])
    share = torch.bincount(rows.long().flatten(), minlength=9) / draws
    assert (share - 4 / 9).abs().max() < 0.04  # five standard errors
    assert (rows.mean(0) - (torch.arange(1, 5) * 2.0 - 1)).abs().max() < 0.15
    assert torch.equal(equidistant_positions(grid, maximal)[0], torch.tensor([1.0, 3, 5, 7], dtype=torch.float64))


def test_the_table_is_read_at_a_range_in_its_middle():
    side, channels, step = 24, 16, 1 / 3
    index = np.arange(side)
    stored = torch.from_numpy(reference.sincos_table(index, index, channels, step))
    table, grid, maximal = PositionTable(stored), Grid(4, 6), Grid(10, 14)
    rows, cols = drawn(grid, maximal)
    expected = reference.sincos_table((side - 10) // 2 + rows.numpy(), (side - 14) // 2 + cols.numpy(), channels, step)
    got = table.in_range(rows, cols, maximal)
    assert np.abs(got.numpy() - expected.reshape(1, 24, channels)).max() < 2e-6
    native = table.in_range(*equidistant_positions(grid, grid), grid)
    assert torch.equal(native, table.crop(grid, grid))


@pytest.mark.parametrize("positions", [equidistant_positions, randomized_positions])
@pytest.mark.parametrize(("grid", "axis"), [(Grid(65, 3), "height"), (Grid(3, 65), "width")])
def test_a_range_smaller_than_the_grid_is_refused(positions, grid, axis):
    message = f"the maximal range is 64 tokens and the picture's {axis} is 65 tokens; choose a range of at least 65"
    with pytest.raises(ResDiTError, match=message):
        positions(grid, Grid(64, 64))
