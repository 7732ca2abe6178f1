"""A control net's file as others saved it: its tensors under plain names, and what is wrong with it, in words."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

from ..errors import Unsupported
from .format import Weights

# Only the nets for transformers have these; the prefix before them (a trainer's, a pipeline's) is dropped everywhere.
ANCHORS = ("controlnet_blocks.0.weight", "controlnet_single_blocks.0.weight")
SHARD = re.compile(r"(?P<stem>.*-)(?P<number>\d{5})-of-(?P<count>\d{5})\.safetensors")
SUFFIXES = (".safetensors", ".sft")
PICKLED = "only safetensors files are read; a pickle file can run programs"
# Names of tensors that only the files of the hosts' own nets have, none of which is for our families.
FOR_OTHERS = {
    "ControlNet for SD 1.5, SD 2 or SDXL": r"(zero_convs\.0\.0|controlnet_cond_embedding\.conv_in)\.weight$",
    "Control-LoRA for SDXL": r"^lora_controlnet$",
    "T2I-Adapter for SD 1.5 or SDXL": r"body\.0\.(in_conv|block2|resnets\.0\.block1)\.weight$",
    "ControlLLLite for SDXL or Anima": r"lllite",
}


@dataclass(frozen=True)
class StateDict:
    """A file's tensors, with questions that a format asks of them."""

    weights: Weights
    _counted: dict[str, int] = field(default_factory=dict, compare=False)

    def __contains__(self, name: str) -> bool:
        return name in self.weights

    def size(self, name: str, axis: int) -> int:
        """The length of a tensor's axis; raises Unsupported where there is none."""
        if name not in self.weights:
            raise Unsupported(f"it lacks {name}")
        shape = tuple(self.weights[name].shape)
        if len(shape) <= axis or not shape[axis]:
            raise Unsupported(f"{name} is {shape}, which is no shape for it")
        return shape[axis]

    def heads(self, width: int, head: int) -> dict[str, int]:
        """diffusers' arguments for `width` channels in heads of `head`; raises Unsupported where they do not divide."""
        if width % head or head % 16:
            raise Unsupported(f"{width} channels in heads of {head} are no sizes of such a net")
        return dict(attention_head_dim=head, num_attention_heads=width // head)

    def blocks(self, prefix: str) -> int:
        """How many of `prefix.0.`, `prefix.1.`, ... there are."""
        if prefix not in self._counted:
            found = {int(m[1]) for name in self.weights if (m := re.match(rf"{re.escape(prefix)}\.(\d+)\.", name))}
            if found != set(range(len(found))):
                raise Unsupported(f"of {prefix} it has only the numbers {', '.join(map(str, sorted(found)))}")
            self._counted[prefix] = len(found)
        return self._counted[prefix]


def describe(names: Iterable[str]) -> str:
    """What was found, for a message: how many tensors and two of their names."""
    names = sorted(names)
    return f"{len(names)} tensors such as {', '.join(names[:2])}" if names else "no tensors"


def is_for_transformer(weights: Weights) -> bool:
    """True for a control net of a diffusion transformer, of whatever family."""
    return any(name.endswith(ANCHORS) for name in weights)


def without_prefix(weights: Weights) -> dict[str, Tensor]:
    """The tensors under the names that follow the anchor's own prefix."""
    anchor = next(name for name in weights if name.endswith(ANCHORS))
    prefix = anchor[: -len(next(end for end in ANCHORS if anchor.endswith(end)))]
    return {name.removeprefix(prefix): value for name, value in weights.items()}


def with_shards(weights: Weights, path: Path) -> Weights:
    """The tensors of a file and of its other parts where it is one of several; raises Unsupported naming a missing one.

    Diffusers names the parts NAME-00001-of-00003.safetensors.
    """
    match = SHARD.fullmatch(path.name)
    if match is None:
        return weights
    whole = dict(weights)
    for number in range(1, int(match["count"]) + 1):
        part = path.with_name(f"{match['stem']}{number:05}-of-{match['count']}.safetensors")
        if part == path:
            continue
        if not part.is_file():
            raise Unsupported(f"it is one of {int(match['count'])} parts, and {part.name} is not beside it")
        if reason := why_unreadable(part):
            raise Unsupported(f"of its part {part.name}: {reason}")
        whole |= load_file(part)
    return whole


def check_finite(weights: Weights) -> None:
    """Raise Unsupported naming a tensor that is no number somewhere."""
    for name, value in weights.items():
        if not value.is_floating_point():
            continue
        # The eight-bit formats know no isfinite; the sum of a half would overflow.
        if not torch.isfinite(value.float() if value.element_size() == 1 else value).all():
            raise Unsupported(f"{name} has values that are not numbers (NaN or infinite)")


def why_unreadable(path: Path) -> str | None:
    """Why a control file cannot be opened, from its name and header alone; None where it can."""
    if path.suffix.lower() not in SUFFIXES:
        return None  # the host's own affair: it loads older nets from such files
    try:
        with safe_open(path, "pt") as file:
            return None if file.keys() else "it holds no tensors"
    except (SafetensorError, OSError, ValueError) as error:
        return f"it is truncated, or no safetensors file ({error})"


def made_for_others(path: Path) -> str | None:
    """What kind of file for other models a readable safetensors file is, by its tensors' names alone; else None."""
    with safe_open(path, "pt") as file:
        names = list(file.keys())
    return next((kind for kind, sign in FOR_OTHERS.items() if any(re.search(sign, name) for name in names)), None)
