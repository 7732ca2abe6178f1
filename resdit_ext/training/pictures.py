"""The pictures of a folder: their captions, their buckets by aspect ratio, and which parts of them are shown."""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import ExifTags, Image, ImageOps
from torch import Tensor

from ..errors import ResDiTError, in_words
from ..method.layout import Grid, base_grid

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")
ASPECTS = ((1, 1), (4, 5), (3, 4), (2, 3), (9, 16), (1, 2))  # and the same on their sides
NAMED = 5  # pictures at most that a message names
Box = tuple[float, float, float, float]  # left, top, right, bottom, in pixels of a picture


class Damaged(ResDiTError):
    """A picture that cannot be used; the message says why."""


@dataclass(frozen=True)
class Picture:
    """A picture of the folder.

    Attributes:
        path: of its file.
        caption: what it shows.
        bucket: the token grid that it is trained at.
        boxes: what is shown of it: first the whole, then crops.
    """

    path: Path
    caption: str
    bucket: Grid
    boxes: tuple[Box, ...]


def buckets(size: int, pixels_per_token: int) -> tuple[Grid, ...]:
    """Token grids of about the area of a square of `size` pixels, of the usual aspect ratios."""
    tokens = (size // pixels_per_token) ** 2
    shapes = {pair for a, b in ASPECTS for pair in ((a, b), (b, a))}
    return tuple(base_grid(Grid(256 * h, 256 * w), tokens) for h, w in sorted(shapes))


def bucket_of(height: int, width: int, choice: Iterable[Grid]) -> Grid:
    """The grid whose aspect ratio is nearest to a picture's."""
    return min(choice, key=lambda grid: abs(math.log(height * grid.width / (width * grid.height))))


def boxes_of(
    height: int, width: int, bucket: Grid, pixels_per_token: int, crops: int, largest: float, rng: np.random.Generator
) -> tuple[Box, ...]:
    """The largest box of the bucket's shape in a picture's middle, and random ones up to `largest` times smaller.

    No box has fewer pixels than the bucket, so that nothing is enlarged; a picture with no room for crops has none.
    Raises Damaged where the picture itself is too small.
    """
    h, w = bucket.height * pixels_per_token, bucket.width * pixels_per_token
    room = min(height / h, width / w)
    if room < 1:
        raise Damaged(f"it is {width}x{height} pixels, smaller than the {w}x{h} that it would be trained at")
    left, top = (width - room * w) / 2, (height - room * h) / 2
    boxes = [(left, top, left + room * w, top + room * h)]
    for _ in range(crops if room > 1 else 0):
        scale = room / rng.uniform(1, min(largest, room))
        left, top = rng.uniform(0, width - scale * w), rng.uniform(0, height - scale * h)
        boxes.append((left, top, min(left + scale * w, width), min(top + scale * h, height)))
    return tuple(boxes)


def orientation(image: Image.Image) -> int:
    """EXIF's orientation of a picture, 1 where it is the right way up; a PNG is, as Pillow would have to decode it."""
    return 1 if image.format == "PNG" else image.getexif().get(ExifTags.Base.Orientation, 1)


def opened(path: Path) -> Image.Image:
    """A picture the right way up; raises Damaged where it cannot be read."""
    try:
        with Image.open(path) as image:
            turned = orientation(image) != 1
            image.load()
            return ImageOps.exif_transpose(image) if turned else image
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:  # what Pillow's readers raise
        raise Damaged(f"it cannot be read ({in_words(error)})") from error


def size_of(path: Path) -> tuple[int, int]:
    """A picture's height and width, from its header; raises Damaged where that cannot be read."""
    try:
        with Image.open(path) as image:
            return image.size if orientation(image) >= 5 else image.size[::-1]  # from 5 on with sides exchanged
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise Damaged(f"it cannot be read ({in_words(error)})") from error


def shown(image: Image.Image, box: Box, height: int, width: int) -> Tensor:
    """(1, 3, height, width) float32 in [-1, 1] of a box of a picture; what is transparent is white."""
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    image = image.convert("RGB").resize((width, height), Image.Resampling.LANCZOS, box)
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)[None] / 127.5 - 1


def some(names: list[str]) -> str:
    """The first few names, for a message."""
    return ", ".join(names[:NAMED]) + (f" and {len(names) - NAMED} more" if len(names) > NAMED else "")


def caption_of(path: Path, default: str | None) -> str | None:
    """The text beside a picture, or the default; None where there is neither."""
    beside = path.with_suffix(".txt")
    try:
        text = " ".join(beside.read_text(encoding="utf-8-sig").split()) if beside.is_file() else ""
    except UnicodeDecodeError as error:
        raise ResDiTError(f"the caption {beside} is not text in UTF-8; save it as such") from error
    return text or default


def read_folder(
    folder: Path,
    caption: str | None,
    size: int,
    pixels_per_token: int,
    crops: int,
    largest: float,
    seed: int,
    skipped: Path | None = None,
) -> tuple[list[Picture], dict[str, str]]:
    """The pictures of a folder and of those in it, and by name why others are left out.

    Args:
        folder: of pictures and, beside them, captions.
        caption: of pictures that have none; None makes that an error.
        size, pixels_per_token: of a square, and of a token.
        crops, largest: how many random crops of a picture, and how much larger they show things at most.
        seed: of the crops; those of a picture depend on its name and the seed alone.
        skipped: a folder that is not looked into.

    Raises:
        ResDiTError: there is no such folder, nothing in it can be used, or captions are missing.
    """
    if not folder.is_dir():
        raise ResDiTError(f"images is {str(folder)!r}, which is no folder; name the folder of your pictures")
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file())
    paths = [path for path in paths if skipped is None or skipped not in path.parents]
    if not paths:
        raise ResDiTError(
            f"images is {str(folder)!r}, a folder without pictures; put some there ({', '.join(SUFFIXES)}), each with "
            "its caption in a .txt file of the same name"
        )
    names = {path: path.relative_to(folder).as_posix() for path in paths}
    captions = {path: caption_of(path, caption) for path in paths}
    if missing := [names[path] for path in paths if captions[path] is None]:
        raise ResDiTError(
            f"{len(missing)} of {len(paths)} pictures in {str(folder)!r} have no caption: {some(missing)}; write "
            "a .txt file of the same name beside each, or give --caption for all of them"
        )
    choice, pictures, left_out = buckets(size, pixels_per_token), [], {}
    for path in paths:
        rng = np.random.default_rng((seed, zlib.crc32(names[path].encode())))
        try:
            height, width = size_of(path)
            bucket = bucket_of(height, width, choice)
            boxes = boxes_of(height, width, bucket, pixels_per_token, crops, largest, rng)
        except Damaged as reason:
            left_out[names[path]] = str(reason)
            continue
        pictures.append(Picture(path, captions[path], bucket, boxes))
    if not pictures:
        name, reason = next(iter(left_out.items()))
        raise ResDiTError(
            f"none of the {len(paths)} pictures in {str(folder)!r} can be used; {name}: {reason}; choose larger "
            f"pictures, or a --size below {size}"
        )
    return pictures, left_out
