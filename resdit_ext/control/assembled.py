"""Control nets by a diffusers that is older than they are (0.31, which Forge ships): newer blocks in its class.

Its `forward` serves all of them: it hands image and text through whatever embeds them and whatever the blocks are.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable

from diffusers.models.attention import FeedForward, JointTransformerBlock
from diffusers.models.attention_processor import Attention, JointAttnProcessor2_0
from diffusers.models.normalization import AdaLayerNormZero
from torch import Tensor, nn


class ImageBlock(nn.Module):
    """A block over image tokens alone, as Stability's nets have; the text passes by."""

    def __init__(self, dim: int, num_attention_heads: int, attention_head_dim: int) -> None:
        super().__init__()
        self.norm1 = AdaLayerNormZero(dim)
        self.attn = Attention(
            query_dim=dim,
            dim_head=attention_head_dim,
            heads=num_attention_heads,
            out_dim=dim,
            bias=True,
            processor=JointAttnProcessor2_0(),
            eps=1e-6,
        )
        self.norm2 = nn.LayerNorm(dim, elementwise_affine=False, eps=1e-6)
        self.ff = FeedForward(dim=dim, dim_out=dim, activation_fn="gelu-approximate")

    def forward(self, hidden_states: Tensor, encoder_hidden_states: object, temb: Tensor) -> tuple[object, Tensor]:
        x, gate, shift, scale, ff_gate = self.norm1(hidden_states, emb=temb)
        x = hidden_states + gate[:, None] * self.attn(hidden_states=x)
        return encoder_hidden_states, x + ff_gate[:, None] * self.ff(
            self.norm2(x) * (1 + scale[:, None]) + shift[:, None]
        )


def assemble(
    net_class: Callable[..., nn.Module],
    qk_norm: str | None = None,
    dual_attention_layers: tuple[int, ...] = (),
    use_pos_embed: bool = True,
    **arguments: object,
) -> nn.Module:
    """The net that a newer diffusers would make of its class with these arguments."""
    known = inspect.signature(net_class.__init__).parameters
    plain = {name: value for name, value in arguments.items() if name in known and value is not None}
    net = net_class(**plain | ({} if use_pos_embed else {"joint_attention_dim": 1}))
    heads, size = arguments["num_attention_heads"], arguments["attention_head_dim"]
    if not use_pos_embed:
        net.pos_embed, net.context_embedder = nn.Identity(), nn.Identity()
        blocks = [ImageBlock(heads * size, heads, size) for _ in net.transformer_blocks]
    else:
        blocks = [
            JointTransformerBlock(
                heads * size, heads, size, qk_norm=qk_norm, use_dual_attention=i in dual_attention_layers
            )
            for i in range(len(net.transformer_blocks))
        ]
    net.transformer_blocks = nn.ModuleList(blocks)
    return net
