"""What is said is true: forecast, read-out, progress, parameters and the API's answer are of what was made."""

import re
from collections import Counter
from types import SimpleNamespace

import pytest
import torch

from resdit_ext.webui import infotext, lifecycle, passes, settings
from resdit_ext.webui.options import OPTIONS, parse_request
from resdit_ext.webui.sizes import output_size
from resdit_ext.webui.ui import forecast_of_page
from tests.fakes import FakeFlux, FakePatcher, FakeProcessing, FakeSampler
from tests.webui_host import FakeHost

SIZE = {"size": "Custom", "ratio": "Free", "width": 416, "height": 272, "base_size": 128}
HIRES = dict(width=128, height=128, enable_hr=True, hr_scale=2.0, hr_resize_x=0, hr_resize_y=0, hr_second_pass_steps=0)
PASSES = {
    "txt2img": {},
    "img2img": {"init_images": ["a picture"], "denoising_strength": 0.75},
    "hires": HIRES | {"denoising_strength": 0.5},
    "hires steps": HIRES | {"denoising_strength": 0.3, "hr_second_pass_steps": 3},
    "slight img2img": {"init_images": ["a picture"], "denoising_strength": 0.05},
}
HOSTS = {
    "Forge": {},
    "Forge, steps as ordered": {"fixed": True},
    "ersatzForge": {"counts_from": 1, "fixed": True},
    "Neo": {"rounding": 64},
}


@pytest.fixture
def unet():
    torch.manual_seed(6)
    return FakePatcher(FakeFlux())


def steps_in(text):
    return Counter({phase: int(n) for n, phase in re.findall(r"(\d+) (layout|global|fused|local)", text)})


@pytest.mark.parametrize("kind", PASSES)
@pytest.mark.parametrize("name", HOSTS)
def test_all_that_is_said_is_of_what_was_made(unet, monkeypatch, name, kind):
    host = FakeHost(monkeypatch, unet, **HOSTS[name])
    monkeypatch.setattr(settings, "size_step", lambda: max(16, HOSTS[name].get("rounding", 16)))
    made = host.generate(SIZE, steps=6, **PASSES[kind])
    (picture,), (line, *others) = made.pictures, made.comments
    expected = (384, 256) if name == "Neo" else (416, 272)
    assert picture.size == expected and not others

    calls = Counter({phase: made.p._resdit.runs[-1].calls[phase] for phase in ("layout", "fused", "local")})
    size = "{}x{}".format(*picture.size)
    assert f"active: {size}," in line
    assert steps_in(line.partition("steps: ")[2]) == +calls and f" of {len(host.ran)};" in line
    if kind.startswith("hires"):
        assert "(hires pass)" in line

    shown = [re.fullmatch(r"ResDiT: (\w+) (\d+)/(\d+)", text).groups() for text in host.shown]
    told = [(phase, i + 1, n) for phase, n in calls.items() for i in range(n)]
    assert [(phase, int(number), int(count)) for phase, number, count in shown] == told

    page = {"width": 1024, "height": 1024, "steps": 6} | PASSES[kind]
    options = tuple(parse_request((SIZE,)).values.values())
    read_out = forecast_of_page(page, options)
    assert (read_out.width, read_out.height) == picture.size
    assert read_out.phases == dict(+calls) and read_out.steps == len(host.ran)

    written = {key: str(value) for key, value in picture.parameters.items()}
    pasted = tuple(infotext.restore(option)(written) for option in OPTIONS)
    assert output_size(parse_request(pasted).values, 1, 1, settings.size_step()) == picture.size
    assert made.info["ResDiT notes"] == [line.removeprefix("ResDiT: ")]
    assert picture.parameters.items() <= made.info.items()
    assert "ResDiT notes" not in picture.parameters and "ResDiT not active" not in picture.parameters


def test_where_the_samplers_levels_make_other_steps_that_is_told(unet, monkeypatch):
    host = FakeHost(monkeypatch, unet)
    levels = torch.linspace(1, 0, 7)
    host.make_sampler = lambda: FakeSampler(levels=levels, get_sigmas=lambda p, n: levels)
    made = host.generate(SIZE, steps=6)
    assert "steps: 3 layout, 3 fused of 6" in made.comments[0]
    assert made.comments[1] == "ResDiT: with this sampler and schedule type: 2 layout, 4 fused"
    assert made.p._resdit.runs[-1].calls["layout"] == 2 and len(made.comments) == 2


def test_what_the_host_rounds_without_our_knowing_is_told_as_made(unet, monkeypatch):
    host = FakeHost(monkeypatch, unet, rounding=64)
    made = host.generate(SIZE | {"size": "Custom", "ratio": "3:2", "long_side": 432}, steps=6)
    assert made.pictures[0].size == (384, 256) and "active: 384x256," in made.comments[0]
    assert made.pictures[0].parameters["ResDiT custom long side"] == 384
    made = host.generate(SIZE, steps=6)
    parameters = made.pictures[0].parameters
    sides = parameters["ResDiT custom width"], parameters["ResDiT custom height"]
    assert sides == made.pictures[0].size == (384, 256)


@pytest.mark.parametrize(("apply_to", "which"), [("first pass", "first pass"), ("both", "first pass")])
def test_a_hires_pass_of_the_base_size_leaves_the_first_to_be_told(unet, monkeypatch, apply_to, which):
    host = FakeHost(monkeypatch, unet)
    small = {"size": "WebUI", "base_size": 256, "apply_to": apply_to}
    down = HIRES | dict(width=768, height=768, hr_resize_x=256, hr_resize_y=256, denoising_strength=0.5)
    made = host.generate(small, steps=6, **down)
    assert "active: 768x768" in made.comments[0] and f"({which})" in made.comments[0]
    assert not made.p._resdit.owns_final


def test_a_picture_that_resdit_left_alone_does_not_claim_it(unet, monkeypatch):
    made = FakeHost(monkeypatch, unet).generate({"size": "WebUI", "base_size": 256}, width=256, height=256)
    reason = "256x256 is not above the base size (256 px squared)"
    assert made.pictures[0].parameters == {"ResDiT not active": reason}
    assert made.info["ResDiT notes"] == [f"not active: {reason}"] and made.comments == [f"ResDiT: not active: {reason}"]


def test_switched_off_nothing_is_said(unet, monkeypatch):
    made = FakeHost(monkeypatch, unet).generate({"enabled": False}, width=256, height=256)
    assert made.info == made.pictures[0].parameters == {} and made.comments == []


def test_warnings_reach_the_api_and_not_the_picture(unet, monkeypatch):
    host = FakeHost(monkeypatch, unet)
    levels = torch.tensor([9999.0, 5000.0, 1.0, 0.0])
    host.make_sampler = lambda: FakeSampler(levels=levels, get_sigmas=lambda p, n: levels)
    made = host.generate(SIZE, steps=3)
    notes = made.info["ResDiT notes"]
    assert "noise levels start at 9999" in notes[1] and len(notes) == len(made.comments)
    assert not any("9999" in str(value) for value in made.pictures[0].parameters.values())


def test_the_next_picture_of_one_order_begins_anew(unet, monkeypatch):
    """img2img's batch uses one `p` for all its pictures."""
    host = FakeHost(monkeypatch, unet)
    made = host.generate({"cutoff": 7}, width=256, height=256)
    assert "ResDiT not active" in made.pictures[0].parameters
    lifecycle.before_process(made.p, {"enabled": False})
    assert not made.p.extra_generation_params
    lifecycle.before_process(made.p, {"cutoff": 7})
    answer = SimpleNamespace(extra_generation_params={})
    lifecycle.postprocess(made.p, answer)
    assert len(answer.extra_generation_params["ResDiT notes"]) == 1
    lifecycle.before_process(made.p, {"enabled": False})
    answer = SimpleNamespace(extra_generation_params={})
    lifecycle.postprocess(made.p, answer)
    assert answer.extra_generation_params == {}


class Cropping(FakeProcessing):
    """A1111's hires: the picture is enlarged in its own ratio and cut to the asked one, in latent pixels."""

    truncate_x = truncate_y = 0

    def calculate_target_resolution(self):
        self.extra_generation_params["Hires resize"] = "too early"
        self.hr_upscale_to_x, self.hr_upscale_to_y = self.hr_resize_x, self.hr_resize_x * self.height // self.width
        self.truncate_y = (self.hr_upscale_to_y - self.hr_resize_y) // 8


def test_the_size_of_a_hires_picture_is_by_the_hosts_own_rule():
    p = Cropping(width=1000, height=1000, enable_hr=True, hr_resize_x=1500, hr_resize_y=1000)
    assert passes.final_size(p) == (1496, 1000)
    assert p.truncate_y == 0 and not p.extra_generation_params
