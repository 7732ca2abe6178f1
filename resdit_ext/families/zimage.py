"""Z-Image: Lumina 2's class with pads, text that counts the first axis up and the picture behind its end."""

from __future__ import annotations

from ..seams.rotary import KernelAfterRotation, RotaryBlocks
from ..seams.sequence import Arrangement
from . import Family, Support

PADDED_TO = 32  # tokens


def is_next(model: object) -> bool:
    """True for a transformer with blocks for text and picture together and for each alone."""
    return all(hasattr(model, name) for name in ("context_refiner", "noise_refiner", "layers", "pad_tokens_multiple"))


def claims(model: object) -> bool:
    """True for such a transformer whose picture is padded."""
    return is_next(model) and model.pad_tokens_multiple is not None


def refusal_of_next(model: object) -> str | None:
    """Why such a model is not supported, or None."""
    if getattr(model, "use_dynamicPE", 0):
        return "the WebUI's own dynamic positions (dynamicPE) are on: switch one of the two off"
    return None


def refusal(model: object) -> str | None:
    """Why such a model is not supported, or None."""
    if getattr(model, "control", False):
        return "a Z-Image with a ControlNet in its checkpoint is not supported yet"
    if model.pad_tokens_multiple != PADDED_TO:
        return f"its picture's tokens are made a multiple of {model.pad_tokens_multiple} by pads, not of {PADDED_TO}"
    return refusal_of_next(model)


NEEDS = ("attention_function", "rope_embedder")
MODELS = "Z-Image, Z-Image Turbo"
FAMILY = Family(
    name="Z-Image",
    key="zimage",
    rank=4,
    webui=RotaryBlocks(
        claims,
        refusal,
        ways=(KernelAfterRotation(Arrangement(multiple=PADDED_TO, refines=True)),),
        blocks=("noise_refiner", "layers"),
        embedder="rope_embedder",
        hidden_size=lambda model: model.dim,
    ),
    support={
        "Forge Neo": Support(MODELS, {"backend/nn/lumina.py": ("NextDiT", "pad_tokens_multiple", *NEEDS)}),
        "ersatzForge": Support(MODELS, {"backend/nn/lumina2.py": ("Lumina2DiT", "pad_tokens_multiple", *NEEDS)}),
    },
    hidden_size=3840,
    longest_text=512,
    live_vectors=25,
    shift=1.1,  # of 3, by which its noise levels are multiplied: ln 3
    steps=9,
)
