"""A model's files, in diffusers' format: found, checked, and loaded from disk alone, never from a network."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import diffusers
import torch
from torch import nn

from ...errors import ResDiTError, in_words, quoted
from ...families import Family, families, family_of_class

INDEX = "model_index.json"


@dataclass(frozen=True)
class ModelParts:
    """Where the parts of a model are, each loaded when it is needed.

    Attributes:
        family: which it is of.
        folder: of a diffusers pipeline.
        file: of the transformer, where it is not the folder's.
    """

    family: Family
    folder: Path
    file: Path | None

    @property
    def _transformer_class(self) -> type:
        return getattr(diffusers, read_json(self.folder / INDEX)["transformer"][1])

    def whole(self, dtype: torch.dtype) -> diffusers.DiffusionPipeline:
        """The whole pipeline, in `dtype`."""
        return diffusers.DiffusionPipeline.from_pretrained(
            self.folder,
            transformer=self.transformer(dtype),
            torch_dtype=dtype,
            local_files_only=True,
            use_safetensors=True,
        )

    def pipeline(self, dtype: torch.dtype) -> diffusers.DiffusionPipeline:
        """The text encoders in `dtype` and the autoencoder in float32, in a pipeline without a transformer."""
        return diffusers.DiffusionPipeline.from_pretrained(
            self.folder,
            transformer=None,
            torch_dtype={"vae": torch.float32, "default": dtype},
            local_files_only=True,
            use_safetensors=True,
        )

    def vae(self) -> nn.Module:
        """The autoencoder, in float32."""
        return diffusers.AutoencoderKL.from_pretrained(
            self.folder, subfolder="vae", torch_dtype=torch.float32, local_files_only=True, use_safetensors=True
        )

    def transformer(self, dtype: torch.dtype) -> nn.Module:
        """The transformer, in `dtype`; raises ResDiTError where its file is of no such model."""
        given = {"subfolder": "transformer", "torch_dtype": dtype, "local_files_only": True}
        if self.file is None:
            return self._transformer_class.from_pretrained(self.folder, use_safetensors=True, **given)
        try:
            return self._transformer_class.from_single_file(str(self.file), config=str(self.folder), **given)
        except Exception as error:  # its converters raise whatever a missing name leads to
            raise ResDiTError(
                f"model is {str(self.file)!r}, which cannot be loaded as the {self._transformer_class.__name__} of "
                f"{str(self.folder)!r} ({in_words(error)}); name a file of that model's transformer"
            ) from error


def read_json(path: Path) -> dict:
    """A configuration of diffusers; raises ResDiTError where it is none."""
    try:
        return json.loads(path.read_text(encoding="utf8"))
    except (OSError, ValueError) as error:
        raise ResDiTError(f"{path} cannot be read ({in_words(error)}); get the model's folder again") from error


def located(model: Path, components: Path | None, fits: Callable[[Family], bool], purpose: str) -> ModelParts:
    """Where the parts of a model are.

    Args:
        model: a folder of a diffusers pipeline, or a safetensors file of a transformer.
        components: where it is a file, a folder with all else.
        fits: whether a family will do.
        purpose: what the model is for, as the message says it: "a LoRA can be trained for".

    Raises:
        ResDiTError: there is no such model, or it is of no family that fits.
    """
    is_file = model.is_file()
    if is_file and model.suffix != ".safetensors":
        raise ResDiTError(f"model is {str(model)!r}; a model's file must be a .safetensors file")
    if is_file and components is None:
        raise ResDiTError(
            f"model is {str(model)!r}, a file; name with --components a folder of the same model in diffusers' format, "
            "for its text encoders and autoencoder"
        )
    name, folder = ("components", components) if is_file else ("model", model)
    if not (folder / INDEX).is_file():
        raise ResDiTError(f"{name} is {str(folder)!r}, which is no folder of a diffusers pipeline: it has no {INDEX}")
    _, found = read_json(folder / INDEX).get("transformer") or (None, None)
    family = family_of_class(found or "")
    if family is None or not fits(family):
        fitting = ", ".join(family.name for family in families() if fits(family))
        what = quoted(found) if found else "nothing"
        raise ResDiTError(
            f"{name} is {str(folder)!r}, whose transformer is {what}; {purpose} {fitting}: choose a model of "
            "one of these"
        )
    return ModelParts(family, folder, model if is_file else None)


def has_classes(family: Family) -> bool:
    """True for a family that works in diffusers."""
    return bool(family.diffusers)


def load_pipeline(
    model: Path, components: Path | None, dtype: torch.dtype
) -> tuple[diffusers.DiffusionPipeline, Family]:
    """The pipeline of a folder, or of a transformer's file and a folder with all else, in `dtype`, and its family.

    Raises:
        ResDiTError: there is no such model, or it is of no supported family.
    """
    parts = located(model, components, has_classes, "pictures can be made with")
    return parts.whole(dtype), parts.family
