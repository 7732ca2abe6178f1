"""The two errors a caller can expect, and how a message quotes a value."""

from __future__ import annotations

import reprlib

LONGEST_QUOTE = 200  # characters


class ResDiTError(ValueError):
    """A value is out of range; the message quotes it, the allowed range and what to do."""


class Unsupported(ResDiTError):
    """A model or host lacks what the method needs; the message is the reason, fit to show to a user."""


class _Short(reprlib.Repr):
    """Python's own shortener, which looks at a few items and levels only, so that any size or depth will do."""

    def __init__(self) -> None:
        super().__init__()
        self.maxlevel, self.maxlist, self.maxtuple, self.maxdict = 3, 10, 10, 10
        self.maxstring = self.maxlong = self.maxother = LONGEST_QUOTE

    def repr_int(self, x: int, level: int) -> str:
        try:
            return super().repr_int(x, level)
        except ValueError:  # Python refuses to write thousands of digits
            return f"<a whole number of {x.bit_length()} bits>"


def shortened(text: str) -> str:
    """`text`, or its first characters and an ellipsis where it is longer than a quote may be."""
    return text if len(text) <= LONGEST_QUOTE else f"{text[: LONGEST_QUOTE - 3]}..."


def in_words(error: Exception) -> str:
    """An error in one line of bounded length."""
    lines = str(error).splitlines() or [""]
    return f"{type(error).__name__}: {lines[0][:LONGEST_QUOTE]}"


def quoted(value: object) -> str:
    """`value` as Python writes it, for a message: at most 200 characters, with an ellipsis for what was left out."""
    return shortened(_Short().repr(value))
