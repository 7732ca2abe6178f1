"""A field test's pictures by a diffusers pipeline: each part timed, with the peak of the device's memory in it."""

from __future__ import annotations

import inspect
import logging
import platform
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

import diffusers
import numpy as np
import torch
from PIL import Image

from ..errors import Unsupported
from ..families import Family
from ..hosts.diffusers import apply_resdit, remove_resdit
from ..hosts.diffusers.shift import FAMILYS_OWN, pinned_shift
from ..lab.benchmarks.report import environment
from ..method.config import PRESETS, ResDiTConfig
from ..method.layout import Grid
from ..method.memory import OutOfMemory
from ..method.run import Run
from ..monkeypatch import intercepted
from ..watch import GIGABYTE, Watch
from .making import Made
from .plan import BASE, HIRES, PLAIN, SCENES, STRENGTH, VARIANTS, FieldOptions, Order

TILES = "the VAE decoded in tiles: there was not enough memory for the whole picture"


class Ears(logging.Handler):
    """Appends what the extension says to a list."""

    def __init__(self, notes: list[str]) -> None:
        super().__init__(logging.WARNING)
        self.notes = notes

    def emit(self, record: logging.LogRecord) -> None:
        self.notes.append(record.getMessage())


@contextmanager
def heard(notes: list[str]) -> Iterator[None]:
    """Have what the extension says kept as notes for the duration of the block."""
    ears = Ears(notes)
    logging.getLogger("ResDiT").addHandler(ears)
    try:
        yield
    finally:
        logging.getLogger("ResDiT").removeHandler(ears)


def image_to_image(pipe: diffusers.DiffusionPipeline) -> diffusers.DiffusionPipeline:
    """The pipeline that starts from a picture, of the same parts; raises Unsupported where diffusers has none."""
    name = type(pipe).__name__.replace("Pipeline", "Img2ImgPipeline")
    cls = getattr(diffusers, name, None)
    if cls is None:
        raise Unsupported(f"diffusers {diffusers.__version__} has no {name}, which a hires pass needs")
    wanted = inspect.signature(cls.__init__).parameters
    made = cls(**{part: value for part, value in pipe.components.items() if part in wanted})
    made.set_progress_bar_config(disable=True)
    return made


class PipelineMaker:
    """Pictures of a pipeline.

    Args:
        pipe: a pipeline of a supported family.
        family: which.
        name: of the model, without the folder that it lies in.
        options: of the test.
        base: pixels a side of the model's base size.
        device: "cuda", "cpu" or another of torch's.
        offload: keep on the device only the part that is at work.
        tiled: always decode in tiles.
        inputs: arguments of every call in place of a prompt, for a pipeline without text encoders.
    """

    scenes = SCENES

    def __init__(
        self,
        pipe: diffusers.DiffusionPipeline,
        family: Family,
        name: str,
        options: FieldOptions,
        base: int,
        device: str,
        offload: bool = False,
        tiled: bool = False,
        inputs: dict[str, object] | None = None,
    ) -> None:
        self.pipe, self.family, self.name, self.options, self.base = pipe, family, name, options, base
        self.device, self.offload, self.tiled, self.inputs = device, offload, tiled, inputs
        self.token = family.pixels_per_token
        if options.sampler == "Euler a":
            raise Unsupported("sampler 'Euler a' is not in diffusers; choose Euler or LCM (stochastic_sampling)")
        stochastic = options.sampler == "LCM"
        pipe.scheduler = type(pipe.scheduler).from_config(pipe.scheduler.config, stochastic_sampling=stochastic)
        pipe.set_progress_bar_config(disable=True)
        self.place(pipe)

    def place(self, pipe: diffusers.DiffusionPipeline) -> None:
        """Put a pipeline on the device, or have its parts go there when they are at work."""
        if self.offload:
            pipe.enable_model_cpu_offload(device=self.device)
        else:
            pipe.to(self.device)

    def about(self) -> dict[str, object]:
        of_device = environment("cuda" if self.device.startswith("cuda") else "cpu")
        if self.device.startswith("cuda"):
            of_device["memory"] = f"{torch.cuda.get_device_properties(self.device).total_memory / GIGABYTE:.1f} GB"
        parts = {"diffusers": diffusers.__version__, "release": platform.release(), "dtype": str(self.pipe.dtype)}
        return {"model": self.name, "made by": type(self.pipe).__name__, "offload": self.offload} | of_device | parts

    def make(self, order: Order) -> Made:
        notes: list[str] = []
        began, watch = time.perf_counter(), Watch(self.device)
        preset, changes = VARIANTS.get(order.method, ("Balanced", {}))
        config = replace(PRESETS[preset], base_tokens=(self.base // self.token) ** 2, **changes)
        with heard(notes):
            if order.method in VARIANTS:
                made = self.resdit(order, watch, notes, config)
            else:
                with pinned_shift(self.pipe.scheduler, Run(config), FAMILYS_OWN, self.family.shift):
                    made = self.hires(order, watch, notes) if order.method == HIRES else self.plain(order, watch, notes)
        return Made((made * 255).round().astype(np.uint8), time.perf_counter() - began, watch.parts, notes)

    def resdit(self, order: Order, watch: Watch, notes: list[str], config: ResDiTConfig) -> np.ndarray:
        """A picture with the method."""
        run = apply_resdit(self.pipe, config)
        layout = run.layout(Grid(order.height // self.token, order.width // self.token))
        try:
            return self.call(
                self.pipe, order, watch, notes, lambda step: run.schedule(layout).phase(run.sigmas[step]).value
            )
        finally:
            remove_resdit(self.pipe)

    def plain(self, order: Order, watch: Watch, notes: list[str]) -> np.ndarray:
        """The model's own picture."""
        return self.call(self.pipe, order, watch, notes, lambda _: BASE if order.method == BASE else PLAIN)

    def hires(self, order: Order, watch: Watch, notes: list[str]) -> np.ndarray:
        """The picture at the base size, of the order's frame, enlarged, noised to the strength and denoised again."""
        width, height = order.at_base(self.base, self.token)
        small = replace(order, width=width, height=height)
        first = self.call(self.pipe, small, watch, notes, lambda _: "first pass")
        image = Image.fromarray((first * 255).round().astype(np.uint8))
        image = image.resize((order.width, order.height), Image.Resampling.LANCZOS)
        second = image_to_image(self.pipe)
        if self.offload:
            self.place(second)
        try:
            return self.call(second, order, watch, notes, lambda _: HIRES, image=image, strength=STRENGTH)
        finally:
            if self.offload:
                self.place(self.pipe)

    def call(
        self,
        pipe: diffusers.DiffusionPipeline,
        order: Order,
        watch: Watch,
        notes: list[str],
        part_of: Callable[[int], str],
        **more: object,
    ) -> np.ndarray:
        """(H, W, 3) in [0, 1] of one call of a pipeline; `part_of` names the part that a step, from 0, belongs to."""

        def after_step(_pipe: object, step: int, _level: object, given: dict) -> dict:
            watch.mark(part_of(step))
            return given

        if self.options.guidance is not None:
            more["guidance_scale"] = self.options.guidance
        with timed(pipe, watch, notes, self.tiled):
            return pipe(
                **(self.inputs or {"prompt": order.scene.prompt}),
                width=order.width,
                height=order.height,
                num_inference_steps=self.options.steps,
                generator=torch.Generator().manual_seed(order.scene.seed),
                callback_on_step_end=after_step,
                output_type="np",
                **more,
            ).images[0]


@contextmanager
def timed(pipe: diffusers.DiffusionPipeline, watch: Watch, notes: list[str], tiled: bool) -> Iterator[None]:
    """Have the text encoders and the VAE's decoding marked for the duration of the block.

    The VAE decodes in tiles where that is set, or where it has run out of memory.
    """

    def encode(call: Callable, *args: object, **kwargs: object) -> object:
        watch.restart()
        made = call(*args, **kwargs)
        watch.mark("text")
        return made

    def decode(call: Callable, *args: object, **kwargs: object) -> object:
        watch.restart()
        try:
            made = call(*args, **kwargs)
        except OutOfMemory:
            if pipe.vae.use_tiling:
                raise
            made = None
        if made is None:  # out here the error no longer holds what was allocated
            torch.cuda.empty_cache()
            notes.append(TILES)
            pipe.vae.enable_tiling()
            made = call(*args, **kwargs)
        watch.mark("vae")
        return made

    before = pipe.vae.use_tiling
    pipe.vae.use_tiling = tiled
    try:
        with intercepted([(pipe.vae, "decode", decode), (pipe, "encode_prompt", encode)]):
            yield
    finally:
        pipe.vae.use_tiling = before
