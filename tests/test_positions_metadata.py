"""A LoRA's file says which positions it was trained with, and what does not parse is said by name."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from resdit_ext import ResDiTError
from resdit_ext.positions_metadata import maximal_range, positions_metadata

SAID = {"resdit.positions": "rpe-2d"}


@given(st.integers(1, 4096))
def test_what_is_written_is_read(maximal):
    assert maximal_range(positions_metadata(maximal), "a LoRA") == maximal


def test_other_metadata_says_nothing():
    assert maximal_range({"format": "pt", "resdit.maximal_range": "64"}, "a LoRA") is None


@pytest.mark.parametrize("value", ["", "64x64", "0", "-4", "1.5", "4097", "9" * 5000, "٣", None, [], 0])
def test_a_range_that_does_not_parse_is_quoted(value):
    metadata = SAID if value is None else SAID | {"resdit.maximal_range": value}
    with pytest.raises(ResDiTError, match=r"the metadata of mine has resdit\.maximal_range ") as error:
        maximal_range(metadata, "mine")
    assert repr(value)[:60] in str(error.value) and len(str(error.value)) < 500
    assert "a whole number of tokens from 1 to 4096" in str(error.value)


def test_unknown_positions_are_quoted():
    with pytest.raises(ResDiTError, match=re.escape("resdit.positions 'rpe-3d', which this version does not know")):
        maximal_range({"resdit.positions": "rpe-3d", "resdit.maximal_range": "64"}, "mine")


@pytest.mark.parametrize("maximal", [0, 4097, 1.5, "64", True])
def test_no_other_range_is_written(maximal):
    with pytest.raises(ResDiTError, match=r"maximal range is .*; it must be a whole number from 1 to 4096"):
        positions_metadata(maximal)
