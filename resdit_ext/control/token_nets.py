"""Control nets that see the latent as tokens: InstantX's and Shakker's as diffusers saves them, and XLabs' own."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import Unsupported
from ..method.positions import grid_positions
from .call import Call, Residuals
from .checkpoint import StateDict, describe
from .format import Checkpoint, Weights, diffusers_class

# The modes of a union net (InstantX, Shakker), by what the hint shows.
MODES = ("canny", "tile", "depth", "blur", "pose", "gray", "low quality")

# XLabs' names are Black Forest Labs', for which diffusers has others.
RENAMED = (
    (r"img_in\.", "x_embedder."),
    (r"txt_in\.", "context_embedder."),
    (r"pos_embed_input\.", "controlnet_x_embedder."),
    (r"time_in\.in_layer\.", "time_text_embed.timestep_embedder.linear_1."),
    (r"time_in\.out_layer\.", "time_text_embed.timestep_embedder.linear_2."),
    (r"vector_in\.in_layer\.", "time_text_embed.text_embedder.linear_1."),
    (r"vector_in\.out_layer\.", "time_text_embed.text_embedder.linear_2."),
    (r"guidance_in\.in_layer\.", "time_text_embed.guidance_embedder.linear_1."),
    (r"guidance_in\.out_layer\.", "time_text_embed.guidance_embedder.linear_2."),
    (r"input_hint_block\.0\.", "input_hint_block.conv_in."),
    (r"input_hint_block\.14\.", "input_hint_block.conv_out."),
    (r"double_blocks\.(\d+)\.img_mod\.lin\.", r"transformer_blocks.\1.norm1.linear."),
    (r"double_blocks\.(\d+)\.txt_mod\.lin\.", r"transformer_blocks.\1.norm1_context.linear."),
    (r"double_blocks\.(\d+)\.img_attn\.proj\.", r"transformer_blocks.\1.attn.to_out.0."),
    (r"double_blocks\.(\d+)\.txt_attn\.proj\.", r"transformer_blocks.\1.attn.to_add_out."),
    (r"double_blocks\.(\d+)\.img_attn\.norm\.query_norm\.scale", r"transformer_blocks.\1.attn.norm_q.weight"),
    (r"double_blocks\.(\d+)\.img_attn\.norm\.key_norm\.scale", r"transformer_blocks.\1.attn.norm_k.weight"),
    (r"double_blocks\.(\d+)\.txt_attn\.norm\.query_norm\.scale", r"transformer_blocks.\1.attn.norm_added_q.weight"),
    (r"double_blocks\.(\d+)\.txt_attn\.norm\.key_norm\.scale", r"transformer_blocks.\1.attn.norm_added_k.weight"),
    (r"double_blocks\.(\d+)\.img_mlp\.0\.", r"transformer_blocks.\1.ff.net.0.proj."),
    (r"double_blocks\.(\d+)\.img_mlp\.2\.", r"transformer_blocks.\1.ff.net.2."),
    (r"double_blocks\.(\d+)\.txt_mlp\.0\.", r"transformer_blocks.\1.ff_context.net.0.proj."),
    (r"double_blocks\.(\d+)\.txt_mlp\.2\.", r"transformer_blocks.\1.ff_context.net.2."),
)
QKV = re.compile(r"double_blocks\.(\d+)\.(img|txt)_attn\.qkv\.(weight|bias)")
QKV_NAMES = {"img": ("to_q", "to_k", "to_v"), "txt": ("add_q_proj", "add_k_proj", "add_v_proj")}
HINT_CONVOLUTION = re.compile(r"input_hint_block\.(\d+)\.")


def from_xlabs(weights: Weights) -> dict[str, Tensor]:
    """XLabs' tensors under diffusers' names: queries, keys and values apart, the hint's convolutions numbered anew."""
    out = {}
    for name, value in weights.items():
        if match := QKV.fullmatch(name):
            block, side, what = match.groups()
            for part, piece in zip(QKV_NAMES[side], value.chunk(3), strict=True):
                out[f"transformer_blocks.{block}.attn.{part}.{what}"] = piece
            continue
        for pattern, replacement in RENAMED:
            renamed, count = re.subn(rf"^{pattern}", replacement, name)
            if count:
                break
        else:
            # The sequence alternates convolutions and activations; diffusers keeps the first and the last apart.
            renamed = HINT_CONVOLUTION.sub(lambda m: f"input_hint_block.blocks.{int(m[1]) // 2 - 1}.", name)
        out[renamed] = value
    return out


def to_tokens(latent: Tensor) -> Tensor:
    """(B, C, 2h, 2w) latents -> (B, h*w, 4C) tokens."""
    return F.pixel_unshuffle(latent, 2).flatten(2).transpose(1, 2)


@dataclass(frozen=True)
class TokenNets:
    """Such nets of one model family.

    Attributes:
        family: the model's name.
        net_class: diffusers' class.
        texts: see `ControlFormat`.
    """

    family: str
    net_class: str
    texts: tuple[tuple[str, str, str], ...]

    model_on_patches = False  # ResDiT is inside the one call of the model
    latent_inputs = 4  # the tokens are packed before the net
    blocks = ("double_blocks", "single_blocks")

    @staticmethod
    def claims(weights: Weights) -> bool:
        """True for a control net that embeds the hint's tokens beside the picture's."""
        return "controlnet_x_embedder.weight" in weights or (
            "pos_embed_input.weight" in weights and any(name.startswith("double_blocks.") for name in weights)
        )

    def read(self, weights: Weights) -> Checkpoint:
        """Recognise such a net; raises Unsupported with what was found."""
        xlabs = "pos_embed_input.weight" in weights
        state = StateDict(from_xlabs(weights) if xlabs else dict(weights))
        if not any(name.startswith(("transformer_blocks.", "single_transformer_blocks.")) for name in state.weights):
            raise Unsupported(f"it looks like a control net for {self.family} but has no blocks: {describe(weights)}")
        double, single = state.blocks("transformer_blocks"), state.blocks("single_transformer_blocks")
        first = "transformer_blocks.0" if double else "single_transformer_blocks.0"
        width, channels = state.size("x_embedder.weight", 0), state.size("x_embedder.weight", 1)
        hinted, head = state.size("controlnet_x_embedder.weight", 1), state.size(f"{first}.attn.norm_q.weight", 0)
        if hinted != channels:
            raise Unsupported(
                f"its hint has {hinted} channels where the picture has {channels}: inpainting nets, which see a mask "
                "too, are not supported"
            )
        convolutions = "input_hint_block.conv_in.weight" in state
        modes = state.size("controlnet_mode_embedder.weight", 0) if "controlnet_mode_embedder.weight" in state else None
        arguments = dict(
            in_channels=channels,
            num_layers=double,
            num_single_layers=single,
            **state.heads(width, head),
            joint_attention_dim=state.size("context_embedder.weight", 1),
            pooled_projection_dim=state.size("time_text_embed.text_embedder.linear_1.weight", 1),
            guidance_embeds="time_text_embed.guidance_embedder.linear_1.weight" in state,
            axes_dims_rope=(head // 8, 7 * head // 16, 7 * head // 16),  # as 16, 56, 56 of 128
            num_mode=modes,
            patch_size=2 if convolutions else 1,
            conditioning_embedding_channels=state.size("input_hint_block.conv_out.weight", 0) if convolutions else None,
        )
        kind = "XLabs" if convolutions else "union" if modes else "diffusers"
        return Checkpoint(self, kind, arguments, state.weights, asks=modes is not None)

    def maker(self, arguments: Mapping[str, object]) -> Callable[..., nn.Module]:  # noqa: ARG002
        """What makes the net: diffusers' class; raises ImportError where there is none."""
        return diffusers_class(self.net_class)

    @staticmethod
    def sees_pixels(net: nn.Module) -> bool:
        """True where the net takes the hint's pixels in place of the autoencoder's latents of them."""
        return net.input_hint_block is not None

    def residuals(self, net: nn.Module, call: Call) -> Residuals:
        """What the net adds after the model's blocks; raises Unsupported where a union net has not the mode."""
        mode = None
        if net.union:
            count = net.controlnet_mode_embedder.num_embeddings
            index = MODES.index(call.shows) if call.shows in MODES else 0
            if index >= count:
                raise Unsupported(f"it has {count} modes, and '{call.shows}' would be number {index}")
            mode = torch.full((len(call.latent), 1), index, device=call.latent.device)
        device = call.latent.device
        double, single = net(
            hidden_states=to_tokens(call.latent),
            controlnet_cond=call.hint if self.sees_pixels(net) else to_tokens(call.hint),
            controlnet_mode=mode,
            encoder_hidden_states=call.text,
            pooled_projections=call.pooled,
            timestep=call.sigma,
            guidance=call.guidance if net.config.guidance_embeds else None,
            img_ids=F.pad(grid_positions(call.grid), (1, 0)).to(device),
            txt_ids=torch.zeros(call.text.shape[1], 3, device=device),
            return_dict=False,
        )
        return Residuals(tuple(double or ()), tuple(single or ()), cyclic=self.sees_pixels(net))

    @staticmethod
    def index_of(block: int, blocks: int, count: int, cyclic: bool) -> int | None:
        """Which of `count` residuals follows block `block` of `blocks`: as diffusers spreads them, XLabs' in turn."""
        return block % count if cyclic else block // -(-blocks // count)
