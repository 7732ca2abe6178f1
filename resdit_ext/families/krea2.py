"""Krea 2: one kind of block over text and picture, the keys' and values' heads shared by four of the queries'."""

from __future__ import annotations

from ..seams.masks_diffusers import TextMask
from ..seams.places_diffusers import GivenIds
from ..seams.rotary import RotaryBlocks
from ..seams.rotary_diffusers import NEEDED, RotaryProcessors
from ..seams.ways import KernelAfterRotation
from . import Family, Support


def claims(model: object) -> bool:
    """True for a transformer with the layers that make one text of many, and a single list of blocks."""
    return all(hasattr(model, name) for name in ("txtfusion", "txtmlp", "blocks", "pe_embedder"))


def refusal(model: object) -> str | None:
    """Why such a model is not supported, or None."""
    if getattr(model, "ctrl_patched", False):
        return "a Krea 2 with a control LoRA, which adds a picture to the latent, is not supported yet"
    return None


MASK = TextMask("encoder_attention_mask")
MODELS = "Krea 2 (Raw, Turbo)"
NEEDS = ("SingleStreamDiT", "attention_function", "pe_embedder")
FAMILY = Family(
    name="Krea 2",
    key="krea2",
    rank=3,
    webui=RotaryBlocks(
        claims,
        refusal,
        ways=(KernelAfterRotation(),),
        blocks=("blocks",),
        hidden_size=lambda model: model.first.out_features,
    ),
    diffusers={
        "Krea2Transformer2DModel": RotaryProcessors(
            blocks=("transformer_blocks",),
            embedder="rotary_emb",
            places=GivenIds("position_ids", text=None),
            mask=MASK.over_all,
            with_mask=MASK.replaced,
        ).around_calls
    },
    support={
        "Forge Neo": Support(MODELS, {"backend/nn/krea.py": NEEDS}),
        "ersatzForge": Support(MODELS, {"backend/nn/krea2.py": NEEDS}),
        "diffusers": Support(
            MODELS,
            {"models/transformers/transformer_krea2.py": ("Krea2Transformer2DModel", *NEEDED)},
            note="0.40 and newer",
        ),
    },
    hidden_size=6144,
    longest_text=512,
    live_vectors=15,  # tests/hosts/memory.py counts 12.9 in Forge Neo at 2K; 14.2 were seen with its text's 12 layers
    base_size=1024,  # the largest of its training's stages 256, 512 and 1024, by its technical report
    steps=8,
)
