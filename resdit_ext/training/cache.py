"""Latents and text embeddings of the pictures, computed once into safetensors files: what is there is kept."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor
from tqdm import tqdm

from ..method.layout import Grid
from .parts import ModelParts
from .pictures import Damaged, Picture, opened, shown

FORMAT = 1  # of the files
FINGERPRINT = "fingerprint"


def fingerprint(*facts: object) -> str:
    """What a file of the cache depends on, in short."""
    return hashlib.sha256(json.dumps([FORMAT, *facts], default=str).encode()).hexdigest()


def fits(path: Path, expected: str) -> bool:
    """True for a file of the cache that was made from the same."""
    if not path.is_file():
        return False
    try:
        with safe_open(path, "pt") as file:
            return (file.metadata() or {}).get(FINGERPRINT) == expected
    except (OSError, SafetensorError):
        return False


def save_whole(tensors: Mapping[str, Tensor], path: Path, metadata: Mapping[str, str]) -> None:
    """Write a safetensors file beside its place and put it there, so that none is ever there in part."""
    partial = path.with_suffix(".partial")
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, partial, metadata=dict(metadata))
    partial.replace(path)


def moved(text: Mapping[str, Tensor], *where: object) -> dict[str, Tensor]:
    """A caption's tensors on another device or in another type."""
    return {name: tensor.to(*where) for name, tensor in text.items()}


@dataclass(frozen=True)
class Example:
    """A picture in the cache.

    Attributes:
        path: of its file.
        bucket: its token grid.
        views: how many parts of the picture there are: the whole, and crops.
    """

    path: Path
    bucket: Grid
    views: int

    def read(self, view: int) -> tuple[Tensor, dict[str, Tensor]]:
        """The latent (1, C, 2H, 2W) and the text of one view."""
        with safe_open(self.path, "pt") as file:
            prefix = "crop/" if view else "whole/"
            text = {name.removeprefix(prefix): file.get_tensor(name) for name in file.keys() if name.startswith(prefix)}  # noqa: SIM118
            return file.get_tensor(f"latent/{view}"), text


class Encoders:
    """A model's text encoders and autoencoder, loaded at the first use."""

    def __init__(self, parts: ModelParts, dtype: torch.dtype, device: torch.device) -> None:
        self.parts, self.dtype, self.device, self._pipe = parts, dtype, device, None

    @property
    def pipe(self) -> object:
        if self._pipe is None:
            self._pipe = self.parts.pipeline(self.dtype).to(self.device)
        return self._pipe

    @torch.inference_mode()
    def text(self, caption: str) -> dict[str, Tensor]:
        """A caption as the transformer is given it."""
        return moved(self.parts.family.training.encode(self.pipe, caption), "cpu", torch.bfloat16)

    @torch.inference_mode()
    def latent(self, pixels: Tensor) -> Tensor:
        """(1, C, 2H, 2W) float16 latent, as the transformer is given it, of pixels (1, 3, height, width) in [-1, 1]."""
        vae = self.pipe.vae
        latent = vae.encode(pixels.to(self.device)).latent_dist.mode()
        return ((latent - vae.config.shift_factor) * vae.config.scaling_factor).to("cpu", torch.float16)


class Cache:
    """The files of one training, in a folder.

    Args:
        folder: where they are, made if it is missing.
        encoders: that make them.
        crop_words: put before a crop's caption.
    """

    def __init__(self, folder: Path, encoders: Encoders, crop_words: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.encoders, self.crop_words = folder, encoders, crop_words
        self.model = encoders.parts.folder.resolve()

    def _place(self, picture: Picture) -> tuple[Path, str]:
        """Where a picture's file is, and its fingerprint."""
        whole = str(picture.path.resolve())
        name = f"{picture.path.stem[:80]}-{hashlib.sha256(whole.encode()).hexdigest()[:12]}.safetensors"
        stat = picture.path.stat()
        facts = (self.model, stat.st_size, stat.st_mtime_ns, picture.caption, self.crop_words)
        return self.folder / name, fingerprint(*facts, str(picture.bucket), picture.boxes)

    def _make(self, picture: Picture) -> dict[str, Tensor]:
        """The tensors of a picture's file; raises Damaged where it cannot be read."""
        image, scale = opened(picture.path), self.encoders.parts.family.pixels_per_token
        sides = picture.bucket.height * scale, picture.bucket.width * scale
        made = {f"latent/{i}": self.encoders.latent(shown(image, box, *sides)) for i, box in enumerate(picture.boxes)}
        made |= {f"whole/{name}": part for name, part in self.encoders.text(picture.caption).items()}
        if len(picture.boxes) > 1:
            text = self.encoders.text(self.crop_words + picture.caption)
            made |= {f"crop/{name}": part for name, part in text.items()}
        return made

    def fill(self, pictures: list[Picture], share: slice, say: Callable[[str], object], quiet: bool) -> None:
        """Make what is missing of one process's share of the pictures; one that is damaged is named and left out."""
        for picture in tqdm(pictures[share], desc="cache", disable=quiet):
            path, expected = self._place(picture)
            if fits(path, expected):
                continue
            try:
                save_whole(self._make(picture), path, {FINGERPRINT: expected})
            except Damaged as reason:
                say(f"{picture.path} is left out: {reason}")

    def examples(self, pictures: list[Picture]) -> list[Example]:
        """What `fill` has made, in all processes."""
        places = [(self._place(picture), picture) for picture in pictures]
        return [Example(path, one.bucket, len(one.boxes)) for (path, expected), one in places if fits(path, expected)]

    def _prompts(self, captions: Iterable[str]) -> tuple[Path, str]:
        expected = fingerprint(self.model, list(captions))
        return self.folder / f"prompts-{expected[:12]}.safetensors", expected

    def fill_prompts(self, captions: list[str]) -> None:
        """Make the text of these captions, if it is not there."""
        path, expected = self._prompts(captions)
        if not fits(path, expected):
            texts = {f"{i}/{name}": x for i, one in enumerate(captions) for name, x in self.encoders.text(one).items()}
            save_whole(texts, path, {FINGERPRINT: expected})

    def prompts(self, captions: list[str]) -> list[dict[str, Tensor]]:
        """The text of captions that `fill_prompts` has made."""
        tensors = load_file(self._prompts(captions)[0])
        texts = [{} for _ in captions]
        for name, tensor in tensors.items():
            number, _, argument = name.partition("/")
            texts[int(number)][argument] = tensor
        return texts
