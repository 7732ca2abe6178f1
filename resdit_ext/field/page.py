"""The page that compares a field test's pictures: one HTML file with everything in it."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from .kit import PICTURES
from .plan import Order
from .summary import Report, table

HERE = Path(__file__).parent
QUALITY = 88  # of the page's JPEGs
BYTES_PER_PIXEL = 0.5  # of such a JPEG of fine detail, as text in the page


def reduced_to(image: Image.Image, pixels: float) -> Image.Image:
    """An image of at most so many pixels."""
    share = (pixels / (image.width * image.height)) ** 0.5
    if share >= 1:
        return image
    size = (max(1, round(side * share)) for side in image.size)
    return image.resize(tuple(size), Image.Resampling.LANCZOS)


def data_url(path: Path, pixels: float) -> str:
    """A picture, of at most so many pixels, as an address that contains it."""
    file = io.BytesIO()
    with Image.open(path) as image:
        reduced_to(image.convert("RGB"), pixels).save(file, "JPEG", quality=QUALITY, subsampling=0)
    return "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode()


def in_script(value: object) -> str:
    """A value as JSON that may stand in a script of a page, whatever it contains."""
    return json.dumps(value).replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")


def write_page(found: Report, orders: Sequence[Order], folder: Path, megabytes: int) -> Path:
    """Write `index.html` into the test's folder, of about so many megabytes, and return its path.

    Pictures are reduced alike until they fit; each has a link to its file, which is as it was made.
    """
    made = [order for order in orders if (folder / PICTURES / order.file).is_file() and order.key in found.rows]
    area = sum(order.width * order.height for order in made) or 1
    share = min(1.0, megabytes * 1e6 / BYTES_PER_PIXEL / area)
    pictures = [
        {
            "number": order.number,
            "size": order.size,
            "method": order.method,
            "pixels": found.rows[order.key].get("made"),
            "file": f"{PICTURES}/{order.file}",
            "row": found.rows[order.key],
            "url": data_url(folder / PICTURES / order.file, share * order.width * order.height),
        }
        for order in made
    ]
    errors = [
        {"number": order.number, "size": order.size, "method": order.method, "error": found.rows[order.key]["error"]}
        for order in orders
        if "error" in found.rows.get(order.key, {})
    ]
    prompts = {order.number: order.scene.prompt for order in orders}
    data = {"about": found.about, "options": found.options, "prompts": prompts, "errors": errors, "pictures": pictures}
    page = (HERE / "page.html").read_text(encoding="utf8")
    for mark, text in {
        "/*STYLE*/": (HERE / "page.css").read_text(encoding="utf8"),
        "/*DATA*/": f"const FIELD_TEST = {in_script(data | {'table': table(found)})};",
        "/*SCRIPT*/": (HERE / "page.js").read_text(encoding="utf8"),
    }.items():
        page = page.replace(mark, text)
    path = folder / "index.html"
    path.write_text(page, encoding="utf8")
    return path
