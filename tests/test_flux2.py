"""Flux.2 in diffusers: its class, tiny, whose text has places on a fourth axis."""

import numpy as np
import pytest
import torch
from diffusers import Flux2Transformer2DModel

from resdit_ext import ResDiTConfig, apply_resdit, remove_resdit
from resdit_ext.seams import sequence
from tests import reference
from tests.settings import scaled

AXES, TEXT = (4, 4, 4, 4), 5
CONFIG = scaled(base_tokens=16, fused_until=0.57)
NATIVE = scaled(base_tokens=16, pes=False, global_until=1, fused_until=1, attention_scale="off")
PHASES = {"global": 0.99, "fused": 0.8, "local": 0.1}


@pytest.fixture
def model():
    torch.manual_seed(1)
    return Flux2Transformer2DModel(
        in_channels=64,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=sum(AXES),
        num_attention_heads=2,
        joint_attention_dim=12,
        timestep_guidance_channels=16,
        axes_dims_rope=AXES,
        guidance_embeds=False,
    ).eval()


def places(height, width, first=0):
    return torch.cartesian_prod(*(torch.arange(n) for n in (1, height, width, 1))) + torch.tensor([first, 0, 0, 0])


@torch.inference_mode()
def run(model, height, width, sigma=0.9, batch=1, references=False, **given):
    generator = torch.Generator().manual_seed(3)
    ids = torch.cat((places(height, width), *([places(2, 3, 10)] if references else [])))
    return model(
        hidden_states=torch.randn(batch, height * width + 6, 64, generator=generator)[:, : len(ids)],
        encoder_hidden_states=torch.randn(batch, TEXT, 12, generator=generator),
        timestep=torch.full((batch,), sigma),
        img_ids=ids.expand(batch, -1, -1),
        txt_ids=torch.cartesian_prod(*(torch.arange(n) for n in (1, 1, 1, TEXT))).expand(batch, -1, -1),
        return_dict=False,
        **given,
    )[0]


@pytest.mark.parametrize("size", [(4, 4), (1, 3)])
def test_at_or_below_the_base_size_it_is_bit_identical(model, size):
    plain = run(model, *size, references=True)
    made = apply_resdit(model, CONFIG)
    assert torch.equal(run(model, *size, references=True), plain) and made.calls == {"base": 1}


@pytest.mark.parametrize("references", [True, False])
def test_native_positions_in_one_global_branch_are_the_plain_model(model, references):
    plain = run(model, 7, 11, batch=2, references=references)
    apply_resdit(model, NATIVE)
    assert torch.allclose(run(model, 7, 11, batch=2, references=references), plain, atol=1e-5)
    remove_resdit(model)
    assert torch.equal(run(model, 7, 11, batch=2, references=references), plain)


@pytest.mark.parametrize(("phase", "sigma"), PHASES.items())
def test_each_attention_is_the_methods(model, monkeypatch, phase, sigma):
    calls, original = [], sequence.resdit_attention
    monkeypatch.setattr(
        sequence, "resdit_attention", lambda *given: calls.append((*given, out := original(*given))) or out
    )
    apply_resdit(model, CONFIG)
    run(model, 6, 14, sigma)
    assert len(calls) == 2
    for q, k, v, plan, at, _, out in calls:
        assert at.value == phase
        expected = reference.resdit(
            *(x[0].double().numpy() for x in (q, k, v)),
            *(TEXT, (6, 14), (plan.layout.base.height, plan.layout.base.width), phase),
            axes_dim=AXES,
            theta=2000,
            scale=np.log(TEXT + 84) / np.log(TEXT + plan.layout.base.tokens),
            cutoff=0.1,
            sigma=0.25,
            others=[(0, 0, 0, i) for i in range(TEXT)],
            first=(0, 0, 0, 0),
        )
        assert np.abs(out[0].double().numpy() - expected).max() < 1e-5


def test_a_layout_step_leaves_the_references_as_they_are(model):
    plain = run(model, 8, 8, 0.95, batch=2, references=True)
    made = apply_resdit(model, ResDiTConfig(base_tokens=16))
    got = run(model, 8, 8, 0.95, batch=2, references=True)
    assert made.calls == {"layout": 1, "model calls": 1}
    assert got.shape == plain.shape and not torch.allclose(got, plain, atol=1e-3)


def test_kept_keys_of_references_are_refused(model, caplog):
    plain = run(model, 8, 8, kv_cache_mode="extract")
    apply_resdit(model, CONFIG)
    assert torch.equal(run(model, 8, 8, kv_cache_mode="extract"), plain)
    assert "(KV) is not supported" in caplog.text
