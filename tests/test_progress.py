"""Which step of which phase a model call is, and that the page and the log are told."""

import itertools
import logging
import sys
from types import ModuleType, SimpleNamespace

import pytest
import torch

from resdit_ext.hosts import progress
from resdit_ext.method.layout import Grid, make_layout
from resdit_ext.method.run import Run
from resdit_ext.method.shift import shifted_sigmas
from resdit_ext.webui import lifecycle
from tests.fakes import CHANNELS, FakeFlux, FakeProcessing
from tests.settings import scaled

CONFIG = scaled(fused_until=0.57)
STEPS = {"global": 10, "fused": 10, "local": 15}
DOUBLE = make_layout(Grid(128, 128), CONFIG)
EXPECTED = [(phase, i + 1, n) for phase, n in STEPS.items() for i in range(n)]


@pytest.fixture
def state(monkeypatch):
    """The host's `modules.shared.state`."""
    modules = ModuleType("modules")
    modules.shared = SimpleNamespace(state=SimpleNamespace(textinfo=None), opts=SimpleNamespace())
    monkeypatch.setitem(sys.modules, "modules", modules)
    return modules.shared.state


def told(sigmas, calls):
    seen = []
    run = Run(CONFIG, sigmas, on_step=lambda *step: seen.append(step))
    for sigma in calls:
        run.begin_call(sigma, DOUBLE)
    return seen


def test_a_first_order_sampler_counts_through():
    sigmas = shifted_sigmas(35)
    assert told(sigmas, sigmas[:-1]) == EXPECTED
    assert told(sigmas, torch.tensor(sigmas[:-1]).bfloat16().float().tolist()) == EXPECTED


def test_cfg_in_two_calls_and_heun_count_no_step_twice():
    sigmas = shifted_sigmas(35)
    assert told(sigmas, [s for sigma in sigmas[:-1] for s in (sigma, sigma)])[::2] == EXPECTED
    # Heun's second call is at the next level; the next step's first call says the same.
    seen = told(sigmas, [s for pair in itertools.pairwise(sigmas[:-1]) for s in pair])
    assert seen[::2] == EXPECTED[:-1] and seen[1::2] == EXPECTED[1:]


def test_calls_in_between_belong_to_the_step_that_began():
    sigmas = shifted_sigmas(35)
    middles = [(a * b) ** 0.5 for a, b in itertools.pairwise(sigmas[:-1])]
    inside = [i for i in range(34) if i not in (9, 19)]  # at a border the middle is the next phase's
    assert [told(sigmas, [middles[i]])[0] for i in inside] == [EXPECTED[i] for i in inside]


def test_img2img_enters_part_way_down_and_odd_levels_are_survived():
    sigmas = shifted_sigmas(35)
    assert told(sigmas, [sigmas[4]]) == [("global", 5, 10)]
    assert told(sigmas, [9999.0, 0.0, float("nan")]) == [("global", 1, 10), ("local", 15, 15), ("global", 1, 10)]


def test_a_phase_without_steps_has_no_numbers():
    seen = []
    run = Run(scaled(global_until=1.0), [1.0, 0.5, 0.0], on_step=lambda *step: seen.append(step))
    run.begin_call(0.2, DOUBLE)
    assert seen == [("global", 2, 2)]
    run.sigmas = (1.0,)
    run.begin_call(0.2, DOUBLE)
    assert seen[1] == ("global", 0, 0)


def test_the_page_shows_it_and_the_text_goes(state):
    progress.show("global 4/10")
    assert state.textinfo == "ResDiT: global 4/10"
    progress.clear()
    assert state.textinfo is None
    state.textinfo = "Loading"
    progress.clear()
    assert state.textinfo == "Loading"


def test_without_a_host_nothing_is_shown():
    progress.show("global 4/10")
    progress.clear()


def test_a_generation_shows_every_step_and_logs_every_phase(state, caplog):
    torch.manual_seed(6)
    p = FakeProcessing(FakeFlux(), steps=7)
    options = {"width": 768, "base_size": 256, "fused_until": 0.75}
    lifecycle.before_process(p, options)
    lifecycle.process(p, options)
    x = torch.randn(1, CHANNELS, 96, 96)
    lifecycle.before_sampling(p, x=x, noise=x, c=None, uc=None)
    shown = []
    with caplog.at_level(logging.INFO, logger="ResDiT"):
        for sigma in shifted_sigmas(7)[:-1]:
            p.sd_model.forge_objects.unet.sample(x, sigma)
            shown.append(state.textinfo)
    steps = *(f"layout {i}/4" for i in (1, 2, 3, 4)), "fused 1/2", "fused 2/2", "local 1/1"
    assert shown == [f"ResDiT: {step}" for step in steps]
    phases = [record.getMessage() for record in caplog.records if record.getMessage().startswith("phase")]
    assert phases == ["phase: layout 1/4", "phase: fused 1/2", "phase: local 1/1"]
    lifecycle.postprocess(p, SimpleNamespace(comments=""))
    assert state.textinfo is None


def test_what_an_error_left_is_gone_in_the_next_generation(state):
    state.textinfo = "ResDiT: fused 3/10"
    p = FakeProcessing(FakeFlux())
    lifecycle.before_process(p, {"enabled": False})
    lifecycle.process(p, {"enabled": False})
    assert state.textinfo is None
