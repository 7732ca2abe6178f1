"""Chroma: blocks that rotate for themselves (ersatzForge), and diffusers' class with its masks."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from diffusers import ChromaPipeline, ChromaTransformer2DModel, FlowMatchEulerDiscreteScheduler
from torch import nn

from resdit_ext import Unsupported, apply_resdit, remove_resdit
from resdit_ext.families import identify
from resdit_ext.method.run import Run
from resdit_ext.seams.masks_diffusers import OuterMask
from tests import attentions, fakes, fakes_inline
from tests.attaching import attach
from tests.fakes import CHANNELS
from tests.settings import scaled
from tests.test_diffusers import AXES, TEXT, ids

CONFIG = scaled(base_tokens=16, fused_until=0.57)
NATIVE = scaled(base_tokens=16, pes=False, global_until=1, fused_until=1, attention_scale="off")
PHASES = {"global": 0.99, "fused": 0.8, "local": 0.1}


def latent(*size, batch=1):
    return torch.randn(batch, CHANNELS, *size, generator=torch.Generator().manual_seed(4))


class TestBlocksThatRotateForThemselves:
    @pytest.mark.parametrize(("size", "batch"), [((24, 24), 1), ((18, 30), 2), ((15, 21), 1)])
    @pytest.mark.parametrize("sigma", PHASES.values(), ids=PHASES)
    def test_it_is_what_rotating_attention_gets(self, size, batch, sigma):
        """The same weights in the other kind of blocks, which are tested against the reference."""
        model, x = fakes_inline.made(), latent(*size, batch=batch)
        runs = [Run(CONFIG), Run(CONFIG)]
        unets = [fakes.FakePatcher(model), fakes.FakePatcher(fakes_inline.twin_of(model))]
        got, expected = (attach(unet, run).sample(x, sigma) for unet, run in zip(unets, runs, strict=True))
        assert runs[0].calls == runs[1].calls and runs[0].calls["blocks"] == 3
        assert torch.allclose(got, expected, atol=1e-5) and not torch.allclose(
            got, unets[0].sample(x, sigma), atol=1e-3
        )

    def test_at_the_base_size_and_afterwards_it_is_bit_identical(self):
        model = fakes_inline.made()
        unet, run = fakes.FakePatcher(model), Run(CONFIG)
        before = {size: unet.sample(latent(*size), 0.8) for size in ((8, 8), (24, 24))}
        patched = attach(unet, run)
        assert torch.equal(patched.sample(latent(8, 8), 0.8), before[8, 8]) and run.calls == {"base": 1}
        patched.sample(latent(24, 24), 0.8)
        with pytest.raises(RuntimeError, match="shape"):
            patched.sample(latent(24, 24)[:, :1], 0.8)
        assert torch.equal(unet.sample(latent(24, 24), 0.8), before[24, 24])
        assert type(model.pe_embedder) is fakes.Embedder
        assert fakes_inline.attention_function is fakes.attention_function

    def test_what_the_method_cannot_take_is_rotated_and_made_as_if_off(self, monkeypatch):
        unet, said = fakes.FakePatcher(fakes_inline.made()), []
        run = Run(CONFIG, say=said.append)
        forward, x = fakes.FakeFlux.forward, latent(24, 24)
        monkeypatch.setattr(
            fakes.FakeFlux, "forward", lambda self, x, c: forward(self, torch.cat((x, x), -1), c)[..., :24]
        )
        assert torch.allclose(attach(unet, run).sample(x, 0.8), unet.sample(x, 0.8), atol=1e-5)
        assert len(said) == 1 and "reference images are not supported" in said[0]

    def test_it_is_recognised_and_its_kin_are_refused(self):
        model = fakes_inline.made()
        assert identify(model).family.name == "Chroma"
        model.nerf_image_embedder = nn.Identity()
        with pytest.raises(Unsupported, match="Chroma Radiance"):
            identify(model)


def transformer(seed=1):
    torch.manual_seed(seed)
    return ChromaTransformer2DModel(
        patch_size=1,
        in_channels=64,
        num_layers=1,
        num_single_layers=2,
        attention_head_dim=sum(AXES),
        num_attention_heads=2,
        joint_attention_dim=12,
        axes_dims_rope=AXES,
        approximator_num_channels=16,
        approximator_hidden_dim=32,
        approximator_layers=1,
    ).eval()


def mask_of(kind, tokens, batch=1):
    """As the pipeline makes it: text tokens beyond the prompt are 0; the second picture has a shorter one."""
    if kind is None:
        return None
    entries = torch.ones(batch, TEXT + tokens)
    for row in range(batch):
        entries[row, 3 - row : TEXT] = 0
    return entries if kind == "float" else entries.bool()


@torch.inference_mode()
def run(model, height, width, sigma=0.9, batch=1, mask=None):
    generator = torch.Generator().manual_seed(3)
    return model(
        hidden_states=torch.randn(batch, height * width, 64, generator=generator),
        encoder_hidden_states=torch.randn(batch, TEXT, 12, generator=generator),
        timestep=torch.full((batch,), sigma),
        img_ids=ids(height, width),
        txt_ids=torch.zeros(TEXT, 3),
        attention_mask=mask_of(mask, height * width, batch),
        return_dict=False,
    )[0]


class TestDiffusers:
    @pytest.mark.parametrize("mask", [None, "float"])
    @pytest.mark.parametrize("size", [(4, 4), (2, 8), (1, 3)])
    def test_at_or_below_the_base_size_it_is_bit_identical(self, size, mask):
        model = transformer()
        plain = run(model, *size, mask=mask)
        made = apply_resdit(model, CONFIG)
        assert torch.equal(run(model, *size, mask=mask), plain) and made.calls == {"base": 1}

    @pytest.mark.parametrize("mask", [None, "float", "bool"])
    def test_native_positions_in_one_global_branch_are_the_plain_model(self, mask):
        model = transformer()
        plain = run(model, 7, 11, batch=2, mask=mask)
        apply_resdit(model, NATIVE)
        got = run(model, 7, 11, batch=2, mask=mask)
        assert torch.allclose(got, plain, atol=1e-5)
        assert mask is None or not torch.allclose(got, run(model, 7, 11, batch=2), atol=1e-4)

    @pytest.mark.parametrize(("phase", "sigma"), PHASES.items())
    @pytest.mark.parametrize("size", [(12, 12), (6, 14)])
    def test_each_attention_is_the_methods(self, phase, sigma, size):
        model = transformer()
        apply_resdit(model, CONFIG)
        with attentions.recorded() as calls:
            run(model, *size, sigma)
        assert calls
        for call in calls:
            attentions.check(call, TEXT, size, phase, axes_dim=AXES, theta=10000)

    @pytest.mark.parametrize("speed", ["exact", "fastest"])
    @pytest.mark.parametrize("sigma", PHASES.values(), ids=PHASES)
    def test_a_batch_with_masks_of_its_own_equals_one_by_one(self, sigma, speed):
        model = transformer()
        apply_resdit(model, scaled(base_tokens=16, fused_until=0.57, speed=speed))
        both = run(model, 9, 9, sigma, batch=2, mask="float")
        first = mask_of("float", 81)
        with torch.inference_mode():
            data = torch.Generator().manual_seed(3)
            hidden, text = (torch.randn(2, n, c, generator=data) for n, c in ((81, 64), (TEXT, 12)))
            alone = model(
                hidden_states=hidden[:1],
                encoder_hidden_states=text[:1],
                timestep=torch.full((1,), sigma),
                img_ids=ids(9, 9),
                txt_ids=torch.zeros(TEXT, 3),
                attention_mask=first,
                return_dict=False,
            )[0]
        assert torch.allclose(alone[0], both[0], atol=1e-5)
        assert not torch.allclose(both, run(model, 9, 9, sigma, batch=2), atol=1e-4)

    def test_a_mask_that_takes_image_tokens_out_is_refused_and_made_as_if_off(self, caplog):
        model = transformer()
        mask = torch.ones(1, TEXT + 144)
        mask[0, -1] = 0
        given = dict(
            hidden_states=torch.randn(1, 144, 64),
            encoder_hidden_states=torch.randn(1, TEXT, 12),
            timestep=torch.full((1,), 0.8),
            img_ids=ids(12, 12),
            txt_ids=torch.zeros(TEXT, 3),
            attention_mask=mask,
            return_dict=False,
        )
        with torch.inference_mode():
            plain = model(**given)[0]
            apply_resdit(model, CONFIG)
            assert torch.equal(model(**given)[0], plain)
        assert "takes image tokens out" in caplog.text
        remove_resdit(model)
        assert type(model) is ChromaTransformer2DModel

    def test_its_own_pipeline(self):
        nothing = dict.fromkeys(("text_encoder", "tokenizer", "image_encoder", "feature_extractor"))
        scheduler = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)
        pipe = ChromaPipeline(scheduler=scheduler, vae=None, transformer=transformer(), **nothing)
        pipe.set_progress_bar_config(disable=True)
        made = apply_resdit(pipe, CONFIG)
        mask = torch.tensor([[1.0, 1, 1, 0, 0]])
        out = pipe(
            prompt_embeds=torch.ones(1, TEXT, 12),
            prompt_attention_mask=mask,
            negative_prompt_embeds=-torch.ones(1, TEXT, 12),
            negative_prompt_attention_mask=mask,
            height=192,
            width=144,
            num_inference_steps=7,
            guidance_scale=4.0,
            output_type="latent",
            generator=torch.Generator().manual_seed(0),
        ).images
        assert out.isfinite().all()
        assert made.calls == {"global": 2 * 2, "fused": 2 * 2, "local": 2 * 3}


@pytest.mark.parametrize("kind", ["float", "bool"])
@pytest.mark.parametrize("keys", [9, 4])
def test_an_outer_mask_is_the_product_of_its_tokens_entries(kind, keys):
    """Against attention in float64 with the whole matrix; `keys` image keys where there are 9 image queries."""
    torch.manual_seed(3)
    q, k, v = (torch.randn(4, TEXT + n, 2, 6) for n in (9, keys, keys))
    entries = mask_of(kind, 9, batch=2)[:, :TEXT]

    def attend(q, k, v, attn_mask):
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))
        return F.scaled_dot_product_attention(q, k, v, attn_mask).transpose(1, 2)

    got = OuterMask(entries).attend(attend, q, k, v).double().numpy()
    for i in range(4):  # two patches of two pictures
        row = entries[i % 2].double().numpy()
        mask = np.outer(np.append(row, np.ones(9)), np.append(row, np.ones(keys)))
        logits = np.einsum("qhd,khd->hqk", *(x[i].double().numpy() for x in (q, k))) / np.sqrt(6)
        logits = logits + mask if kind == "float" else np.where(mask > 0, logits, -np.inf)
        kept = np.isfinite(logits).any(-1).all(0)  # a token that may look at nothing has no result
        logits[:, ~kept] = 0
        weights = np.exp(logits - logits.max(-1, keepdims=True))
        expected = np.einsum("hqk,khd->qhd", weights / weights.sum(-1, keepdims=True), v[i].double().numpy())
        np.testing.assert_allclose(got[i][kept], expected[kept], atol=1e-5)
