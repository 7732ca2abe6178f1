"""A generation hook by hook, in the order the hosts call them."""

import contextlib
import copy
import gc
import logging
import weakref
from types import SimpleNamespace

import pytest
import torch

from resdit_ext import __version__, hosts
from resdit_ext.hosts import progress
from resdit_ext.hosts.forge import Forge
from resdit_ext.method.shift import shifted_sigmas
from resdit_ext.webui import control, lifecycle
from tests import fakes
from tests.fakes import CHANNELS, FakeFlux, FakeProcessing, FakeSampler
from tests.webui_host import FakeHost

SMALL = {"width": 768, "base_size": 256}  # 48x48 tokens above a 16x16 base
TINY = {"width": 384, "base_size": 128}


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
        p.sd_model.forge_objects.unet, p.sampler = clean, FakeSampler()  # made anew for every pass
        x = torch.randn(1, CHANNELS, p.height // 8, p.width // 8, generator=torch.Generator().manual_seed(7))
        lifecycle.before_sampling(p, *args, x=x, noise=x, c=None, uc=None)
        for sigma in (1.0, 0.5):
            lifecycle.before_step(p)
            out = p.sd_model.forge_objects.unet.sample(x, sigma)
    p.sd_model.forge_objects.unet = clean
    lifecycle.after_batch(p)
    processed = SimpleNamespace()
    lifecycle.postprocess(p, processed)
    return out, processed


def test_a_generation(model):
    p = FakeProcessing(model)
    out, processed = generate(p, {**SMALL, "size": "Custom", "height": 512})
    assert (p.width, p.height) == (768, 512) and out.shape[-2:] == (64, 96)
    assert p.extra_generation_params["ResDiT"] == __version__
    assert p.extra_generation_params["ResDiT base size"] == 256
    (comment,) = p.comments
    assert comment.startswith("ResDiT: active: 768x512")
    assert processed.extra_generation_params["ResDiT notes"] == [comment.removeprefix("ResDiT: ")]
    (run,) = p._resdit.runs
    assert run.calls == {"layout": 1, "fused": 1, "blocks": 6} and not run._made  # nothing is kept on the device


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
    p = FakeProcessing(torch.nn.Linear(2, 2), **HIRES)
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
    monkeypatch.setattr(Forge, "attach", broken)
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
    (run,) = p._resdit.runs
    assert run.calls["blocks"] == 3
    p.sd_model.forge_objects.unet = clean
    p.is_hr_pass, p.hr_second_pass_steps, p.sampler = True, 4, FakeSampler()
    lifecycle.before_sampling(p, x=x)
    assert len(p._resdit.runs) == 2


def test_what_a_pass_has_made_is_gone_when_the_next_begins(model):
    p = FakeProcessing(model)
    lifecycle.before_process(p, SMALL)
    lifecycle.process(p)
    x = torch.randn(1, CHANNELS, 96, 96)
    lifecycle.before_sampling(p, x=x)
    p.sd_model.forge_objects.unet.sample(x, 1.0)
    (first,) = p._resdit.runs
    assert first._made
    p.sampler = FakeSampler()
    lifecycle.before_sampling(p, x=x)
    assert not first._made


def test_a_sampler_without_a_list_falls_back(model):
    p = FakeProcessing(model)
    lifecycle.before_process(p, SMALL)
    lifecycle.process(p)
    p.sampler = FakeSampler()
    del p.sampler.get_sigmas
    lifecycle.before_sampling(p, x=torch.zeros(1, CHANNELS, 96, 96))
    assert p._resdit.runs[0].sigmas == shifted_sigmas(p.steps)


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
    with caplog.at_level(logging.ERROR):
        lifecycle.after_batch(p)
    message = "another extension replaced the model function after ResDiT was attached"
    assert message in caplog.text and any(message in comment for comment in p.comments)
    assert message in p.extra_generation_params["ResDiT not active"] and "ResDiT" not in p.extra_generation_params


def test_an_interrupt_before_the_first_step_is_nobodys_fault(model, monkeypatch):
    host = FakeHost(monkeypatch, fakes.FakePatcher(model))
    host.state.interrupted = True
    made = host.generate(TINY)
    assert len(made.comments) == 1 and "ResDiT not active" not in made.info


def test_tokens_of_another_extension_are_named_as_what_is_not_supported(model, monkeypatch):
    forward = FakeFlux.forward
    monkeypatch.setattr(
        FakeFlux, "forward", lambda self, x, c: forward(self, torch.cat((x, x), -1), c)[..., : x.shape[-1]]
    )
    made = FakeHost(monkeypatch, fakes.FakePatcher(model)).generate(TINY)
    assert "other tokens" in made.pictures[0].parameters["ResDiT not active"]
    assert not any("another extension" in comment for comment in made.comments)


def told(model, options, **attributes):
    """What the user is told before the first step."""
    p = FakeProcessing(model, **attributes)
    lifecycle.before_process(p, options)
    lifecycle.process(p, options)
    return next(iter(p.comments))


HIRES = dict(enable_hr=True, hr_scale=2.0, hr_resize_x=0, hr_resize_y=0, hr_second_pass_steps=0)


def test_what_is_told_is_about_the_passes_that_it_takes_part_in(model):
    options = {**SMALL, "height": 768}
    assert "steps: 4 layout, 3 fused of 7; " in told(model, options)
    assert "steps: 4 layout, 3 fused (hires pass) of 7" in told(model, options, **HIRES)
    first = told(model, {**options, "apply_to": "first pass"}, **HIRES)
    assert "active: 1024x1024" in first and "4 layout, 3 fused (first pass)" in first  # the page's own size


def test_done_counts_every_pass(model, caplog):
    p = FakeProcessing(model)
    with caplog.at_level(logging.INFO, logger="ResDiT"):
        generate(p, SMALL, passes=2)
    assert "done: 2 layout, 2 fused" in caplog.text


def test_tiles_of_the_base_size_are_reported(model):
    p = FakeProcessing(model)

    def tiles(apply_model, args):  # as MultiDiffusion, which is set before
        return torch.cat([apply_model(tile, args["timestep"], **args["c"]) for tile in args["input"].split(32, 3)], 3)

    p.sd_model.forge_objects.unet.set_model_unet_function_wrapper(tiles)
    generate(p, {**SMALL, "width": 512, "height": 256, "size": "Custom"})
    assert "tiles no larger than the base size" in p.extra_generation_params["ResDiT not active"]


def test_a_refusal_in_process_gives_the_size_back_and_takes_the_parameters_out(model, monkeypatch):
    """Whatever the reason, and rounded as the host has rounded the size that was ours."""

    def broken(*_):
        raise KeyError("surprise")

    monkeypatch.setattr(lifecycle, "prepare_vae", broken)
    p = FakeProcessing(model, width=1000, height=1000, init_images=["a picture"])
    p.sd_model.fix_dimensions = lambda width, height: (width // 16 * 16, height // 16 * 16)
    lifecycle.before_process(p, SMALL)
    assert (p.width, p.height) == (768, 768)
    lifecycle.process(p)
    assert (p.width, p.height) == (992, 992)
    assert list(p.extra_generation_params) == ["ResDiT not active"]


def test_a_refusal_while_the_size_is_set_gives_it_back(model, monkeypatch):
    class Stubborn(FakeProcessing):
        @property
        def height(self):
            return 1024

        @height.setter
        def height(self, side):
            if side != 1024:
                raise KeyError("surprise")

    p = Stubborn(model)
    lifecycle.before_process(p, SMALL)
    assert (p.width, p.height) == (1024, 1024) and "surprise" in p.extra_generation_params["ResDiT not active"]


@pytest.mark.parametrize(("options", "late"), [(TINY, True), ({"size": "WebUI", "base_size": 128}, False)])
def test_a_refusal_after_the_noise_is_drawn_is_said_at_once(model, monkeypatch, options, late):
    host, shown = FakeHost(monkeypatch, fakes.FakePatcher(model)), []

    def broken(*_):
        raise KeyError("surprise")

    monkeypatch.setattr(Forge, "attach", broken)
    host.before_step = lambda _: shown.append(host.state.textinfo)
    made = host.generate(options, width=384, height=384)
    parameters = made.pictures[0].parameters
    assert list(parameters) == ["ResDiT not active"]
    assert ("it was too late to restore the WebUI's size" in parameters["ResDiT not active"]) is late
    assert shown[0] == "ResDiT: not active, the console says why"
    assert made.info["ResDiT notes"][1].startswith("not active: internal error")


def test_a_pass_that_is_refused_leaves_the_parameters_of_the_one_before(model, monkeypatch):
    """A checkpoint of another family in the hires pass."""
    host = FakeHost(monkeypatch, fakes.FakePatcher(model))
    other = fakes.FakePatcher(torch.nn.Linear(2, 2))
    other.sample = lambda x, sigma: x
    host.before_step = lambda _: setattr(host, "unet", other)
    options = {**TINY, "width": 512}
    made = host.generate(options, **HIRES | dict(width=256, height=256, denoising_strength=0.5))
    assert "ResDiT" in made.pictures[0].parameters and "ResDiT not active" not in made.pictures[0].parameters
    assert "not active from here on: Linear is not a model" in made.info["ResDiT notes"][1]


def test_nothing_keeps_the_generation_or_its_latents(model, monkeypatch):
    host = FakeHost(monkeypatch, fakes.FakePatcher(model))
    gc.collect()
    gc.disable()  # no circle of ours either
    try:
        made = host.generate(TINY)
        assert "model_function_wrapper" in host.sd_model.forge_objects.unet.model_options  # as the host leaves it
        p, picture = weakref.ref(made.p), weakref.ref(made.pictures[0].latent)
        del made
        assert p() is None and picture() is None
    finally:
        gc.enable()


def test_nothing_keeps_a_generation_that_failed_nor_what_it_made(model, monkeypatch):
    """No hook is called after an error: the host keeps our unet and our VAE until the next generation."""
    host, seen = FakeHost(monkeypatch, fakes.FakePatcher(model)), []
    processing = FakeProcessing.__init__

    def noted(self, *args, **kwargs):
        processing(self, *args, **kwargs)
        seen.append(weakref.ref(self))

    def break_down(number):
        if number == 2:
            (run,) = seen[0]()._resdit.runs
            seen.extend(weakref.ref(made) for made in run._made.values())
            raise RuntimeError("out of memory")

    monkeypatch.setattr(FakeProcessing, "__init__", noted)
    host.before_step = break_down
    with contextlib.suppress(RuntimeError):
        host.generate(TINY)
    gc.collect()  # the traceback's frames
    assert len(seen) == 2 and [ref() for ref in seen] == [None, None]
    assert "model_function_wrapper" in host.sd_model.forge_objects.unet.model_options  # which the host still has


@pytest.mark.parametrize("recalled", [False, True])
def test_a_model_changed_in_the_middle_of_a_pass_gets_resdit_too(model, monkeypatch, recalled):
    """The refiner; ersatzForge calls the hook before sampling again, with `x` alone."""
    host = FakeHost(monkeypatch, fakes.FakePatcher(model))
    torch.manual_seed(8)
    refiner = fakes.FakePatcher(FakeFlux())

    made_so_far = []

    def change(number):
        if number:
            made_so_far.extend(host.p._resdit.runs[0]._made.values())
        if number == 4:
            host.sd_model.forge_objects.unet = refiner
            if recalled:
                lifecycle.before_sampling(host.p, x=torch.zeros(1, CHANNELS, 48, 48))

    attach = Forge.attach
    monkeypatch.setattr(Forge, "attach", lambda f, p, *given: (setattr(host, "p", p), attach(f, p, *given)))
    host.before_step = change
    made = host.generate(TINY)
    (run,) = made.p._resdit.runs
    assert run.calls["blocks"] == 3 * 7 and len(made.comments) == 1
    assert host.shown[-1] == "ResDiT: fused 3/3"
    # What the layout steps need of the one model, two layouts of the other's, and none made anew for a step.
    assert len({id(made) for made in made_so_far}) == 3
    assert "model_function_wrapper" not in refiner.model_options


def test_a_model_of_another_family_in_the_middle_of_a_pass_is_said(model, monkeypatch):
    host = FakeHost(monkeypatch, fakes.FakePatcher(model))
    other = fakes.FakePatcher(torch.nn.Linear(2, 2))
    other.sample = lambda x, sigma: x

    def change(number):
        if number >= 4:
            host.sd_model.forge_objects.unet = other

    host.before_step, attempts, identify = change, [], hosts.identify
    monkeypatch.setattr(hosts, "identify", lambda model: (attempts.append(model), identify(model))[1])
    made = host.generate(TINY)
    notes = made.info["ResDiT notes"]
    assert len(attempts) == 2  # at the beginning of the pass, and once with the other model
    assert len(notes) == 2 and notes[1].startswith("not active from here on: Linear is not a model")


class TimestepSampler:
    """The hosts' DDIM, PLMS and UniPC: no list of noise levels; on FLUX their calls lie among the lowest."""

    def __init__(self):
        self.get_timesteps = lambda p, n: None
        self.levels = torch.linspace(0.26, 0, 8)


def test_a_sampler_that_never_comes_to_the_layout_is_said_to_be_unsuitable(model, monkeypatch):
    host = FakeHost(monkeypatch, fakes.FakePatcher(model))
    host.make_sampler = TimestepSampler
    notes = host.generate(TINY, steps=7).info["ResDiT notes"]
    assert "timesteps are made for older models: they do not suit the model (try Euler with Simple)" in notes[1]
    assert "the first step is at noise level 0.26, in the fused phase, and not at 1, in the layout phase" in notes[2]


def test_a_suitable_one_is_not(model, monkeypatch):
    host = FakeHost(monkeypatch, fakes.FakePatcher(model))
    for attributes in ({}, {"init_images": ["a picture"], "denoising_strength": 0.3}):
        assert len(host.generate(TINY, steps=7, **attributes).comments) == 1


def test_progress_knows_an_interrupt(monkeypatch, model):
    host = FakeHost(monkeypatch, fakes.FakePatcher(model))
    assert not progress.stopped()
    host.state.skipped = True
    assert progress.stopped()


def test_control_counts_its_range_on_the_whole_list_of_the_pass(model, monkeypatch):
    host, seen = FakeHost(monkeypatch, fakes.FakePatcher(model)), []
    before_sampling = lifecycle.before_sampling

    def look(p, *args, **kwargs):
        seen.append((control.steps_of_pass(p), len(lifecycle.sigmas_of_pass(p)) - 1))
        before_sampling(p, *args, **kwargs)

    monkeypatch.setattr(lifecycle, "before_sampling", look)
    host.generate({"enabled": False}, **HIRES | dict(width=128, height=128, denoising_strength=0.5))
    assert seen == [(7, 7), (14, 14)]
