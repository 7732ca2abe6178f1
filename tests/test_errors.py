"""How a message quotes a value: as Python writes it, shortly, whatever it is."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from resdit_ext import ResDiTConfig, ResDiTError
from resdit_ext.errors import LONGEST_QUOTE, quoted, shortened
from resdit_ext.method.config import check_choice, check_number
from tests.api_requests import anything, nested


@pytest.mark.parametrize(
    "value", [None, True, 7, 0.1, float("nan"), "it's", "\ud800\n\x00", [1, [2]], {"a": {"b": 1}}, ()]
)
def test_a_short_value_is_quoted_as_python_writes_it(value):
    assert quoted(value) == repr(value)


@pytest.mark.parametrize("value", ["x" * (LONGEST_QUOTE - 2), 10 ** (LONGEST_QUOTE - 1)], ids=type)
def test_the_longest_value_that_is_quoted_whole(value):
    assert quoted(value) == repr(value) and len(quoted(value)) == LONGEST_QUOTE


class Bad:
    def __repr__(self):
        raise RuntimeError


class Big:
    def __repr__(self):
        return "big" * 1000


LONG = {
    "text": "x" * (LONGEST_QUOTE - 1),
    "escapes": "\x00" * 5000,
    "surrogates": "\ud800" * 5000,
    "number": 10**400,
    "list": list(range(10**6)),
    "object": {i: i for i in range(10**5)},
    "depth": nested(900),
    "texts": ["x" * 150] * 3,
    "name": {"x" * 500: 1},
    "other": Big(),
}


@pytest.mark.parametrize("value", LONG.values(), ids=LONG)
def test_what_is_left_out_is_an_ellipsis(value):
    assert "..." in quoted(value) and len(quoted(value)) <= LONGEST_QUOTE


def test_what_python_cannot_write_is_described():
    assert quoted(1 << 100_000) == "<a whole number of 100001 bits>"
    assert len(quoted(Bad())) <= LONGEST_QUOTE


@given(anything)
def test_any_value_is_quoted_in_a_few_characters_that_can_be_sent(value):
    assert len(quoted(value).encode()) <= 4 * LONGEST_QUOTE and len(quoted(value)) <= LONGEST_QUOTE
    json.dumps(quoted(value))


@given(st.text())
def test_a_text_is_cut_at_its_end_only(text):
    long = text * 100
    assert shortened(long) == long or (len(shortened(long)) == LONGEST_QUOTE and long.startswith(shortened(long)[:-3]))


@pytest.mark.parametrize(
    "value", ["x" * 10**6, 1 << 100_000, nested(900), Bad()], ids=["text", "number", "depth", "not written"]
)
def test_every_check_quotes_shortly(value):
    for check in (
        lambda: check_choice("field", value, ("a",)),
        lambda: check_number("field", value, 0, 1),
        lambda: ResDiTConfig(fusion=value, speed="fast"),
    ):
        with pytest.raises(ResDiTError) as error:
            check()
        assert len(str(error.value)) < LONGEST_QUOTE + 100
