"""Z-Image and Lumina 2 in diffusers: their classes, tiny, which are given latents and texts of several lengths."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from diffusers import ContextParallelConfig, Lumina2Transformer2DModel, ZImageTransformer2DModel

from resdit_ext import ResDiTConfig, Unsupported, apply_resdit, remove_resdit
from resdit_ext.seams import sequence
from tests import reference
from tests.settings import scaled

CONFIG = scaled(base_tokens=16, fused_until=0.57)
NATIVE = scaled(base_tokens=16, pes=False, global_until=1, fused_until=1, attention_scale="off")
PHASES = {"global": 0.99, "fused": 0.8, "local": 0.1}
AXES = {"z-image": (8, 12, 12), "lumina 2": (6, 6, 6)}
TEXTS = (5, 40)  # tokens of two pictures' texts


def z_image():
    config = dict(in_channels=4, dim=64, n_layers=2, n_refiner_layers=1, n_heads=2, n_kv_heads=2, cap_feat_dim=12)
    return ZImageTransformer2DModel(**config, axes_dims=AXES["z-image"], axes_lens=[128, 64, 64])


def lumina_2():
    heads = dict(num_attention_heads=4, num_kv_heads=2, axes_dim_rope=AXES["lumina 2"], axes_lens=(64, 64, 64))
    layers = dict(num_layers=2, num_refiner_layers=1, multiple_of=32, hidden_size=72)
    return Lumina2Transformer2DModel(in_channels=4, cap_feat_dim=12, **heads, **layers)


@pytest.fixture(params=AXES)
def model(request):
    torch.manual_seed(1)
    made = (z_image if request.param == "z-image" else lumina_2)().eval()
    for name, parameter in made.named_parameters():
        if "norm_q" in name or "norm_k" in name:
            parameter.data.fill_(1.6)  # far from uniform attention
        elif "pad_token" in name:
            parameter.data.normal_()
    return made


@torch.inference_mode()
def run(model, height, width, sigma=0.9, texts=TEXTS, x=None):
    """The model's prediction for as many pictures as there are texts, of noise or of latents `x`."""
    generator, batch = torch.Generator().manual_seed(3), len(texts)
    noise = torch.randn(batch, 4, 2 * height, 2 * width, generator=generator)
    x = noise if x is None else x
    generator.manual_seed(4)
    words = [torch.randn(max(TEXTS), 12, generator=generator)[:length] for length in texts]
    time = torch.full((batch,), 1 - sigma)
    if isinstance(model, ZImageTransformer2DModel):
        return torch.stack(model(list(x[:, :, None]), time, words, return_dict=False)[0])[:, :, 0]
    mask = torch.arange(max(TEXTS)) < torch.tensor(texts)[:, None]
    padded = torch.nn.utils.rnn.pad_sequence([*words, torch.zeros(max(TEXTS), 12)], batch_first=True)[:batch]
    return model(x, time, padded, mask, return_dict=False)[0]


def test_at_or_below_the_base_size_it_is_bit_identical(model):
    for size in ((4, 4), (2, 8), (1, 3)):
        plain = run(model, *size)
        made = apply_resdit(model, CONFIG)
        assert torch.equal(run(model, *size), plain) and set(made.calls) == {"base"}
        remove_resdit(model)


@pytest.mark.parametrize("texts", [TEXTS, (5, 5), (40,)])
def test_native_positions_in_one_global_branch_are_the_plain_model(model, texts):
    plain = run(model, 7, 11, texts=texts)
    made = apply_resdit(model, NATIVE)
    assert torch.allclose(run(model, 7, 11, texts=texts), plain, atol=1e-5)
    assert made.calls["blocks"] == 3 * len({*texts})
    remove_resdit(model)
    assert torch.equal(run(model, 7, 11, texts=texts), plain)


@pytest.mark.parametrize(("phase", "sigma"), PHASES.items())
@pytest.mark.parametrize("size", [(12, 12), (6, 15)])
def test_each_attention_is_the_methods(model, monkeypatch, phase, sigma, size):
    calls, original = [], sequence.resdit_attention
    monkeypatch.setattr(
        sequence, "resdit_attention", lambda *given: calls.append((*given, out := original(*given))) or out
    )
    apply_resdit(model, CONFIG)
    run(model, *size, sigma, texts=(5,))
    pads = -math.prod(size) % 32
    if isinstance(model, ZImageTransformer2DModel):
        alone, text, axes, theta, first = [(0, 0, 0)] * pads, [(i + 1, 0, 0) for i in range(32)], (8, 12, 12), 256, 33
    else:
        alone, text, axes, theta, first = [], [(i, 0, 0) for i in range(5)], (6, 6, 6), 10000, 5
    for (q, k, v, plan, at, _, out), others in zip(calls, (alone, alone + text, alone + text), strict=True):
        assert at.value == phase
        count, base = len(others), plan.layout.base
        expected = reference.resdit(
            *(x[0].double().numpy() for x in (q, k, v)),
            *(count, size, (base.height, base.width), phase),
            axes_dim=axes,
            theta=theta,
            scale=np.log(count + math.prod(size)) / np.log(count + base.tokens),
            cutoff=0.1,
            sigma=0.25,
            others=others,
            first=(first, 0, 0),
        )
        assert np.abs(out[0].double().numpy() - expected).max() < 2e-5


def test_a_layout_step_is_one_call_at_the_base_size(model):
    """The float64 reference, which calls the plain model there; what that predicts is minus the velocity."""
    x, sigma = torch.randn(1, 4, 16, 16), 0.95

    def denoise(seen, level):
        seen = torch.from_numpy(seen).float()
        return (seen + level * run(model, 4, 4, level, (5,), seen)).double().numpy()

    clean = reference.layout_estimate(x.double().numpy(), sigma, (4, 4), denoise)
    made = apply_resdit(model, ResDiTConfig(base_tokens=16))
    got = run(model, 8, 8, sigma, (5,), x)
    assert made.calls == {"layout": 1, "model calls": 1}
    assert np.abs(x.double().numpy() + sigma * got.double().numpy() - clean).max() < 1e-4


def test_what_the_method_cannot_take_is_made_as_if_off(caplog):
    model = z_image().eval()
    x, words = [torch.randn(4, 1, 16, 16)], [torch.randn(5, 12)]
    given = dict(controlnet_block_samples={0: torch.randn(1, 96, 64)}, return_dict=False)
    with torch.inference_mode():
        plain = model(x, torch.tensor([0.2]), words, **given)[0][0]
        apply_resdit(model, CONFIG)
        assert torch.equal(model(x, torch.tensor([0.2]), words, **given)[0][0], plain)
    assert "a ControlNet for Z-Image is not supported yet" in caplog.text


def test_shared_tokens_are_refused_before_and_after(model):
    """By a mark as diffusers' context parallelism leaves it: no other process is needed to be refused."""
    shared = SimpleNamespace(context_parallel_config=SimpleNamespace(ring_degree=2))
    apply_resdit(model, CONFIG)
    model._parallel_config = shared
    with pytest.raises(Unsupported, match="ring attention"):
        run(model, 12, 12)
    shared.context_parallel_config = ContextParallelConfig(ulysses_degree=2)
    shared.context_parallel_config._ulysses_local_rank = 0
    shared.context_parallel_config._ulysses_mesh = SimpleNamespace(get_group=lambda: None)
    with pytest.raises(Unsupported, match="several devices cannot make one picture with this model yet"):
        run(model, 12, 12)
    with pytest.raises(Unsupported, match="several devices cannot make one picture with this model yet"):
        apply_resdit(model, CONFIG)
