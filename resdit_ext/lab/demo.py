"""One prompt, three pictures: the base size, plain inference above it, and ResDiT; and a sheet of several frames."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from tqdm import tqdm

from ..errors import ResDiTError
from ..method.config import PRESETS, check_choice
from ..method.layout import Grid, make_layout
from .evaluate import FIRST_SEED, prompt_of
from .methods import METHODS, grid_for
from .metrics import measure
from .model import MicroModel
from .pixels import PIXELS_PER_TOKEN
from .sampling import SAMPLERS, STEPS, sample
from .scenes import parse_prompt

GALLERY_SCALE = 3
GALLERY_ASPECTS = ("1:1", "2:1", "1:2")
#: The gallery's columns beside the base picture: heading and method, all at the high resolution.
GALLERY_COLUMNS = {"plain": "plain", "ResDiT, Paper": "Paper", "ResDiT, Balanced": "Balanced"}
SEEDS_TRIED = 100
SAMPLER = "Euler"  # as users take it
LEVELS = 85  # of each colour in the saved sheet: a step of 3 of 255, for a file two thirds as large


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
    model: MicroModel,
    prompt: str,
    scale: float,
    aspect: str,
    seed: int,
    out: Path,
    preset: str = "Balanced",
    sampler: str = SAMPLER,
) -> dict[str, dict]:
    """Make and save the pictures and their comparison; returns the measures by name.

    Raises:
        ResDiTError, ValueError: an option is out of range; the message says which and what is allowed.
    """
    parse_prompt(prompt)
    if not 1 < scale <= 6:
        raise ResDiTError(f"scale is {scale!r}; it must be a number above 1 and up to 6")
    check_choice("preset", preset, tuple(PRESETS))
    check_choice("sampler", sampler, tuple(SAMPLERS))
    sides, eta = parse_aspect(aspect), SAMPLERS[sampler]
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
            picture = sample(model, [prompt], grid, [seed], METHODS[method], tick=bar.update, eta=eta)[0]
            seconds = time.perf_counter() - started
            figures = measure(picture, prompt, make_layout(grid, METHODS[preset]))
            size = pixels(grid)
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


def pixels(grid: Grid) -> str:
    """`"192x192"`, width first."""
    return f"{PIXELS_PER_TOKEN * grid.width}x{PIXELS_PER_TOKEN * grid.height}"


def contact_sheet(headings: Sequence[str], rows: Sequence[tuple[str, Sequence[np.ndarray]]], zoom: int) -> Image.Image:
    """Rows of pictures under a caption each, in columns under the headings, at one zoom, pixel by pixel."""
    gap, font = 16, ImageFont.load_default(size=26)
    line = font.getbbox("Ag")[3] + 10
    grid = [
        (caption, [to_image(p).resize((zoom * p.shape[1], zoom * p.shape[0]), 0) for p in pictures])
        for caption, pictures in rows
    ]
    columns = zip(*(images for _, images in grid), strict=True)
    widths = [
        max(int(font.getlength(heading)) + 1, *(image.width for image in images))
        for heading, images in zip(headings, columns, strict=True)
    ]
    height = gap + line + sum(gap + line + max(image.height for image in images) for _, images in grid) + gap
    sheet = Image.new("RGB", (sum(widths) + gap * (len(widths) + 1), height), "white")
    draw, lefts = ImageDraw.Draw(sheet), [gap + sum(widths[:i]) + gap * i for i in range(len(widths))]
    for left, heading in zip(lefts, headings, strict=True):
        draw.text((left, gap), heading, fill="black", font=font)
    y = gap + line
    for caption, images in grid:
        draw.text((gap, y + gap), caption, fill="dimgray", font=font)
        y += gap + line
        for left, image in zip(lefts, images, strict=True):
            sheet.paste(image, (left, y))
        y += max(image.height for image in images)
    return sheet


def save_sheet(sheet: Image.Image, out: Path) -> None:
    """Save a sheet with few enough tones to be small."""
    out.parent.mkdir(parents=True, exist_ok=True)
    sheet.point([round(value * LEVELS / 255) * 255 // LEVELS for value in range(256)] * 3).save(out, optimize=True)


def base_picture(model: MicroModel, grid: Grid) -> tuple[int, np.ndarray]:
    """The first held-out seed whose picture at the base size is fine, and that picture."""
    layout = make_layout(grid, METHODS["Balanced"])
    for seed in range(FIRST_SEED, FIRST_SEED + SEEDS_TRIED):
        picture = sample(model, [prompt_of(seed)], grid, [seed], eta=SAMPLERS[SAMPLER])[0]
        if measure(picture, prompt_of(seed), layout).ok:
            return seed, picture
    raise ResDiTError(f"none of {SEEDS_TRIED} seeds gives a base picture with one whole object; check the weights")


def gallery(model: MicroModel, out: Path) -> dict[str, dict]:
    """Save the contact sheet of square, wide and tall frames; returns seed, prompt and measures by aspect ratio.

    A row's seed is the first held-out one whose base picture is fine; nothing else is chosen.
    """
    rows, report, eta = [], {}, SAMPLERS[SAMPLER]
    with tqdm(total=len(GALLERY_ASPECTS) * len(GALLERY_COLUMNS) * STEPS, desc="gallery") as bar:
        for aspect in GALLERY_ASPECTS:
            base, high = (grid_for(parse_aspect(aspect), scale) for scale in (1, GALLERY_SCALE))
            seed, picture = base_picture(model, base)
            prompt, pictures, figures = prompt_of(seed), [picture], {}
            for heading, method in GALLERY_COLUMNS.items():
                bar.set_postfix_str(f"{aspect} {heading}")
                pictures.append(sample(model, [prompt], high, [seed], METHODS[method], tick=bar.update, eta=eta)[0])
                figures[method] = asdict(measure(pictures[-1], prompt, make_layout(high, METHODS["Balanced"])))
            rows.append((f"{aspect}: {pixels(high)} from {pixels(base)}, {prompt}, seed {seed}", pictures))
            report[aspect] = {"seed": seed, "prompt": prompt, "measures": figures}
    headings = ["base", *(f"{heading} {GALLERY_SCALE}x" for heading in GALLERY_COLUMNS)]
    save_sheet(contact_sheet(headings, rows, zoom=2), out)
    return report
