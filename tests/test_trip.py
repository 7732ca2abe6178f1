"""The trip of a q, from the hook to the softmax, is as short as docs/architecture.md draws it."""

import traceback
from pathlib import Path

import pytest
import torch

import resdit_ext
from resdit_ext import families
from resdit_ext.method import layout
from resdit_ext.webui import lifecycle
from tests import fakes
from tests.fakes import CHANNELS, TinySD3

PACKAGE = Path(resdit_ext.__file__).parent
FILES, HOPS = 12, 20
OPTIONS = {"width": 768, "base_size": 128}


def ours():
    """(file, function) of this package's frames, outermost first."""
    frames = [(Path(frame.filename), frame.name) for frame in traceback.extract_stack()]
    return [(str(path.relative_to(PACKAGE)), name) for path, name in frames if path.is_relative_to(PACKAGE)]


@pytest.fixture
def seen(monkeypatch):
    """Where this package stands whenever the host clones its unet and whenever the kernel is called."""
    found = {"clone": [], "kernel": []}

    def spying(kind, original):
        def spy(*args, **kwargs):
            found[kind].append(ours())
            return original(*args, **kwargs)

        return spy

    monkeypatch.setattr(fakes.FakePatcher, "clone", spying("clone", fakes.FakePatcher.clone))
    monkeypatch.setattr(fakes, "attention_function", spying("kernel", fakes.attention_function))
    return found


def generate(model):
    """All hooks, and four model calls."""
    torch.manual_seed(2)
    p = fakes.FakeProcessing(model)
    lifecycle.before_process(p, OPTIONS)
    lifecycle.process(p)
    x = torch.randn(1, CHANNELS, p.height // 8, p.width // 8)
    lifecycle.before_sampling(p, x=x)
    for sigma in (0.95, 0.9, 0.6, 0.1):
        p.sd_model.forge_objects.unet.sample(x, sigma)
    return p


def test_from_the_hook_to_the_softmax(seen):
    generate(fakes.FakeFlux())
    longest = max((trip for trip in seen["kernel"] if ("method/in_attention.py", "resdit_attention") in trip), key=len)
    assert longest[-1][0] == "seams/ways.py"
    trip = [*seen["clone"][0], *longest]
    assert len(trip) <= HOPS, trip
    assert len({file for file, _ in trip}) <= FILES, trip
    page = (PACKAGE.parent / "docs" / "architecture.md").read_text(encoding="utf8")
    missing = {file for file, _ in trip if file.split("/")[-1] not in page and f"{Path(file).parent}" not in page}
    assert not missing


@pytest.mark.parametrize("model", [fakes.FakeFlux, TinySD3])
def test_a_model_is_identified_once_a_generation_and_each_layout_made_once_a_size(model, monkeypatch):
    found, base_grid = [], layout.base_grid
    monkeypatch.setattr(layout, "base_grid", lambda *given: found.append("layout") or base_grid(*given))
    identify = families.identify
    monkeypatch.setattr("resdit_ext.hosts.identify", lambda model: found.append("model") or identify(model))
    layout._lay_out.cache_clear()
    generate(model())
    assert found.count("model") == 1 and found.count("layout") == 2  # whose borders move
