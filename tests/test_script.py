"""The script that the WebUI loads: which of the host's controls it follows, and which hook does what."""

import runpy
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

from resdit_ext.webui import lifecycle
from resdit_ext.webui.ui import HOST_DEFAULTS

SCRIPT = Path(__file__).parents[1] / "scripts" / "resdit_highres.py"
IMG2IMG = ("prompt", "width", "height", "steps", "denoising_strength", "seed")
TXT2IMG = (*IMG2IMG, "hr-checkbox", "hires_steps", "hr_scale", "hr_resize_x", "hr_resize_y")


@pytest.fixture
def loaded(monkeypatch):
    """(the script's class, what it has registered) in a host that has nothing else."""
    registered = {}

    class Callbacks(ModuleType):
        def __getattr__(self, name):
            return lambda callback: registered.setdefault(name, callback)

    modules = ModuleType("modules")
    modules.script_callbacks = Callbacks("modules.script_callbacks")
    modules.scripts = SimpleNamespace(Script=object, AlwaysVisible=object())
    modules.shared = SimpleNamespace(opts=SimpleNamespace())
    components = ModuleType("modules.ui_components")
    components.InputAccordion = components.ToolButton = None
    monkeypatch.setitem(sys.modules, "modules", modules)
    monkeypatch.setitem(sys.modules, "modules.ui_components", components)
    return runpy.run_path(str(SCRIPT))["ResDiTHighRes"], registered


@pytest.mark.parametrize(("tab", "expected"), [("txt2img", 10), ("img2img", 5)])
def test_the_tabs_own_controls_are_followed_once_all_are_there(loaded, tab, expected):
    script, followed = loaded[0](), []
    script.is_img2img, script.accordion = tab == "img2img", SimpleNamespace(follow=followed.append)
    for other in ("txt2img", "img2img"):
        for name in (*(TXT2IMG if other == "txt2img" else IMG2IMG), "gallery"):
            script.after_component(f"{other} {name}", elem_id=f"{other}_{name}")
    script.after_component("nameless")
    (host,) = followed
    assert len(host) == expected and host.keys() <= HOST_DEFAULTS.keys()
    assert all(component.startswith(tab) for component in host.values())


def test_the_hooks_reach_the_lifecycle(loaded, monkeypatch):
    script, registered = loaded[0](), loaded[1]
    called = []
    for name in ("before_step", "after_batch", "postprocess"):
        monkeypatch.setattr(lifecycle, name, lambda *args, name=name: called.append((name, *args)))
    script.postprocess_batch("p", "option", images=[], batch_number=0)
    script.postprocess("p", "processed", "option")
    registered["on_cfg_denoiser"](SimpleNamespace(denoiser=SimpleNamespace(p="p")))
    assert called == [("after_batch", "p"), ("postprocess", "p", "processed"), ("before_step", "p")]
