"""The settings page, and its values with a host, without one, and after somebody has edited the file."""

import logging
import sys
from types import ModuleType, SimpleNamespace

import pytest

from resdit_ext.method.config import PRESETS
from resdit_ext.webui import settings
from resdit_ext.webui.options import DEFAULTS, parse_request, preset_values


class Info:
    """The host's OptionInfo, as far as the page uses it."""

    def __init__(
        self, default=None, label="", component=None, component_args=None, onchange=None, section=None, category_id=None
    ):
        self.default, self.label, self.component, self.component_args = default, label, component, component_args
        self.onchange, self.section, self.category_id = onchange, section, category_id
        self.comment, self.reload = "", False

    def info(self, text):
        self.comment = text
        return self

    def needs_reload_ui(self):
        self.reload = True
        return self


class Opts:
    """The host's Options: attributes are saved values, or the defaults of what is registered."""

    def __init__(self, **saved):
        self.data, self.data_labels = saved, {}

    def add_option(self, key, info):
        self.data_labels[key] = info
        self.data.setdefault(key, info.default)

    def __getattr__(self, name):
        try:
            return self.__dict__["data"][name]
        except KeyError:
            raise AttributeError(name) from None


@pytest.fixture
def host(monkeypatch):
    """A function that puts a host with these saved settings in place."""

    def start(**saved):
        modules = ModuleType("modules")
        modules.shared = SimpleNamespace(opts=Opts(**saved))
        monkeypatch.setitem(sys.modules, "modules", modules)
        monkeypatch.setitem(sys.modules, "modules.shared", modules.shared)
        return modules.shared.opts

    return start


@pytest.fixture(autouse=True)
def level():
    logger = logging.getLogger("ResDiT")
    before = logger.level
    yield
    logger.setLevel(before)


def everything():
    return settings.verbosity(), settings.vae_tiling(), settings.default_preset(), settings.defaults()


BUILT_IN = ("Normal", "Auto", "Balanced", {})


def test_without_a_host_the_defaults_hold():
    assert everything() == BUILT_IN


def test_before_the_page_is_registered_and_after_it_the_defaults_hold(host):
    opts = host()
    assert everything() == BUILT_IN
    settings.register(opts, Info)
    assert everything() == BUILT_IN


@pytest.mark.parametrize("nonsense", ["", "quiet", None, 7, True, ["Quiet"], {"a": 1}])
def test_nonsense_is_the_default(host, nonsense):
    host(**{setting.key: nonsense for setting in settings.SETTINGS})
    assert everything() == BUILT_IN


def test_a_host_without_options_is_no_host(host, monkeypatch):
    host()
    monkeypatch.setattr(sys.modules["modules"].shared, "opts", None)
    assert everything() == BUILT_IN


@pytest.mark.parametrize("preset", PRESETS)
def test_what_the_page_starts_with(host, preset):
    host(resdit_default_preset=preset, resdit_default_size="4K")
    changed = settings.defaults()
    assert changed["size"] == "4K" and all(value != DEFAULTS[name] for name, value in changed.items())
    page = DEFAULTS | changed
    assert {name: page[name] for name in preset_values(preset)} == preset_values(preset)
    assert parse_request((page | {"enabled": True},)).config == PRESETS[preset]


def test_the_rest_is_read_as_it_is_saved(host):
    host(resdit_vae_tiling="Never", resdit_verbosity="Detailed")
    assert (settings.vae_tiling(), settings.verbosity()) == ("Never", "Detailed")


def test_the_page(host):
    opts = host()
    settings.register(opts, Info)
    settings.register(opts, Info)  # Reload UI
    assert list(opts.data_labels) == [setting.key for setting in settings.SETTINGS]
    for info in opts.data_labels.values():
        assert info.section == ("resdit", "ResDiT High-Res") and info.category_id == "sd" and info.comment
        assert info.default in info.component_args["choices"]
        info.component(label=info.label, value=info.default, **info.component_args)
    reloads = {key for key, info in opts.data_labels.items() if info.reload}
    assert reloads == {"resdit_default_preset", "resdit_default_size"}


@pytest.mark.parametrize(
    ("verbosity", "expected"), [("Quiet", logging.WARNING), ("Normal", logging.INFO), ("Detailed", logging.DEBUG)]
)
def test_the_log_follows_its_setting(host, verbosity, expected):
    opts = host()
    settings.register(opts, Info)
    opts.data["resdit_verbosity"] = verbosity
    opts.data_labels["resdit_verbosity"].onchange()
    assert logging.getLogger("ResDiT").level == expected


@pytest.mark.parametrize(("saved", "multiple"), [({}, 16), ({"res_step": 64}, 64), ({"res_step": 8}, 16)])
def test_sides_are_multiples_of_a_token_and_of_the_hosts_own_step(host, saved, multiple):
    assert settings.size_step() == 16
    host(**saved)
    assert settings.size_step() == multiple
