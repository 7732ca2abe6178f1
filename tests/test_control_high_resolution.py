"""A control net above its training size: the joining of its residuals against numpy, and the calls made of it."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from diffusers import FluxTransformer2DModel, SD3Transformer2DModel

from resdit_ext import ResDiTError, apply_resdit, remove_resdit
from resdit_ext.control.added import pick, resample
from resdit_ext.control.call import Residuals
from resdit_ext.control.token_nets import to_tokens
from resdit_ext.control.treatment import PatchBlender, at_high_resolution
from resdit_ext.hosts.forge import control_pass
from resdit_ext.method.around_calls import crop
from resdit_ext.method.blend import Joiner
from resdit_ext.method.layout import Grid, make_layout
from resdit_ext.method.memory import OutOfMemory
from tests import reference
from tests.control_host import Generation, Network, family_of, unet_of
from tests.control_nets import FLUX, SD3, net_of
from tests.settings import scaled

CONFIG = scaled(base_tokens=16)
SIGMAS = [1 - i / 10 for i in range(11)]


def noise(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def returned_for(latent, start):
    """A net's residuals that depend on where it is called, in float64 for the reference and float32 for ours."""
    tokens = F.pixel_unshuffle(latent, 2).flatten(2).transpose(1, 2)
    place = 0.0 if start is None else 1 + start[0] + 0.1 * start[1]
    return Residuals((tokens * (1 + place), tokens * 2 - place), (tokens**2,), cyclic=True)


@pytest.mark.parametrize("sides", [(12, 12), (9, 14), (8, 4)])
def test_residuals_are_joined_by_frequency_and_spliced(sides):
    layout = make_layout(Grid(*sides), CONFIG)
    (H, W), (h, w) = sides, (layout.base.height, layout.base.width)
    latent = noise(2, 3, 2 * H, 2 * W)
    got = at_high_resolution(returned_for, latent, layout, PatchBlender(layout, Joiner(layout, CONFIG)))
    whole = returned_for(pick(latent, layout.base), None).both
    patches = [returned_for(crop(latent, start, layout.base), start).both for start in layout.patches]
    for k, mine in enumerate(got.both):
        for row in range(2):
            spread = reference.interpolated(whole[k][row].unflatten(0, (h, w)).numpy(), (H, W))
            fused = [
                reference.fuse(
                    spread[i : i + h, j : j + w],
                    patch[k][row].unflatten(0, (h, w)).double().numpy(),
                    0.1,
                )
                for (i, j), patch in zip(layout.patches, patches, strict=True)
            ]
            expected = reference.splice(fused, (H, W), (h, w), layout.patches, CONFIG.splice_sigma)
            np.testing.assert_allclose(mine[row].unflatten(0, (H, W)).numpy(), expected, atol=2e-5, rtol=1e-5)
    assert (len(got.double), len(got.single), got.cyclic) == (2, 1, True)


def test_without_patches_the_whole_is_left_on_its_grid():
    layout = make_layout(Grid(12, 12), CONFIG)
    latent = noise(1, 3, 24, 24)
    got = at_high_resolution(returned_for, latent, layout, None)
    assert torch.equal(got.double[0], returned_for(pick(latent, layout.base), None).double[0])


def linked(monkeypatch, kind, config, size=48, **attributes):
    """A unit of the panel at `size` latent pixels, where ResDiT acts; (p, net, latent)."""
    flux = kind.startswith("flux")
    net, channels = net_of(kind), 4
    network = Network(3, 2) if flux else Network(3)
    family = family_of("FLUX.1", 64) if flux else family_of("SD3", 128)

    def encode(picture):
        return F.avg_pool2d(picture, 8).repeat(1, 2, 1, 1)[:, :channels]

    p = Generation(monkeypatch, unet_of(network), family, encode, SIGMAS, config)
    x = noise(1, channels, size, size)
    p.add(net.state_dict(), torch.rand(1, 3, 8 * size, 8 * size), x, **attributes)
    return p, net, x


def conditioning():
    return dict(c_crossattn=noise(1, 5, 32, seed=4), y=noise(1, 16, seed=5), guidance=torch.tensor([3.5]))


@pytest.mark.parametrize(("speed", "calls"), [("exact", 1 + 16), ("fast", 1), ("fastest", 1)])
def test_flux_calls_its_net_for_the_whole_and_each_patch(speed, calls, monkeypatch):
    p, _, x = linked(monkeypatch, "flux", replace(CONFIG, base_tokens=64, speed=speed))
    (link,) = [p.unet.linked]
    seen = []
    link.patcher.model.net.register_forward_pre_hook(
        lambda _, __, given: seen.append(given["hidden_states"].shape[1]), with_kwargs=True
    )
    with torch.inference_mode():
        control = p.control(x, 0.5, **conditioning())
        assert [len(part[0]) for part in (control["input"], control["output"])] == [1, 1]
        assert control["input"][2].shape == (1, 576, 64) and control["output"][1].shape == (1, 576, 64)
    assert seen == [64] * calls and p.said == []


def test_out_of_memory_goes_on_without_the_patches(monkeypatch):
    p, _, x = linked(monkeypatch, "flux", replace(CONFIG, base_tokens=64))

    def fail(*_):
        raise OutOfMemory

    monkeypatch.setattr(control_pass, "PatchBlender", fail)
    with torch.inference_mode():
        control = p.control(x, 0.5, **conditioning())
        assert control["input"][0].shape == (1, 576, 64)
        p.control(x, 0.4, **conditioning())
    assert p.said == ["ControlNet net.safetensors has no memory for its patches: it goes on at the base size alone"]


def test_sd3_calls_its_net_for_a_patch_when_the_model_is(monkeypatch):
    mask = torch.zeros(1, 1, 384, 384)
    mask[..., :192, :] = 1
    config = replace(CONFIG, base_tokens=64)
    p, net, x = linked(monkeypatch, "sd3", config, mask=mask)
    link, layout = p.unet.linked, make_layout(Grid(24, 24), config)
    link.transformer_options = {"cond_mark": torch.zeros(1)}
    link.pre_run(p.unet.model, None)
    t, cond = torch.tensor([0.5]), conditioning()
    with torch.inference_mode():
        whole = link.get_control(x, t, cond, 1)
        expected = net(
            hidden_states=pick(x, layout.base),
            controlnet_cond=link.hint,
            encoder_hidden_states=cond["c_crossattn"],
            pooled_projections=torch.zeros(1, 16),
            timestep=torch.tensor([500.0]),
            return_dict=False,
        )[0][0]
        half = torch.ones(1, 24, 24, 1)
        half[:, 12:] = 0
        torch.testing.assert_close(whole[0], resample(expected, layout.base, layout.grid) * half.flatten(1, 2))
        assert whole[2] == 0  # after the last block nothing is added
        for start in (layout.patches[0], layout.patches[7]):
            tokens = torch.tensor([start[0] * 24 + start[1]])
            patch = crop(x, start, layout.base)
            mine = whole.on_patch(patch, tokens)
            expected = net(
                hidden_states=patch,
                controlnet_cond=link.patch_hints[start],
                encoder_hidden_states=cond["c_crossattn"],
                pooled_projections=torch.zeros(1, 16),
                timestep=torch.tensor([500.0]),
                return_dict=False,
            )[0][0]
            part = half[:, start[0] : start[0] + 8, start[1] : start[1] + 8].flatten(1, 2)
            torch.testing.assert_close(mine[0], expected * part)
    assert set(link.patch_hints) == set(layout.patches) and p.said == []


def flux_call(model, net, side, **changes):
    """The transformer's velocity under control at side x side tokens, by the models' own calls."""
    text, pooled = noise(1, 5, 32, seed=4), noise(1, 16, seed=5)
    rows, cols = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    ids = torch.stack((torch.zeros_like(rows), rows, cols), -1).reshape(-1, 3).float()
    common = dict(
        hidden_states=to_tokens(noise(1, 4, 2 * side, 2 * side, seed=6)),
        encoder_hidden_states=text,
        pooled_projections=pooled,
        timestep=torch.tensor([0.5]),
        guidance=torch.tensor([3.5]),
        img_ids=ids,
        txt_ids=torch.zeros(5, 3),
    )
    found = net(controlnet_cond=to_tokens(noise(1, 4, 2 * side, 2 * side, seed=7)), **common | changes)
    double, single = found if isinstance(found, tuple) else (found[0], found[1])
    return model(controlnet_block_samples=double, controlnet_single_block_samples=single, return_dict=False, **common)[
        0
    ]


@torch.inference_mode()
@pytest.mark.parametrize("speed", ["exact", "fast"])
def test_diffusers_flux(speed):
    torch.manual_seed(1)
    pipe = SimpleNamespace(transformer=FluxTransformer2DModel(**FLUX).eval(), controlnet=net_of("flux"))
    before = flux_call(pipe.transformer, pipe.controlnet, 8), flux_call(pipe.transformer, pipe.controlnet, 4)
    run = apply_resdit(pipe, replace(CONFIG, speed=speed), SIGMAS)
    after = flux_call(pipe.transformer, pipe.controlnet, 8), flux_call(pipe.transformer, pipe.controlnet, 4)
    assert not torch.equal(before[0], after[0]) and torch.equal(before[1], after[1])
    assert run.calls["base"] == 1
    named = flux_call(pipe.transformer, pipe.controlnet, 8, return_dict=False)
    assert torch.equal(named, after[0])
    remove_resdit(pipe)
    assert torch.equal(flux_call(pipe.transformer, pipe.controlnet, 8), before[0])
    assert "forward" not in vars(pipe.controlnet) and "forward" not in vars(pipe.transformer)


def test_a_pipeline_with_an_unknown_net_is_left_as_it_was():
    pipe = SimpleNamespace(transformer=FluxTransformer2DModel(**FLUX), controlnet=torch.nn.Linear(1, 1))
    with pytest.raises(ResDiTError, match="Linear is not one of FluxTransformer2DModel"):
        apply_resdit(pipe)
    assert "forward" not in vars(pipe.transformer)


@torch.inference_mode()
def test_diffusers_sd3():
    torch.manual_seed(1)
    transformer = SD3Transformer2DModel(**SD3 | {"num_layers": 3}).eval()
    pipe = SimpleNamespace(transformer=transformer, controlnet=SimpleNamespace(nets=[net_of("sd3")]))
    (net,) = pipe.controlnet.nets
    x, hint = noise(1, 4, 24, 24), noise(1, 4, 24, 24, seed=2)
    given = dict(
        encoder_hidden_states=noise(1, 5, 32, seed=4),
        pooled_projections=noise(1, 16, seed=5),
        timestep=torch.tensor([500.0]),
    )
    seen = []
    net.register_forward_pre_hook(lambda _, __, given: seen.append(given["hidden_states"].shape[-1]), with_kwargs=True)
    apply_resdit(pipe, CONFIG, SIGMAS)
    for keyword in ({"return_dict": False}, {}):
        found = net(hidden_states=x, controlnet_cond=hint, **given, **keyword)[0]
        out = transformer(hidden_states=x, block_controlnet_hidden_states=found, **given)[0]
        assert out.shape == x.shape and bool(out.isfinite().all())
    remove_resdit(pipe)
    plain = transformer(hidden_states=x, **given)[0]
    assert not torch.equal(out, plain)
