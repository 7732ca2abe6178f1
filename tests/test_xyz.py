"""The axes of the X/Y/Z plot: how the host reads their values, and what a picture of the plot is made with."""

import copy
import sys
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest

from resdit_ext import BALANCED, PAPER, ResDiTError
from resdit_ext.webui import xyz
from resdit_ext.webui.options import BY_NAME, DEFAULTS, OPTIONS, parse_request
from resdit_ext.webui.sizes import output_size
from tests.settings import differences


class AxisOption:
    """The host's, which is the same in all of them."""

    def __init__(self, label, type, apply, format_value=None, confirm=None, cost=0.0, choices=None, prepare=None):  # noqa: A002
        self.label, self.type, self.apply, self.format_value = label, type, apply, format_value
        self.confirm, self.cost, self.choices, self.prepare = confirm, cost, choices, prepare


def grid_script(name="xyz_grid.py"):
    """What the host holds for its script: a module of its own, found through the class in it."""
    module = ModuleType(name)
    module.AxisOption, module.axis_options = AxisOption, [AxisOption("Nothing", str, None)]
    return SimpleNamespace(script_class=type("Script", (), {"__module__": name}), module=module)


@pytest.fixture
def host(monkeypatch):
    modules = ModuleType("modules")
    modules.scripts = SimpleNamespace(scripts_data=[grid_script("other.py"), grid_script()])
    monkeypatch.setitem(sys.modules, "modules", modules)
    return modules.scripts


@pytest.fixture
def axes(host):
    xyz.add_axes()
    return {axis.label: axis for axis in host.scripts_data[1].module.axis_options[1:]}


def values_in(axis, text):
    """The values of an axis as the host makes them of its text box."""
    items = axis.prepare(text) if axis.prepare else [item.strip() for item in text.split(",")]
    if axis.type in (int, float) and len(items) == 1 and items[0].count("-") == 1:
        first, last = map(axis.type, items[0].split("-"))
        items = np.linspace(first, last, 3).tolist()
    found = [axis.type(item) for item in items]
    axis.confirm(None, found)
    return found


def picture(p, axis, value):
    """The host's copy of `p` for one picture of the plot."""
    made = copy.copy(p)
    axis.apply(made, value, [value])
    return made


def test_every_option_that_changes_the_picture_is_an_axis(axes):
    expected = [option.label for option in OPTIONS if option.name not in ("enabled", "chunk_mb", "compare")]
    assert list(axes) == [f"[ResDiT] {label}" for label in ("Preset", *expected)]


def test_reload_ui_makes_no_duplicates_and_a_new_script_gets_them_again(host, axes):
    xyz.add_axes()
    script = host.scripts_data[1]
    assert [axis.label for axis in script.module.axis_options[1:]] == list(axes)
    host.scripts_data[1] = grid_script()
    xyz.add_axes()
    assert len(host.scripts_data[1].module.axis_options) == len(axes) + 1
    assert len(host.scripts_data[0].module.axis_options) == 1  # no other script is touched


def test_no_host_or_a_strange_one_is_no_error(host, monkeypatch, caplog):
    caplog.set_level("ERROR", logger="ResDiT")
    host.scripts_data = [SimpleNamespace(script_class=type("Script", (), {"__module__": "xyz_grid.py"}), module=None)]
    xyz.add_axes()
    host.scripts_data = [grid_script()]
    monkeypatch.setattr(host.scripts_data[0].module, "AxisOption", lambda label: None)
    xyz.add_axes()
    monkeypatch.setitem(sys.modules, "modules", None)
    xyz.add_axes()


@pytest.mark.parametrize(
    ("label", "text", "expected"),
    [
        ("Cut-off", "0.1, 0.25", [0.1, 0.25]),
        ("Cut-off", "0.1-0.3", [0.1, 0.2, 0.3]),
        ("Cut-off", "1e-3, ,", [0.001]),
        ("Base size", "automatic, 512, 768.0", ["automatic", 512, 768]),
        ("Custom width", "1024-3072", [1024, 2048, 3072]),
        ("Portrait", "False,True,false", [False, True, False]),
        ("Attention scale", "off, log, 1.2", ["off", "log", 1.2]),
        ("Speed", "exact, fastest", ["exact", "fastest"]),
        ("Apply to", "first pass", ["first pass"]),
        ("Preset", "Paper, Scaled positions", ["Paper", "Scaled positions"]),
    ],
)
def test_values_are_read(axes, label, text, expected):
    found = values_in(axes[f"[ResDiT] {label}"], text)
    assert found == pytest.approx(expected) if isinstance(expected[0], float) else found == expected
    assert [type(value) for value in found] == [type(value) for value in expected]


@pytest.mark.parametrize(
    ("label", "text", "message"),
    [
        ("Cut-off", "wide", "cutoff is 'wide'; it must be a number from 0 to 1"),
        ("Cut-off", "0.1, 7", "cutoff is '7'; it must be a number from 0 to 1"),
        ("Cut-off", "0.5-1.5", "cutoff is 1.5; it must be a number from 0 to 1"),
        ("Cut-off", "-0.1", "cutoff is '-0.1'"),
        ("Base size", "512.5", "base_size is '512.5'; it must be one of 'automatic' or a whole number"),
        ("Portrait", "maybe", "portrait is 'maybe'; it must be true or false"),
        ("Speed", "Fast", "speed is 'Fast'; choose one of 'exact', 'fast', 'fastest'"),
        ("Preset", "Best", "preset is 'Best'; choose one of 'Balanced'"),
        ("Attention scale", "5", "attention_scale is '5'"),
        ("Cut-off", "0.1\r0.2", "cutoff is '0.1\\r0.2'; write numbers with commas between (new-line"),
        ("Cut-off", "1" * 200_000, "cutoff is '1111"),
    ],
)
def test_bad_values_are_named_before_anything_is_made(axes, label, text, message):
    with pytest.raises(ResDiTError) as error:
        values_in(axes[f"[ResDiT] {label}"], text)
    assert str(error.value).startswith(message)


def test_choices_are_what_the_option_takes(axes):
    for axis in axes.values():
        if axis.choices is not None:
            axis.confirm(None, [axis.type(choice) for choice in axis.choices()])


def test_without_a_plot_the_arguments_are_the_same_object():
    args = (True, "3K")
    assert xyz.merged(SimpleNamespace(), args) is args


@pytest.mark.parametrize("args", [(), (False,), tuple(DEFAULTS.values()), ({"cutoff": 0.4, "enabled": False},)])
def test_an_axis_switches_it_on_and_leaves_the_rest(axes, args):
    p = picture(SimpleNamespace(), axes["[ResDiT] Speed"], "fast")
    (merged,) = xyz.merged(p, args)
    given = args[0] | {"size": "WebUI"} if args and isinstance(args[0], dict) else {}  # an object without a size
    assert merged == DEFAULTS | given | {"enabled": True, "speed": "fast"}
    assert parse_request((merged,)).config.speed == "fast"


def test_pictures_do_not_share_their_values(axes):
    p = SimpleNamespace()
    first = picture(p, axes["[ResDiT] Cut-off"], 0.1)
    second = picture(first, axes["[ResDiT] Speed"], "fast")
    assert not vars(p) and first._resdit_xyz == {"cutoff": 0.1}
    assert second._resdit_xyz == {"cutoff": 0.1, "speed": "fast"}


def test_a_preset_replaces_the_pages_values_and_gives_way_to_axes(axes):
    page = ({"cutoff": 0.4, "attention_scale": "off", "base_size": 512},)
    p = picture(SimpleNamespace(), axes["[ResDiT] Cut-off"], 0.1)
    p = picture(p, axes["[ResDiT] Preset"], "Balanced")
    request = parse_request(xyz.merged(p, page))
    assert differences(request.config, BALANCED) == {"cutoff": 0.1, "base_tokens": 1024}
    assert parse_request(xyz.merged(picture(SimpleNamespace(), axes["[ResDiT] Preset"], "Paper"), ())).config == PAPER


@pytest.mark.parametrize(
    ("chosen", "size"),
    [
        ({"Custom width": 1024}, (1024, 3072)),
        ({"Custom height": 2048, "Custom width": 1024}, (1024, 2048)),
        ({"Custom long side": 2048}, (2048, 2048)),
        ({"Custom long side": 2048, "Aspect ratio": "2:1"}, (2048, 1024)),
        ({"Output size": "2K", "Portrait": True, "Aspect ratio": "2:1"}, (1024, 2048)),
        ({"Output size": "WebUI"}, (640, 400)),
    ],
)
def test_the_size_axes_have_their_effect(axes, chosen, size):
    p = SimpleNamespace()
    for label, value in chosen.items():
        p = picture(p, axes[f"[ResDiT] {label}"], value)
    assert output_size(parse_request(xyz.merged(p, (True,))).values, 640, 400) == size


def test_rounding_noise_of_a_range_is_removed(axes):
    axis = axes["[ResDiT] Fused until"]
    value = 1 + 1e-12
    axis.confirm(None, [value])
    assert picture(SimpleNamespace(), axis, value)._resdit_xyz == {"fused_until": 1.0}
    assert BY_NAME["fused_until"].high == 1
