"""What can be chosen of a training, each with its range."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ..errors import ResDiTError, quoted
from ..method.config import check_choice, check_number
from ..positions_metadata import check_maximal_range

OPTIMIZERS = ("auto", "adamw", "adamw-8bit")
PRECISIONS = ("bf16", "fp32")


@dataclass(frozen=True)
class TrainingOptions:
    """A LoRA's training.

    Attributes:
        model: a folder of a diffusers pipeline, or a safetensors file of a transformer.
        images: a folder of pictures with their captions beside them, as .txt files of the same names.
        out: the LoRA's file.
        components: where `model` is a file, the folder of a pipeline that has everything else.
        cache: a folder for latents and text embeddings; by default one in `images`.
        caption: the caption of pictures that have none beside them.
        size: pixels a side of a square training picture; by default the family's base size.
        maximal_range: tokens an axis that positions are drawn from; by default twice the square's side.
        native_share: of the steps, with the model's own positions.
        crops: random crops of every picture, beside the whole.
        largest_crop_scale: how much larger than the whole a crop shows things, at most.
        crop_words: put before the caption of a crop.
        text_dropout: share of pictures shown with an empty caption.
        guidance: what a model that is told a guidance is told in training.
        noise_shift: mu of the noise levels; by default the family's.
        steps, batch, accumulate: steps of the optimizer, and pictures a step: `batch` times `accumulate` a process.
        rank, rate: of the LoRA, and its learning rate.
        optimizer: "adamw", "adamw-8bit", or "auto": the latter where bitsandbytes and a CUDA device are there.
        precision: "bf16" or "fp32".
        save_every: steps from one saved state and LoRA file to the next.
        validate_every: steps from one set of validation pictures to the next; 0 makes none.
        validation_prompts: by default the first caption.
        validation_size, validation_steps, validation_guidance: of those pictures.
        seed: of everything that is drawn.
    """

    model: Path
    images: Path
    out: Path
    components: Path | None = None
    cache: Path | None = None
    caption: str | None = None
    size: int | None = None
    maximal_range: int | None = None
    native_share: float = 0.5
    crops: int = 2
    largest_crop_scale: float = 2.0
    crop_words: str = "cropped picture, "
    text_dropout: float = 0.1
    guidance: float = 1.0
    noise_shift: float | None = None
    steps: int = 4000
    batch: int = 1
    accumulate: int = 1
    rank: int = 16
    rate: float = 1e-4
    optimizer: str = "auto"
    precision: str = "bf16"
    save_every: int = 250
    validate_every: int = 500
    validation_prompts: tuple[str, ...] = ()
    validation_size: int | None = None
    validation_steps: int = 28
    validation_guidance: float = 3.5
    seed: int = 0

    def __post_init__(self) -> None:
        if self.out.suffix != ".safetensors":
            raise ResDiTError(f"out is {quoted(str(self.out))}; it must end in .safetensors")
        check_choice("optimizer", self.optimizer, OPTIMIZERS)
        check_choice("precision", self.precision, PRECISIONS)
        for name in ("native_share", "text_dropout"):
            check_number(name, getattr(self, name), 0, 1)
        for name, low, high in (
            ("crops", 0, 64),
            ("steps", 1, 10_000_000),
            ("batch", 1, 1024),
            ("accumulate", 1, 1024),
            ("rank", 1, 1024),
            ("save_every", 1, 10_000_000),
            ("validate_every", 0, 10_000_000),
            ("validation_steps", 1, 1000),
            ("seed", 0, 2**32 - 1),
        ):
            check_number(name, getattr(self, name), low, high, whole=True)
        check_number("largest_crop_scale", self.largest_crop_scale, 1, 8)
        check_number("rate", self.rate, 1e-8, 1)
        for name in ("guidance", "validation_guidance"):
            check_number(name, getattr(self, name), 0, 100)
        if self.noise_shift is not None:
            check_number("noise_shift", self.noise_shift, -5, 5)
        if self.maximal_range is not None:
            check_maximal_range(self.maximal_range)
        for name in ("size", "validation_size"):
            if getattr(self, name) is not None:
                check_number(name, getattr(self, name), 16, 8192, whole=True)
