"""Qwen-Image in diffusers: its class, tiny, whose places count from the picture's middle and whose text is masked."""

import pytest
import torch
from diffusers import QwenImageTransformer2DModel

from resdit_ext import ResDiTConfig, Unsupported, apply_resdit, remove_resdit
from tests import attentions
from tests.settings import scaled

AXES, TEXT = (4, 6, 6), 5
CONFIG = scaled(base_tokens=16, fused_until=0.57)
NATIVE = scaled(base_tokens=16, pes=False, global_until=1, fused_until=1, attention_scale="off")
PHASES = {"global": 0.99, "fused": 0.8, "local": 0.1}
MASKS = torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 0]])  # of the text of two pictures


def made(**more):
    torch.manual_seed(1)
    sizes = dict(num_layers=2, attention_head_dim=sum(AXES), num_attention_heads=2, in_channels=64)
    return QwenImageTransformer2DModel(**sizes, joint_attention_dim=12, axes_dims_rope=AXES, **more).eval()


@pytest.fixture
def model():
    return made()


@torch.inference_mode()
def run(model, height, width, sigma=0.9, batch=1, masked=True, shapes=(), picture=None):
    of_text, of_noise = (torch.Generator().manual_seed(seed) for seed in (3, 4))
    tokens = height * width + sum(rows * columns for _, rows, columns in shapes)
    noise = torch.randn(batch, tokens, 64, generator=of_noise)
    return model(
        hidden_states=noise if picture is None else picture,
        encoder_hidden_states=torch.randn(batch, TEXT, 12, generator=of_text),
        encoder_hidden_states_mask=MASKS[:batch] if masked else None,
        timestep=torch.full((batch,), sigma),
        img_shapes=[[(1, height, width), *shapes]] * batch,
        return_dict=False,
    )[0]


@pytest.mark.parametrize("size", [(4, 4), (1, 3)])
def test_at_or_below_the_base_size_it_is_bit_identical(model, size):
    plain = run(model, *size)
    made = apply_resdit(model, CONFIG)
    assert torch.equal(run(model, *size), plain) and made.calls == {"base": 1}


@pytest.mark.parametrize("masked", [True, False])
def test_native_positions_in_one_global_branch_are_the_plain_model(model, masked):
    plain = run(model, 7, 11, batch=2, masked=masked)
    apply_resdit(model, NATIVE)
    assert torch.allclose(run(model, 7, 11, batch=2, masked=masked), plain, atol=1e-5)
    assert not torch.allclose(run(model, 7, 11, batch=2, masked=not masked), plain, atol=1e-4)
    remove_resdit(model)
    assert torch.equal(run(model, 7, 11, batch=2, masked=masked), plain)


@pytest.mark.parametrize(("phase", "sigma"), PHASES.items())
@pytest.mark.parametrize("size", [(12, 12), (6, 13)])
def test_each_attention_is_the_methods(model, phase, sigma, size):
    """Text and picture stand as at the base size, however large the picture is."""
    apply_resdit(model, CONFIG)
    with attentions.recorded() as calls:
        run(model, *size, sigma, masked=False)
    assert len(calls) == 2
    for call in calls:
        h, w = call.plan.layout.base.height, call.plan.layout.base.width
        text, first = [(max(h, w) // 2 + i,) * 3 for i in range(TEXT)], (0, h // 2 - h, w // 2 - w)
        attentions.check(call, TEXT, size, phase, axes_dim=AXES, theta=10000, others=text, first=first)


def test_a_layout_step_with_masks_is_one_call_at_the_base_size(model):
    plain = run(model, 8, 8, 0.95, batch=2)
    made = apply_resdit(model, ResDiTConfig(base_tokens=16))
    got = run(model, 8, 8, 0.95, batch=2)
    assert made.calls == {"layout": 1, "model calls": 1} and not torch.allclose(got, plain, atol=1e-3)


def test_the_base_size_is_the_familys_own(model):
    assert apply_resdit(model).config.base_tokens == 83**2  # of 1328 pixels


def test_references_are_made_as_if_off_with_the_reason(model, caplog):
    plain = run(model, 8, 8, shapes=[(1, 2, 3)])
    apply_resdit(model, CONFIG)
    assert torch.equal(run(model, 8, 8, shapes=[(1, 2, 3)]), plain)
    assert "reference images (Edit) are not supported" in caplog.text


def test_layers_and_positions_that_cannot_be_given_are_refused(model):
    with pytest.raises(Unsupported, match="Qwen-Image-Layered"):
        apply_resdit(made(use_layer3d_rope=True), CONFIG)
    with pytest.raises(Unsupported, match="rpe-2d cannot be given"):
        apply_resdit(model, scaled(base_tokens=16, positions="rpe-2d"))
