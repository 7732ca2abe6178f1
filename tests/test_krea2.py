"""Krea 2 in diffusers: its class, tiny, whose text is masked and whose keys' heads are shared."""

import pytest
import torch
from diffusers import Krea2Transformer2DModel

from resdit_ext import ResDiTConfig, apply_resdit, remove_resdit
from resdit_ext.families import families
from resdit_ext.method.config import BALANCED
from resdit_ext.method.phases import Phase, steps_per_phase
from tests import attentions
from tests.settings import scaled
from tests.test_diffusers import AXES, TEXT, ids

CONFIG = scaled(base_tokens=16, fused_until=0.57)
NATIVE = scaled(base_tokens=16, pes=False, global_until=1, fused_until=1, attention_scale="off")
PHASES = {"global": 0.99, "fused": 0.8, "local": 0.1}
MASKS = torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 0]], dtype=torch.bool)  # of the text of two pictures


@pytest.fixture
def model():
    torch.manual_seed(1)
    made = Krea2Transformer2DModel(
        num_layers=2,
        attention_head_dim=sum(AXES),
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=32,
        timestep_embed_dim=16,
        text_hidden_dim=12,
        num_text_layers=3,
        text_num_attention_heads=2,
        text_num_key_value_heads=2,
        text_intermediate_size=16,
        axes_dims_rope=AXES,
    ).eval()
    for name, parameter in made.named_parameters():
        if "norm_q" in name or "norm_k" in name:
            parameter.data.fill_(0.6)  # of 1 and this: far from uniform attention
    return made


@torch.inference_mode()
def run(model, height, width, sigma=0.9, batch=1, masked=True):
    generator = torch.Generator().manual_seed(3)
    return model(
        hidden_states=torch.randn(batch, height * width, 64, generator=generator),
        encoder_hidden_states=torch.randn(batch, TEXT, 3, 12, generator=generator),
        timestep=torch.full((batch,), sigma),
        position_ids=torch.cat((torch.zeros(TEXT, 3), ids(height, width))),
        encoder_attention_mask=MASKS[:batch] if masked else None,
        return_dict=False,
    )[0]


@pytest.mark.parametrize("size", [(4, 4), (2, 8), (1, 3)])
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
@pytest.mark.parametrize("size", [(12, 12), (6, 14)])
def test_each_attention_is_the_methods(model, phase, sigma, size):
    apply_resdit(model, CONFIG)
    with attentions.recorded() as calls:
        run(model, *size, sigma, masked=False)
    assert len(calls) == 2
    for call in calls:
        attentions.check(call, TEXT, size, phase, axes_dim=AXES, theta=1000)


def test_a_layout_step_with_masks_is_one_call_at_the_base_size(model):
    plain = run(model, 8, 8, 0.95, batch=2)
    made = apply_resdit(model, ResDiTConfig(base_tokens=16))
    got = run(model, 8, 8, 0.95, batch=2)
    assert made.calls == {"layout": 1, "model calls": 1} and not torch.allclose(got, plain, atol=1e-3)


@pytest.mark.parametrize("family", [each for each in families() if each.steps < 20], ids=lambda each: each.key)
def test_few_steps_are_enough_for_the_phases(family):
    """Where a model needs few steps, one at least makes the layout and one joins both branches."""
    for shift in (0.14, 1.15, family.shift):  # ersatzForge, Forge Neo and diffusers
        made = steps_per_phase(BALANCED, family.steps, mu=shift)
        assert made[Phase.LAYOUT] >= 1 and made[Phase.FUSED] >= 1
