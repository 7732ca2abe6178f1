"""Control nets that embed the latent by patches: as diffusers saves them, and Stability's own for 8B models."""

from __future__ import annotations

import inspect
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from ..errors import Unsupported
from .call import Call, Residuals
from .checkpoint import StateDict, describe
from .format import Checkpoint, Weights, diffusers_class

PIXELS_PER_TOKEN = 16
HEAD = 64  # of every released model; where queries are normalised the file tells
TIMESTEPS = 1000  # the timestep at noise level 1
MADE_FOR = ("blur", "canny", "depth")  # what Stability's files number
# Trained on depth that is bright far away, and on edges that are 0.5 and 128 (sd3.5's vae_encode).
STABILITY_TONES = {"canny": lambda hint: hint * 255 * 0.5 + 0.5, "depth": lambda hint: 1 - 2 * hint}
NOT_WEIGHTS = ("control_type", "using_8b_controlnet", "using_2b_controlnet")

RENAMED = (
    (r"attn\.proj\.", "attn.to_out.0."),
    (r"mlp\.fc1\.", "ff.net.0.proj."),
    (r"mlp\.fc2\.", "ff.net.2."),
    (r"adaLN_modulation\.1\.", "norm1.linear."),
)
QKV = re.compile(r"(transformer_blocks\.\d+)\.attn\.qkv\.(weight|bias)")


def from_stability(weights: Weights) -> dict[str, Tensor]:
    """Stability's tensors under diffusers' names."""
    out = {}
    for name, value in weights.items():
        if match := QKV.fullmatch(name):
            for part, piece in zip(("to_q", "to_k", "to_v"), value.chunk(3), strict=True):
                out[f"{match[1]}.attn.{part}.{match[2]}"] = piece
            continue
        if name in NOT_WEIGHTS:
            continue
        for pattern, replacement in RENAMED:
            name = re.sub(rf"^(transformer_blocks\.\d+\.){pattern}", rf"\g<1>{replacement}", name)
        out[name] = value
    return out


def is_joint(net: nn.Module) -> bool:
    """True for a net that reads the text; Stability's do not."""
    return hasattr(net.context_embedder, "weight")


@dataclass(frozen=True)
class LatentNets:
    """Such nets of one model family.

    Attributes:
        family: the model's name.
        net_class: diffusers' class.
        texts: see `ControlFormat`.
    """

    family: str
    net_class: str
    texts: tuple[tuple[str, str, str], ...]

    model_on_patches = True  # ResDiT is made of calls of the model, for each of which there is one of the net
    latent_inputs = 1
    blocks = ("joint_blocks",)

    @staticmethod
    def claims(weights: Weights) -> bool:
        """True for a control net that embeds its hint by patches."""
        return "pos_embed_input.proj.weight" in weights

    def read(self, weights: Weights) -> Checkpoint:
        """Recognise such a net; raises Unsupported with what was found."""
        number = weights.get("control_type")
        made_for = None
        if number is not None and number.numel() == 1 and 0 <= round(number.item()) < len(MADE_FOR):
            made_for = MADE_FOR[round(number.item())]
        state = StateDict(from_stability(weights))
        if not state.blocks("transformer_blocks"):
            raise Unsupported(f"it looks like a control net for {self.family} but has no blocks: {describe(weights)}")
        width, hinted = state.size("pos_embed_input.proj.weight", 0), state.size("pos_embed_input.proj.weight", 1)
        norm = "transformer_blocks.0.attn.norm_q.weight"
        head = state.size(norm, 0) if norm in state else HEAD
        arguments = dict(
            num_layers=state.blocks("transformer_blocks"),
            **state.heads(width, head),
            pooled_projection_dim=state.size("time_text_embed.text_embedder.linear_1.weight", 1),
            caption_projection_dim=width,
        )
        if norm in state:
            arguments["qk_norm"] = "rms_norm"
        if "context_embedder.weight" in state:
            side = math.isqrt(state.size("pos_embed.pos_embed", 1))
            channels = state.size("pos_embed.proj.weight", 1)
            arguments |= dict(
                in_channels=channels,
                joint_attention_dim=state.size("context_embedder.weight", 1),
                pos_embed_max_size=side,
            )
            numbers = range(arguments["num_layers"])
            if dual := [i for i in numbers if f"transformer_blocks.{i}.attn2.to_q.weight" in state]:
                arguments["dual_attention_layers"] = tuple(dual)
            kind = "diffusers"
        else:  # image tokens alone, embedded by the model itself
            channels = hinted
            arguments |= dict(
                in_channels=channels,
                joint_attention_dim=None,
                pos_embed_max_size=None,
                pos_embed_type=None,
                use_pos_embed=False,
                force_zeros_for_pooled_projection=False,
            )
            kind = "Stability 8B"
        if hinted != channels:
            raise Unsupported(
                f"its hint has {hinted} channels where the picture has {channels}: inpainting nets, which see a mask "
                "too, are not supported"
            )
        if kind == "diffusers":
            # Trained on latents that are scaled but not shifted, as diffusers' pipeline knows (InstantX).
            return Checkpoint(self, kind, arguments, state.weights, shifted=False)
        return Checkpoint(self, kind, arguments, state.weights, asks=True, made_for=made_for, tones=STABILITY_TONES)

    def maker(self, arguments: Mapping[str, object]) -> Callable[..., nn.Module]:
        """What makes the net: diffusers' class, or its parts where that is older than the net."""
        found = diffusers_class(self.net_class)
        if set(arguments) <= set(inspect.signature(found.__init__).parameters):
            return found
        from .assembled import assemble

        return partial(assemble, found)

    @staticmethod
    def sees_pixels(_: nn.Module) -> bool:
        """All of them take the autoencoder's latents of the hint."""
        return False

    @staticmethod
    def residuals(net: nn.Module, call: Call) -> Residuals:
        """What the net adds after the model's blocks; raises Unsupported where its position table is too small."""
        joint = is_joint(net)
        if joint and max(call.grid.height, call.grid.width) > net.pos_embed.pos_embed_max_size:
            side = PIXELS_PER_TOKEN * net.pos_embed.pos_embed_max_size
            raise Unsupported(f"it has no positions beyond {side} pixels a side; with ResDiT it needs none")
        (blocks,) = net(
            hidden_states=call.latent if joint else call.embed(),
            controlnet_cond=call.hint,
            encoder_hidden_states=call.text if joint else None,
            # The nets that read the text were trained without the pooled one (InstantX), as diffusers' pipeline knows.
            pooled_projections=torch.zeros_like(call.pooled) if joint else call.pooled,
            timestep=TIMESTEPS * call.sigma,
            return_dict=False,
        )
        return Residuals(tuple(blocks))

    @staticmethod
    def index_of(block: int, blocks: int, count: int, cyclic: bool) -> int | None:  # noqa: ARG004
        """Which of `count` residuals follows block `block` of `blocks`: none the last, whose text is not used again."""
        return None if block == blocks - 1 else int(block / (blocks / count))
