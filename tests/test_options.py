"""The option table: its order, its values, and the sizes and settings that requests mean."""

import dataclasses
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from resdit_ext import BALANCED, PAPER, ResDiTConfig, ResDiTError
from resdit_ext.webui.forecast import forecast
from resdit_ext.webui.option import unmentioned
from resdit_ext.webui.options import (
    BY_NAME,
    DEFAULTS,
    OPTIONS,
    PARAMETERS,
    parse_request,
    preset_values,
    values_from_args,
)
from resdit_ext.webui.sizes import output_size
from tests.api_requests import CHOICES, anything

# The positional order is a public contract: a new option may only be appended.
CONTRACT = [
    "enabled", "size", "ratio", "portrait", "width", "height", "global_until", "fused_until", "cutoff",
    "cutoff_unit", "attention_scale", "base_size", "base_shape", "splice_sigma", "chunk_mb", "speed",
    "long_side", "apply_to", "layout", "layout_until", "borders", "positions", "maximal_range", "shift",
    "compare", "middle_until", "fresh_noise",
]  # fmt: skip


def values_of(option):
    """Any valid value of one option."""
    if option.kind == "bool":
        return st.booleans()
    if option.kind == "choice":
        return st.sampled_from(option.choices)
    if option.whole:
        return st.integers(int(option.low), int(option.high))
    numbers = st.floats(option.low, option.high).map(lambda x: round(x, 4))
    return st.one_of(st.sampled_from(option.choices), numbers) if option.kind == "scale" else numbers


requests = (
    st.fixed_dictionaries({option.name: values_of(option) for option in OPTIONS})
    .map(lambda values: values | {"enabled": True, "fused_until": max(values["global_until"], values["fused_until"])})
)  # fmt: skip


def test_the_positional_order_is_kept():
    assert [option.name for option in OPTIONS][: len(CONTRACT)] == CONTRACT


def test_the_defaults_are_the_balanced_setting():
    request = parse_request((True,))
    assert request.config == BALANCED
    assert output_size(request.values, 512, 512) == (3072, 3072)
    assert parse_request(({"preset": "Paper"},)).config == PAPER


@given(requests)
def test_positional_and_dict_arguments_agree(values):
    positional = parse_request(tuple(values[name] for name in CONTRACT))
    assert positional == parse_request((values,))
    assert dataclasses.asdict(positional.config)["cutoff"] == values["cutoff"]


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (({"wdth": 3072},), "unknown field 'wdth'; the fields are enabled, size"),
        (({"width": "wide"},), "width is 'wide'; it must be a whole number from 256 to 8192"),
        (({"width": 3072.5},), "width is 3072.5"),
        (({"width": 10**400},), "width is 1000"),
        (({"height": 16384},), "height is 16384"),
        (({"size": "5K"},), "size is '5K'; choose one of 'WebUI', '2K'"),
        (({"enabled": "yes"},), "enabled is 'yes'; it must be true or false"),
        (
            ({"preset": "Best"},),
            "preset is 'Best'; choose one of 'Balanced', 'Scaled positions', 'Paper'",
        ),
        (({"preset": []},), "preset is []; choose one of 'Balanced'"),
        (({"preset": {}},), "preset is {}; choose one of 'Balanced'"),
        (({"size": []},), "size is []; choose one of 'WebUI'"),
        (({"width": {}},), "width is {}; it must be a whole number"),
        (({"height": []},), "height is []; it must be a whole number"),  # though it would be the width too
        (({"attention_scale": "cube"},), "attention_scale is 'cube'; it must be one of 'off', 'sqrt-log', 'log' or"),
        (({"attention_scale": True},), "attention_scale is True"),
        (({"cutoff": None},), "cutoff is None"),
        (
            ({"layout": "scaled", "global_until": 0.6, "fused_until": 0.3},),
            "fused_until is 0.3, below global_until 0.6",
        ),
        ((True, "3K", "7:3"), "ratio is '7:3'"),
        ((1,), "enabled is 1"),
    ],
)
def test_a_bad_field_is_named(args, message):
    with pytest.raises(ResDiTError) as error:
        parse_request(args)
    assert str(error.value).startswith(message)


@given(st.sampled_from(OPTIONS), anything)
def test_any_value_of_any_option_is_taken_as_its_type_or_refused_by_name(option, value):
    try:
        taken, refusal = option.parse(value), None
    except ResDiTError as error:
        taken, refusal = None, str(error)
    if refusal is not None:
        assert refusal.startswith(f"{option.name} is ") and len(refusal) < 500
    elif option.kind == "bool":
        assert taken is value
    else:
        assert taken in option.choices or option.low <= taken <= option.high


def test_what_is_switched_off_is_not_looked_at():
    assert not parse_request(()).enabled
    assert not parse_request((False, "nonsense")).enabled


def test_dict_forms():
    assert output_size(parse_request(({"width": 3072},)).values, 512, 512) == (3072, 3072)
    assert output_size(parse_request(({"width": 3000, "height": 2000},)).values, 512, 512) == (3008, 2000)
    assert output_size(parse_request(({"size": "4K", "ratio": "16:9", "portrait": True},)).values, 512, 512) == (
        2304,
        4096,
    )
    assert parse_request(({"enabled": False, "size": "5K"},)).enabled is False
    assert parse_request(({"preset": "Paper", "cutoff": 0.3},)).config.cutoff == 0.3
    assert values_from_args(({},)) == DEFAULTS | {"enabled": True, "size": "WebUI"}


@pytest.mark.parametrize(
    ("args", "size"),
    [
        # An object that names no size keeps the request's.
        (({},), (512, 768)),
        (({"enabled": True},), (512, 768)),
        (({"preset": "Paper", "cutoff": 0.3, "apply_to": "both"},), (512, 768)),
        (({"portrait": True},), (512, 768)),
        # One that names a part of a size has the rest of it.
        (({"ratio": "2:1"},), (3072, 1536)),
        (({"ratio": "2:1", "portrait": True},), (1536, 3072)),
        (({"ratio": "WebUI"},), (2048, 3072)),
        (({"ratio": "Free"},), (3072, 3072)),
        (({"ratio": "Free", "height": 1024},), (3072, 1024)),
        (({"long_side": 2048},), (2048, 2048)),
        (({"long_side": 2048, "ratio": "2:1"},), (2048, 1024)),
        (({"long_side": 2048, "size": "4K"},), (4096, 4096)),
        (({"long_side": 2048, "height": 1024},), (1024, 1024)),
        (({"size": "2K"},), (2048, 2048)),
        (({"size": "Custom"},), (3072, 3072)),
        (({"size": "Custom", "width": 2048},), (2048, 2048)),
        (({"size": "4K", "width": 2048},), (4096, 4096)),
        (({"size": "WebUI", "width": 2048},), (512, 768)),
        (({"width": 1024, "height": 2048},), (1024, 2048)),
        (({"width": 1024, "ratio": "2:1"},), (3072, 1536)),
        # A list is the page's, whose defaults complete it.
        ((True,), (3072, 3072)),
        ((True, "4K"), (4096, 4096)),
        ((True, "WebUI"), (512, 768)),
    ],
)
def test_the_size_that_a_request_asks_for(args, size):
    assert output_size(parse_request(args).values, 512, 768) == size


@given(requests, st.integers(64, 2048), st.integers(64, 2048))
def test_sizes_are_multiples_of_16_and_keep_the_ratio(values, page_width, page_height):
    size = output_size(values, page_width, page_height)
    if values["size"] == "WebUI":
        assert size == (page_width, page_height)
        return
    assert all(side % 16 == 0 and side >= 16 for side in size)
    if values["ratio"] == "Free":
        assert all(abs(got - values[name]) <= 8 for got, name in zip(size, ("width", "height"), strict=True))
        return
    long = {"2K": 2048, "3K": 3072, "4K": 4096, "Custom": values["long_side"]}[values["size"]]
    assert abs(max(size) - long) <= 8
    if values["ratio"] == "WebUI":
        wanted, landscape = page_width / page_height, page_width >= page_height
    else:
        a, b = map(int, values["ratio"].split(":"))
        wanted, landscape = (b / a, a == b) if values["portrait"] else (a / b, True)
    exact = (long, long / wanted) if landscape or wanted >= 1 else (long * wanted, long)
    assert all(abs(got - side) <= 8 or side < 16 for got, side in zip(size, exact, strict=True))


def test_only_the_size_options_that_count_are_written():
    for given_, written in (
        ({"size": "WebUI", "ratio": "2:1", "width": 512, "long_side": 1024}, {"size"}),
        (
            {"size": "4K", "ratio": "Free", "width": 512, "long_side": 1024, "portrait": True},
            {"size", "ratio", "width"},
        ),
        ({"size": "4K", "ratio": "WebUI", "width": 512, "portrait": True}, {"size", "ratio"}),
        ({"size": "Custom", "ratio": "2:1", "width": 512, "long_side": 1024}, {"size", "ratio", "long_side"}),
        ({"size": "2K", "ratio": "2:1", "long_side": 1024, "portrait": True}, {"size", "ratio", "portrait"}),
    ):
        assert set(parse_request((given_,)).changed()) == written


@pytest.mark.parametrize("name", PARAMETERS)
def test_a_parameters_row_is_its_field(name):
    """The page takes what the method takes, and offers it by the same default."""
    option, field = BY_NAME[name], ResDiTConfig.__dataclass_fields__[name]
    allowed = field.metadata["allowed"]
    assert (option.default, option.choices) == (field.default, allowed.choices)
    assert option.kind == "choice" or (option.low, option.high, option.whole) == (
        allowed.low,
        allowed.high,
        allowed.whole,
    )


def test_the_rows_that_are_no_parameters_are_none_of_the_methods_fields():
    """Nor may another row have the name of a field, whose value would be dropped."""
    fields = {field.name for field in dataclasses.fields(ResDiTConfig)}
    assert fields & set(BY_NAME) == set(PARAMETERS)
    assert fields - set(PARAMETERS) == {"base_tokens", "pes", "pipe", "fusion", "overlap", "splice"}
    assert parse_request((True,)).config.base_tokens == ResDiTConfig().base_tokens


@given(st.sampled_from(PARAMETERS), st.none() | st.booleans() | st.integers() | st.floats() | st.sampled_from(CHOICES))
def test_page_and_method_take_the_same_values(name, value):
    def takes(check):
        try:
            check(value)
        except ResDiTError:
            return False
        return True

    option, allowed = BY_NAME[name], ResDiTConfig.__dataclass_fields__[name].metadata["allowed"]
    # The page takes 16.0 for a whole number too: JSON makes no difference.
    if not (option.whole and isinstance(value, float) and value.is_integer()):
        assert takes(option.parse) is takes(lambda value: allowed.check(name, value))


def test_presets_fill_only_what_they_mean():
    assert preset_values("Paper")["fused_until"] == 0.57
    assert "size" not in preset_values("Paper") and "base_size" not in preset_values("Paper")


@pytest.mark.parametrize(
    ("options", "size", "active", "expected"),
    [
        ({}, (3072, 3072), True, "scale 3.00, 4x4 and 5x5 patches of 1024x1024, steps: 16 layout, 19 fused of 35"),
        (
            {"preset": "Scaled positions"},
            (3072, 3072),
            True,
            "steps: 10 global, 25 fused of 35",
        ),
        (
            {"preset": "Paper"},
            (4096, 2048),
            True,
            "3x3 patches of 1440x720, steps: 10 global, 10 fused, 15 local of 35",
        ),
        ({}, (1024, 1024), False, "1024x1024 is not above the base size"),
        ({}, (6400, 6400), True, "not tested beyond 6x"),
        ({"enabled": False}, (3072, 3072), False, "switched off"),
    ],
)
def test_the_status_line(options, size, active, expected):
    made = forecast(parse_request((options,)), *size, 35)
    assert made.active is active and expected in made.line()
    assert made.as_dict()["line"] == made.line()
    json.dumps(made.as_dict())


@pytest.mark.parametrize(
    ("values", "size"),
    [
        ({"size": "2K", "ratio": "3:2"}, (2048, 1344)),
        ({"size": "2K", "ratio": "5:4"}, (2048, 1664)),
        ({"size": "2K", "ratio": "3:2", "portrait": True}, (1344, 2048)),
        ({"size": "Custom", "ratio": "Free", "width": 1000, "height": 256}, (1024, 256)),
        ({"size": "Custom", "ratio": "1:1", "long_side": 2000}, (1984, 1984)),
        ({"size": "3K", "ratio": "WebUI"}, (3072, 2304)),
        ({"size": "WebUI"}, (1000, 750)),
    ],
)
def test_sizes_are_of_the_hosts_multiple(values, size):
    assert output_size(DEFAULTS | values, 1000, 750, 64) == size


def test_an_automatic_base_size_follows_the_model_and_a_number_does_not():
    qwens = (1328 // 16) ** 2
    automatic, given = parse_request(({},)), parse_request(({"base_size": 1024},))
    assert automatic.config.base_tokens == 4096 and automatic.base_side == 1024
    assert automatic.for_model(qwens).config.base_tokens == qwens and automatic.for_model(qwens).base_side == 1328
    assert given.for_model(qwens) == given and given.config.base_tokens == 4096
    with pytest.raises(ResDiTError, match="base_size is 'large'; it must be one of 'automatic' or a whole number from"):
        parse_request(({"base_size": "large"},))


def test_an_older_picture_has_the_base_size_that_it_was_made_with():
    base = BY_NAME["base_size"]
    assert [unmentioned(base, version) for version in ("0.1.0", "0.2.2", "0.3.0")] == [1024, 1024, "automatic"]
