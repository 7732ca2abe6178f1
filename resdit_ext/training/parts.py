"""The parts of a model to train for, each loaded when it is needed: from disk alone, never from a network."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import diffusers
import torch
from torch import nn

from ..errors import ResDiTError, in_words, quoted
from ..families import Family, families, family_of_class

INDEX = "model_index.json"


@dataclass(frozen=True)
class ModelParts:
    """Where the parts of a model are.

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


def find_model(model: Path, components: Path | None) -> ModelParts:
    """Where the parts of a model are.

    Args:
        model: a folder of a diffusers pipeline, or a safetensors file of a transformer.
        components: where it is a file, a folder with all else.

    Raises:
        ResDiTError: there is no such model, or none for which a LoRA can be trained.
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
    if family is None or family.training is None:
        trained = ", ".join(family.name for family in families() if family.training is not None)
        what = quoted(found) if found else "nothing"
        raise ResDiTError(
            f"{name} is {str(folder)!r}, whose transformer is {what}; a LoRA can be trained for {trained}: choose a "
            "model of one of these"
        )
    config = read_json(folder / "transformer" / "config.json")
    channels, out = config.get("in_channels"), config.get("out_channels")
    if out not in (None, channels):
        raise ResDiTError(
            f"{name} is {str(folder)!r}, whose transformer takes {channels} channels and makes {out}: one that is "
            "given more than a noisy picture (Fill, Depth, Canny); choose the plain model of the family"
        )
    return ModelParts(family, folder, model if is_file else None)
