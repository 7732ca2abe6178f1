"""diffusers' context parallelism by heads (Ulysses): each rank has a part of the tokens, and attends for some heads.

In every attention two exchanges give a rank all tokens of its heads and, after it, all heads of its tokens again.
Between the two the method takes the place of one device's attention: it is the same for every head, so that nothing in
it changes. Ring attention never has all keys in one place, which the method's patches and means need.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..errors import Unsupported
from ..method.layout import Layout

if TYPE_CHECKING:  # not every build of torch has torch.distributed
    from torch.distributed import ProcessGroup


OTHERS = "xFuser"  # how xDiT's wrappers of transformers are called


@dataclass(frozen=True)
class Ranks:
    """The ranks that share the tokens of one model.

    Attributes:
        count: how many there are.
        mine: which of them this is, from 0.
        equal: whether all parts must have one length.
        group: they exchange in.
    """

    count: int
    mine: int
    equal: bool
    group: ProcessGroup

    def part(self, x: Tensor, dim: int = 1) -> Tensor:
        """This rank's part of a tensor along an axis of tokens."""
        return x.tensor_split(self.count, dim)[self.mine]

    def parts_of(self, given: Mapping[str, object], names: Iterable[str]) -> dict[str, object]:
        """The arguments of a call with this rank's part of lists of (B, L, C), which diffusers does not divide."""
        lists = {name: given[name] for name in names if given.get(name) is not None}
        return {**given, **{name: [self.part(x) for x in found] for name, found in lists.items()}}

    def order(self, text: int, image: int, device: torch.device | str = "cpu") -> Tensor:
        """(T + L,) which token stands where after an exchange: each rank's text before its image tokens.

        The tokens are numbered text first.
        """
        parts = (torch.arange(n).tensor_split(self.count) for n in (text, image))
        return torch.cat([torch.cat((t, i + text)) for t, i in zip(*parts, strict=True)]).to(device)

    def check_lengths(self, heads: int, text: int, layout: Layout) -> None:
        """Raise Unsupported where the ranks cannot share what the calls for a layout have, in parts as they must be."""
        lengths = {"heads": heads, "text tokens": text, "image tokens": layout.grid.tokens}
        lengths["image tokens at the base size"] = layout.base.tokens
        if layout.middle is not None:
            lengths["image tokens at half the size"] = layout.middle.tokens
        for name, length in lengths.items():
            what = f"{length} {name}"
            if length < self.count:
                raise Unsupported(f"{what} are too few for {self.count} processes: use fewer")
            if self.equal and length % self.count:
                raise Unsupported(
                    f"{what} are not divisible by {self.count} processes: enable parallelism with "
                    f"ContextParallelConfig(ulysses_degree={self.count}, ulysses_anything=True)"
                )


def ranks_of(model: object) -> Ranks | None:
    """The ranks that share a model's tokens by diffusers' context parallelism; None for one that has them all.

    Raises:
        Unsupported: ring attention is at work, or an engine that is not diffusers' own.
    """
    config = getattr(getattr(model, "_parallel_config", None), "context_parallel_config", None)
    if config is None:
        # ParaAttention's mark, and xDiT's name.
        if getattr(model, "_is_parallelized", False) or type(model).__name__.startswith(OTHERS):
            raise Unsupported(
                "the model is made parallel by ParaAttention, xDiT or another engine that is not diffusers' own, which "
                "hands attention a part of the tokens: use enable_parallelism with "
                "ContextParallelConfig(ulysses_degree=...)"
            )
        return None
    if config.ring_degree > 1:
        raise Unsupported(
            f"ring attention (ring_degree={config.ring_degree}) never has all tokens in one place, as ResDiT's patches "
            "and low-pass need them: use ContextParallelConfig(ulysses_degree=...)"
        )
    if config.ulysses_degree == 1:
        return None
    anything = getattr(config, "ulysses_anything", False)
    return Ranks(config.ulysses_degree, config._ulysses_local_rank, not anything, config._ulysses_mesh.get_group())


def refuse_ranks(model: object, reason: str) -> None:
    """Raise Unsupported with the reason where the tokens of a model are shared that cannot be."""
    if ranks_of(model) is not None:
        raise Unsupported(reason)


def check_exchange(processors: Iterable[object], model: object) -> None:
    """Raise Unsupported naming a processor that would attend to this rank's part alone, without an exchange."""
    for processor in processors:
        if getattr(processor, "_parallel_config", None) is not model._parallel_config:
            raise Unsupported(
                f"the attention processor {type(processor).__name__} does not take part in the context parallelism of "
                "the model: enable it with resdit_ext.enable_parallelism(model, config), after the processors are set"
            )


def between_exchanges(
    attend: Callable[[Tensor, Tensor, Tensor], Tensor],
    q: Tensor,
    k: Tensor,
    v: Tensor,
    order: Tensor,
    parallel_config: object,
) -> Tensor:
    """`attend(q, k, v)` of all tokens, text first, and this rank's heads, in the place of one device's attention.

    Args:
        attend: of (B, T + L, this rank's heads, D), as its result.
        q, k, v: (B, this rank's tokens, heads, D).
        order: of the tokens after an exchange, see `Ranks.order`.
        parallel_config: diffusers'.

    Returns:
        (B, this rank's tokens, heads, D).
    """
    from diffusers.models.attention_dispatch import _templated_context_parallel_attention

    text_first = order.argsort()

    def on_all_tokens(_: object, q: Tensor, k: Tensor, v: Tensor, *__: object, **___: object) -> Tensor:
        if q.shape[1] != len(order):
            raise Unsupported(f"the exchange brought {q.shape[1]} tokens of {len(order)}")
        return attend(*(x[:, text_first] for x in (q, k, v)))[:, order]

    return _templated_context_parallel_attention(
        q, k, v, forward_op=on_all_tokens, backward_op=None, _parallel_config=parallel_config
    )
