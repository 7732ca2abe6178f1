"""A training from a model and a folder of pictures to a LoRA's file: what comes before the steps, and their loop."""

from __future__ import annotations

import gc
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from torch import Tensor
from tqdm import trange

from ..errors import ResDiTError
from ..families import Family
from ..method.layout import Grid
from ..method.randomized import check_range
from .batches import Batches, inference_places
from .cache import Cache, Encoders, Example
from .lora import learning, lora_weights, write_lora
from .options import TrainingOptions
from .parts import find_model
from .pictures import Picture, read_folder, some
from .state import StateFiles
from .trainer import Trainer
from .validation import save_pictures, validation_latents

CACHE_FOLDER = "resdit_cache"


@dataclass(frozen=True)
class Sizes:
    """What the options leave open and the family says.

    Attributes:
        size: pixels a side of a square training picture.
        maximal: tokens an axis of the positions' range.
        validation: the token grid of validation pictures.
        shift: mu of the noise levels.
    """

    size: int
    maximal: int
    validation: Grid
    shift: float

    @classmethod
    def of(cls, options: TrainingOptions, family: Family) -> Sizes:
        """Those of a training; raises ResDiTError where a size is not in whole tokens."""
        size = options.size or family.base_size
        shown = options.validation_size or size
        for name, pixels in (("size", size), ("validation_size", shown)):
            if pixels % family.pixels_per_token:
                raise ResDiTError(f"{name} is {pixels}; it must be a multiple of {family.pixels_per_token}")
        side, seen = size // family.pixels_per_token, shown // family.pixels_per_token
        shift = family.shift if options.noise_shift is None else options.noise_shift
        return cls(size, options.maximal_range or 4 * side, Grid(seen, seen), shift)


def read_pictures(
    options: TrainingOptions, family: Family, sizes: Sizes, folder: Path, say: Callable[[str], object]
) -> list[Picture]:
    """The pictures, without those in the cache's folder; raises ResDiTError where one's grid is beyond the range."""
    pictures, left_out = read_folder(
        options.images,
        options.caption,
        sizes.size,
        family.pixels_per_token,
        options.crops,
        options.largest_crop_scale,
        options.seed,
        skipped=folder,
    )
    for name, reason in left_out.items():
        say(f"{name} is left out: {reason}")
    for grid in (sizes.validation, *(picture.bucket for picture in pictures)):
        check_range(grid, Grid(sizes.maximal, sizes.maximal))
    return pictures


def fill_cache(
    accelerator: Accelerator, cache: Cache, pictures: list[Picture], captions: list[str]
) -> tuple[list[Example], list[dict[str, Tensor]]]:
    """The pictures in the cache, and the text of some captions; each process makes its share of what is missing."""
    share = slice(accelerator.process_index, None, accelerator.num_processes)
    cache.fill(pictures, share, print, quiet=not accelerator.is_main_process)
    if accelerator.is_main_process:
        cache.fill_prompts(captions)
    accelerator.wait_for_everyone()
    examples = cache.examples(pictures)
    if not examples:
        raise ResDiTError(f"none of the pictures can be read: {some([picture.path.name for picture in pictures])}")
    return examples, cache.prompts(captions)


def free_memory() -> None:
    """Give back what nothing holds any more, before the next large part of a model is loaded."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def states_of(options: TrainingOptions, trainer: Trainer, sizes: Sizes) -> StateFiles:
    """The files of this training's state."""
    accelerator = trainer.accelerator
    facts = {name: getattr(options, name) for name in ("rank", "batch", "accumulate", "seed")}
    facts |= {"model": options.model.name, "maximal_range": sizes.maximal, "processes": accelerator.num_processes}
    part = (accelerator.process_index, accelerator.num_processes) if trainer.divided else (0, 1)
    return StateFiles(options.out.with_suffix(".state"), facts, *part)


def train(options: TrainingOptions) -> float:
    """Train, going on from the last saved state if there is one; returns the loss of the last step, if one was left.

    Raises ResDiTError where an option, the model or the pictures are unfit.
    """
    parts = find_model(options.model, options.components)
    bf16 = options.precision == "bf16"
    accelerator = Accelerator(mixed_precision="bf16" if bf16 else "no")
    if accelerator.distributed_type is DistributedType.FSDP and not accelerator.is_fsdp2:
        raise ResDiTError("fsdp_version is 1, which cannot divide a model of which a part learns; choose 2")
    family, dtype = parts.family, torch.bfloat16 if bf16 else torch.float32
    sizes, main = Sizes.of(options, family), accelerator.is_main_process
    folder = options.cache or options.images / CACHE_FOLDER
    pictures = read_pictures(options, family, sizes, folder, accelerator.print)
    captions = ["", *(options.validation_prompts or (pictures[0].caption,))]
    cache = Cache(folder, Encoders(parts, dtype, accelerator.device), options.crop_words)
    examples, (empty, *prompts) = fill_cache(accelerator, cache, pictures, captions)
    del cache
    free_memory()

    trainer = Trainer(accelerator, options, parts, dtype)
    learns, states = learning(trainer.transformer), states_of(options, trainer, sizes)
    start = states.last_step() or 0
    if start:
        states.load(start, learns, trainer.optimizer)
        accelerator.print(f"going on from step {start} of {options.steps}")
    batches = Batches(examples, empty, options, sizes.maximal, sizes.shift)
    places, channels = inference_places(sizes.validation, sizes.maximal), examples[0].read(0)[0].shape[1]

    def save(step: int) -> None:
        weights = lora_weights(trainer.transformer)
        if main or trainer.divided:
            states.save(step, learns, trainer.optimizer)
        accelerator.wait_for_everyone()
        if main:
            write_lora(options.out, weights, sizes.maximal, family.training)
            states.forget_before(step)

    def validate(step: int) -> None:
        latents = validation_latents(trainer, places, channels, sizes.shift, prompts, empty)
        if main:
            save_pictures(parts.vae(), latents, accelerator.device, options.out.with_suffix(".pictures"), step)

    loss = math.nan
    bar = trange(start, options.steps, initial=start, total=options.steps, desc="train", disable=not main)
    for done in (step + 1 for step in bar):
        loss = trainer.step(batches, done - 1)
        if not math.isfinite(loss):
            raise ResDiTError(f"the loss is {loss} at step {done}; lower the rate, which is {options.rate}")
        bar.set_postfix(loss=f"{loss:.4f}")
        if done % options.save_every == 0 or done == options.steps:
            save(done)
        if options.validate_every and (done % options.validate_every == 0 or done == options.steps):
            validate(done)
    return loss
