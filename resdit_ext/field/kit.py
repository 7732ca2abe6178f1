"""One field test in a folder: its pictures one by one, each with its row, whatever becomes of any of them."""

from __future__ import annotations

import gc
import json
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from ..errors import ResDiTError, in_words
from ..lab.resume import finished, measured
from ..version import __version__
from .clip import Score
from .making import Made, Maker
from .measures import figures_of
from .plan import BASE, FieldOptions, Order, orders

ROWS, SETTINGS, PICTURES = "rows.jsonl", "settings.json", "pictures"
DIGITS = 4


def rounded(value: object) -> object:
    """Figures with as many digits as mean something."""
    if isinstance(value, float):
        return round(value, DIGITS)
    if isinstance(value, dict):
        return {name: rounded(each) for name, each in value.items()}
    return [rounded(each) for each in value] if isinstance(value, (list, tuple)) else value


def read_picture(path: Path) -> np.ndarray | None:
    """(H, W, 3) uint8 of a file; None where there is none."""
    return np.asarray(Image.open(path).convert("RGB")) if path.is_file() else None


class FieldTest:
    """A field test in a folder, which it can be taken up from again.

    Args:
        maker: makes the pictures.
        options: what is to be made.
        folder: where pictures, rows and the page go.
        clip: CLIP's score of a picture and its prompt, if there is one.
    """

    def __init__(self, maker: Maker, options: FieldOptions, folder: Path, clip: Score | None = None) -> None:
        self.maker, self.options, self.folder, self.clip = maker, options, folder, clip
        self.orders = orders(options, maker.scenes, maker.base)

    def check_settings(self, about: dict[str, object]) -> None:
        """Raise ResDiTError where the folder has a test of another model, or with other steps or sampler."""
        now = {"model": about["model"], "base": self.maker.base, "version": __version__}
        now |= {"steps": self.options.steps, "sampler": self.options.sampler, "guidance": self.options.guidance}
        file = self.folder / SETTINGS
        self.folder.mkdir(parents=True, exist_ok=True)
        if file.is_file() and (before := json.loads(file.read_text(encoding="utf8"))) != now:
            name = next(name for name in now if now[name] != before.get(name))
            raise ResDiTError(
                f"{name} is {now[name]!r} and was {before.get(name)!r} in the test that {str(self.folder)!r} has; give "
                "the same, or another folder"
            )
        file.write_text(json.dumps(now), encoding="utf8")

    def row(self, order: Order) -> dict[str, object]:
        """Make a picture and return its row; an error is the row's, except that nothing can be reached."""
        try:
            made = self.maker.make(order)
        except ConnectionError:
            raise
        except Exception as error:
            said = in_words(error)
        else:
            return self.kept(order, made)
        gc.collect()  # what the error's frames held, now that it is over
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        return {"error": said}

    def kept(self, order: Order, made: Made) -> dict[str, object]:
        """Save a picture, and return its row."""
        path = self.folder / PICTURES / order.file
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(made.picture).save(path)
        return {
            "seconds": rounded(made.seconds),
            "parts": {name: rounded(asdict(part)) for name, part in made.parts.items()},
            "notes": list(made.notes),
            "made": list(made.picture.shape[1::-1]),
        } | self.figures(order, made.picture)

    def figures(self, order: Order, picture: np.ndarray) -> dict[str, object]:
        """The measures of a picture."""
        base = next(each for each in self.orders if each.number == order.number and each.size == BASE)
        own = picture if order is base else read_picture(self.folder / PICTURES / base.file)
        figures = rounded(asdict(figures_of(picture, own, self.maker.base, self.maker.token)))
        return figures | ({} if self.clip is None else {"clip": rounded(self.clip(picture, order.scene.prompt))})

    def forget_errors(self) -> None:
        """Take the rows of pictures that could not be made off the folder, so that they are tried again."""
        kept = [{"key": key} | row for key, row in finished(self.folder / ROWS).items() if "error" not in row]
        (self.folder / ROWS).write_text("".join(json.dumps(row) + "\n" for row in kept), encoding="utf8")

    def run(self, retry: bool = False, say: Callable[[str], None] = print) -> dict[str, dict[str, object]]:
        """Make what is not there yet; the rows so far, by key, also where the user stops it."""
        self.check_settings(self.maker.about())
        if retry and (self.folder / ROWS).is_file():
            self.forget_errors()
        try:
            measured({order.key: partial(self.row, order) for order in self.orders}, self.folder / ROWS, "field test")
        except KeyboardInterrupt:
            say("stopped; the same command goes on from here")
        except ConnectionError as error:
            say(f"stopped: {in_words(error)}; the same command goes on from here")
        rows = finished(self.folder / ROWS)
        return {order.key: rows[order.key] for order in self.orders if order.key in rows}
