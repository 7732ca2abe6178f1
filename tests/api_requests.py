"""Requests that a client might send: anything JSON can hold where the options go, and much that is nearly right."""

import json
import math

from hypothesis import strategies as st

from resdit_ext.method.config import PRESETS
from resdit_ext.webui.options import BY_NAME, OPTIONS

NAMES = [*BY_NAME, "preset", "args", "wdth", ""]
CHOICES = sorted({choice for option in OPTIONS for choice in option.choices} | set(PRESETS))


def nested(depth):
    """A list in a list, `depth` of them."""
    value = []
    for _ in range(depth - 1):
        value = [value]
    return value


def valid(option):
    """Any valid value of one option."""
    if option.kind == "bool":
        return st.booleans()
    if option.kind == "choice":
        return st.sampled_from(option.choices)
    number = st.integers(int(option.low), int(option.high)) if option.whole else st.floats(option.low, option.high)
    return st.sampled_from(option.choices) | number if option.kind == "scale" else number


NUMBERS = [math.nan, math.inf, -math.inf, 10**400, -(10**4000), 1e308]
TEXTS = ["\ud800", "\x00", "nan", "1e999", "1" * 5000]
HOLDERS = [nested(8), nested(9), nested(300), {"a": {"b": math.nan}}, [["\udfff"]], {"\ud800": 1}]
strange = st.sampled_from([*NUMBERS, *TEXTS, *HOLDERS])
scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.sampled_from(CHOICES)
anything = st.recursive(
    scalars | strange,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(NAMES) | st.text(), inner, max_size=4),
    max_leaves=8,
)
parts = st.fixed_dictionaries({}, optional={option.name: valid(option) for option in OPTIONS})
named = st.builds(
    lambda good, preset, bad: good | preset | bad,
    parts,
    st.just({}) | st.fixed_dictionaries({"preset": st.sampled_from(list(PRESETS))}),
    st.just({}) | st.dictionaries(st.sampled_from(NAMES), anything, max_size=2),
)
positional = st.tuples(*(valid(option) for option in OPTIONS)).flatmap(
    lambda values: st.builds(
        lambda end, bad: [*values[:end], *bad],
        st.integers(0, len(values)),
        st.just([]) | st.lists(anything, max_size=2),
    )
)
arguments = anything | st.lists(anything, max_size=3) | named.map(lambda options: [options]) | positional
entries = st.one_of(
    arguments.map(lambda args: {"args": args}),
    st.tuples(arguments, anything).map(lambda both: {"args": both[0], "note": both[1]}),
    anything,
)
titles = st.sampled_from(["ResDiT High-Res", "resdit high-res", "RESDIT HIGH-RES"])


def escaped(title):
    """A JSON string that spells every letter by its number."""
    return '"' + "".join(f"\\u{ord(letter):04x}" for letter in title) + '"'


def body(title, entry, spell=json.dumps, **fields):
    """A request's JSON text, its title spelt as asked for."""
    text = json.dumps({"prompt": "a", **fields, "alwayson_scripts": {"TITLE": entry}})
    return text.replace('"TITLE"', spell(title)).encode()


def bodies(**fields):
    """Requests with any entry of ours under any spelling of the title."""
    spellings = st.sampled_from([json.dumps, escaped])
    return st.builds(lambda title, entry, spell: body(title, entry, spell, **fields), titles, entries, spellings)
