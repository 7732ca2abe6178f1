"""SD3 and SD3.5 as the WebUIs define them: a position table added to the embedded latent, once, and joint blocks.

One class serves MMDiT (SD3-medium) and MMDiT-X (SD3.5): patches are whole calls of the model, so a block's second,
image-only attention gets the same treatment as its first.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from torch import Tensor, nn

from ..errors import Unsupported
from ..method.around_calls import call_by_patches
from ..method.layout import Grid
from ..method.position_table import PositionTable
from ..method.run import Run
from ..monkeypatch import scaled_outputs, swapped

NEEDED = ("pos_embed", "pos_embed_max_size", "cropped_pos_embed")


def query_norms(model: object) -> list[nn.Module]:
    """The modules that every query passes through last, before it is attended with; raises Unsupported."""
    sides = [side for block in model.joint_blocks for side in (block.context_block, block.x_block)]
    attentions = [getattr(side, name) for side in sides for name in ("attn", "attn2") if hasattr(side, name)]
    norms = [getattr(attention, "ln_q", None) for attention in attentions]
    if None in norms:
        raise Unsupported("it looks like SD3, but an attention of it has no ln_q")
    return norms


class SD3:
    """SD3-medium and SD3.5 in Forge and ersatzForge; SD3-medium in A1111."""

    name = "SD3"
    pools = False  # its attention is the model's own, in whole calls
    peak_vectors = 32  # tests/hosts/memory.py counts 30.9 in Forge at 4K, 22.9 in ersatzForge

    def __init__(self, model: object) -> None:
        if missing := [name for name in NEEDED if getattr(model, name, None) is None]:
            raise Unsupported(f"it looks like SD3 but has no {', '.join(missing)}")
        self.model, self.queries = model, query_norms(model)
        self.hidden_size = model.pos_embed.shape[-1]

    @staticmethod
    def claims(model: object) -> bool:
        """True for a transformer with SD3's joint blocks."""
        return len(getattr(model, "joint_blocks", ())) > 0

    @staticmethod
    def grid(latent: Tensor) -> Grid:
        """The token grid of a latent (B, C, H, W); the hosts themselves refuse an odd side."""
        return Grid(latent.shape[-2] // 2, latent.shape[-1] // 2)

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

    def denoise(self, run: Run, predict: Callable[..., Tensor], latent: Tensor, text: int, sigma: float) -> Tensor:
        """One prediction made of whole calls of the model: on the whole latent, and on each patch."""
        return call_by_patches(run, predict, latent, text, sigma, self.table, self.adjusted)
