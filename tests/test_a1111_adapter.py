"""SD3 in A1111: the sampler's own denoiser, on fakes of the host's shapes (the real one is in tests/hosts)."""

import sys
from types import ModuleType, SimpleNamespace

import pytest
import torch

from resdit_ext import Unsupported, __version__
from resdit_ext.families import identify
from resdit_ext.hosts.a1111 import A1111, attach
from resdit_ext.method.run import Run
from resdit_ext.webui import lifecycle
from tests.fakes import CHANNELS, WIDTH, FakeDenoiser, FakeFlux, FakeProcessing, FakeSampler, TinySD3
from tests.settings import scaled

CONFIG = scaled(base_tokens=64, fused_until=0.57)
SIGMAS = [1 - i / 7 for i in range(8)]


@pytest.fixture
def model():
    torch.manual_seed(2)
    return TinySD3()


def latent(*size, batch=1):
    return torch.randn(batch, CHANNELS, *size, generator=torch.Generator().manual_seed(4))


@torch.inference_mode()
def call(denoiser, x, sigma, text=3):
    cond = {"crossattn": torch.randn(len(x), text, WIDTH, generator=torch.Generator().manual_seed(5))}
    return denoiser(x, torch.full((len(x),), sigma), cond=cond)


def test_it_runs_in_every_phase_and_goes_with_the_denoiser(model):
    x = latent(48, 32, batch=2)
    plain = {sigma: call(FakeDenoiser(model), x, sigma) for sigma in (0.9, 0.6, 0.2)}
    denoiser, run = FakeDenoiser(model), Run(CONFIG, SIGMAS)
    attach(denoiser, identify(model), run)
    for sigma, expected in plain.items():
        assert not torch.allclose(call(denoiser, x, sigma), expected, atol=1e-3)
    patches = 3 * 3  # 24 x 16 tokens, patches of 10 x 7
    assert run.calls == {"global": 1, "fused": 1, "local": 1, "model calls": 2 + 2 * patches}
    for sigma, expected in plain.items():
        assert torch.equal(call(FakeDenoiser(model), x, sigma), expected)


def test_beyond_the_table_and_at_the_base_size(model):
    denoiser, run = FakeDenoiser(model), Run(CONFIG, SIGMAS)
    attach(denoiser, identify(model), run)
    assert torch.isfinite(call(denoiser, latent(60, 60), 0.6)).all()  # 30 tokens, the table has 24
    small = latent(16, 16)
    assert torch.equal(call(denoiser, small, 0.6), call(FakeDenoiser(model), small, 0.6))


@pytest.mark.parametrize(("sigma", "factor"), [(0.9, 2.0), (0.2, 1.0)])
def test_the_attention_scale_is_on_the_queries_of_the_global_branch_alone(model, sigma, factor):
    """What it makes is what the queries' layers make whose weights carry the factor."""
    x = latent(32, 32)

    def made(model, scale):
        denoiser, config = FakeDenoiser(model), scaled(base_tokens=64, fused_until=0.57, attention_scale=scale)
        attach(denoiser, identify(model), Run(config, SIGMAS))
        return call(denoiser, x, sigma)

    ours = made(model, 2.0)
    for block in model.joint_blocks:
        for side in (block.context_block, block.x_block):
            for part in (side.attn.qkv.weight, side.attn.qkv.bias):
                part.data[:WIDTH] *= factor
    assert torch.allclose(ours, made(model, "off"), atol=1e-5)


def test_an_odd_side_is_left_to_the_host(model):
    denoiser, run = FakeDenoiser(model), Run(CONFIG, SIGMAS)
    attach(denoiser, identify(model), run)
    with pytest.raises(RuntimeError):
        call(denoiser, latent(45, 47), 0.2)
    assert run.calls == {"base": 1}


def test_attaching_twice_replaces(model):
    denoiser, runs = FakeDenoiser(model), [Run(CONFIG, SIGMAS) for _ in range(2)]
    for run in runs:
        attach(denoiser, identify(model), run)
    call(denoiser, latent(32, 32), 0.9)
    assert not runs[0].calls and runs[1].calls == {"global": 1, "model calls": 1}


@pytest.mark.parametrize("fault", [RuntimeError, KeyboardInterrupt])
def test_a_fault_leaves_the_model_as_it_was(model, fault):
    before = call(FakeDenoiser(model), latent(32, 32), 0.9)
    denoiser = FakeDenoiser(model)
    attach(denoiser, identify(model), Run(CONFIG, SIGMAS))

    def break_down(*_):
        assert "cropped_pos_embed" in vars(model)
        raise fault

    hook = model.joint_blocks[1].register_forward_hook(break_down)
    with pytest.raises(fault):
        call(denoiser, latent(32, 32), 0.9)
    hook.remove()
    assert "cropped_pos_embed" not in vars(model) and not any(m._forward_hooks for m in model.modules())
    assert torch.equal(call(FakeDenoiser(model), latent(32, 32), 0.9), before)


def processing(model, **attributes):
    sampler = FakeSampler(model_wrap=FakeDenoiser(model))
    inferencer = SimpleNamespace(model=SimpleNamespace(diffusion_model=model))
    return FakeProcessing(sd_model=inferencer, sampler=sampler, **attributes)


def test_a_generation(model):
    p = processing(model)
    lifecycle.before_process(p, {"width": 512, "base_size": 128})
    lifecycle.process(p)
    x = latent(64, 64)
    lifecycle.before_sampling(p, x=x)
    call(p.sampler.model_wrap, x, 0.5)
    processed = SimpleNamespace(comments="")
    lifecycle.postprocess(p, processed)
    assert p.extra_generation_params["ResDiT"] == __version__ and not processed.comments
    assert p._resdit.runs[0].calls["fused"] == 1


@pytest.mark.parametrize("other", [torch.nn.Linear(2, 2), FakeFlux(axes_dim=(4, 4, 4, 4))])
def test_any_other_model_is_refused_with_what_the_host_has(other):
    p = processing(other)
    lifecycle.before_process(p, {"width": 512, "base_size": 128})
    lifecycle.process(p)
    assert "AUTOMATIC1111 has SD3-medium only" in p.extra_generation_params["ResDiT not active"]
    assert (p.width, p.height) == (1024, 1024)


def test_a_sampler_without_a_denoiser_is_refused(model):
    p = processing(model)
    p.sampler = SimpleNamespace()
    with pytest.raises(Unsupported, match="choose Euler"):
        A1111().attach(p, identify(model), Run(CONFIG))


class Guidance:
    """A1111's CFGDenoiser: it makes the denoiser anew after a change of the model."""

    def __init__(self, model):
        self.inner_model = FakeDenoiser(model)


def test_a_change_of_the_model_is_followed_to_the_new_denoiser(model):
    p = processing(model, width=512, height=512)
    p.sampler.model_wrap_cfg = Guidance(model)
    lifecycle.before_process(p, {"size": "WebUI", "base_size": 128})
    lifecycle.process(p)
    x = latent(64, 64)
    lifecycle.before_sampling(p, x=x)
    call(p.sampler.model_wrap_cfg.inner_model, x, 1.0)
    lifecycle.before_step(p)
    p.sampler.model_wrap_cfg.inner_model = FakeDenoiser(model)
    lifecycle.before_step(p)
    call(p.sampler.model_wrap_cfg.inner_model, x, 0.5)
    (run,) = p._resdit.runs
    assert run.calls["layout"] == run.calls["fused"] == 1


@pytest.fixture
def made_by_name(monkeypatch):
    """The host's samplers; "Odd" has no denoiser."""
    samplers, names = ModuleType("modules.sd_samplers"), []

    def create_sampler(name, _):
        names.append(name)
        return SimpleNamespace() if name == "Odd" else SimpleNamespace(model_wrap="a denoiser")

    samplers.create_sampler = create_sampler
    monkeypatch.setitem(sys.modules, "modules", ModuleType("modules"))
    monkeypatch.setitem(sys.modules, "modules.sd_samplers", samplers)
    return names


HIRES = dict(enable_hr=True, hr_scale=2.0, hr_resize_x=0, hr_resize_y=0, hr_second_pass_steps=0)


@pytest.mark.parametrize(
    "attributes", [{"sampler_name": "Odd"}, HIRES | {"sampler_name": "Euler", "hr_sampler_name": "Odd"}]
)
def test_a_sampler_without_a_denoiser_is_refused_in_time_to_give_the_size_back(model, made_by_name, attributes):
    p = processing(model, **attributes)
    before = dict(vars(p))
    lifecycle.before_process(p, {"width": 512, "base_size": 128})
    lifecycle.process(p)
    names = ("width", "height", "hr_resize_x", "hr_resize_y")
    assert all(getattr(p, name, None) == before.get(name) for name in names)
    assert list(p.extra_generation_params) == ["ResDiT not active"]
    assert "choose Euler" in p.extra_generation_params["ResDiT not active"]


def test_a_sampler_with_one_is_accepted(model, made_by_name):
    for attributes in ({"sampler_name": "Euler", "hr_sampler_name": "Odd"}, HIRES | {"sampler_name": "Euler"}):
        p = processing(model, **attributes)
        lifecycle.before_process(p, {"width": 512, "base_size": 128})
        lifecycle.process(p)
        assert "ResDiT" in p.extra_generation_params
    assert made_by_name == ["Euler", "Euler"]


@pytest.mark.parametrize("missing", ["pos_embed", "pos_embed_max_size", "cropped_pos_embed"])
def test_a_model_that_lacks_something_is_refused_by_its_name(model, missing, monkeypatch):
    if missing == "cropped_pos_embed":
        monkeypatch.setattr(TinySD3, missing, None)
    else:
        setattr(model, missing, None)
    with pytest.raises(Unsupported, match=f"TinySD3 has no {missing}$"):
        identify(model)


def test_a_model_without_query_norms_is_refused(model):
    del model.joint_blocks[1].x_block.attn.ln_q
    with pytest.raises(Unsupported, match="an attention of its blocks has no ln_q"):
        identify(model)
