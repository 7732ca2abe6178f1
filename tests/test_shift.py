"""The timestep shift against its textbook form, and how a model's own is read off its noise levels."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from resdit_ext.method.shift import shift_by_size, shift_of, shifted, shifted_sigmas
from tests import reference

levels = st.floats(0, 1)
shifts = st.floats(-3, 5)


@given(levels, shifts)
def test_it_is_the_reference(sigma, mu):
    assert shifted(sigma, mu) == pytest.approx(reference.shift(sigma, math.exp(mu)), abs=1e-12)


@given(levels, shifts, shifts)
def test_two_shifts_are_one(sigma, first, second):
    assert shifted(shifted(sigma, first), second) == pytest.approx(shifted(sigma, first + second), abs=1e-9)


@given(shifts)
def test_the_ends_stay_and_the_order_too(mu):
    assert shifted(0.0, mu) == 0 and shifted(1.0, mu) == pytest.approx(1)
    found = shifted(torch.linspace(1, 0, 9, dtype=torch.float64), mu)
    assert (found.diff() < 0).all()


@pytest.mark.parametrize(("side", "a"), [(1024, 3.158), (2048, 6.316), (3072, 9.475), (4096, 12.633)])
def test_by_size_a_grows_with_the_side(side, a):
    """Of FLUX.1's 1.15; the rule's own figures are 6.3, 9.5 and 12.6."""
    assert math.exp(1.15 + shift_by_size((side // 16) ** 2, 4096)) == pytest.approx(a, abs=1e-3)


@given(st.integers(1, 100_000), st.integers(1, 100_000))
def test_by_size_it_is_the_root_of_the_areas(tokens, base):
    assert math.exp(shift_by_size(tokens, base)) == pytest.approx(math.sqrt(tokens / base))


@given(st.floats(0, 5), st.sampled_from([1000, 10_000]))
def test_a_models_own_is_read_off_its_levels(mu, n):
    table = reference.shift(np.arange(1, n + 1) / n, math.exp(mu)).astype(np.float32)
    assert shift_of(torch.from_numpy(table)) == pytest.approx(mu, abs=1e-3)
    assert shift_of(table.tolist()) == pytest.approx(mu, abs=1e-3)


def test_other_levels_have_none():
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2
    products = torch.cumprod(1 - betas, 0)
    assert shift_of(((1 - products) / products) ** 0.5) is None  # SD 1.5's
    assert shift_of(torch.linspace(0.001, 1, 1000) ** 2) is None
    assert shift_of(shifted_sigmas(20)[::-1]) is None
