"""One prompt, three pictures: the base size, plain inference above it, and ResDiT."""

from __future__ import annotations

import json
import time
from dataclasses import asdict
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from tqdm import tqdm

from ..config import PRESETS
from ..errors import ResDiTError
from ..geometry import make_layout
from .methods import METHODS, grid_for
from .metrics import measure
from .model import PIXELS_PER_TOKEN, MicroModel
from .sampling import STEPS, sample
from .scenes import parse_prompt


def parse_aspect(text: str) -> tuple[int, int]:
    """`"2:1"` -> (2, 1); raises ResDiTError outside 1:4 to 4:1."""
    try:
        width, height = (int(part) for part in text.split(":"))
    except ValueError:
        width = height = 0
    if width < 1 or height < 1 or not 0.25 <= width / height <= 4:
        raise ResDiTError(f"aspect is {text!r}; write it as WIDTH:HEIGHT, from 1:4 to 4:1")
    return width, height


def to_image(picture: np.ndarray) -> Image.Image:
    """A picture (H, W, 3) in [0, 1] as an 8-bit image."""
    return Image.fromarray((picture * 255).round().astype(np.uint8))


def comparison(pictures: dict[str, np.ndarray], zoom: int) -> Image.Image:
    """All pictures side by side at one zoom, pixel by pixel, a label under each."""
    gap, label = 12, 26
    images = {text: to_image(p).resize((zoom * p.shape[1], zoom * p.shape[0]), 0) for text, p in pictures.items()}
    width = sum(image.width + gap for image in images.values()) + gap
    sheet = Image.new("RGB", (width, max(i.height for i in images.values()) + 2 * gap + label), "white")
    draw, font, x = ImageDraw.Draw(sheet), ImageFont.load_default(size=15), gap
    for text, image in images.items():
        sheet.paste(image, (x, gap))
        draw.text((x, gap + image.height + 5), text, fill="black", font=font)
        x += image.width + gap
    return sheet


def demo(
    model: MicroModel, prompt: str, scale: float, aspect: str, seed: int, out: Path, preset: str = "Balanced"
) -> dict[str, dict]:
    """Make and save the pictures and their comparison; returns the measures by name.

    Raises:
        ResDiTError, ValueError: an option is out of range; the message says which and what is allowed.
    """
    parse_prompt(prompt)
    if not 1 < scale <= 6:
        raise ResDiTError(f"scale is {scale!r}; it must be a number above 1 and up to 6")
    if preset not in PRESETS:
        raise ResDiTError(f"preset is {preset!r}; choose one of {', '.join(map(repr, PRESETS))}")
    sides = parse_aspect(aspect)
    base, high = grid_for(sides, 1), grid_for(sides, scale)
    out.mkdir(parents=True, exist_ok=True)
    pictures, report = {}, {}
    jobs = {"base": (base, "plain"), "plain": (high, "plain"), "resdit": (high, preset)}
    if not model.reaches(high):
        print(
            f"plain {scale:g}x is left out: the plain model has positions for {model.largest_side} tokens a side only"
        )
        del jobs["plain"]
    with tqdm(total=len(jobs) * STEPS, desc="demo") as bar:
        for name, (grid, method) in jobs.items():
            bar.set_postfix_str(name)
            started = time.perf_counter()
            picture = sample(model, [prompt], grid, [seed], METHODS[method], tick=bar.update)[0]
            seconds = time.perf_counter() - started
            figures = measure(picture, prompt, make_layout(grid, METHODS[preset]))
            size = f"{PIXELS_PER_TOKEN * grid.width}x{PIXELS_PER_TOKEN * grid.height}"
            label = {"base": "base", "plain": f"plain {scale:g}x", "resdit": f"ResDiT {scale:g}x ({preset})"}[name]
            pictures[f"{label}, {size}"] = picture
            report[name] = {"size": size, "seconds": round(seconds, 1)} | asdict(figures)
            to_image(picture).save(out / f"{name}.png")
    comparison(pictures, zoom=2).save(out / "comparison.png")
    (out / "report.json").write_text(json.dumps(report, indent=2), encoding="utf8")
    return report


def print_report(report: dict[str, dict]) -> None:
    """The measures as a table on the screen."""
    columns = ("ok", "one", "iou", "sky_error", "tex_object", "tex_ground", "stripes", "psd_hf", "seconds")
    print(f"{'':10}{'size':>10}" + "".join(f"{column:>11}" for column in columns))
    for name, row in report.items():
        print(f"{name:10}{row['size']:>10}" + "".join(f"{row[column]:>11.2f}" for column in columns))
