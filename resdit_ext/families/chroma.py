"""Chroma: FLUX.1's blocks at its positions, whose modulation comes from one layer for all of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from ..seams.masks_diffusers import OuterMask
from ..seams.rotary import RotaryBlocks
from ..seams.rotary_diffusers import NEEDED, RotaryProcessors
from ..seams.ways import KernelAfterRotation, RotatingAttention
from . import Family, Support


def claims(model: object) -> bool:
    """True for a transformer with such a layer and the two kinds of blocks that it serves."""
    return all(hasattr(model, name) for name in ("distilled_guidance_layer", "double_blocks", "single_blocks"))


def refusal(model: object) -> str | None:
    """Why such a model is not supported, or None."""
    if hasattr(model, "nerf_image_embedder"):
        return "Chroma Radiance, which draws pixels and has no autoencoder, is not supported yet"
    return None


def shared(_: object) -> Mapping[str, object]:
    """diffusers' plan for sharing the tokens of FLUX.1, which it does not give to Chroma."""
    from diffusers import FluxTransformer2DModel

    return FluxTransformer2DModel._cp_plan


FILE = "backend/nn/chroma.py"
FORGE = Support("Chroma1", {FILE: ("attention_function",)})
FAMILY = Family(
    name="Chroma",
    key="chroma",
    rank=2,
    # ersatzForge's blocks rotate in their own code.
    webui=RotaryBlocks(claims, refusal, ways=(RotatingAttention(), KernelAfterRotation())),
    diffusers={
        "ChromaTransformer2DModel": RotaryProcessors(
            mask=lambda given: given.get("attention_mask"),
            masks=OuterMask,
            with_mask=lambda given, mask: {**given, "attention_mask": mask},
            enlarges=True,
            ranks_known=True,
        ).around_calls
    },
    shares={"ChromaTransformer2DModel": shared},
    support={
        "Forge": FORGE,
        "Forge Neo": Support("Chroma1", {FILE: ("DoubleStreamBlock", "SingleStreamBlock")}),
        # Its class reads a setting that it no longer has.
        "ersatzForge": replace(FORGE, note="where its config.json has `use_dynamicPE`"),
        # Its blocks have FLUX.1's processors.
        "diffusers": replace(
            FORGE,
            needs={
                "models/transformers/transformer_chroma.py": ("ChromaTransformer2DModel",),
                "models/transformers/transformer_flux.py": NEEDED,
            },
        ),
    },
    hidden_size=3072,
    longest_text=512,
    live_vectors=25,  # as FLUX.1, whose blocks these are
    steps=26,
)
