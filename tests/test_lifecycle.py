"""A generation hook by hook, in the order the hosts call them."""

import copy
import logging
from types import SimpleNamespace

import pytest
import torch

from resdit_ext import __version__
from resdit_ext.hosts import forge
from resdit_ext.webui import lifecycle
from tests.fakes import CHANNELS, FakeFlux, FakeProcessing

SMALL = {"width": 768, "base_size": 256}  # 48x48 tokens above a 16x16 base


@pytest.fixture(autouse=True)
def model():
    torch.manual_seed(6)
    return FakeFlux()


def generate(p, *args, passes=1):
    """What the host does with `p`; returns the latent of the last pass."""
    clean = p.sd_model.forge_objects.unet
    lifecycle.before_process(p, *args)
    lifecycle.process(p, *args)
    for _ in range(passes):
        p.sd_model.forge_objects.unet = clean  # the host resets it before every pass
        x = torch.randn(1, CHANNELS, p.height // 8, p.width // 8, generator=torch.Generator().manual_seed(7))
        lifecycle.before_sampling(p, *args, x=x, noise=x, c=None, uc=None)
        out = p.sd_model.forge_objects.unet.sample(x, 0.5)
    p.sd_model.forge_objects.unet = clean
    processed = SimpleNamespace(comments="")
    lifecycle.postprocess(p, processed)
    return out, processed


def test_a_generation(model):
    p = FakeProcessing(model)
    out, processed = generate(p, {**SMALL, "size": "Custom", "height": 512})
    assert (p.width, p.height) == (768, 512) and out.shape[-2:] == (64, 96)
    assert p.extra_generation_params["ResDiT"] == __version__
    assert p.extra_generation_params["ResDiT base size"] == 256
    (comment,) = p.comments
    assert comment.startswith("ResDiT active: 768x512") and not processed.comments
    (run,) = p._resdit.runs
    assert run.calls == {"fused": 1, "blocks": 3} and not run._made  # nothing is kept on the device


def test_off_touches_nothing(model):
    p = FakeProcessing(model)
    clean = p.sd_model.forge_objects.unet
    before = copy.deepcopy({k: v for k, v in vars(p).items() if k not in ("sd_model", "sampler", "_resdit")})
    lifecycle.before_process(p, False)
    lifecycle.process(p, False)
    lifecycle.before_sampling(p, False, x=torch.zeros(1, CHANNELS, 96, 96))
    assert p.sd_model.forge_objects.unet is clean
    assert {k: v for k, v in vars(p).items() if k not in ("sd_model", "sampler", "_resdit")} == before


def test_a_b_a(model):
    off = {"enabled": False}
    first, _ = generate(FakeProcessing(model, width=768, height=768), off)
    middle, _ = generate(FakeProcessing(model), SMALL)
    last, _ = generate(FakeProcessing(model, width=768, height=768), off)
    assert torch.equal(first, last) and not torch.allclose(first, middle, atol=1e-3)


def test_an_error_while_sampling_does_not_reach_the_next_image(model):
    off = {"enabled": False}
    first, _ = generate(FakeProcessing(model, width=768, height=768), off)

    def break_down(*_):
        raise RuntimeError("out of memory")

    hook = model.single_blocks[0].register_forward_hook(break_down)
    with pytest.raises(RuntimeError):
        generate(FakeProcessing(model), SMALL)
    hook.remove()
    assert torch.equal(generate(FakeProcessing(model, width=768, height=768), off)[0], first)


def test_below_the_base_size_the_unet_is_the_hosts_own(model):
    p = FakeProcessing(model)
    clean = p.sd_model.forge_objects.unet
    lifecycle.before_process(p, {"size": "WebUI"})
    lifecycle.process(p)
    lifecycle.before_sampling(p, x=torch.zeros(1, CHANNELS, 128, 128))
    assert p.sd_model.forge_objects.unet is clean
    assert any("not above the base size" in comment for comment in p.comments)


@pytest.mark.parametrize(
    ("options", "message"),
    [({"wdth": 1}, "unknown field 'wdth'"), ({"cutoff": 7}, "cutoff is 7"), ({"enabled": "on"}, "enabled is 'on'")],
)
def test_bad_options_make_the_image_as_if_off(model, options, message):
    expected, _ = generate(FakeProcessing(model), {"enabled": False})
    p = FakeProcessing(model)
    out, _ = generate(p, options)
    assert torch.equal(out, expected) and (p.width, p.height) == (1024, 1024)
    assert message in p.extra_generation_params["ResDiT not active"]
    assert "ResDiT" not in p.extra_generation_params
    assert any(message in comment for comment in p.comments)


def test_an_unsupported_model_or_host_is_refused_aloud():
    p = FakeProcessing(torch.nn.Linear(2, 2))
    lifecycle.before_process(p, SMALL)
    lifecycle.process(p)
    assert "Linear is not a model of a supported family" in p.extra_generation_params["ResDiT not active"]
    assert (p.width, p.height) == (1024, 1024)
    p = FakeProcessing(torch.nn.Linear(2, 2), enable_hr=True, hr_resize_x=0, hr_resize_y=0, hr_scale=2.0)
    lifecycle.before_process(p, SMALL)
    lifecycle.process(p)
    assert (p.width, p.height, p.hr_resize_x, p.hr_resize_y) == (1024, 1024, 0, 0)
    p = FakeProcessing(sd_model=SimpleNamespace())
    lifecycle.before_process(p, SMALL)
    lifecycle.process(p)
    assert "this WebUI is not supported" in p.extra_generation_params["ResDiT not active"]


def test_an_internal_error_is_logged_told_and_the_image_goes_on(model, monkeypatch, caplog):
    def broken(*_):
        raise KeyError("surprise")

    expected, _ = generate(FakeProcessing(model, width=768, height=768), {"enabled": False})
    monkeypatch.setattr(forge, "attach_to", broken)
    p = FakeProcessing(model)
    out, _ = generate(p, SMALL)
    assert torch.equal(out, expected)
    assert "internal error (KeyError" in p.extra_generation_params["ResDiT not active"]
    assert "surprise" in caplog.text


def test_with_hires_the_size_is_that_of_the_saved_picture(model):
    p = FakeProcessing(model, enable_hr=True, hr_resize_x=0, hr_resize_y=0, hr_scale=2.0)
    lifecycle.before_process(p, {"size": "3K", "ratio": "3:2"})
    assert (p.width, p.height, p.hr_resize_x, p.hr_resize_y) == (1024, 1024, 3072, 2048)
    assert lifecycle.final_size(p) == (3072, 2048)
    p = FakeProcessing(model, enable_hr=True, hr_resize_x=0, hr_resize_y=0, hr_scale=2.5)
    lifecycle.before_process(p, {"size": "WebUI"})
    assert lifecycle.final_size(p) == (2560, 2560)
    p.hr_resize_x = 3072
    assert lifecycle.final_size(p) == (3072, 3072)


def test_the_doubled_hires_call_attaches_once(model):
    """Forge calls the hook on the first pass's unet, resets, and calls it again."""
    p = FakeProcessing(model)
    clean = p.sd_model.forge_objects.unet
    lifecycle.before_process(p, SMALL)
    lifecycle.process(p)
    x = torch.randn(1, CHANNELS, 96, 96)
    lifecycle.before_sampling(p, x=x)
    lifecycle.before_sampling(p, x=x)
    p.sd_model.forge_objects.unet.sample(x, 0.5)
    assert [run.calls["blocks"] for run in p._resdit.runs] == [0, 3]
    p.sd_model.forge_objects.unet = clean
    p.is_hr_pass, p.hr_second_pass_steps = True, 4
    asked = []
    p.sampler.get_sigmas = lambda p, n: asked.append(n) or torch.linspace(1, 0, n + 1)
    lifecycle.before_sampling(p, x=x)
    assert asked == [4]


def test_a_sampler_without_a_list_falls_back(model):
    p = FakeProcessing(model, sampler=SimpleNamespace())
    generate(p, SMALL)
    assert p._resdit.runs[0].calls["blocks"] == 3


def test_a_stolen_wrapper_is_reported(model, caplog):
    p = FakeProcessing(model)
    lifecycle.before_process(p, SMALL)
    lifecycle.process(p)
    x = torch.randn(1, CHANNELS, 96, 96)
    lifecycle.before_sampling(p, x=x)
    unet = p.sd_model.forge_objects.unet
    unet.set_model_unet_function_wrapper(
        lambda apply_model, args: apply_model(args["input"], args["timestep"], **args["c"])
    )
    unet.sample(x, 0.5)
    processed = SimpleNamespace(comments="")
    with caplog.at_level(logging.ERROR):
        lifecycle.postprocess(p, processed)
    assert "another extension replaced the model function" in processed.comments


def told(model, options, **attributes):
    """What the user is told before the first step."""
    p = FakeProcessing(model, **attributes)
    lifecycle.before_process(p, options)
    lifecycle.process(p, options)
    return next(iter(p.comments))


HIRES = dict(enable_hr=True, hr_scale=2.0, hr_resize_x=0, hr_resize_y=0)


def test_what_is_told_is_about_the_passes_that_it_takes_part_in(model):
    options = {**SMALL, "height": 768}
    assert "steps: 2 global, 5 fused of 7; attention" in told(model, options)
    for partly in (HIRES, {"init_images": ["a picture"]}):  # the host decides how many of the steps are run
        line = told(model, options, **partly)
        assert "active: 768x768" in line and "steps:" not in line and "attention" not in line
    first = told(model, {**options, "apply_to": "first pass"}, **HIRES)
    assert "active: 1024x1024" in first and "steps: 2 global, 5 fused of 7" in first  # the page's own size


def test_done_counts_every_pass(model, caplog):
    p = FakeProcessing(model)
    with caplog.at_level(logging.INFO, logger="ResDiT"):
        generate(p, SMALL, passes=2)
    assert "done: 2 fused" in caplog.text


def test_tiles_of_the_base_size_are_reported(model):
    p = FakeProcessing(model)

    def tiles(apply_model, args):  # as MultiDiffusion, which is set before
        return torch.cat([apply_model(tile, args["timestep"], **args["c"]) for tile in args["input"].split(32, 3)], 3)

    p.sd_model.forge_objects.unet.set_model_unet_function_wrapper(tiles)
    _, processed = generate(p, {**SMALL, "width": 512, "height": 256, "size": "Custom"})
    assert "tiles no larger than the base size" in processed.comments
