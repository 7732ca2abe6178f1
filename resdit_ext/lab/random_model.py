"""A pipeline of FLUX.1-dev's shapes with random weights: its time and memory are the real ones, its pictures noise."""

from __future__ import annotations

import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, FluxPipeline

from ..errors import ResDiTError, quoted
from ..method.config import check_number
from .benchmarks.flux import FLUX_DEV, TEXT, model

SCHEDULER = dict(
    base_image_seq_len=256, max_image_seq_len=4096, base_shift=0.5, max_shift=1.15, shift=3.0, use_dynamic_shifting=True
)
AUTOENCODER = dict(
    down_block_types=("DownEncoderBlock2D",) * 4,
    up_block_types=("UpDecoderBlock2D",) * 4,
    block_out_channels=(128, 256, 512, 512),
    layers_per_block=2,
    latent_channels=16,
    sample_size=1024,
    scaling_factor=0.3611,
    shift_factor=0.1159,
    use_quant_conv=False,
    use_post_quant_conv=False,
)


def blocks_of(depth: str) -> tuple[int, int]:
    """`"19,38"` -> (19, 38), the double and the single blocks; raises ResDiTError for anything else."""
    try:
        double, single = (int(part) for part in depth.split(","))
    except ValueError:
        raise ResDiTError(f"depth is {quoted(depth)}; write double and single blocks as 19,38") from None
    check_number("depth", double, 1, 19, whole=True)
    check_number("depth", single, 1, 38, whole=True)
    return double, single


def random_pipeline(device: str, dtype: torch.dtype, depth: str, heads: int) -> tuple[FluxPipeline, dict[str, object]]:
    """(a pipeline without text encoders, the inputs of its calls in place of a prompt).

    Args:
        device: where it is made.
        dtype: of its weights.
        depth: double and single blocks, with a comma between.
        heads: of its attention, of 128 channels each; FLUX.1-dev has 24.
    """
    check_number("heads", heads, 1, 24, whole=True)
    transformer = model(device, blocks_of(depth), heads).to(dtype)
    with torch.device(device):
        vae = AutoencoderKL(**AUTOENCODER).to(dtype).eval()
    nothing = dict.fromkeys(("text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2"))
    scheduler = FlowMatchEulerDiscreteScheduler(**SCHEDULER)
    pipe = FluxPipeline(scheduler=scheduler, vae=vae, transformer=transformer, **nothing)
    make = dict(device=device, dtype=dtype)
    return pipe, {
        "prompt_embeds": torch.randn(1, TEXT, FLUX_DEV["joint_attention_dim"], **make),
        "pooled_prompt_embeds": torch.randn(1, FLUX_DEV["pooled_projection_dim"], **make),
    }
