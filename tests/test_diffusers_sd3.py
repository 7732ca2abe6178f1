"""The diffusers adapter on diffusers' own SD3, tiny and with random weights: SD3-medium's and SD3.5-medium's blocks."""

import numpy as np
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel, StableDiffusion3Pipeline

from resdit_ext import Unsupported, apply_resdit, remove_resdit
from tests import reference
from tests.settings import scaled

TEXT, HEADS, WIDTH, CHANNELS, SIDE = 5, 2, 32, 4, 12
BASE = scaled(base_tokens=16, fused_until=0.57)
PHASES = {"global": 0.99, "fused": 0.8, "local": 0.1}


@pytest.fixture(params=["medium", "3.5 medium"])
def model(request):
    torch.manual_seed(1)
    return SD3Transformer2DModel(
        sample_size=8,
        in_channels=CHANNELS,
        out_channels=CHANNELS,
        num_layers=3,
        attention_head_dim=WIDTH // HEADS,
        num_attention_heads=HEADS,
        joint_attention_dim=12,
        caption_projection_dim=WIDTH,
        pooled_projection_dim=8,
        pos_embed_max_size=SIDE,
        **({"qk_norm": "rms_norm", "dual_attention_layers": (0, 1)} if request.param == "3.5 medium" else {}),
    ).eval()


def inputs(height, width, sigma=0.9, batch=1, **more):
    generator = torch.Generator().manual_seed(3)
    return dict(
        hidden_states=torch.randn(batch, CHANNELS, 2 * height, 2 * width, generator=generator),
        encoder_hidden_states=torch.randn(batch, TEXT, 12, generator=generator),
        pooled_projections=torch.randn(batch, 8, generator=generator),
        timestep=torch.full((batch,), 1000 * sigma),
        return_dict=False,
        **more,
    )


@torch.inference_mode()
def run(model, *args, **kwargs):
    return model(**inputs(*args, **kwargs))[0]


@pytest.mark.parametrize("size", [(4, 4), (2, 8), (1, 3)])
def test_at_or_below_the_base_size_it_is_bit_identical(model, size):
    plain = run(model, *size)
    made = apply_resdit(model, BASE)
    assert torch.equal(run(model, *size), plain) and made.calls == {"base": 1}


@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.parametrize("size", [(8, 8), (6, 14), (20, 20)])
def test_it_is_the_method(model, phase, size):
    """The reference, around a second model whose table and queries are changed by hand; 20 is beyond the table."""
    config = model.config
    wide = SD3Transformer2DModel(**{**config, "pos_embed_max_size": 40, "sample_size": 80 // 3}).eval()
    weights = {k: v for k, v in model.state_dict().items() if k != "pos_embed.pos_embed"}
    wide.load_state_dict(weights, strict=False)
    data = inputs(*size, PHASES[phase])
    text = {k: data[k] for k in ("encoder_hidden_states", "pooled_projections", "timestep")}
    apply_resdit(model, BASE)
    with torch.inference_mode():
        got = model(**data)[0][0]
    from resdit_ext.method.layout import Grid, base_grid

    base = base_grid(Grid(*size), 16)
    h, w = base.height, base.width
    # diffusers' index i stands at i * base_size / pos_embed_max_size
    step = (config.sample_size // 2) / SIDE

    def table(rows, cols):
        return torch.from_numpy(reference.sincos_table(rows, cols, WIDTH, step)).float().reshape(1, -1, WIDTH)

    whole = table(*(reference.whole_index(SIDE, n, b) for n, b in zip(size, (h, w), strict=True)))
    scale = np.log(TEXT + size[0] * size[1]) / np.log(TEXT + h * w)

    def scaled(name):
        """A layer that makes queries, with the factor in its weights."""
        return name.endswith(("norm_q.weight", "norm_added_q.weight")) or (
            config.qk_norm is None and (".to_q." in name or ".add_q_proj." in name)
        )

    wide.load_state_dict({k: v * scale if scaled(k) else v for k, v in weights.items()}, strict=False)
    remove_resdit(model)

    @torch.inference_mode()
    def call(network, latent, positions):
        network.pos_embed.cropped_pos_embed = lambda *_: positions
        return network(hidden_states=torch.from_numpy(latent)[None].float(), return_dict=False, **text)[0][0].numpy()

    expected = reference.resdit_by_patches(
        data["hidden_states"][0].double().numpy(),
        size,
        (h, w),
        phase,
        lambda x: call(wide, x, whole),
        lambda x, *start: call(
            model, x, table(*(reference.patch_index(SIDE, *n) for n in zip(size, (h, w), start, strict=True)))
        ),
        cutoff=0.1,
        sigma=0.25,
    )
    assert np.abs(reference.to_tokens(got.double().numpy()) - expected).max() < 2e-5 * np.abs(expected).max()


def test_it_goes_beyond_the_table_where_the_plain_model_cannot(model):
    with pytest.raises(ValueError, match="pos_embed_max_size"):
        run(model, 16, 16)
    apply_resdit(model, BASE)
    assert torch.isfinite(run(model, 16, 16)).all()


@pytest.mark.parametrize("sigma", PHASES.values())
def test_batch_control_and_skipped_layers_are_as_one_by_one(model, sigma):
    apply_resdit(model, BASE)
    control = [torch.randn(2, 81, WIDTH, generator=torch.Generator().manual_seed(i)) for i in range(3)]
    both = run(model, 9, 9, sigma, batch=2, block_controlnet_hidden_states=control, skip_layers=[1])
    assert not torch.allclose(both, run(model, 9, 9, sigma, batch=2), atol=1e-3)
    data = inputs(9, 9, sigma, batch=2)
    with torch.inference_mode():
        for i in range(2):
            one = {k: x[i : i + 1] if torch.is_tensor(x) else x for k, x in data.items()}
            mine = [residual[i : i + 1] for residual in control]
            single = model(**one, block_controlnet_hidden_states=mine, skip_layers=[1])[0]
            assert torch.allclose(single[0], both[i], atol=1e-5)


@pytest.mark.parametrize("fault", [RuntimeError, KeyboardInterrupt])
def test_a_fault_leaves_nothing_behind(model, fault):
    plain = run(model, 8, 8, 0.99)
    apply_resdit(model, BASE)

    def break_down(*_):
        raise fault

    hook = model.transformer_blocks[1].register_forward_hook(break_down)
    with pytest.raises(fault):
        run(model, 8, 8, 0.99)
    hook.remove()
    remove_resdit(model)
    assert torch.equal(run(model, 8, 8, 0.99), plain)
    parts = [*model.modules(), *(processor for processor in model.attn_processors.values())]
    assert not any("_resdit_around" in vars(part) for part in parts)
    assert type(model) is SD3Transformer2DModel


def test_return_dict_and_positional_arguments(model):
    apply_resdit(model, BASE)
    data = inputs(8, 8)
    with torch.inference_mode():
        as_tuple = model(**data)[0]
        as_object = model(*(v for k, v in data.items() if k != "return_dict"))
    assert torch.equal(as_object.sample, as_tuple)


@pytest.mark.parametrize("model", ["medium"], indirect=True)  # diffusers' own fail for 3.5 medium's second attention
def test_fused_projections_change_nothing(model):
    """The processors that diffusers puts in for them are asked for at each call."""
    apply_resdit(model, BASE)
    expected = run(model, 8, 8, 0.8)
    model.fuse_qkv_projections()
    assert torch.allclose(run(model, 8, 8, 0.8), expected, atol=1e-5)


def test_a_processor_that_attends_in_another_way_is_refused_by_name(model):
    class OwnProcessor:
        def __call__(self, _, hidden_states, encoder_hidden_states=None, **__):
            return hidden_states, encoder_hidden_states

    model.transformer_blocks[1].attn.processor = OwnProcessor()
    with pytest.raises(Unsupported, match="OwnProcessor does not call F, scaled_dot_product_attention"):
        apply_resdit(model, BASE)


def test_the_pipeline_end_to_end_with_guidance(model):
    """Conditional and unconditional in one call, the noise levels read from the pipeline's scheduler."""
    pipe = StableDiffusion3Pipeline(
        transformer=model,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=None,
        **dict.fromkeys(f"{kind}{n}" for kind in ("text_encoder", "tokenizer") for n in ("", "_2", "_3")),
    )
    pipe.set_progress_bar_config(disable=True)

    def generate():
        return pipe(
            prompt_embeds=torch.ones(1, TEXT, 12),
            negative_prompt_embeds=-torch.ones(1, TEXT, 12),
            pooled_prompt_embeds=torch.ones(1, 8),
            negative_pooled_prompt_embeds=-torch.ones(1, 8),
            guidance_scale=4.0,
            height=128,
            width=96,
            num_inference_steps=7,
            output_type="latent",
            generator=torch.Generator().manual_seed(0),
        ).images

    plain = generate()
    made = apply_resdit(pipe, BASE)
    changed = generate()
    assert made.calls["global"] == 2 and made.calls["fused"] == 2 and made.calls["local"] == 3
    assert torch.isfinite(changed).all() and not torch.allclose(changed, plain, atol=1e-2)
    remove_resdit(pipe)
    assert torch.equal(generate(), plain)
