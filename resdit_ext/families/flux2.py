"""Flux.2 klein: FLUX's two kinds of blocks at four position axes, the text's the last, with one modulation for all."""

from __future__ import annotations

from dataclasses import replace

from ..seams.places_diffusers import Call
from ..seams.rotary import RotaryBlocks
from ..seams.rotary_diffusers import NEEDED, RotaryProcessors
from . import Family, Support
from .flux import has_blocks

FEW_STEPS = 2.35  # above the shift of every picture of up to 4300 tokens, whatever its steps


def claims(model: object) -> bool:
    """True for a transformer with FLUX's blocks and such a modulation."""
    return has_blocks(model) and hasattr(model, "double_stream_modulation_img")


def refusal_of_call(given: Call) -> str | None:
    """Why the method cannot be used in a call of diffusers' transformer, or None."""
    if given.get("kv_cache_mode") is not None:
        return "Flux.2 with kept keys of its reference images (KV) is not supported, only without them"
    return None


def tokens_of_shift(mu: float) -> float:
    """The number of image tokens for which diffusers' pipeline asks for a shift; 0 up to the highest of few steps."""
    return 0.0 if mu <= FEW_STEPS else (mu - 0.45666666) / 0.00016927


# Its class in Forge Neo is FLUX.1's.
NEO = Support(
    "klein 4B, klein 9B",
    {"backend/diffusion_engine/flux2.py": ("Flux2",), "backend/nn/flux.py": ("txt_ids_dims", "attention(q, k, v, pe)")},
)
FAMILY = Family(
    name="Flux.2",
    key="flux2",
    rank=6,
    # Forge Neo's latent has a pixel for each token, ersatzForge's 2x2.
    webui=RotaryBlocks(claims, patch=lambda model: model.patch_size),
    diffusers={
        "Flux2Transformer2DModel": RotaryProcessors(
            output="Flux2Transformer2DModelOutput", refusal=refusal_of_call, ranks_known=True
        ).around_calls
    },
    support={
        "Forge Neo": NEO,
        "ersatzForge": replace(NEO, needs={"backend/nn/flux2.py": ("IntegratedFlux2Transformer2DModel", "attention")}),
        "diffusers": replace(NEO, needs={"models/transformers/transformer_flux2.py": NEEDED}),
    },
    hidden_size=3072,  # klein 4B's
    longest_text=512,
    live_vectors=23,  # tests/hosts/memory.py counts 22.3 in ersatzForge at 1K, 19.1 at 2K, 18.1 in Forge Neo
    shift=2.02,
    tokens_of_shift=tokens_of_shift,
    steps=4,
)
