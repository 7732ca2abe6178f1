"""Whole pipelines of FLUX and SD3 in folders, tiny, with random weights, and pictures to train on: made offline."""

from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, FluxPipeline, StableDiffusion3Pipeline
from PIL import Image
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    T5Config,
    T5EncoderModel,
    T5Tokenizer,
)

from tests import pipelines

LETTERS = "abcdefghijklmnopqrstuvwxyz,"
SIZE = 64  # pixels a side of a training picture: 4 tokens


def clip(width, cls=CLIPTextModelWithProjection):
    ends = dict(bos_token_id=0, eos_token_id=1, pad_token_id=1)
    config = CLIPTextConfig(
        vocab_size=64,
        hidden_size=width,
        projection_dim=width,
        intermediate_size=8,
        num_hidden_layers=2,
        num_attention_heads=2,
        **ends,
    )
    return cls(config).eval()


def t5(width):
    config = T5Config(vocab_size=160, d_model=width, d_kv=4, d_ff=8, num_layers=1, num_heads=2)
    return T5EncoderModel(config).eval()


def tokenizers():
    words = ["<|startoftext|>", "<|endoftext|>", *LETTERS, *(f"{letter}</w>" for letter in LETTERS)]
    of_clip = CLIPTokenizer(vocab={word: i for i, word in enumerate(words)}, merges=[], model_max_length=77)
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -1.0), *((letter, -2.0) for letter in LETTERS)]
    return of_clip, T5Tokenizer(vocab=pieces)


def vae():
    return AutoencoderKL(
        down_block_types=["DownEncoderBlock2D"] * 4,
        up_block_types=["UpDecoderBlock2D"] * 4,
        block_out_channels=[4] * 4,
        layers_per_block=1,
        latent_channels=16,
        norm_num_groups=2,
        scaling_factor=0.4,
        shift_factor=0.1,
        use_quant_conv=False,
        use_post_quant_conv=False,
    ).eval()


def save_pipeline(family: str, folder: Path) -> Path:
    """A whole pipeline of "flux" or "sd3" in a folder."""
    torch.manual_seed(0)
    of_clip, of_t5 = tokenizers()
    scheduler, parts = FlowMatchEulerDiscreteScheduler(shift=3.0), dict(vae=vae())
    if family == "flux":
        parts |= dict(text_encoder=clip(8, CLIPTextModel), tokenizer=of_clip, text_encoder_2=t5(12), tokenizer_2=of_t5)
        pipe = FluxPipeline(scheduler=scheduler, transformer=pipelines.flux(guidance_embeds=True), **parts)
    else:
        parts |= dict(text_encoder=clip(4), tokenizer=of_clip, text_encoder_2=clip(4), tokenizer_2=of_clip)
        parts |= dict(text_encoder_3=t5(12), tokenizer_3=of_t5)
        pipe = StableDiffusion3Pipeline(scheduler=scheduler, transformer=pipelines.sd3(), **parts)
    pipe.save_pretrained(folder)
    return folder


def save_pictures(folder: Path, sizes=((100, 100), (64, 64), (160, 90), (90, 170))) -> Path:
    """Pictures of noise, (width, height) pixels each, with captions."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    for i, (width, height) in enumerate(sizes):
        Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8)).save(folder / f"{i}.png")
        (folder / f"{i}.txt").write_text(f"picture {'abcdef'[i]}", encoding="utf8")
    return folder
