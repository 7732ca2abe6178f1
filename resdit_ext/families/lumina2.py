"""Lumina 2 and Neta Lumina: blocks over text and picture, and before them two over each alone."""

from __future__ import annotations

from ..seams.rotary import KernelAfterRotation, RotaryBlocks
from ..seams.sequence import Arrangement
from . import Family, Support
from .zimage import NEEDS, is_next, refusal_of_next


def claims(model: object) -> bool:
    """True for such a transformer whose picture has no pads."""
    return is_next(model) and model.pad_tokens_multiple is None


MODELS = "Lumina-Image 2.0, Neta Lumina"
FAMILY = Family(
    name="Lumina 2",
    key="lumina2",
    rank=5,
    webui=RotaryBlocks(
        claims,
        refusal_of_next,
        ways=(KernelAfterRotation(Arrangement(refines=True)),),
        blocks=("noise_refiner", "layers"),
        embedder="rope_embedder",
        hidden_size=lambda model: model.dim,
    ),
    support={
        "Forge Neo": Support(MODELS, {"backend/nn/lumina.py": ("NextDiT", *NEEDS)}),
        "ersatzForge": Support(MODELS, {"backend/nn/lumina2.py": ("Lumina2DiT", *NEEDS)}),
    },
    hidden_size=2304,
    longest_text=256,
    live_vectors=25,
    shift=1.79,  # of 6, by which its noise levels are multiplied: ln 6
    steps=32,
)
