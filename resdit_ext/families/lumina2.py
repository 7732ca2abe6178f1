"""Lumina 2 and Neta Lumina: blocks over text and picture, and before them two over each alone."""

from __future__ import annotations

from ..method.layout import Grid
from ..seams.latents_diffusers import Call, LatentProcessors, by_torch
from ..seams.rotary import RotaryBlocks
from ..seams.sequence import Arrangement, Rotation, TokenSequence
from ..seams.ways import KernelAfterRotation
from . import Family, Support
from .zimage import NEEDS, is_next, refusal_of_next


def claims(model: object) -> bool:
    """True for such a transformer whose picture has no pads."""
    return is_next(model) and model.pad_tokens_multiple is None


def texts(given: Call) -> list[int]:
    """Tokens of each picture's text."""
    return given["encoder_attention_mask"].sum(1).tolist()


def only(given: Call, index: int) -> Call:
    """The arguments of a call for one picture alone."""
    names = ("hidden_states", "timestep", "encoder_hidden_states", "encoder_attention_mask")
    return {**given, **{name: given[name][index : index + 1] for name in names}}


def sequence(rotation: Rotation, text: int, grid: Grid) -> TokenSequence:  # noqa: ARG001
    """diffusers' text, which counts the first axis up, and the picture behind its end."""
    return TokenSequence(rotation, text, tuple((float(i), 0.0, 0.0) for i in range(text)), (float(text), 0.0, 0.0))


def alone(rotation: Rotation, text: int, grid: Grid) -> TokenSequence:
    """The same picture without the text."""
    return sequence(rotation, text, grid).without_those_before()


CLASS, KERNEL = "Lumina2Transformer2DModel", "scaled_dot_product_attention"
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
    diffusers={
        CLASS: LatentProcessors(
            latents="hidden_states",
            time="timestep",
            texts=texts,
            only=only,
            refusal=lambda _: None,
            sequence=sequence,
            alone=alone,
            axes_dim="axes_dim",
            rotation="image_rotary_emb",
            attention="attn",
            kernels=by_torch,
            needed=("F", KERNEL),
        ).around_calls
    },
    support={
        "Forge Neo": Support(MODELS, {"backend/nn/lumina.py": ("NextDiT", *NEEDS)}),
        "ersatzForge": Support(MODELS, {"backend/nn/lumina2.py": ("Lumina2DiT", *NEEDS)}),
        "diffusers": Support(MODELS, {"models/transformers/transformer_lumina2.py": (CLASS, KERNEL)}),
    },
    hidden_size=2304,
    longest_text=256,
    live_vectors=20,  # tests/hosts/memory.py counts 19.5 in Forge Neo, 18.5 in ersatzForge
    shift=1.79,  # of 6, by which its noise levels are multiplied: ln 6
    steps=32,
)
