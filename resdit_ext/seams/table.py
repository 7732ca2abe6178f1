"""WebUI models that add a position table to the embedded latent, once, and have joint blocks.

Patches are whole calls of the model, so whatever attention a block has gets the same treatment.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from torch import Tensor, nn

from ..errors import Unsupported
from ..method.around_calls import call_by_patches
from ..method.layout import Grid
from ..method.layout_steps import ModelCall
from ..method.position_table import PositionTable
from ..method.run import Run
from ..monkeypatch import scaled_outputs, swapped

NEEDED = ("pos_embed", "pos_embed_max_size", "cropped_pos_embed")
PATCH = 2  # latent pixels per token and axis


def query_norms(blocks: object) -> list[nn.Module]:
    """The modules that every query passes through last, before it is attended with; raises Unsupported."""
    sides = [side for block in blocks for side in (block.context_block, block.x_block)]
    attentions = [getattr(side, name) for side in sides for name in ("attn", "attn2") if hasattr(side, name)]
    norms = [getattr(attention, "ln_q", None) for attention in attentions]
    if None in norms:
        raise Unsupported("an attention of its blocks has no ln_q")
    return norms


@dataclass(frozen=True)
class TableBlocks:
    """How such a model is recognised.

    Attributes:
        blocks: the attribute that holds its joint blocks.
    """

    blocks: str = "joint_blocks"

    pools = False  # its attention is the model's own, in whole calls: the fast modes have no effect
    rotates = False  # positions are added: NTK and YaRN are not for them

    def claims(self, model: object) -> bool:
        """True for a model with joint blocks."""
        return len(getattr(model, self.blocks, ())) > 0

    def adapter(self, model: object) -> TableAdapter:
        """The model with the method ready to run around it; raises Unsupported with the reason."""
        if missing := [name for name in NEEDED if getattr(model, name, None) is None]:
            raise Unsupported(f"{type(model).__name__} has no {', '.join(missing)}")
        return TableAdapter(model, tuple(query_norms(getattr(model, self.blocks))))


@dataclass(frozen=True, eq=False)
class TableAdapter:
    """A loaded model of this kind.

    Attributes:
        model: the host's.
        queries: the modules whose outputs are its queries.
    """

    model: nn.Module
    queries: tuple[nn.Module, ...]

    @property
    def hidden_size(self) -> int:
        """Channels of a token."""
        return self.model.pos_embed.shape[-1]

    def grid(self, latent: Tensor) -> Grid:
        """The token grid of a latent (B, C, H, W); the hosts themselves refuse an odd side."""
        return Grid(latent.shape[-2] // PATCH, latent.shape[-1] // PATCH)

    def table(self) -> PositionTable:
        """The model's position table."""
        side = self.model.pos_embed_max_size
        return PositionTable(self.model.pos_embed[0].unflatten(0, (side, side)))

    @contextmanager
    def adjusted(self, positions: Tensor, logit_scale: float) -> Iterator[None]:
        """Have the model add `positions` (1, H*W, C) in place of its own crop, and scale its attention's logits."""
        ours = swapped(self.model, cropped_pos_embed=lambda hw: positions)  # noqa: ARG005
        with ours, scaled_outputs(self.queries, logit_scale):
            yield

    def call_with_resdit(self, run: Run, call: ModelCall, latent: Tensor, text: int, sigma: float) -> Tensor:
        """One prediction made of whole calls of the model: one for the whole latent, and one on each patch.

        The arguments are those of `rotary.RotaryAdapter`'s.
        """
        return call_by_patches(run, call, latent, text, sigma, self.table, self.adjusted)
