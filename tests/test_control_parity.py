"""Against diffusers' own pipelines: the same tiny weights, hints, weights of units and ranges give the same latents."""

import itertools

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from diffusers import (
    AutoencoderKL,
    FlowMatchEulerDiscreteScheduler,
    FluxControlNetPipeline,
    FluxMultiControlNetModel,
    FluxTransformer2DModel,
    SD3Transformer2DModel,
    StableDiffusion3ControlNetPipeline,
)
from diffusers.models.controlnets.controlnet_sd3 import SD3MultiControlNetModel
from PIL import Image

from resdit_ext.control.token_nets import to_tokens
from resdit_ext.seams.places_diffusers import grid_of
from tests.control_host import Generation, Network, family_of, unet_of
from tests.control_nets import FLUX, SD3, STABILITY, as_stability, as_xlabs, net_of

SIDE, STEPS, TEXT, GUIDANCE = 128, 6, 5, 3.5  # pixels; a latent's is 8
DOUBLE, SINGLE, JOINT = 5, 3, 5
TOLERANCE = 2e-5  # of latents of size 1: float32 sums in another order


def noisy(*shape, seed):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def autoencoder():
    """Four latent channels, eight pixels a latent's side, and next to no noise in what it encodes to."""
    torch.manual_seed(3)
    vae = AutoencoderKL(
        block_out_channels=(8, 8, 8, 8),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        latent_channels=4,
        norm_num_groups=4,
        use_quant_conv=False,
        use_post_quant_conv=False,
        shift_factor=0.4,
        scaling_factor=1.7,
    ).eval()
    with torch.no_grad():
        vae.encoder.conv_out.weight[4:] = 0
        vae.encoder.conv_out.bias[4:] = -30
    return vae.requires_grad_(False)


def encode_with(vae):
    def encode(picture):
        return (vae.encode(picture).latent_dist.sample() - vae.config.shift_factor) * vae.config.scaling_factor

    return encode


def hint_image(seed=0):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8))


def as_panel(image):
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)[None] / 255


def flux_pipeline(nets):
    torch.manual_seed(1)
    transformer = FluxTransformer2DModel(**FLUX | {"num_layers": DOUBLE, "num_single_layers": SINGLE}).eval()
    return FluxControlNetPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
        vae=autoencoder(),
        text_encoder=None,
        tokenizer=None,
        text_encoder_2=None,
        tokenizer_2=None,
        transformer=transformer.requires_grad_(False),
        controlnet=nets[0] if len(nets) == 1 else FluxMultiControlNetModel(nets),
    )


def flux_conditioning():
    return noisy(1, TEXT, 32, seed=4), noisy(1, 16, seed=5)


@torch.inference_mode()
def ours_flux(pipe, monkeypatch, states, hints, latent, **attributes):
    """Euler's steps over diffusers' transformer, with control as the panel's units link it."""
    network = Network(DOUBLE, SINGLE)
    sigmas = pipe.scheduler.sigmas.tolist()
    p = Generation(monkeypatch, unet_of(network), family_of("FLUX.1", 64), encode_with(pipe.vae), sigmas)
    for i, (state, hint) in enumerate(zip(states, hints, strict=True)):
        mine = {name: values[i] if isinstance(values, list) else values for name, values in attributes.items()}
        p.add(state, as_panel(hint), latent, **mine)
    text, pooled = flux_conditioning()
    x, ids = latent, pipe._prepare_latent_image_ids(1, SIDE // 16, SIDE // 16, "cpu", torch.float32)
    assert grid_of(ids, len(ids)).height == SIDE // 16
    for sigma, after in itertools.pairwise(sigmas):
        given = dict(c_crossattn=text, y=pooled, guidance=torch.tensor([GUIDANCE]))
        control = p.control(x, sigma, **given)
        velocity = pipe.transformer(
            hidden_states=to_tokens(x),
            timestep=torch.tensor([sigma]),
            guidance=torch.tensor([GUIDANCE]),
            pooled_projections=pooled,
            encoder_hidden_states=text,
            controlnet_block_samples=control and [control["input"][i] for i in range(DOUBLE)],
            controlnet_single_block_samples=(
                control and control["output"][0] is not None and [control["output"][i] for i in range(SINGLE)]
            )
            or None,
            txt_ids=torch.zeros(TEXT, 3),
            img_ids=ids,
            return_dict=False,
        )[0]
        velocity = F.pixel_shuffle(velocity.transpose(1, 2).unflatten(2, (SIDE // 16, SIDE // 16)), 2)
        x = x + (after - sigma) * velocity
    return to_tokens(x), p.said


@torch.inference_mode()
def theirs_flux(pipe, hints, latent, **arguments):
    text, pooled = flux_conditioning()
    return pipe(
        prompt_embeds=text,
        pooled_prompt_embeds=pooled,
        latents=to_tokens(latent),
        height=SIDE,
        width=SIDE,
        num_inference_steps=STEPS,
        guidance_scale=GUIDANCE,
        control_image=hints[0] if len(hints) == 1 else hints,
        output_type="latent",
        **arguments,
    ).images


def same(mine, theirs, plain):
    assert float((mine - theirs).abs().max()) < TOLERANCE
    assert float((plain - theirs).abs().max()) > 100 * TOLERANCE  # control does something


FLUX_CASES = {
    "flux": ({}, {}),
    "flux without single blocks": ({}, {}),
    "flux union": ({"given": {"unit": type("Unit", (), {"type_filter": "Depth"})}}, {"control_mode": 2}),
    "flux xlabs": ({}, {}),
}


@pytest.mark.parametrize("kind", FLUX_CASES)
def test_flux(kind, monkeypatch):
    net, latent, hints = net_of(kind), noisy(1, 4, SIDE // 8, SIDE // 8, seed=7), [hint_image()]
    pipe = flux_pipeline([net])
    mine, theirs = FLUX_CASES[kind]
    expected = theirs_flux(pipe, hints, latent, controlnet_conditioning_scale=0.8, **theirs)
    state = as_xlabs(net.state_dict()) if kind == "flux xlabs" else net.state_dict()
    got, said = ours_flux(pipe, monkeypatch, [state], hints, latent, strength=0.8, **mine)
    plain, _ = ours_flux(pipe, monkeypatch, [], [], latent)
    same(got, expected, plain)
    assert said == []


@pytest.mark.parametrize(("start", "end"), [(0.0, 0.5), (0.3, 1.0), (0.2, 0.7), (0.5, 0.5)])
def test_flux_range(start, end, monkeypatch):
    net, latent, hints = net_of("flux"), noisy(1, 4, SIDE // 8, SIDE // 8, seed=8), [hint_image()]
    pipe = flux_pipeline([net])
    expected = theirs_flux(pipe, hints, latent, control_guidance_start=start, control_guidance_end=end)
    got, _ = ours_flux(pipe, monkeypatch, [net.state_dict()], hints, latent, start_percent=start, end_percent=end)
    assert float((got - expected).abs().max()) < TOLERANCE


def test_flux_two_units(monkeypatch):
    nets = [net_of("flux", seed=1), net_of("flux", seed=2)]
    latent, hints = noisy(1, 4, SIDE // 8, SIDE // 8, seed=9), [hint_image(1), hint_image(2)]
    pipe = flux_pipeline(nets)
    expected = theirs_flux(pipe, hints, latent, controlnet_conditioning_scale=[0.7, 0.4])
    got, _ = ours_flux(pipe, monkeypatch, [net.state_dict() for net in nets], hints, latent, strength=[0.7, 0.4])
    plain, _ = ours_flux(pipe, monkeypatch, [], [], latent)
    same(got, expected, plain)


def sd3_pipeline(nets, changes):
    torch.manual_seed(1)
    arguments = SD3 | {"num_layers": JOINT, "pos_embed_max_size": 16} | changes
    transformer = SD3Transformer2DModel(**arguments).eval().requires_grad_(False)
    return StableDiffusion3ControlNetPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=autoencoder(),
        text_encoder=None,
        tokenizer=None,
        text_encoder_2=None,
        tokenizer_2=None,
        text_encoder_3=None,
        tokenizer_3=None,
        transformer=transformer,
        controlnet=nets[0] if len(nets) == 1 else SD3MultiControlNetModel(nets),
    )


@torch.inference_mode()
def theirs_sd3(pipe, latent, control_image, **arguments):
    return pipe(
        prompt_embeds=noisy(1, TEXT, 32, seed=4),
        pooled_prompt_embeds=noisy(1, 16, seed=5),
        latents=latent.clone(),
        height=SIDE,
        width=SIDE,
        num_inference_steps=STEPS,
        guidance_scale=1.0,
        control_image=control_image,
        output_type="latent",
        **arguments,
    ).images


@torch.inference_mode()
def ours_sd3(pipe, monkeypatch, states, hint, latent, strength, **attributes):
    network = Network(JOINT)
    network.x_embedder = lambda x: pipe.transformer.pos_embed.proj(x).flatten(2).transpose(1, 2)
    network.cropped_pos_embed = lambda hw: pipe.transformer.pos_embed.cropped_pos_embed(*hw)
    sigmas = pipe.scheduler.sigmas.tolist()
    config = pipe.vae.config
    p = Generation(
        monkeypatch,
        unet_of(network),
        family_of("SD3", 128),
        encode_with(pipe.vae),
        sigmas,
        shift=config.shift_factor,
        scale=config.scaling_factor,
    )
    for state in states:
        p.add(state, as_panel(hint), latent, strength=strength, **attributes)
    text, pooled, x = noisy(1, TEXT, 32, seed=4), noisy(1, 16, seed=5), latent
    for sigma, after in itertools.pairwise(sigmas):
        control = p.control(x, sigma, c_crossattn=text, y=pooled)
        velocity = pipe.transformer(
            hidden_states=x,
            encoder_hidden_states=text,
            pooled_projections=pooled,
            timestep=torch.tensor([1000 * sigma]),
            block_controlnet_hidden_states=control and [control[i] for i in range(JOINT)],
            return_dict=False,
        )[0]
        x = x + (after - sigma) * velocity
    return x


@pytest.mark.parametrize("units", [1, 2])
@pytest.mark.parametrize("kind", ["sd3", "sd3.5", "sd3.5 8b"])
def test_sd3(kind, units, monkeypatch):
    changes = {"qk_norm": "rms_norm", "dual_attention_layers": (0,)} if kind == "sd3.5" else {}
    nets = [net_of(kind, seed=seed) for seed in range(units)]
    latent, hint, stability = noisy(1, 4, SIDE // 8, SIDE // 8, seed=7), hint_image(), kind == "sd3.5 8b"
    pipe = sd3_pipeline(nets, changes)
    images, scale = (hint, 0.8) if units == 1 else ([hint] * units, [0.8] * units)
    expected = theirs_sd3(pipe, latent, images, controlnet_conditioning_scale=scale)
    states = [
        # the pipeline has given Stability's nets the model's own embedding, which their files do not have
        {name: value for name, value in net.state_dict().items() if not (stability and name.startswith("pos_embed."))}
        for net in nets
    ]
    if stability:
        states = [as_stability(state, 0.0) for state in states]
    got = ours_sd3(pipe, monkeypatch, states, hint, latent, 0.8)
    same(got, expected, ours_sd3(pipe, monkeypatch, [], hint, latent, 0.8))


@pytest.mark.parametrize(("number", "prepared"), [(1.0, lambda v: v * 127.5 + 0.5), (2.0, lambda v: 1 - 2 * v)])
def test_stabilitys_canny_and_depth_see_their_own_tones(number, prepared, monkeypatch):
    """Handed to the pipeline as tensors, which it takes as they are."""
    net, latent, hint = net_of("sd3.5 8b"), noisy(1, 4, SIDE // 8, SIDE // 8, seed=7), hint_image()
    state = as_stability(net.state_dict(), number)
    pipe = sd3_pipeline([net], {})
    expected = theirs_sd3(pipe, latent, prepared(as_panel(hint)))
    got = ours_sd3(pipe, monkeypatch, [state], hint, latent, 1.0)
    assert float((got - expected).abs().max()) < 10 * TOLERANCE
    assert set(STABILITY) <= set(net.config)
