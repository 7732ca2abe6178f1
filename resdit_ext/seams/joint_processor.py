"""SD3's attention with its tokens shared among ranks: a processor and a plan, while diffusers has none for its class.

In the form of diffusers' own: `_parallel_config` is what `enable_parallelism` sets, and `dispatch_attention_fn` makes
the exchanges. Here and there image tokens come before text tokens; plain attention does not care for their order.
"""

from __future__ import annotations

import torch
from diffusers.models._modeling_parallel import ContextParallelInput, ContextParallelOutput
from diffusers.models.attention_dispatch import dispatch_attention_fn
from torch import Tensor, nn

from ..errors import Unsupported

OWN = "JointAttnProcessor2_0"  # diffusers', which calls PyTorch's attention and knows no exchange
EMBEDDED = {0: ContextParallelInput(split_dim=1, expected_dims=3, split_output=True)}
PLAN = {
    "pos_embed": EMBEDDED,  # behind it, where positions are added on the whole
    "context_embedder": EMBEDDED,
    "proj_out": ContextParallelOutput(gather_dim=1, expected_dims=3),
}


class ParallelJointProcessor:
    """Attention of SD3's blocks: image and text together, or the image alone in a second attention."""

    _attention_backend = None
    _parallel_config = None

    def __call__(
        self,
        attn: nn.Module,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: None = None,  # noqa: ARG002 (there is none in these models)
    ) -> Tensor | tuple[Tensor, Tensor]:
        """(B, L, C) image and (B, T, C) text -> the same, this rank's part of each."""
        q, k, v = projected(hidden_states, attn.heads, (attn.to_q, attn.to_k, attn.to_v), (attn.norm_q, attn.norm_k))
        if encoder_hidden_states is not None:
            layers = (attn.add_q_proj, attn.add_k_proj, attn.add_v_proj)
            text = projected(encoder_hidden_states, attn.heads, layers, (attn.norm_added_q, attn.norm_added_k))
            q, k, v = (torch.cat(pair, 1) for pair in zip((q, k, v), text, strict=True))
        out = dispatch_attention_fn(
            q, k, v, backend=self._attention_backend, parallel_config=self._parallel_config
        ).flatten(2)
        image = attn.to_out[1](attn.to_out[0](out[:, : hidden_states.shape[1]]))
        if encoder_hidden_states is None:
            return image
        of_text = out[:, hidden_states.shape[1] :]
        return image, of_text if attn.context_pre_only else attn.to_add_out(of_text)


def projected(
    x: Tensor, heads: int, layers: tuple[nn.Module, ...], norms: tuple[nn.Module | None, ...]
) -> list[Tensor]:
    """q, k and v (B, L, heads, D) of tokens (B, L, C), with the norms of q and k where the model has any."""
    made = [layer(x).unflatten(2, (heads, -1)) for layer in layers]
    return [x if norm is None else norm(x) for x, norm in zip(made, (*norms, None), strict=True)]


def share(model: nn.Module) -> dict[str, object]:
    """Give the blocks processors that take part in exchanges, and return the plan for `enable_parallelism`.

    Raises:
        Unsupported: they have others than diffusers' usual ones (IP-Adapter, fused projections).
    """
    attentions = [a for block in model.transformer_blocks for a in (block.attn, block.attn2) if a is not None]
    for attention in attentions:
        if (name := type(attention.processor).__name__) not in (OWN, ParallelJointProcessor.__name__):
            raise Unsupported(f"the attention processor {name} cannot share its tokens among devices, only {OWN} can")
    processor = ParallelJointProcessor()
    for attention in attentions:
        attention.set_processor(processor)
    return PLAN
