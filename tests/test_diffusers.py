"""The diffusers adapter on diffusers' own FLUX, tiny and with random weights."""

import numpy as np
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel
from diffusers.models.transformers import transformer_flux
from torch._dynamo.testing import CompileCounter

from resdit_ext import ResDiTConfig, ResDiTError, Unsupported, apply_resdit, remove_resdit
from resdit_ext.seams import sequence
from resdit_ext.seams.places_diffusers import grid_of
from tests import reference
from tests.settings import scaled

TEXT, BASE = 5, scaled(base_tokens=16)
AXES = (4, 6, 6)


@pytest.fixture
def model():
    torch.manual_seed(1)
    return FluxTransformer2DModel(
        patch_size=1,
        in_channels=64,
        num_layers=1,
        num_single_layers=2,
        attention_head_dim=sum(AXES),
        num_attention_heads=2,
        joint_attention_dim=12,
        pooled_projection_dim=8,
        guidance_embeds=False,
        axes_dims_rope=AXES,
    ).eval()


def ids(height, width, dtype=torch.float32):
    grid = torch.zeros(height, width, 3, dtype=dtype)
    grid[..., 1] += torch.arange(height, dtype=dtype)[:, None]
    grid[..., 2] += torch.arange(width, dtype=dtype)
    return grid.reshape(-1, 3)


def inputs(height, width, sigma=0.9, batch=1):
    generator = torch.Generator().manual_seed(3)
    return dict(
        hidden_states=torch.randn(batch, height * width, 64, generator=generator),
        encoder_hidden_states=torch.randn(batch, TEXT, 12, generator=generator),
        pooled_projections=torch.randn(batch, 8, generator=generator),
        timestep=torch.full((batch,), sigma),
        img_ids=ids(height, width),
        txt_ids=torch.zeros(TEXT, 3),
        return_dict=False,
    )


@torch.inference_mode()
def run(model, *args, **kwargs):
    return model(**inputs(*args, **kwargs))[0]


@pytest.mark.parametrize("size", [(4, 4), (2, 8), (1, 3)])
def test_at_or_below_the_base_size_it_is_bit_identical(model, size):
    plain = run(model, *size)
    made = apply_resdit(model, BASE)
    assert torch.equal(run(model, *size), plain)
    assert made.calls == {"base": 1}


@pytest.mark.parametrize("sigma", [0.99, 0.8, 0.1])
def test_above_it_the_method_runs_and_leaves_nothing_behind(model, sigma):
    functions = transformer_flux.apply_rotary_emb, transformer_flux.dispatch_attention_fn
    plain = run(model, 12, 12, sigma)
    apply_resdit(model, scaled(base_tokens=16, fused_until=0.57))
    assert not torch.allclose(run(model, 12, 12, sigma), plain, atol=1e-3)
    assert (transformer_flux.apply_rotary_emb, transformer_flux.dispatch_attention_fn) == functions
    remove_resdit(model)
    assert type(model) is FluxTransformer2DModel and "_resdit_around" not in vars(model)
    assert torch.equal(run(model, 12, 12, sigma), plain)


def test_native_positions_in_one_global_branch_are_the_plain_model(model):
    plain = run(model, 7, 11)
    apply_resdit(model, scaled(base_tokens=16, pes=False, global_until=1, attention_scale="off"))
    assert torch.allclose(run(model, 7, 11), plain, atol=1e-5)


@pytest.mark.parametrize(("sigma", "phase"), [(0.99, "global"), (0.8, "fused"), (0.1, "local")])
@pytest.mark.parametrize("size", [(12, 12), (6, 14)])
def test_each_attention_is_the_methods(model, monkeypatch, sigma, phase, size):
    """q, k, v of the first block, taken before rotation, through the numpy reference."""
    seen = {}

    def spy(q, k, v, plan, at, attend):
        out = original(q, k, v, plan, at, attend)
        seen.setdefault("call", (q, k, v, plan, at, out))
        return out

    original = sequence.resdit_attention
    monkeypatch.setattr(sequence, "resdit_attention", spy)
    apply_resdit(model, scaled(base_tokens=16, fused_until=0.57))
    run(model, *size, sigma)
    q, k, v, plan, at, out = seen["call"]
    assert at.value == phase
    base = plan.layout.base
    expected = reference.resdit(
        *(x[0].double().numpy() for x in (q, k, v)),
        TEXT,
        size,
        (base.height, base.width),
        phase,
        axes_dim=AXES,
        theta=10000,
        scale=np.log(TEXT + size[0] * size[1]) / np.log(TEXT + base.tokens),
        cutoff=0.1,
        sigma=0.25,
    )
    assert np.abs(out[0].double().numpy() - expected).max() < 1e-5


def test_batch_equals_one_by_one(model):
    apply_resdit(model, BASE)
    both = run(model, 9, 9, 0.8, batch=2)
    data = inputs(9, 9, 0.8, batch=2)
    with torch.inference_mode():
        for i in range(2):
            one = {k: x[i : i + 1] if k.endswith(("states", "projections", "timestep")) else x for k, x in data.items()}
            assert torch.allclose(model(**one)[0][0], both[i], atol=1e-5)


@pytest.mark.parametrize("fault", [RuntimeError, KeyboardInterrupt])
def test_a_fault_in_a_block_leaves_nothing_patched(model, fault):
    functions = transformer_flux.apply_rotary_emb, transformer_flux.dispatch_attention_fn
    apply_resdit(model, BASE)

    def break_down(*_):
        raise fault("out of memory")

    hook = model.single_transformer_blocks[0].register_forward_hook(break_down)
    with pytest.raises(fault):
        run(model, 9, 9)
    hook.remove()
    assert (transformer_flux.apply_rotary_emb, transformer_flux.dispatch_attention_fn) == functions


def test_the_attention_backend_of_the_user_is_called(model):
    from diffusers.models.attention_dispatch import attention_backend

    apply_resdit(model, BASE)
    usual = run(model, 9, 9, 0.8)
    with attention_backend("_native_math"):
        assert torch.allclose(run(model, 9, 9, 0.8), usual, atol=1e-5)


def test_applying_again_replaces_and_removing_twice_is_harmless(model):
    plain = run(model, 9, 9)
    first = apply_resdit(model, BASE)
    second = apply_resdit(model, BASE)
    run(model, 9, 9)
    assert not first.calls and second.calls["global"] == 1
    remove_resdit(model)
    remove_resdit(model)
    assert torch.equal(run(model, 9, 9), plain)


def test_a_forward_wrapped_since_stays_and_the_method_with_it(model):
    expected = run(model, 9, 9), run(ready := apply_resdit(model, BASE) and model, 9, 9)
    forward, seen = ready.forward, []
    model.forward = lambda *args, **kwargs: seen.append(1) or forward(*args, **kwargs)
    assert torch.equal(run(model, 9, 9), expected[1])
    remove_resdit(model)
    assert torch.equal(run(model, 9, 9), expected[0]) and len(seen) == 2


@pytest.mark.parametrize("height", [128, 192])
def test_the_pipeline_end_to_end(model, height):
    pipe = FluxPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(),
        vae=None,
        text_encoder=None,
        tokenizer=None,
        text_encoder_2=None,
        tokenizer_2=None,
        transformer=model,
    )
    pipe.set_progress_bar_config(disable=True)

    def generate():
        return pipe(
            prompt_embeds=torch.ones(1, TEXT, 12),
            pooled_prompt_embeds=torch.ones(1, 8),
            height=height,
            width=96,
            num_inference_steps=7,
            output_type="latent",
            generator=torch.Generator().manual_seed(0),
        ).images

    plain = generate()
    made = apply_resdit(pipe, scaled(base_tokens=16, fused_until=0.57))
    changed = generate()
    assert made.calls["global"] == 2 and made.calls["fused"] == 2 and made.calls["local"] == 3
    assert torch.isfinite(changed).all() and not torch.allclose(changed, plain, atol=1e-2)
    remove_resdit(pipe)
    assert torch.equal(generate(), plain)


def with_references(data, batch=1):
    """The arguments of a call with Kontext's reference image of 3x4 tokens, after the picture."""
    references = torch.randn(batch, 12, 64, generator=torch.Generator().manual_seed(6))
    places = ids(3, 4) + torch.tensor([1.0, 0, 0])
    return data | {
        "hidden_states": torch.cat((data["hidden_states"], references), 1),
        "img_ids": torch.cat((data["img_ids"], places)),
    }


@torch.inference_mode()
def test_references_keep_their_places(model, monkeypatch):
    calls, original = [], sequence.resdit_attention
    monkeypatch.setattr(
        sequence, "resdit_attention", lambda *given: calls.append((*given, out := original(*given))) or out
    )
    data = with_references(inputs(7, 11, 0.8, batch=2), batch=2)
    plain = model(**data)[0]
    apply_resdit(model, scaled(base_tokens=16, pes=False, global_until=1, attention_scale="off"))
    assert torch.allclose(model(**data)[0], plain, atol=1e-5)
    apply_resdit(model, scaled(base_tokens=16, fused_until=0.57))
    calls.clear()
    assert not torch.allclose(model(**data)[0], plain, atol=1e-3)
    (q, k, v, plan, _, _, out), *_ = calls
    expected = reference.resdit(
        *(x[0].double().numpy() for x in (q, k, v)),
        *(TEXT + 12, (7, 11), (plan.layout.base.height, plan.layout.base.width), "fused"),
        axes_dim=AXES,
        theta=10000,
        scale=np.log(TEXT + 12 + 77) / np.log(TEXT + 12 + plan.layout.base.tokens),
        cutoff=0.1,
        sigma=0.25,
        others=[(0, 0, 0)] * TEXT + [(1, i, j) for i in range(3) for j in range(4)],
    )
    assert np.abs(out[0].double().numpy() - expected).max() < 1e-5
    made = apply_resdit(model, ResDiTConfig(base_tokens=16))
    assert model(**data)[0].shape == plain.shape and made.calls["model calls"] == 1


def test_grids_are_read_where_bfloat16_ids_collide():
    grid = grid_of(ids(400, 300, torch.bfloat16), 400 * 300)
    assert (grid.height, grid.width) == (400, 300)
    assert grid_of(ids(1, 9), 9).width == 9
    with pytest.raises(Unsupported, match="30 image tokens are not a grid"):
        grid_of(ids(4, 8)[:30], 30)


def test_refusals():
    known = "FluxTransformer2DModel, FluxControlNetModel, SD3Transformer2DModel, SD3ControlNetModel"
    with pytest.raises(Unsupported, match=f"Linear is not one of {known}, ChromaTransformer2DModel"):
        apply_resdit(torch.nn.Linear(2, 2))
    with pytest.raises(ResDiTError, match="pass a ResDiTConfig"):
        apply_resdit(torch.nn.Linear(2, 2), {"cutoff": 0.2})


@pytest.mark.parametrize("how", ["blocks", "module", "wrapper"])
def test_a_compiled_model_gives_the_same_and_is_not_compiled_again(model, how):
    """As users compile it: its repeated blocks, the module in place, or a wrapper of it."""
    config, sigmas = scaled(base_tokens=16, fused_until=0.57), (0.99, 0.8, 0.1)
    plain = run(model, 9, 9)
    apply_resdit(model, config)
    expected = [run(model, 9, 9, sigma) for sigma in sigmas]
    remove_resdit(model)
    torch.compiler.reset()
    counter = CompileCounter()
    if how == "blocks":
        for block in (*model.transformer_blocks, *model.single_transformer_blocks):
            block.compile(backend=counter)
    elif how == "module":
        model.compile(backend=counter)
    compiled = torch.compile(model, backend=counter) if how == "wrapper" else model
    counts = []
    for _ in range(3):
        assert torch.allclose(run(compiled, 9, 9), plain, atol=1e-5)
        apply_resdit(compiled, config)
        for sigma, wanted in zip(sigmas, expected, strict=True):
            assert torch.allclose(run(compiled, 9, 9, sigma), wanted, atol=1e-5)
        remove_resdit(compiled)
        counts.append(counter.frame_count)
    assert 0 < counts[0] and counts[1] == counts[2]
    torch.compiler.reset()
