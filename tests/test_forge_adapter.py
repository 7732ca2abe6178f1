"""The Forge adapter and the FLUX family, on fakes of the host's shapes (the real ones are in tests/hosts)."""

import sys
import types
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from torch import nn
from torch._dynamo.testing import CompileCounter

from resdit_ext import ResDiTConfig, Unsupported
from resdit_ext.control.added import LazyResiduals, UnitShare
from resdit_ext.families import identify
from resdit_ext.hosts.forge import control_support, model
from resdit_ext.hosts.forge.control_support import with_control_support
from resdit_ext.method.layout import Grid
from resdit_ext.method.layout_steps import View
from resdit_ext.method.run import Run
from resdit_ext.monkeypatch import swapped
from resdit_ext.seams import sequence as family_module
from resdit_ext.seams.ways import why_not
from tests import fakes, reference
from tests.attaching import attach, is_attached
from tests.settings import scaled

BASE = scaled(base_tokens=16, fused_until=0.57)
SIGMAS = [1 - i / 7 for i in range(8)]


@pytest.fixture
def unet():
    torch.manual_seed(2)
    return fakes.FakePatcher(fakes.FakeFlux())


def latent(height, width, batch=1):
    return torch.randn(batch, fakes.CHANNELS, height, width, generator=torch.Generator().manual_seed(4))


def attached(unet, config=BASE, sigmas=SIGMAS):
    said = []
    run = Run(config, sigmas, say=said.append)
    return attach(unet, run), run, said


@pytest.mark.parametrize("size", [(8, 8), (4, 16), (7, 8)])
def test_base_size_is_bit_identical(unet, size):
    patched, run, _ = attached(unet)
    assert torch.equal(patched.sample(latent(*size), 0.9), unet.sample(latent(*size), 0.9))
    assert run.calls == {"base": 1}


@pytest.mark.parametrize(("sigma", "phase"), [(0.95, "global"), (0.6, "fused"), (0.2, "local")])
@pytest.mark.parametrize("size", [(24, 24), (12, 30), (23, 17)])
def test_above_it_every_block_runs_the_phase(unet, sigma, phase, size):
    patched, run, said = attached(unet)
    out = patched.sample(latent(*size, batch=2), sigma)
    assert out.shape == (2, fakes.CHANNELS, *size) and torch.isfinite(out).all()
    assert not torch.allclose(out, unet.sample(latent(*size, batch=2), sigma), atol=1e-3)
    assert run.calls == {phase: 1, "blocks": 3} and not said


def test_native_positions_in_one_global_branch_are_the_plain_model(unet):
    patched, *_ = attached(unet, scaled(base_tokens=16, pes=False, global_until=1, attention_scale="off"))
    assert torch.allclose(patched.sample(latent(21, 26), 0.9), unet.sample(latent(21, 26), 0.9), atol=1e-5)


def test_the_block_attention_is_the_methods(unet, monkeypatch):
    seen = []
    original = family_module.resdit_attention
    monkeypatch.setattr(
        family_module, "resdit_attention", lambda *args: seen.append((args, original(*args))) or seen[-1][1]
    )
    patched, *_ = attached(unet)
    patched.sample(latent(14, 22), 0.6)
    (q, k, v, plan, _, _), out = seen[0]
    base = plan.layout.base
    expected = reference.resdit(
        *(x[0].double().numpy() for x in (q, k, v)),
        3,
        (7, 11),
        (base.height, base.width),
        "fused",
        axes_dim=fakes.AXES,
        theta=10000,
        scale=np.log(3 + 77) / np.log(3 + base.tokens),
        cutoff=0.1,
        sigma=0.25,
    )
    assert np.abs(out[0].double().numpy() - expected).max() < 1e-5


def test_the_hosts_extra_arguments_reach_its_attention(unet, monkeypatch):
    seen = []

    def spying(*args, transformer_options=None, **kwargs):
        seen.append(transformer_options)
        return plain(*args, **kwargs)

    plain = fakes.attention_function
    monkeypatch.setattr(fakes, "attention_function", spying)
    forward = fakes.Block.forward

    def with_options(self, x, pe):
        q, k, v = self.qkv(x).unflatten(-1, (3, fakes.HEADS, -1)).permute(2, 0, 3, 1, 4)
        return x + fakes.attention(q, k, v, pe=pe, mask=None, transformer_options={"block": 1})

    monkeypatch.setattr(fakes.Block, "forward", with_options)
    attached(unet)[0].sample(latent(24, 24), 0.2)
    assert seen and all(options == {"block": 1} for options in seen)
    assert forward is not with_options


@pytest.mark.parametrize("fault", [RuntimeError, KeyboardInterrupt])
def test_a_fault_leaves_nothing_patched_and_a_b_a_is_identical(unet, fault):
    x, plain_attention = latent(24, 24), fakes.attention
    before = unet.sample(x, 0.6)
    patched, *_ = attached(unet)

    def break_down(*_):
        assert fakes.attention is not plain_attention
        raise fault

    hook = unet.model.diffusion_model.single_blocks[0].register_forward_hook(break_down)
    with pytest.raises(fault):
        patched.sample(x, 0.6)
    hook.remove()
    assert fakes.attention is plain_attention
    patched.sample(x, 0.6)
    assert fakes.attention is plain_attention
    assert torch.equal(unet.sample(x, 0.6), before) and "model_function_wrapper" not in unet.model_options


def test_a_compiled_model_gives_the_same_and_is_not_compiled_again(unet):
    """As Forge Neo compiles it: after the extensions have attached, for the duration of a model call."""
    x, sigmas, counter = latent(24, 24), (0.95, 0.6, 0.2), CompileCounter()
    plain, expected = unet.sample(x, 0.6), [attached(unet)[0].sample(x, sigma) for sigma in sigmas]
    torch.compiler.reset()
    compiled, counts = torch.compile(unet.model.diffusion_model, backend=counter), []
    for _ in range(3):
        patched, *_ = attached(unet)
        patched.model.diffusion_model = compiled
        for sigma, wanted in zip(sigmas, expected, strict=True):
            assert torch.allclose(patched.sample(x, sigma), wanted, atol=1e-5)
        off = unet.clone()
        off.model.diffusion_model = compiled
        assert torch.allclose(off.sample(x, 0.6), plain, atol=1e-5)
        counts.append(counter.frame_count)
    assert 0 < counts[0] == counts[1] == counts[2]
    torch.compiler.reset()


def test_another_wrapper_stays_outside_and_sees_tiles_patched(unet):
    """MultiDiffusion calls the model on tiles from its own wrapper: each tile must be laid out for itself."""
    sizes = []

    def tiles(apply_model, args):
        left, right = args["input"][..., :8], args["input"][..., 8:]
        sizes.extend((left.shape[-1], right.shape[-1]))
        return torch.cat([apply_model(x, args["timestep"], **args["c"]) for x in (left, right)], -1)

    unet.set_model_unet_function_wrapper(tiles)
    patched, run, _ = attached(unet)
    out = patched.sample(latent(8, 32), 0.6)
    assert out.shape[-1] == 32 and sizes == [8, 24]
    assert run.calls == {"base": 1, "fused": 1, "blocks": 3}


def test_attaching_twice_replaces_and_cloning_keeps_the_run(unet):
    once, first, _ = attached(unet)
    twice, second, _ = attached(once)
    twice.clone().sample(latent(24, 24), 0.6)
    assert not first.calls and second.calls == {"fused": 1, "blocks": 3}


def test_attaching_twice_keeps_another_extensions_wrapper_and_calls_it_once(unet):
    seen = []

    def theirs(apply_model, args):
        seen.append(args["input"].shape)
        return apply_model(args["input"], args["timestep"], **args["c"])

    unet.set_model_unet_function_wrapper(theirs)
    once, first, _ = attached(unet)
    twice, second, _ = attached(once)
    twice.sample(latent(24, 24), 0.6)
    assert len(seen) == 1 and not first.calls and second.calls == {"fused": 1, "blocks": 3}


def test_a_clone_is_known_to_be_attached_and_another_unet_is_not(unet):
    patched, *_ = attached(unet)
    stolen = patched.clone()
    stolen.set_model_unet_function_wrapper(lambda apply_model, args: None)
    assert is_attached(patched.clone()) and is_attached(stolen) and not is_attached(unet)


def test_tokens_of_another_extension_are_made_as_if_off(unet, monkeypatch):
    patched, run, said = attached(unet)
    x = latent(24, 24)
    forward = fakes.FakeFlux.forward
    monkeypatch.setattr(fakes.FakeFlux, "forward", lambda self, x, c: forward(self, torch.cat((x, x), -1), c)[..., :24])
    assert torch.equal(patched.sample(x, 0.6), unet.sample(x, 0.6))
    assert len(said) == 1 and "291 tokens are not 3 of text, a picture of 12x12 and others in their usual" in said[0]
    assert run.calls["blocks"] == 0


@pytest.mark.parametrize(
    ("tokens", "mask", "reason"),
    [
        (3 + 16, None, None),
        (3 + 17, None, "1 more tokens than it is known to"),
        (3 + 15, None, "18 tokens of the 19 of text and picture; another extension takes some out"),
        (3 + 16, torch.ones(1), "masks are not supported"),
    ],
)
def test_why_the_method_cannot_take_an_attentions_place(tokens, mask, reason):
    found = why_not(tokens, 3, Grid(4, 4), mask)
    assert found is None if reason is None else reason in found


def test_the_memory_estimate_grows_with_the_picture_and_follows_the_last_run(unet):
    name = "memory_peak_estimation_modifier"
    patched, *_ = attached(unet)
    estimate = patched.model_options[name]
    assert estimate([2, 16, 512, 512]) > estimate([2, 16, 384, 384]) > 0
    assert estimate([1, 16, 512, 512]) == estimate([2, 16, 512, 512]) < estimate([4, 16, 512, 512])
    again, *_ = attached(patched, scaled(base_tokens=16, chunk_mb=1024))
    assert again.model_options[name]([2, 16, 512, 512]) == estimate([2, 16, 512, 512]) + 512 * 2**20
    unet.set_memory_peak_estimation_modifier(theirs := lambda shape: 1)
    assert attached(unet)[0].model_options[name] is theirs


def model_like(name="stranger", attention=None, **attributes):
    """A module with FLUX's blocks, defined in a module of its own."""
    module = types.ModuleType(name)
    module.Block = type("Block", (nn.Module,), {"__module__": name})
    if attention is not None:
        module.attention, module.attention_function = attention, fakes.attention_function
    sys.modules[name] = module
    model = fakes.FakeFlux()
    model.double_blocks = nn.ModuleList([module.Block()])
    model.single_blocks = nn.ModuleList([module.Block()])
    for key, value in attributes.items():
        setattr(model, key, value)
    return model


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (
            nn.Linear(2, 2),
            r"Linear is not a model of a supported family \(FLUX.1, SD3, Chroma, .*\)",
        ),
        (fakes.FakeFlux(axes_dim=(4, 4, 4, 4)), "4 position axes where FLUX.1 has 3"),
        (model_like(txt_ids_dims=[3]), "text has positions of its own"),
        (model_like(), "stranger has no attention and no attention_function"),
        (model_like("odd", lambda x, context, pe: x), r"odd.attention does not begin with \(q, k, v, pe\)"),
        (model_like("mixed", single_blocks=nn.ModuleList([fakes.Block()])), "come from 2 modules"),
    ],
)
def test_refusals_name_what_is_missing(model, reason):
    with pytest.raises(Unsupported, match=reason):
        identify(model)


# Steps on the base grid.

LAYOUT = ResDiTConfig(base_tokens=16)


def spied_calls(unet, monkeypatch):
    """What the model is called with, beneath all wrappers."""
    seen, sample = [], unet.model.diffusion_model.forward

    def forward(x, context):
        seen.append(x)
        return sample(x, context)

    monkeypatch.setattr(unet.model.diffusion_model, "forward", forward)
    return seen


@pytest.mark.parametrize("size", [(24, 24), (12, 30), (23, 17)])
def test_a_layout_step_is_one_call_on_the_base_grid(unet, monkeypatch, size):
    seen = spied_calls(unet, monkeypatch)
    patched, run, said = attached(unet, LAYOUT)
    x = latent(*size, batch=2)
    got = patched.sample(x, 0.95)
    grid = Grid(-(-size[0] // 2), -(-size[1] // 2))
    base = run.layout(grid).base
    assert [tuple(call.shape[-2:]) for call in seen] == [(2 * base.height, 2 * base.width)]
    assert run.calls == {"layout": 1, "blocks": 3} and not said

    def denoise(small, level):  # the fakes' model is told no noise level and returns what it sees
        return unet.sample(torch.from_numpy(small).float(), level).double().numpy()

    expected = reference.layout_estimate(x.double().numpy(), 0.95, (base.height, base.width), denoise)
    assert np.abs(got.double().numpy() - expected).max() < 1e-4


def test_what_is_given_per_pixel_and_token_is_brought_to_the_base_grid():
    """The picture and mask of Fill, another extension's residuals, and a unit of ours with its mask."""
    grid, base = Grid(12, 12), Grid(4, 4)
    view = View(base, (24, 24), (8, 8))
    flat = torch.full((1, 5, 24, 24), 0.3)
    residual, mask = torch.randn(1, 1, 7).expand(1, 144, 7), torch.full((1, 144, 1), 0.5)
    share = UnitShare([torch.ones(1, 16, 7)], base, 2.0, lambda *_: 0, mask=mask)
    lazy = LazyResiduals([share], 1, grid, torch.float32)
    c = {"c_concat": flat, "control": {"input": [residual, None], "output": lazy}, "y": "kept"}
    got = model.for_smaller(c, view, grid)
    torch.testing.assert_close(got["c_concat"], torch.full((1, 5, 8, 8), 0.3))
    first, second = got["control"]["input"]
    torch.testing.assert_close(first, residual[:, :16])
    assert second is None and got["y"] == "kept" and c["c_concat"] is flat
    torch.testing.assert_close(got["control"]["output"][0], torch.ones(1, 16, 7))  # 2 x .5
    assert model.for_smaller({"y": 1}, view, grid) == {"y": 1}


@pytest.mark.parametrize("order", ["control, method", "method, control", "control, method, method"])
def test_control_is_added_to_the_call_that_is_made(unet, order):
    """Whichever of the two was attached first: in a layout step the blocks have as few tokens as the control."""
    seen, control = [], {kind: [torch.ones(1, 144, 1)] for kind in ("input", "output")}
    attaching = {"control": with_control_support, "method": lambda unet: attached(unet, LAYOUT)[0]}
    for what in order.split(", "):
        unet = attaching[what](unet)

    @contextmanager
    def adding(_, control, __):
        seen.append(control["input"][0].shape[1])
        yield

    with swapped(control_support, adding=adding):
        unet.sample(latent(24, 24), 0.95, control=control)
    assert seen == [16]
