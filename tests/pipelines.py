"""diffusers' own pipelines of FLUX and SD3, tiny, with random weights and without text encoders or a VAE."""

import torch
from diffusers import (
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
)

from tests.settings import scaled

TEXT, PIXELS = 5, 16  # tokens of text; pixels a side of an image token
CONFIG = scaled(base_tokens=16, fused_until=0.57)  # 2 steps of 7 global, 2 fused, 3 local
FLUX_SCHEDULER = dict(  # as FLUX.1-dev has it
    base_image_seq_len=256, max_image_seq_len=4096, base_shift=0.5, max_shift=1.15, shift=3.0, use_dynamic_shifting=True
)


def flux(seed=1, **changes):
    torch.manual_seed(seed)
    config = dict(
        patch_size=1,
        in_channels=64,
        num_layers=1,
        num_single_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=12,
        pooled_projection_dim=8,
        guidance_embeds=False,
        axes_dims_rope=(4, 6, 6),
    )
    return FluxTransformer2DModel(**config | changes).eval()


def sd3(seed=1, **changes):
    torch.manual_seed(seed)
    config = dict(
        sample_size=8,
        in_channels=16,
        out_channels=16,
        num_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=12,
        caption_projection_dim=32,
        pooled_projection_dim=8,
        pos_embed_max_size=12,
        qk_norm="rms_norm",
        dual_attention_layers=(0,),
    )
    return SD3Transformer2DModel(**config | changes).eval()


def pipeline(family, seed=1, **scheduler):
    """A pipeline of "flux" or "sd3"."""
    kinds = ("", "_2") if family == "flux" else ("", "_2", "_3")
    nothing = dict.fromkeys(f"{part}{kind}" for part in ("text_encoder", "tokenizer") for kind in kinds)
    if family == "flux":
        made = FluxPipeline(
            scheduler=FlowMatchEulerDiscreteScheduler(**scheduler), vae=None, transformer=flux(seed), **nothing
        )
    else:
        made = StableDiffusion3Pipeline(
            scheduler=FlowMatchEulerDiscreteScheduler(**{"shift": 3.0} | scheduler),
            vae=None,
            transformer=sd3(seed),
            **nothing,
        )
    made.set_progress_bar_config(disable=True)
    return made


def picture(pipe, rows=9, columns=6, steps=7, **more):
    """The latents of one picture of rows x columns tokens."""
    given = dict(
        prompt_embeds=torch.ones(1, TEXT, 12),
        pooled_prompt_embeds=torch.ones(1, 8),
        height=PIXELS * rows,
        width=PIXELS * columns,
        num_inference_steps=steps,
        output_type="latent",
        generator=torch.Generator().manual_seed(0),
    )
    if isinstance(pipe, StableDiffusion3Pipeline):
        given |= dict(
            negative_prompt_embeds=-torch.ones(1, TEXT, 12),
            negative_pooled_prompt_embeds=-torch.ones(1, 8),
            guidance_scale=4.0,
        )
    return pipe(**given | more).images
