"""The micro models: diffusers' own FLUX and SD3 transformers, two small word tables for text encoders, no VAE.

One token is 4x4 pixels: pixel-unshuffle by two stands for the VAE, and the models' own 2x2 patches follow, so the
same weights run in any implementation that takes 12 latent channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import FluxTransformer2DModel, SD3Transformer2DModel
from einops import rearrange
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ..method.layout import Grid
from .scenes import COLOURS, GROUNDS, SHAPES, parse_prompt

BASE_TOKENS = 16 * 16
TEXT_TOKENS = 32  # one text token per eight image tokens, as FLUX.1 at 1024 px
JOINT, POOLED, LATENT_CHANNELS = 64, 32, 12
PAD = "<pad>"
Residuals = Sequence[Tensor]  # (B, H*W, 128) each, added to the image tokens after the blocks
VOCABULARY = (PAD, "on", "ground", *COLOURS, *SHAPES, *GROUNDS)

FLUX_CONFIG = dict(
    patch_size=1,
    in_channels=4 * LATENT_CHANNELS,
    num_layers=2,
    num_single_layers=4,
    attention_head_dim=32,
    num_attention_heads=4,
    joint_attention_dim=JOINT,
    pooled_projection_dim=POOLED,
    guidance_embeds=False,
    axes_dims_rope=(4, 14, 14),
)


SD3_CONFIG = dict(
    sample_size=32,
    patch_size=2,
    in_channels=LATENT_CHANNELS,
    out_channels=LATENT_CHANNELS,
    num_layers=5,
    attention_head_dim=32,
    num_attention_heads=4,
    joint_attention_dim=JOINT,
    caption_projection_dim=4 * 32,
    pooled_projection_dim=POOLED,
    pos_embed_max_size=48,  # three times the base grid, as SD3-medium's 192
    qk_norm="rms_norm",
)


def to_tokens(latent: Tensor) -> Tensor:
    """(B, 12, 2H, 2W) latents -> (B, H*W, 48) tokens."""
    return rearrange(latent, "b c (h p) (w q) -> b (h w) (c p q)", p=2, q=2)


def to_latent(tokens: Tensor, height: int) -> Tensor:
    """(B, H*W, 48) tokens of a grid `height` tokens tall -> (B, 12, 2H, 2W) latents."""
    return rearrange(tokens, "b (h w) (c p q) -> b c (h p) (w q)", h=height, p=2, q=2)


def pictures_to_tokens(pictures: Tensor) -> Tensor:
    """(B, 3, 4H, 4W) pictures in [-1, 1] -> (B, H*W, 48) tokens."""
    return to_tokens(F.pixel_unshuffle(pictures, 2))


def tokens_to_pictures(tokens: Tensor, height: int) -> Tensor:
    """(B, H*W, 48) tokens of a grid `height` tokens tall -> (B, 3, 4H, 4W) pictures."""
    return F.pixel_shuffle(to_latent(tokens, height), 2)


def tokenize(prompts: list[str]) -> Tensor:
    """(B, 32) word indices, padded; the empty prompt is padding alone."""
    rows = []
    for prompt in prompts:
        words = prompt.lower().split() if prompt else []
        if words:
            parse_prompt(prompt)
        indices = [VOCABULARY.index(word) for word in words]
        rows.append(indices + [0] * (TEXT_TOKENS - len(indices)))
    return torch.tensor(rows)


def position_ids(height: int, width: int) -> Tensor:
    """(H*W, 3) float32 ids (0, row, column), as FLUX's pipelines build them."""
    rows, cols = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    return torch.stack((torch.zeros_like(rows), rows, cols), -1).reshape(-1, 3).float()


class MicroModel(nn.Module):
    """`forward(tokens, sigma, words, height)` -> velocity; text is two tables in place of T5 and CLIP."""

    name: str  # as the command line knows it
    training_steps: int  # of the shipped weights
    training_rate = 2e-3
    largest_side: int | None = None  # in tokens, where the plain model has no positions beyond it
    transformer: nn.Module

    def __init__(self, transformer: nn.Module) -> None:
        super().__init__()
        self.transformer = transformer
        self.word = nn.Embedding(len(VOCABULARY), JOINT)
        self.place = nn.Parameter(0.5 * torch.randn(TEXT_TOKENS, JOINT))
        self.pooled = nn.Embedding(len(VOCABULARY), POOLED)

    def encode(self, words: Tensor) -> tuple[Tensor, Tensor]:
        """(B, 32) indices -> joint (B, 32, 64) and pooled (B, 32) conditioning."""
        return self.word(words) + self.place, self.pooled(words).sum(1)

    def reaches(self, grid: Grid) -> bool:
        """Whether the plain model can draw a grid at all."""
        return self.largest_side is None or max(grid.height, grid.width) <= self.largest_side


class MicroFlux(MicroModel):
    """FLUX: positions are rotations of q and k in every block."""

    name = "flux"
    training_steps = 3600

    def __init__(self) -> None:
        super().__init__(FluxTransformer2DModel(**FLUX_CONFIG))

    def forward(
        self, tokens: Tensor, sigma: Tensor, words: Tensor, height: int, control: Residuals | None = None
    ) -> Tensor:
        joint, pooled = self.encode(words)
        return self.transformer(
            hidden_states=tokens,
            encoder_hidden_states=joint,
            pooled_projections=pooled,
            timestep=sigma,
            img_ids=position_ids(height, tokens.shape[1] // height).to(tokens.device),
            txt_ids=torch.zeros(TEXT_TOKENS, 3, device=tokens.device),
            controlnet_block_samples=control,
            return_dict=False,
        )[0]


class MicroSD3(MicroModel):
    """SD3: positions are a table that is added to the embedded tokens, once."""

    name = "sd3"
    training_steps = 4800
    largest_side = SD3_CONFIG["pos_embed_max_size"]

    def __init__(self) -> None:
        super().__init__(SD3Transformer2DModel(**SD3_CONFIG))

    def forward(
        self, tokens: Tensor, sigma: Tensor, words: Tensor, height: int, control: Residuals | None = None
    ) -> Tensor:
        joint, pooled = self.encode(words)
        velocity = self.transformer(
            hidden_states=to_latent(tokens, height),
            encoder_hidden_states=joint,
            pooled_projections=pooled,
            timestep=1000 * sigma,
            block_controlnet_hidden_states=control,
            return_dict=False,
        )[0]
        return to_tokens(velocity)


MODELS: dict[str, type[MicroModel]] = {model.name: model for model in (MicroFlux, MicroSD3)}


def save_weights(model: nn.Module, path: Path) -> None:
    """Write the weights as float16 safetensors."""
    save_file({name: value.to(torch.float16).contiguous() for name, value in model.state_dict().items()}, path)


def load_weights(model: nn.Module, path: Path) -> None:
    """Read what `save_weights` wrote into a model of float32."""
    model.load_state_dict({name: value.float() for name, value in load_file(path).items()})


def weights_of(name: str) -> Path:
    """The file with a micro model's trained weights."""
    return Path(__file__).with_name(f"micro_{name.replace('-', '_')}.safetensors")


def load_micro(name: str, path: Path | None = None) -> MicroModel:
    """A trained micro model in float32, ready to sample; raises FileNotFoundError saying how to train one."""
    path = path or weights_of(name)
    if not path.is_file():
        raise FileNotFoundError(
            f"no weights at {path}; train them with: python -m resdit_ext train --model {name} --out {path}"
        )
    model = MODELS[name]()
    load_weights(model, path)
    return model.eval().requires_grad_(False)
