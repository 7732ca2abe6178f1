"""Qwen-Image: two streams in every block, a picture whose places count from its middle, and text behind them."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from ..errors import Unsupported
from ..method.run import Run
from ..seams.masks_diffusers import TextMask
from ..seams.places_diffusers import GivenSides
from ..seams.rotary import RotaryBlocks
from ..seams.rotary_diffusers import DISPATCH, RotaryProcessors
from ..seams.sequence import Arrangement
from ..seams.ways import KernelAfterRotation
from . import Family, Support


def claims(model: object) -> bool:
    """True for a transformer of such blocks that embeds positions by their ids."""
    return all(hasattr(model, name) for name in ("transformer_blocks", "pe_embedder", "txt_norm", "time_text_embed"))


def first_of(count: int) -> int:
    """Where the first of so many rows or columns stands in Forge Neo."""
    return -(count // 2)


def first_in_diffusers(count: int) -> int:
    """Where the first of so many rows or columns stands in diffusers, one further where their number is odd."""
    return count // 2 - count


def around_calls(transformer: nn.Module, run: Run) -> Callable:
    """`around(call, ...)` for diffusers' transformer; raises Unsupported with the reason."""
    if getattr(transformer.config, "use_layer3d_rope", False):
        raise Unsupported("Qwen-Image-Layered, whose pictures are several in one call, is not supported")
    if run.config.positions == "rpe-2d":
        raise Unsupported("positions rpe-2d cannot be given to Qwen-Image in diffusers: choose others")
    return PROCESSORS.around_calls(transformer, run)


ROTATION, MASK = "apply_rotary_emb_qwen", TextMask("encoder_hidden_states_mask")
PROCESSORS = RotaryProcessors(
    blocks=("transformer_blocks",),
    places=GivenSides("img_shapes", first_in_diffusers),
    rotation=ROTATION,
    channels=lambda transformer: transformer.proj_out.out_features,
    mask=MASK.over_all,
    with_mask=MASK.replaced,
    ranks_known=True,
    ranks_masks=False,
)
MODELS = "Qwen-Image"
FAMILY = Family(
    name="Qwen-Image",
    key="qwen",
    rank=7,
    webui=RotaryBlocks(
        claims,
        ways=(KernelAfterRotation(Arrangement(references=True, centre=first_of), flat=True),),
        blocks=("transformer_blocks",),
        hidden_size=lambda model: model.inner_dim,
    ),
    diffusers={"QwenImageTransformer2DModel": around_calls},
    support={
        "Forge Neo": Support(
            MODELS, {"backend/nn/qwen.py": ("attention_function", "apply_rotary_emb")}, note="Edit too"
        ),
        "diffusers": Support(MODELS, {"models/transformers/transformer_qwenimage.py": (ROTATION, DISPATCH)}),
    },
    hidden_size=3072,
    longest_text=1024,
    live_vectors=16,  # tests/hosts/memory.py counts 15.2 in Forge Neo
    base_size=1328,
    shift=0.83,
    steps=20,
)
