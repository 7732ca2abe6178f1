"""FLUX's attention, opened: any function of queries, keys and values in its place, for the lab's variants and rivals.

It is diffusers' own attention processor written out, with positions not yet applied.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..method.rotary import RotaryTable, rotary_table
from .model import FLUX_CONFIG, TEXT_TOKENS

Attention = Callable[[Tensor, Tensor, Tensor, int], Tensor]  # (q, k, v (B, heads, T + L, D), block) -> (B, T + L, C)
AXES, THETA = FLUX_CONFIG["axes_dims_rope"], 10_000.0


def projected(attn: nn.Module, image: Tensor, text: Tensor | None) -> list[Tensor]:
    """q, k, v (B, heads, T + L, D) of a block, text first, normalised as the block does."""
    out = []
    for name, norm in (("q", attn.norm_q), ("k", attn.norm_k), ("v", None)):
        x = getattr(attn, f"to_{name}")(image).unflatten(-1, (attn.heads, -1))
        x = x if norm is None else norm(x)
        if text is not None:
            added = getattr(attn, f"add_{name}_proj")(text).unflatten(-1, (attn.heads, -1))
            norm = getattr(attn, f"norm_added_{name}", None)
            x = torch.cat((added if norm is None else norm(added), x), 1)
        out.append(x.transpose(1, 2))
    return out


class OpenProcessor:
    """A block's attention as a function of its queries, keys and values."""

    def __init__(self, attention: Attention, block: int) -> None:
        self.attention, self.block = attention, block

    def __call__(
        self,
        attn: nn.Module,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,  # noqa: ARG002
        image_rotary_emb: object = None,  # noqa: ARG002
    ) -> Tensor | tuple[Tensor, Tensor]:
        q, k, v = projected(attn, hidden_states, encoder_hidden_states)
        out = self.attention(q, k, v, self.block)
        if encoder_hidden_states is None:
            return out
        text = encoder_hidden_states.shape[1]
        return attn.to_out[1](attn.to_out[0](out[:, text:])), attn.to_add_out(out[:, :text])


@contextmanager
def opened(transformer: nn.Module, attention: Attention) -> Iterator[None]:
    """Have every block of a FLUX transformer attend by `attention` for the block of code."""
    blocks = (*transformer.transformer_blocks, *transformer.single_transformer_blocks)
    own = [block.attn.processor for block in blocks]
    for number, block in enumerate(blocks):
        block.attn.processor = OpenProcessor(attention, number)
    try:
        yield
    finally:
        for block, processor in zip(blocks, own, strict=True):
            block.attn.processor = processor


def softmax_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attention of rotated q and k (B, heads, L, D): (B, L, heads * D)."""
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)


def with_text(positions: Tensor) -> Tensor:
    """Image positions (..., L, 2) -> ids (..., T + L, 3), the text's at zero as FLUX has them."""
    return F.pad(positions, (1, 0, TEXT_TOKENS, 0))


def rotary_of(positions: Tensor) -> RotaryTable:
    """The micro FLUX's table of text and image tokens at positions (..., L, 2)."""
    return rotary_table(with_text(positions), AXES, THETA)
