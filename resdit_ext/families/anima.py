"""Anima: blocks that attend to the picture alone, and to text across, on halves of channels at three position axes."""

from __future__ import annotations

from torch import nn

from ..seams.rotary import RotaryBlocks
from ..seams.sequence import Rotation
from ..seams.ways import KernelOverPicture
from . import Family, Support

THETA = 10000.0


def claims(model: object) -> bool:
    """True for a transformer of such blocks over time, rows and columns."""
    return all(hasattr(model, name) for name in ("pos_embedder", "x_embedder", "t_embedding_norm", "blocks"))


def refusal(model: object) -> str | None:
    """Why such a model is not supported, or None."""
    if getattr(model, "extra_per_block_abs_pos_emb", False):
        return "a Cosmos with positions that are added in every block is not supported"
    return None


def rotation(embedder: nn.Module) -> Rotation:
    """An embedder's, which has factors of theta in Forge Neo, and frequencies in ersatzForge."""
    if hasattr(embedder, "h_ntk_factor"):
        axes = [2 * len(part) for part in (embedder.dim_temporal_range, *[embedder.dim_spatial_range] * 2)]
        thetas = [THETA * factor for factor in (embedder.t_ntk_factor, embedder.h_ntk_factor, embedder.w_ntk_factor)]
    else:
        frequencies = [embedder.temporal_freqs, *[embedder.hw_spatial_freqs] * 2]
        axes = [2 * len(part) for part in frequencies]
        thetas = [float(part[-1]) ** (-d / (d - 2)) for part, d in zip(frequencies, axes, strict=True)]
    return Rotation(tuple(axes), tuple(thetas), halves=True)


NEEDS = ("VideoRopePosition3DEmb", "attention_function")
FAMILY = Family(
    name="Anima",
    key="anima",
    rank=8,
    webui=RotaryBlocks(
        claims,
        refusal,
        ways=(KernelOverPicture(rotation),),
        blocks=("blocks",),
        embedder="pos_embedder",
        hidden_size=lambda model: model.x_embedder.proj[1].out_features,
        highest_level=1.0,  # Cosmos Predict2 has the same class, and levels up to 80
    ),
    support={
        "Forge Neo": Support("Anima", {"backend/nn/anima.py": ("Anima", *NEEDS)}),
        "ersatzForge": Support("Anima", {"backend/nn/cosmos_predict2.py": ("MiniTrainDIT", *NEEDS)}),
    },
    hidden_size=2048,
    longest_text=512,
    live_vectors=13,  # tests/hosts/memory.py counts 12.5 in Forge Neo at 2K
    shift=1.1,  # of 3, by which its noise levels are multiplied: ln 3
    steps=32,
)
