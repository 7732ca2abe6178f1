"""Control nets for transformers: which files are some, and what they add to a model. One class a format of nets."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ..errors import Unsupported
from .checkpoint import check_finite, describe, is_for_transformer, with_shards, without_prefix
from .format import Checkpoint, ControlFormat, Weights


def recognise(weights: Weights, path: Path, formats: Sequence[ControlFormat]) -> Checkpoint | None:
    """The control net in a file's tensors; None where they are no control net of a transformer at all.

    Raises:
        Unsupported: it is one, but incomplete, damaged or of none of the formats; the message says what.
    """
    weights = with_shards(weights, path)
    if not is_for_transformer(weights):
        return None
    weights = without_prefix(weights)
    for form in formats:
        if form.claims(weights):
            checkpoint = form.read(weights)
            check_finite(checkpoint.weights)
            return checkpoint
    names = ", ".join(form.family for form in formats)
    raise Unsupported(f"it is no control net of a supported family ({names}): {describe(weights)}")
