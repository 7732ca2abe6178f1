import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from resdit_ext import ResDiTConfig, ResDiTError
from resdit_ext.method import rotary as positions
from resdit_ext.method.layout import Grid, base_grid, make_layout, partition_starts
from resdit_ext.method.positions import grid_positions, patch_indices
from resdit_ext.method.rotary import RotaryTable, rotary_table, rotate
from tests import reference

sides = st.integers(1, 400)


@given(sides, sides)
def test_partition_matches_the_equation(length, patch):
    assert list(partition_starts(length, patch)) == reference.starts(length, patch)


@given(sides, sides, st.booleans())
def test_partition_covers_and_keeps_both_ends(length, patch, overlap):
    starts = partition_starts(length, patch, overlap)
    patch = min(patch, length)
    assert starts[0] == 0 and starts[-1] + patch == length
    steps = [b - a for a, b in itertools.pairwise(starts)]
    assert all(0 < step <= patch for step in steps)
    if overlap and patch > 1 and steps:
        assert min(steps) < patch


def test_partition_counts_of_the_paper():
    assert len(partition_starts(256, 64)) == 5 and len(partition_starts(192, 64)) == 4
    assert partition_starts(256, 64) == (0, 48, 96, 144, 192)
    assert partition_starts(192, 64, overlap=False) == (0, 64, 128)


@given(sides, sides, st.integers(4, 8192))
def test_base_grid_keeps_the_aspect_ratio(H, W, tokens):
    base = base_grid(Grid(H, W), tokens)
    if H * W <= tokens:
        assert base == Grid(H, W)
        return
    shrink = math.sqrt(tokens / (H * W))
    assert base.height <= H and base.width <= W
    assert abs(base.height - H * shrink) <= 1 and abs(base.width - W * shrink) <= 1


@pytest.mark.parametrize(
    ("grid", "base"),
    [
        ((192, 192), (64, 64)),
        ((256, 256), (64, 64)),
        ((128, 256), (45, 90)),
        ((256, 128), (90, 45)),
        ((64, 64), (64, 64)),
        ((40, 80), (40, 80)),
    ],
)
def test_base_grid_examples(grid, base):
    layout = make_layout(Grid(*grid), ResDiTConfig())
    assert layout.base == Grid(*base)
    s_h, s_w = layout.scales
    assert s_h >= 1 and s_h == pytest.approx(s_w, rel=0.02)
    assert layout.is_base == (grid == base)


@given(sides, sides)
def test_square_base_is_clamped_per_axis(H, W):
    layout = make_layout(Grid(H, W), ResDiTConfig(base_shape="square"))
    assert layout.base == Grid(min(H, 64), min(W, 64))
    assert layout.is_base == (H <= 64 and W <= 64)


@given(st.integers(1, 40), st.integers(1, 40), st.integers(4, 200))
def test_every_token_is_in_a_patch(H, W, tokens):
    layout = make_layout(Grid(H, W), ResDiTConfig(base_tokens=tokens))
    indices = patch_indices(layout)
    assert indices.shape == (len(layout.patches), layout.base.tokens)
    assert sorted(set(indices.flatten().tolist())) == list(range(H * W))


def test_grid_refuses_what_is_no_size():
    with pytest.raises(ResDiTError, match="grid height is 0; it must be a whole number from 1 to 4096"):
        Grid(0, 4)


@given(st.integers(1, 300), st.integers(1, 60), st.floats(1, 8), st.floats(1, 8))
def test_scaled_positions(H, W, s_h, s_w):
    got = grid_positions(Grid(H, W), (s_h, s_w))
    assert got.dtype == torch.float32
    expected = torch.from_numpy(reference.positions(H, W, s_h, s_w)).float()
    assert torch.equal(got, expected)


def test_scaled_positions_stay_in_the_trained_range_and_distinct():
    layout = make_layout(Grid(300, 300), ResDiTConfig())
    rows = grid_positions(layout.grid, layout.scales)[:, 0].unique()
    assert len(rows) == 300 and rows.max() < layout.base.height


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-6), (torch.float32, 2e-6), (torch.bfloat16, 0.02)])
@pytest.mark.parametrize("at_once", [1, 100])
def test_rotation_is_a_complex_product(monkeypatch, dtype, tolerance, at_once):
    monkeypatch.setattr(positions, "ROTATED_AT_ONCE", {True: at_once})
    axes_dim, theta = (4, 14, 14), 10000
    ids = torch.rand(7, 3) * 50
    x = torch.randn(2, 3, 7, 32, dtype=torch.float64).to(dtype)
    turns = rotary_table(ids, axes_dim, theta)
    got = rotate(x, turns, 1.25)
    assert got.dtype == dtype
    expected = 1.25 * reference.rotate(x.double().numpy(), ids.double().numpy(), axes_dim, theta)
    assert np.abs(got.double().numpy() - expected).max() < tolerance * np.abs(expected).max()
    differing = RotaryTable(*(t[:, None] for t in rotary_table(torch.stack((ids, ids + 1)), axes_dim, theta)))
    assert torch.equal(rotate(x, differing)[:1], rotate(x[:1], turns))
    assert torch.equal(rotate(x, differing)[1:], rotate(x[1:], rotary_table(ids + 1, axes_dim, theta)))


def test_a_layout_is_made_once_for_a_size():
    first = make_layout(Grid(100, 200), ResDiTConfig(cutoff=0.3))
    assert make_layout(Grid(100, 200), ResDiTConfig(cutoff=0.3)) is first
    assert make_layout(Grid(200, 100), ResDiTConfig(cutoff=0.3)) != first
    assert make_layout(Grid(100, 200), ResDiTConfig(cutoff=0.3, base_shape="square")) != first
