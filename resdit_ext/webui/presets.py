"""The user's own presets: named values of the options that a preset sets, in one JSON file of the extension."""

from __future__ import annotations

import json
import logging
import os
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path

from ..errors import ResDiTError, quoted, shortened
from ..method.config import PRESETS, ResDiTConfig
from .option import unmentioned
from .options import BY_NAME, DEFAULTS, PARAMETERS

logger = logging.getLogger("ResDiT")
LONGEST_NAME = 60
# The page's events run in threads: between reading and writing in one, no other may write.
WRITING = threading.Lock()


def check_name(name: object) -> str:
    """The name without blanks around it; raises ResDiTError where it is no name for a user's preset."""
    trimmed = name.strip() if isinstance(name, str) else ""
    if not trimmed.isprintable() or not 1 <= len(trimmed) <= LONGEST_NAME:
        raise ResDiTError(f"preset name is {quoted(name)}; it must be 1 to {LONGEST_NAME} printable characters")
    if trimmed.casefold() in map(str.casefold, PRESETS):
        built_in = ", ".join(map(repr, PRESETS))
        raise ResDiTError(f"preset name is {quoted(name)}; it must not be a built-in preset's ({built_in})")
    return trimmed


def check_field(name: str, value: object) -> object:
    """The value of one field as its type; raises ResDiTError naming an unknown or bad one."""
    if name not in PARAMETERS:
        raise ResDiTError(f"unknown field {quoted(name)}; a preset's fields are {', '.join(PARAMETERS)}")
    return BY_NAME[name].parse(value)


def check_values(values: dict[str, object]) -> dict[str, object]:
    """Every field of a preset as its type; raises ResDiTError naming an unknown, missing or bad one."""
    others = [name for name in values if name not in PARAMETERS]
    checked = {name: check_field(name, values.get(name)) for name in (*others, *PARAMETERS)}
    ResDiTConfig(**checked)  # which also refuses values that do not go together
    return checked


@contextmanager
def noted(problems: list[str], subject: str) -> Iterator[None]:
    """Add to `problems` why a part of the file is ignored, where the body raises ResDiTError."""
    try:
        yield
    except ResDiTError as error:
        problems.append(f"{subject} is ignored: {error}")


def read_preset(name: str, entry: object, problems: list[str]) -> dict[str, object]:
    """A preset as it is in the file, with defaults for bad fields; raises ResDiTError where it is useless.

    Bad fields are noted in `problems`. A missing one is not: a later release has brought it, and it means what it was
    before that.
    """
    check_name(name)
    if not isinstance(entry, dict):
        raise ResDiTError(f"it is a {type(entry).__name__}, not an object of options")
    values = {field: DEFAULTS[field] if field in entry else unmentioned(BY_NAME[field]) for field in PARAMETERS}
    for field, value in entry.items():
        with noted(problems, f"a field of preset {quoted(name)}"):
            values[field] = check_field(field, value)
    return check_values(values)


def read_presets(entries: dict[str, object]) -> tuple[dict[str, dict[str, object]], list[str]]:
    """The usable presets in the file's content, by name, and what is wrong with the rest."""
    presets, problems = {}, []
    for name, entry in entries.items():
        with noted(problems, f"preset {quoted(name)}"):
            presets[name] = read_preset(name, entry, problems)
    return presets, problems


class PresetStore:
    """The presets in one file, which is read anew each time, so that tabs and processes see each other's.

    Attributes:
        known: the presets by name as they were last read or written, for callers that must not read a file each time.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.known: dict[str, dict[str, object]] = {}

    def load(self) -> tuple[dict[str, dict[str, object]], str | None]:
        """The presets by name, and a message about what is wrong with the file, if anything."""
        try:
            with WRITING:  # a damaged file is renamed: it must not be one that another thread has just written
                entries, trouble = self._read()
        except ResDiTError as error:
            entries, trouble = {}, str(error)
        presets, problems = read_presets(entries)
        self.known = presets
        told = [trouble] if trouble else []
        return presets, "; ".join(told + [f"{self.path.name}: {problem}" for problem in problems]) or None

    def save(self, name: str, values: dict[str, object]) -> None:
        """Add a preset, or replace the user's preset of that name."""
        name, values = check_name(name), check_values(values)
        with WRITING:
            self._write(self._entries() | {name: values})

    def rename(self, old: str, new: str) -> None:
        """Give a preset another name, which no other preset may have; it keeps its place in the list."""
        new = check_name(new)
        with WRITING:
            entries = self._entries()
            self._check_known(old, entries)
            if new != old and new in entries:
                raise ResDiTError(f"preset name is {quoted(new)}; it must not be another preset's")
            self._write({new if name == old else name: entry for name, entry in entries.items()})

    def delete(self, name: str) -> None:
        """Remove a preset."""
        with WRITING:
            entries = self._entries()
            self._check_known(name, entries)
            self._write({other: entry for other, entry in entries.items() if other != name})

    @staticmethod
    def _check_known(name: str, entries: dict[str, object]) -> None:
        if name not in entries:
            own = shortened(", ".join(map(quoted, entries))) or "none"
            raise ResDiTError(f"preset is {quoted(name)}; choose one of your own ({own})")

    def _entries(self) -> dict[str, object]:
        """The file's content as it is: saving must not drop what only a later release understands."""
        return self._read()[0]

    def _read(self) -> tuple[dict[str, object], str | None]:
        """The file's content, and a message where it was no JSON object and had to be renamed."""
        try:
            entries = json.loads(self.path.read_bytes())
        except FileNotFoundError:
            return {}, None
        except OSError as error:
            raise ResDiTError(f"{self.path.name} cannot be read: {error}") from error
        except (ValueError, RecursionError):
            entries = None
        if isinstance(entries, dict):
            return entries, None
        aside = self._move_aside()
        message = f"{self.path.name} was damaged and is now {aside.name}; your list of presets is empty"
        logger.warning(message)
        return {}, message

    def _move_aside(self) -> Path:
        names = (self.path.with_name(f"{self.path.name}.bad{number or ''}") for number in count())
        aside = next(path for path in names if not path.exists())
        try:
            return self.path.replace(aside)
        except OSError as error:
            raise ResDiTError(f"{self.path.name} is damaged and cannot be renamed: {error}") from error

    def _write(self, entries: dict[str, object]) -> None:
        """Replace the file in one step: a reader finds the old one or the new one, even after a crash."""
        written = None
        try:
            text = json.dumps(entries, indent=2)
            with tempfile.NamedTemporaryFile(
                "w", encoding="utf-8", dir=self.path.parent, prefix=self.path.name, suffix=".partial", delete=False
            ) as file:
                written = Path(file.name)
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            written.replace(self.path)
            self.known, _ = read_presets(entries)
        except (OSError, RecursionError) as error:
            if written is not None:
                written.unlink(missing_ok=True)
            raise ResDiTError(f"{self.path.name} cannot be written: {error}") from error
