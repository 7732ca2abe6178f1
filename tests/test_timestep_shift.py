"""The option Timestep shift: the levels that a pass is sampled at, and that no other picture sees anything of it."""

import math
from types import SimpleNamespace

import pytest
import torch

from resdit_ext.method.shift import shifted_sigmas
from resdit_ext.monkeypatch import is_ours
from resdit_ext.webui import levels, lifecycle
from resdit_ext.webui.forecast import forecast
from resdit_ext.webui.options import parse_request
from tests import fakes
from tests.fakes import FakeFlux, FakeSampler
from tests.webui_host import FakeHost

TINY = {"width": 256, "base_size": 128}  # 16x16 tokens above 8x8: twice the side
OWN, DOUBLE = 1.15, math.log(2)
HIRES = dict(enable_hr=True, hr_scale=2.0, hr_resize_x=0, hr_resize_y=0, hr_second_pass_steps=0)


@pytest.fixture
def host(monkeypatch):
    torch.manual_seed(6)
    return FakeHost(monkeypatch, fakes.FakePatcher(FakeFlux()))


def sampled(host, options, **attributes):
    """The noise levels that a picture's last pass was sampled at, and the messages about it."""
    comments = host.generate(options, **attributes).comments
    return host.ran, comments


def at(mu, steps=7):
    return pytest.approx(shifted_sigmas(steps, mu)[:-1], abs=1e-5)


@pytest.mark.parametrize(
    ("shift", "mu"), [("WebUI", OWN), ("automatic", OWN + DOUBLE), (0, 0), (2.5, 2.5), (OWN, OWN), (5, 5)]
)
def test_the_levels_of_a_picture(host, shift, mu):
    ran, (comment,) = sampled(host, TINY | {"shift": shift})
    assert ran == at(mu)
    assert ("timestep shift" in comment) is (shift != "WebUI")


@pytest.mark.parametrize("own", [0.0, math.log(3)])
def test_a_number_is_the_shift_whatever_the_models_own_is(host, own):
    host.make_sampler = lambda: FakeSampler(mu=own)
    assert sampled(host, TINY | {"shift": 2.0})[0] == at(2.0)
    assert sampled(host, TINY | {"shift": "automatic"})[0] == at(own + DOUBLE)


def test_the_hosts_own_is_not_touched(host):
    made = host.generate(TINY)
    assert not is_ours(made.p.sampler.get_sigmas, levels.SHIFTED)
    assert "ResDiT timestep shift" not in made.pictures[0].parameters
    shifted = host.generate(TINY | {"shift": "automatic"})
    assert is_ours(shifted.p.sampler.get_sigmas, levels.SHIFTED)
    assert shifted.pictures[0].parameters["ResDiT timestep shift"] == "automatic"
    assert torch.equal(host.generate(TINY).pictures[0].latent, made.pictures[0].latent)


@pytest.mark.parametrize("options", [{"size": "WebUI", "base_size": 256}, {"enabled": False}])
@pytest.mark.parametrize("shift", ["automatic", 3.0])
def test_at_the_base_size_and_switched_off_the_levels_are_the_hosts(host, options, shift):
    plain = host.generate(False, width=256, height=256)
    made = host.generate(options | {"shift": shift}, width=256, height=256)
    assert host.ran == at(OWN) and torch.equal(made.pictures[0].latent, plain.pictures[0].latent)


@pytest.mark.parametrize("end", ["error", "interrupt"])
def test_nothing_has_to_be_put_back_however_a_pass_ends(host, end):
    """The model's table is what all pictures share; samplers are made for each pass."""
    before, samplers = host.generate(TINY), []
    model = SimpleNamespace(sigmas=FakeSampler().model_wrap.sigmas)
    table = model.sigmas.clone()
    host.make_sampler = lambda: samplers.append(FakeSampler(model_wrap=model)) or samplers[-1]

    def stop(number):
        if number == 3:
            host.state.interrupted = end == "interrupt"
            if end == "error":
                raise RuntimeError("out of memory")

    host.before_step = stop
    if end == "error":
        with pytest.raises(RuntimeError, match="out of memory"):
            host.generate(TINY | {"shift": "automatic"})
    else:
        host.generate(TINY | {"shift": "automatic"})
    assert host.ran[:3] == pytest.approx(shifted_sigmas(7, OWN + DOUBLE)[:3], abs=1e-5) and len(host.ran) < 7
    host.before_step, host.state.interrupted = lambda _: None, False
    assert torch.equal(model.sigmas, table)
    assert torch.equal(host.generate(TINY).pictures[0].latent, before.pictures[0].latent) and host.ran == at(OWN)
    assert host.generate(False, width=256, height=256) and host.ran == at(OWN)


def test_each_pass_has_the_shift_of_its_size(host):
    """The first at the base size, the second at twice its side and from a strength of a half."""
    ran, _ = sampled(host, {"size": "WebUI", "base_size": 256, "shift": "automatic"}, width=256, height=256,
                    denoising_strength=0.5, **HIRES)  # fmt: skip
    assert ran == pytest.approx(shifted_sigmas(14, OWN + math.log(2))[7:14], abs=1e-5)
    ran, _ = sampled(host, TINY | {"shift": "automatic", "apply_to": "first pass"}, width=256, height=256,
                    denoising_strength=0.5, **HIRES)  # fmt: skip
    assert ran == pytest.approx(shifted_sigmas(14)[7:14], abs=1e-5)


def test_a_second_call_of_the_hook_shifts_no_further(host, monkeypatch):
    before_sampling = lifecycle.before_sampling
    monkeypatch.setattr(lifecycle, "before_sampling", lambda *a, **k: [before_sampling(*a, **k) for _ in range(2)])
    assert sampled(host, TINY | {"shift": "automatic"})[0] == at(OWN + DOUBLE)


def test_what_is_told_is_what_is_run(host):
    """A higher shift makes more layout steps; a control unit that asks beforehand is told the same levels."""
    asked, before_sampling = [], lifecycle.before_sampling

    def ask_first(p, *args, **kwargs):
        asked.append(lifecycle.sigmas_of_pass(p))
        before_sampling(p, *args, **kwargs)
        asked.append(lifecycle.sigmas_of_pass(p))

    patched = pytest.MonkeyPatch()
    patched.setattr(lifecycle, "before_sampling", ask_first)
    try:
        made = host.generate(TINY | {"shift": 3.0}, steps=20)
    finally:
        patched.undo()
    (comment,) = made.comments
    calls = made.p._resdit.runs[0].calls
    assert f"steps: {calls['layout']} layout, {calls['fused']} fused of 20" in comment
    assert torch.equal(*asked) and asked[0].tolist() == pytest.approx(shifted_sigmas(20, 3.0), abs=1e-5)
    assert calls["layout"] > host.generate(TINY, steps=20).p._resdit.runs[0].calls["layout"]


def test_where_it_cannot_be_it_is_said_and_the_hosts_own_is_used(host):
    odd = torch.linspace(0.01, 1, 1000) ** 2
    host.make_sampler = lambda: FakeSampler(model_wrap=SimpleNamespace(sigmas=odd))
    ran, comments = sampled(host, TINY | {"shift": 2.0})
    assert ran == at(OWN)
    assert comments[1] == ("ResDiT: timestep shift 2 has no effect: the model's own is not known; automatic works")
    assert sampled(host, TINY | {"shift": "automatic"})[0] == at(OWN + DOUBLE)

    class TimestepSampler:
        get_timesteps = staticmethod(lambda p, n: None)
        levels = torch.linspace(1, 0, 8)

    host.make_sampler = TimestepSampler
    ran, comments = sampled(host, TINY | {"shift": "automatic"})
    assert ran == pytest.approx(torch.linspace(1, 0, 8)[:-1].tolist())
    assert "timestep shift has no effect: this sampler has no list of noise levels" in comments[1]


def test_the_forecast():
    def of(side=3072, **options):
        return forecast(parse_request((options,)), side, side, 35).as_dict()

    assert of()["shift"] is None and of(1024, shift=2)["active"] is False
    assert of(shift="automatic")["shift"] == pytest.approx(OWN + math.log(3))
    assert of(shift=0.5)["shift"] == 0.5 and of(shift=0.5)["phases"]["layout"] < of()["phases"]["layout"]
    assert "; timestep shift 2.25;" in of(shift="automatic")["line"]
