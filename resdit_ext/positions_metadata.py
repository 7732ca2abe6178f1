"""What a LoRA's file says of the positions it was trained with: written by the trainer, read where it is used."""

from __future__ import annotations

from collections.abc import Mapping

from .errors import ResDiTError, quoted
from .method.config import check_number

POSITIONS, RANGE = "resdit.positions", "resdit.maximal_range"
RPE_2D = "rpe-2d"
WIDEST = 4096  # tokens an axis, as a grid's


def check_maximal_range(maximal: object) -> None:
    """Raise ResDiTError unless `maximal` is a range, in tokens an axis, that a picture can have."""
    check_number("maximal range", maximal, 1, WIDEST, whole=True)


def positions_metadata(maximal: int) -> dict[str, str]:
    """Metadata for the file of a LoRA trained with RPE-2D's positions from a range of `maximal` tokens an axis."""
    check_maximal_range(maximal)
    return {POSITIONS: RPE_2D, RANGE: str(maximal)}


def maximal_range(metadata: Mapping[str, object], name: str) -> int | None:
    """The maximal range, in tokens an axis, of a LoRA with this metadata; None where it is of no such training.

    Args:
        metadata: as the file, or a host that has read it, holds it.
        name: the LoRA's, for a message.

    Raises:
        ResDiTError: the positions or the range are none that this version knows.
    """
    positions = metadata.get(POSITIONS)
    if positions is None:
        return None
    if positions != RPE_2D:
        raise ResDiTError(
            f"the metadata of {name} has {POSITIONS} {quoted(positions)}, which this version does not know; it knows "
            f"{RPE_2D!r}: update the extension, or choose the positions by hand"
        )
    text = str(metadata.get(RANGE, ""))
    if not (text.isascii() and text.isdigit() and len(text) <= len(str(WIDEST)) and 1 <= int(text) <= WIDEST):
        raise ResDiTError(
            f"the metadata of {name} has {RANGE} {quoted(metadata.get(RANGE))}; it must be a whole number of tokens "
            f"from 1 to {WIDEST}: get the file again, or choose the positions and their range by hand"
        )
    return int(text)
