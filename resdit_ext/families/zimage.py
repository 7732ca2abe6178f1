"""Z-Image: Lumina 2's class with pads, text that counts the first axis up and the picture behind its end."""

from __future__ import annotations

from ..method.layout import Grid
from ..seams.latents_diffusers import Call, LatentProcessors, by_dispatcher
from ..seams.rotary import RotaryBlocks
from ..seams.sequence import Arrangement, Rotation, TokenSequence
from ..seams.ways import KernelAfterRotation
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


def refusal_of_call(given: Call) -> str | None:
    """Why the method cannot be used in a call of diffusers' transformer, or None."""
    pictures = given["x"]
    if isinstance(pictures[0], list):
        return "Z-Image with pictures as conditions (Omni) is not supported yet"
    if given.get("controlnet_block_samples") is not None:
        return "a ControlNet for Z-Image is not supported yet"
    if len({picture.shape for picture in pictures}) > 1 or pictures[0].shape[1] > 1:
        return "pictures of several sizes in one call, or of several frames, are not supported"
    return None


def texts(given: Call) -> list[int]:
    """Tokens of each picture's text, with its pads."""
    return [len(text) + -len(text) % PADDED_TO for text in given["cap_feats"]]


def only(given: Call, index: int) -> Call:
    """The arguments of a call for one picture alone."""
    return {**given, **{name: given[name][index : index + 1] for name in ("x", "t", "cap_feats")}}


def pads(grid: Grid) -> tuple[tuple[float, ...], ...]:
    """The ids of a picture's pads."""
    return ((0.0, 0.0, 0.0),) * (-grid.tokens % PADDED_TO)


def alone(rotation: Rotation, text: int, grid: Grid) -> TokenSequence:
    """diffusers' picture, which begins behind the text's end, and its pads."""
    return TokenSequence(rotation, 0, pads(grid), (text + 1.0, 0.0, 0.0))


def sequence(rotation: Rotation, text: int, grid: Grid) -> TokenSequence:
    """diffusers' picture, its pads, and text."""
    of_text = tuple((i + 1.0, 0.0, 0.0) for i in range(text))
    return TokenSequence(rotation, 0, pads(grid) + of_text, (text + 1.0, 0.0, 0.0))


NEEDS = ("attention_function", "rope_embedder")
CLASS, KERNEL = "ZImageTransformer2DModel", "dispatch_attention_fn"
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
    diffusers={
        CLASS: LatentProcessors(
            latents="x",
            time="t",
            texts=texts,
            only=only,
            refusal=refusal_of_call,
            sequence=sequence,
            alone=alone,
            axes_dim="axes_dims",
            rotation="freqs_cis",
            attention="attention",
            kernels=by_dispatcher,
            needed=(KERNEL,),
        ).around_calls
    },
    support={
        "Forge Neo": Support(MODELS, {"backend/nn/lumina.py": ("NextDiT", "pad_tokens_multiple", *NEEDS)}),
        "ersatzForge": Support(MODELS, {"backend/nn/lumina2.py": ("Lumina2DiT", "pad_tokens_multiple", *NEEDS)}),
        "diffusers": Support(MODELS, {"models/transformers/transformer_z_image.py": (CLASS, KERNEL)}),
    },
    hidden_size=3840,
    longest_text=512,
    live_vectors=15,  # tests/hosts/memory.py counts 14.1 in Forge Neo, 13.1 in ersatzForge
    shift=1.1,  # of 3, by which its noise levels are multiplied: ln 3
    steps=9,
)
