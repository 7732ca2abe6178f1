"""Generated parts of a Markdown file, each between two marks of its name."""

from __future__ import annotations

from pathlib import Path

from .errors import ResDiTError


def marks(name: str) -> tuple[str, str]:
    """What stands before and after the part."""
    return f"<!-- {name} -->", f"<!-- /{name} -->"


def part(file: Path, name: str) -> str:
    """The part's text; raises ResDiTError where the file has no such marks."""
    before, after = marks(name)
    text = file.read_text(encoding="utf8")
    if before not in text or after not in text:
        raise ResDiTError(
            f"readme is {str(file)!r}, which has no {before} and {after}; add them where the part belongs"
        )
    return text.partition(before)[2].partition(after)[0].strip()


def fill(file: Path, name: str, text: str) -> None:
    """Replace the part's text; raises ResDiTError where the file has no such marks."""
    part(file, name)
    before, after = marks(name)
    head, _, rest = file.read_text(encoding="utf8").partition(before)
    file.write_text(f"{head}{before}\n{text}\n{after}{rest.partition(after)[2]}", encoding="utf8")
