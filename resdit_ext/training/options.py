"""What can be chosen of a training: each option with its range, and what the command line says of it."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from pathlib import Path

from ..errors import ResDiTError, quoted
from ..method.config import Allowed
from ..positions_metadata import WIDEST


def _one_of(help_: str, default: str, *others: str) -> object:
    """A field that takes one of these words."""
    return field(default=default, metadata={"help": help_, "allowed": Allowed((default, *others))})


def _number(help_: str, default: float | None, low: float, high: float) -> object:
    """A field that takes a number, whole where its bounds are; None leaves it open."""
    allowed = Allowed(low=low, high=high, whole=isinstance(high, int))
    return field(default=default, metadata={"help": help_, "allowed": allowed})


@dataclass(frozen=True)
class TrainingOptions:
    """A LoRA's training; the fields' help says what each option is."""

    model: Path = field(metadata={"help": "a folder of a diffusers pipeline, or a .safetensors file of a transformer"})
    images: Path = field(
        metadata={"help": "a folder of pictures, each with its caption in a .txt file of the same name"}
    )
    out: Path = field(metadata={"help": "the LoRA's file, .safetensors"})
    components: Path | None = field(
        default=None, metadata={"help": "where the model is a file: a folder of a pipeline with all its other parts"}
    )
    cache: Path | None = field(
        default=None,
        metadata={"help": "a folder for latents and text embeddings; default: resdit_cache in that of images"},
    )
    caption: str | None = field(default=None, metadata={"help": "the caption of pictures that have none beside them"})
    size: int | None = _number("pixels a side of a square training picture; default: the base size", None, 16, 8192)
    maximal_range: int | None = _number(
        "tokens an axis that positions are drawn from; default: four times the side of a square", None, 1, WIDEST
    )
    native_share: float = _number("share of the batches at the model's own positions", 0.5, 0.0, 1.0)
    crops: int = _number("random crops of every picture, beside the whole", 2, 0, 64)
    largest_crop_scale: float = _number("how much larger than the whole a crop shows things, at most", 2.0, 1.0, 8.0)
    crop_words: str = field(default="cropped picture, ", metadata={"help": "put before the caption of a crop"})
    text_dropout: float = _number("share of the pictures shown with an empty caption", 0.1, 0.0, 1.0)
    guidance: float = _number("what a model that is told a guidance is told in training", 1.0, 0.0, 100.0)
    noise_shift: float | None = _number("mu of the noise levels; default: the family's", None, -5.0, 5.0)
    steps: int = _number("steps of the optimizer", 4000, 1, 10_000_000)
    batch: int = _number("pictures that a process sees at once", 1, 1, 1024)
    accumulate: int = _number("how many such batches make a step", 1, 1, 1024)
    rank: int = _number("of the LoRA", 16, 1, 1024)
    rate: float = _number("the learning rate", 1e-4, 1e-8, 1.0)
    optimizer: str = _one_of(
        "auto is adamw-8bit where bitsandbytes and a CUDA device are there", "auto", "adamw", "adamw-8bit"
    )
    precision: str = _one_of("of the model's own weights; the LoRA is in fp32", "bf16", "fp32")
    save_every: int = _number("steps between two saved states, the most that a kill loses", 250, 1, 10_000_000)
    validate_every: int = _number("steps between two sets of validation pictures; 0: none", 500, 0, 10_000_000)
    validation_prompts: tuple[str, ...] = field(
        default=(), metadata={"help": "what they show; default: the first picture's caption"}
    )
    validation_size: int | None = _number("pixels a side of them; default: the training's", None, 16, 8192)
    validation_steps: int = _number("steps of their sampling", 28, 1, 1000)
    validation_guidance: float = _number("their guidance", 3.5, 0.0, 100.0)
    seed: int = _number("of everything that is drawn", 0, 0, 2**32 - 1)

    def __post_init__(self) -> None:
        if self.out.suffix != ".safetensors":
            raise ResDiTError(f"out is {quoted(str(self.out))}; it must end in .safetensors")
        for each in fields(self):
            value = getattr(self, each.name)
            if "allowed" in each.metadata and not (value is None and each.default is None):
                each.metadata["allowed"].check(each.name, value)
