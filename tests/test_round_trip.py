"""Every option from the page into a picture's parameters, back into the page, and through the API: nothing is lost."""

import pytest

from resdit_ext.lab.page import parameters_line, read_parameters
from resdit_ext.webui import infotext
from resdit_ext.webui.options import BY_NAME, DEFAULTS, OPTIONS, parse_request
from resdit_ext.webui.sizes import output_size

PAGE = 640, 400  # the page's own width and height
OTHER = {
    "size": "Custom",
    "ratio": "16:9",
    "portrait": True,
    "width": 1536,
    "height": 2048,
    "global_until": 0.1,
    "fused_until": 0.9,
    "cutoff": 0.35,
    "cutoff_unit": "sampling",
    "attention_scale": "1.2",
    "base_size": 512,
    "base_shape": "square",
    "splice_sigma": 0.5,
    "chunk_mb": 128,
    "speed": "fastest",
    "long_side": 2560,
    "apply_to": "hires pass",
    "layout": "scaled",
    "layout_until": 0.65,
    "borders": "fixed",
    "positions": "yarn",
    "maximal_range": 192,
    "shift": "1.9",
    "compare": True,
    "middle_until": 0.55,
    "fresh_noise": 0.35,
}
NEEDED = {"width": {"ratio": "Free"}, "height": {"ratio": "Free"}, "long_side": {"size": "Custom"}}
CHOICES = [(o.name, choice) for o in OPTIONS for choice in o.choices if choice != o.default]


def test_there_is_another_value_of_every_option():
    assert set(OTHER) == set(BY_NAME) - {"enabled"}
    assert all(value != DEFAULTS[name] for name, value in OTHER.items())


@pytest.mark.parametrize(("name", "value"), [*OTHER.items(), *CHOICES])
def test_every_option_survives_the_round_trip(name, value):
    chosen = DEFAULTS | {"enabled": True} | NEEDED.get(name, {}) | {name: value}
    request = parse_request(tuple(chosen.values()))  # as the page gives them
    assert request.changed()[name] == BY_NAME[name].parse(value)

    width, height = output_size(request.values, *PAGE)
    line = parameters_line(infotext.parameters(request), width, height, 20, 7)
    pasted = {option.name: infotext.restore(option)(read_parameters(line)) for option in OPTIONS}
    again = parse_request(tuple(pasted.values()))
    assert again.config == request.config and again.changed() == request.changed()

    # As an object of named options, which keeps the request's size where it names none.
    by_api = parse_request(({"size": DEFAULTS["size"]} | request.changed(),))
    assert by_api.config == request.config and by_api.changed() == request.changed()
    assert output_size(by_api.values, *PAGE) == output_size(again.values, *PAGE) == (width, height)


def test_all_of_them_together():
    request = parse_request((OTHER,))
    line = parameters_line(infotext.parameters(request), 1, 1, 20, 7)
    pasted = {option.name: infotext.restore(option)(read_parameters(line)) for option in OPTIONS}
    assert parse_request(tuple(pasted.values())).changed() == request.changed()
