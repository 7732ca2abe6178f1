"""The pictures one by one: made by all processes together, decoded and saved by the first."""

from __future__ import annotations

import json
import os
from pathlib import Path

import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from ..errors import ResDiTError
from ..version import __version__
from .options import GenerateOptions, Picture
from .pipeline import Loaded, load
from .processes import Processes, processes
from .timing import PictureWatch, peak_bytes

KEY = "parameters"  # where the WebUIs write and look for it
STATES = ("missing", "made", "another")  # before the picture is made


def state_of(path: Path, infotext: str) -> str:
    """Which of STATES a picture is in on this disk."""
    if not path.exists():
        return "missing"
    with Image.open(path) as image:
        return "made" if image.info.get(KEY) == infotext else "another"


def missing(options: GenerateOptions, steps: int, here: Processes) -> list[Picture]:
    """The pictures to make; raises ResDiTError, in every process, where one of the files is another picture."""
    found = []
    for picture in options.pictures():
        text = options.infotext(picture, steps, options.guidance)
        # What is on the disk is for the first process to say: others may not see it.
        mine = STATES.index(state_of(picture.path, text)) if here.speaks else 0
        state = STATES[int(here.all_of(mine)[0])]
        if state == "another":
            raise ResDiTError(f"{picture.path} was made with other options; name another --out, or move it away")
        found += [picture] if state == "missing" else []
    return found


def save(image: Image.Image, path: Path, infotext: str) -> None:
    """Write a PNG with its parameters, whole or not at all."""
    info = PngInfo()
    info.add_text(KEY, infotext)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    image.save(part, format="PNG", pnginfo=info)
    os.replace(part, path)


def make(loaded: Loaded, options: GenerateOptions, picture: Picture, steps: int, here: Processes) -> PictureWatch:
    """Make a picture with all processes, and return the watch of its parts; the first saves it."""
    width, height = options.size
    watch = PictureWatch(loaded.run, here.device)
    hook = loaded.pipe.transformer.register_forward_pre_hook(watch.first_call)
    torch.manual_seed(picture.seed)  # of the fresh noise in every step
    guidance = {} if options.guidance is None else {"guidance_scale": options.guidance}
    try:
        image = loaded.pipe(
            picture.prompt,
            width=width,
            height=height,
            num_inference_steps=steps,
            generator=torch.Generator().manual_seed(picture.seed),
            output_type="pil" if here.speaks else "latent",
            callback_on_step_end=watch.step_ended,
            **guidance,
        ).images[0]
    finally:
        hook.remove()
    watch.mark("decoding")
    if here.speaks:
        save(image, picture.path, options.infotext(picture, steps, options.guidance))
        watch.mark("saving")
    return watch


def generate(options: GenerateOptions, figures: Path | None = None) -> list[Path]:
    """Make the pictures that are not there yet, and return the files of all.

    Args:
        options: what to make.
        figures: a file for what it took.

    Raises:
        ResDiTError: the model or the options do not fit, or a file is there that was made otherwise.
    """
    made, watches = [], []
    with processes() as here:
        loaded = load(options, here)
        steps = options.steps or loaded.family.steps
        for picture in missing(options, steps, here):
            watches.append(make(loaded, options, picture, steps, here))
            seconds = watches[-1].seconds
            made.append({"file": str(picture.path), "seed": picture.seed, "prompt": picture.prompt, "seconds": seconds})
            if here.speaks:
                print(f"{picture.path}: {', '.join(f'{name} {value:.1f} s' for name, value in seconds.items())}")
        peaks = [int(peak) for peak in here.all_of(peak_bytes(here.device, watches))]
    if figures and here.speaks:
        about = {"version": __version__, "device": here.device.type, "processes": here.count, "share": options.share}
        found = about | {"size": options.size, "steps": steps, "peak_bytes": peaks, "pictures": made}
        figures.write_text(json.dumps(found, indent=2), encoding="utf8")
    return [picture.path for picture in options.pictures()]
