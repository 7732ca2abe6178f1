"""What the lab compares: the paper's ablation, the named settings, and RPE-2D."""

from __future__ import annotations

from dataclasses import replace

from ..method.config import BALANCED, PAPER, SCALED, ResDiTConfig
from ..method.layout import Grid
from .model import BASE_TOKENS

_PAPER = replace(PAPER, base_tokens=BASE_TOKENS)

#: The table's rows; None is the model as it is.
METHODS: dict[str, ResDiTConfig | None] = {
    "plain": None,
    "PES only": replace(_PAPER, global_until=1.0, fused_until=1.0),
    "Paper w/o PES": replace(_PAPER, pes=False),
    "Paper w/o PIPE": replace(_PAPER, pipe=False),
    "Paper w/o PSF": replace(_PAPER, fusion="mean"),
    "Paper w/o MOP and GWS": replace(_PAPER, overlap=False, splice="mean"),
    "Paper w/o GWS": replace(_PAPER, splice="mean"),
    "Paper": _PAPER,
    "Scaled positions": replace(SCALED, base_tokens=BASE_TOKENS),
    "Scaled positions, fast": replace(SCALED, speed="fast", base_tokens=BASE_TOKENS),
    "Scaled positions, fastest": replace(SCALED, speed="fastest", base_tokens=BASE_TOKENS),
    "Balanced": replace(BALANCED, base_tokens=BASE_TOKENS),
    "Balanced, noise kept": replace(BALANCED, fresh_noise=0.0, base_tokens=BASE_TOKENS),
    "Balanced, exact": replace(BALANCED, speed="exact", base_tokens=BASE_TOKENS),
}

RANGE = 64  # of RPE-2D in the lab: four times the base grid's side
_EQUIDISTANT = dict(positions="rpe-2d", maximal_range=RANGE)
SHIFT = " + shift"  # ends the name of a row with the timestep shift of its size

#: Rows for weights that were trained with RPE-2D.
RANDOMIZED: dict[str, ResDiTConfig] = {
    "RPE-2D": replace(METHODS["PES only"], **_EQUIDISTANT),
    "RPE-2D + log scale": replace(METHODS["PES only"], attention_scale="log", **_EQUIDISTANT),
    "Balanced with RPE-2D": replace(METHODS["Balanced"], **_EQUIDISTANT),
    "Scaled positions with RPE-2D": replace(METHODS["Scaled positions"], **_EQUIDISTANT),
}
RANDOMIZED |= {f"RPE-2D + log scale{SHIFT}": RANDOMIZED["RPE-2D + log scale"]}


def grid_for(aspect: tuple[int, int], scale: float) -> Grid:
    """The output grid of a width:height ratio whose area is scale^2 times the training area."""
    unit = (BASE_TOKENS / (aspect[0] * aspect[1])) ** 0.5 * scale
    return Grid(round(aspect[1] * unit), round(aspect[0] * unit))
