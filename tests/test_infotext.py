"""The options in a picture's parameters: written, read back into the page, also from older pictures."""

import dataclasses
import re

import pytest
from hypothesis import given

from resdit_ext import __version__
from resdit_ext.webui import infotext
from resdit_ext.webui.options import BY_NAME, OPTIONS, parse_request
from resdit_ext.webui.sizes import output_size
from tests.test_options import requests

HOST_PATTERN = re.compile(r'\s*(\w[\w \-/]+):\s*("(?:\\.|[^\\"])+"|[^,]*)(?:,|$)')  # the hosts' own
# The options of 0.1.1, with a value of each that is not its default.
OF_0_1_1 = (
    "Steps: 20, Seed: 7, Size: 2048x1152, ResDiT: 0.1.1, ResDiT output size: Custom, ResDiT aspect ratio: 16:9, "
    "ResDiT portrait: True, ResDiT custom width: 1536, ResDiT custom height: 2048, ResDiT global until: 0.1, "
    "ResDiT fused until: 0.9, ResDiT cut-off: 0.35, ResDiT cut-off unit: sampling, ResDiT attention scale: 1.2, "
    "ResDiT base size: 512, ResDiT base shape: square, ResDiT splice sigma: 0.5, ResDiT chunk memory: 128, "
    "ResDiT speed: fastest, ResDiT custom long side: 2560, ResDiT apply to: hires pass"
)
VALUES_OF_0_1_1 = {
    "enabled": True,
    "size": "Custom",
    "ratio": "16:9",
    "portrait": True,
    "width": 1536,
    "height": 2048,
    "global_until": 0.1,
    "fused_until": 0.9,
    "cutoff": 0.35,
    "cutoff_unit": "sampling",
    "attention_scale": 1.2,
    "base_size": 512,
    "base_shape": "square",
    "splice_sigma": 0.5,
    "chunk_mb": 128,
    "speed": "fastest",
    "long_side": 2560,
    "apply_to": "hires pass",
    "layout": "scaled",  # it had no other
    "layout_until": 0.8,
    "borders": "fixed",
    "positions": "automatic",
    "maximal_range": 256,
    "shift": "WebUI",
    "compare": False,
    "middle_until": 1.0,  # it had none of these steps
    "fresh_noise": 0.0,
}


def pasted(text, options=OPTIONS):
    """The value of every option, as the host restores it from a picture's parameters."""
    read = dict(HOST_PATTERN.findall(text))
    return {option.name: infotext.restore(option)(read) for option in options}


def test_a_picture_of_0_1_1_is_read_as_it_was_made():
    assert pasted(OF_0_1_1) == VALUES_OF_0_1_1


def test_a_picture_of_0_1_1_would_be_written_the_same():
    ratio, free = parse_request((VALUES_OF_0_1_1,)), parse_request((VALUES_OF_0_1_1 | {"ratio": "Free"},))
    written = infotext.parameters(free) | infotext.parameters(ratio)  # the sides count in a free frame alone
    expected = dict(HOST_PATTERN.findall(OF_0_1_1.partition("ResDiT: 0.1.1, ")[2]))
    expected |= {
        "ResDiT": __version__,
        "ResDiT layout": "scaled",
        "ResDiT borders": "fixed",
        "ResDiT middle until": "1.0",
        "ResDiT fresh noise": "0.0",
    }  # which are no defaults now
    assert {key: str(value) for key, value in written.items()} == expected


@pytest.mark.parametrize(
    ("version", "layout", "speed"),
    [("0.1.0", "scaled", "exact"), ("0.2.0", "scaled", "exact"), ("0.2.1", "base", "fast"), ("0.10.0", "base", "fast")],
)
def test_what_a_picture_does_not_mention_means_what_it_meant_then(version, layout, speed):
    found = pasted(f"Steps: 20, ResDiT: {version}, ResDiT cut-off: 0.7")
    assert (found["layout"], found["speed"], found["cutoff"]) == (layout, speed, 0.7)


@pytest.mark.parametrize(("version", "cutoff"), [("0.1.0", 0.2), ("0.2.1", 0.2), ("0.2.2", 0.75), (__version__, 0.75)])
def test_the_cutoff_was_another_before_0_2_2(version, cutoff):
    found = pasted(f"Steps: 20, ResDiT: {version}")
    assert (found["cutoff"], found["cutoff_unit"]) == (cutoff, "nyquist" if cutoff == 0.2 else "base")


def test_a_renamed_label_is_of_no_account(monkeypatch):
    renamed = {name: dataclasses.replace(option, label=f"New {name}") for name, option in BY_NAME.items()}
    before = infotext.parameters(parse_request((VALUES_OF_0_1_1,)))
    monkeypatch.setattr(infotext, "BY_NAME", renamed)
    assert pasted(OF_0_1_1, renamed.values()) == VALUES_OF_0_1_1
    assert infotext.parameters(parse_request((VALUES_OF_0_1_1,))) == before
    for name, option in renamed.items():
        assert infotext.PasteField(option) == infotext.PasteField(BY_NAME[name])


def test_every_option_has_a_key_of_its_own_that_the_hosts_can_read():
    keys = [option.key for option in OPTIONS]
    assert len(set(keys)) == len(keys)
    assert all(HOST_PATTERN.fullmatch(f"{key}: x") for key in keys)
    assert all(key == "ResDiT" or key.startswith("ResDiT ") for key in keys)


@given(requests)
def test_round_trip(values):
    """What is written, read as the host reads it, sets every component that has an effect to where it was."""
    request = parse_request((values,))
    written = ", ".join(f"{key}: {value}" for key, value in infotext.parameters(request).items())
    again = parse_request((pasted(written),))
    assert f"ResDiT: {__version__}" in written
    assert again.config == request.config
    assert output_size(again.values, 640, 400) == output_size(request.values, 640, 400)


def test_only_what_differs_is_written():
    assert infotext.parameters(parse_request((True,))) == {"ResDiT": __version__}
    written = infotext.parameters(parse_request(({"size": "4K", "ratio": "2:1", "width": 512 + 16},)))
    assert written == {"ResDiT": __version__, "ResDiT output size": "4K", "ResDiT aspect ratio": "2:1"}


def test_pasting_an_image_without_it_switches_it_off_and_leaves_the_rest():
    restored = pasted("Steps: 20, Size: 1024x1024")
    assert restored.pop("enabled") is False
    assert set(restored.values()) == {None}


def test_a_paste_field_is_a_name_and_a_function():
    """As the hosts use it: compared with names, and called where it is callable."""
    written = infotext.parameters(parse_request(({"cutoff": 0.4, "speed": "fast"},)))
    fields = {option.name: infotext.PasteField(option) for option in OPTIONS}
    assert fields["cutoff"] in list(written) and fields["enabled"] == "ResDiT"
    assert len(set(fields.values())) == len(OPTIONS)
    assert callable(fields["cutoff"]) and fields["cutoff"](written) == 0.4 and fields["enabled"](written) is True


@pytest.mark.parametrize("text", ["twelve", "", "99", "nan"])
def test_a_damaged_value_pastes_as_the_default(text):
    option = BY_NAME["cutoff"]
    assert infotext.restore(option)({"ResDiT": "0.1.0", option.key: text}) == option.default
