"""Attention masks over text, among the arguments of diffusers' transformers, for what the method attends to."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import Unsupported
from .places_diffusers import Call


def text_mask(mask: Tensor, text: int, tokens: int) -> Tensor:
    """(B or 1, heads or 1, 1, T) text part of an attention mask that leaves all image tokens in.

    Such a mask means the same to every branch: text comes first in all of them, and no branch has masked image tokens.

    Raises:
        Unsupported: the mask differs between queries, or takes image tokens out.
    """
    if mask.ndim == 2:
        mask = mask[:, None, None]
    if mask.ndim != 4 or mask.shape[2] != 1 or mask.shape[3] != text + tokens:
        raise Unsupported(f"an attention mask of shape {tuple(mask.shape)} is not supported, only one over the text")
    image = mask[..., text:]
    if not bool(image.all() if mask.dtype == torch.bool else (image == 0).all()):
        raise Unsupported("an attention mask that takes image tokens out is not supported, only one over the text")
    return mask[..., :text]


def repeated(mask: Tensor, batch: int) -> Tensor:
    """A mask for `batch` sequences: the patches of each picture come one after another."""
    return mask if len(mask) == 1 else mask.repeat(batch // len(mask), 1, 1, 1)


@dataclass(frozen=True)
class KeyMask:
    """A mask over the text's keys, the same for every query.

    Attributes:
        text: (B or 1, heads or 1, 1, T).
    """

    text: Tensor

    @classmethod
    def read(cls, mask: Tensor, text: int, tokens: int) -> KeyMask:
        """From the mask over all keys; raises Unsupported where it is none over the text."""
        return cls(text_mask(mask, text, tokens))

    @staticmethod
    def in_order(mask: Tensor, order: Tensor) -> Tensor:
        """The mask over all keys with these in another order; raises Unsupported where it differs between heads."""
        if mask.ndim == 4 and mask.shape[1] > 1:
            raise Unsupported(f"an attention mask for each of {mask.shape[1]} heads, which the processes share")
        return (mask[:, None, None] if mask.ndim == 2 else mask)[..., order]

    def attend(self, attend: Callable[..., Tensor], q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """`attend(q, k, v, attn_mask=...)` of q, k, v (B, L, heads, D) with the mask for as many keys."""
        kept = self.text.new_ones if self.text.dtype == torch.bool else self.text.new_zeros
        whole = torch.cat((self.text, kept(*self.text.shape[:3], k.shape[1] - self.text.shape[3])), 3)
        return attend(q, k, v, attn_mask=repeated(whole, len(q)))


@dataclass(frozen=True)
class TextMask:
    """A mask over the text's tokens among a call's arguments, of which the transformer makes one over all tokens.

    Attributes:
        name: of the argument: (B, T), 1 for the tokens that are in.
    """

    name: str

    def over_all(self, given: Call) -> Tensor | None:
        """The mask (B, T + L) over all tokens, or None."""
        text = given.get(self.name)
        if text is None:
            return None
        return torch.cat((text.bool(), text.new_ones(given["hidden_states"].shape[:2], dtype=torch.bool)), 1)

    def replaced(self, given: Call, mask: Tensor) -> Call:
        """The arguments with the text's part of another mask over all tokens."""
        return {**given, self.name: mask[:, : given["encoder_hidden_states"].shape[1]]}


@dataclass(frozen=True)
class OuterMask:
    """A mask whose entry for a query and a key is the product of the two tokens' own, 1 for every image token.

    diffusers makes it as large as all tokens squared, in every block. As an image query's row is the keys' entries, it
    is enough to attend with the text's queries apart.

    Attributes:
        text: (B, T) entries of the text's tokens.
    """

    text: Tensor

    @classmethod
    def read(cls, mask: Tensor, text: int, tokens: int) -> OuterMask:
        """From the tokens' entries (B, T + L); raises Unsupported where an image token's is not 1."""
        if mask.ndim != 2 or mask.shape[1] != text + tokens:
            raise Unsupported(f"an attention mask of shape {tuple(mask.shape)} is not supported, only (B, tokens)")
        if not bool((mask[:, text:] == 1).all()):
            raise Unsupported("an attention mask that takes image tokens out is not supported, only one over the text")
        return cls(mask[:, :text])

    @staticmethod
    def in_order(mask: Tensor, order: Tensor) -> Tensor:
        """The tokens' entries in another order."""
        return mask[:, order]

    def attend(self, attend: Callable[..., Tensor], q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """`attend(q, k, v, attn_mask=...)` of q, k, v (B, L, heads, D), the text's queries and the image's."""
        text = self.text.shape[1]
        keys = torch.cat((self.text, self.text.new_ones(len(self.text), k.shape[1] - text)), 1)[:, None, None]
        of_text = repeated(keys * self.text[:, None, :, None], len(q))
        parts = ((q[:, :text], of_text), (q[:, text:], repeated(keys, len(q))))
        return torch.cat([attend(part, k, v, attn_mask=mask) for part, mask in parts], 1)
