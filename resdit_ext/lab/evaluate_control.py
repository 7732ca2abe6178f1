"""Whether control holds above the training size: the control error beside layout and detail, on held-out seeds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

import numpy as np

from ..method.config import BALANCED, SCALED
from ..method.layout import Grid, make_layout
from .control import CONTROLS, MicroControl, control_error, load_control, sample_controlled
from .demo import contact_sheet, save_sheet
from .evaluate import FIRST_SEED, key_of
from .methods import grid_for
from .metrics import measure
from .model import BASE_TOKENS
from .pixels import PIXELS_PER_TOKEN
from .resume import measured
from .sampling import sample
from .scenes import WIDE_ROOM, Scene, depth_map, random_scene

SHOWN = ("control_error", "ok", "iou", "tex_object", "tex_ground", "psd_hf", "seam")
NO_CONTROL, PLAIN, UNTREATED, SCALED_PRESET, CONTROLLED = (
    "ResDiT, no control",
    "control, no ResDiT",
    "control net as it is",
    "control, Scaled positions",
    "control",
)
_BALANCED = replace(BALANCED, base_tokens=BASE_TOKENS)
_SCALED = replace(SCALED, base_tokens=BASE_TOKENS)
SEEDS = 16


def scene_of(seed: int) -> Scene:
    """The scene that goes with a seed, somewhere in a wide frame."""
    return random_scene(np.random.default_rng(seed), room=WIDE_ROOM)


def picture_of(control: MicroControl, name: str, grid: Grid, seed: int) -> np.ndarray:
    """The (4H, 4W, 3) picture of one row of the table and one seed."""
    scene = scene_of(seed)
    if name == NO_CONTROL:
        return sample(control.base, [scene.prompt], grid, [seed], _BALANCED)[0]
    config = {PLAIN: None, SCALED_PRESET: _SCALED}.get(name, _BALANCED)
    return sample_controlled(control, scene, grid, seed, config, net_too=name != UNTREATED)


def rows_for(control: MicroControl, grid: Grid) -> Sequence[str]:
    """The table's rows for a size: at the base size there is nothing to treat."""
    if grid.tokens <= BASE_TOKENS:
        return NO_CONTROL, CONTROLLED
    plain = (PLAIN, UNTREATED) if control.base.reaches(grid) else ()
    return NO_CONTROL, *plain, SCALED_PRESET, CONTROLLED


def control_sheet(out: Path, scale: int = 3, seed: int = FIRST_SEED) -> None:
    """Save a sheet of both models: the hint, and pictures with and without control at the base size and above."""
    rows = []
    for name in CONTROLS:
        control, scene = load_control(name), scene_of(seed)
        base, high = (grid_for((1, 1), times) for times in (1, scale))
        side = PIXELS_PER_TOKEN * high.height
        hint = np.repeat(depth_map(scene, side, side)[..., None], 3, -1)
        pictures = [picture_of(control, row, high, seed) for row in (NO_CONTROL, UNTREATED, CONTROLLED)]
        small = picture_of(control, CONTROLLED, base, seed)
        rows.append((f"{name}: {scene.prompt}, seed {seed}", [hint, small, *pictures]))
    headings = ["hint", "base size", *(f"{row}, {scale}x" for row in (NO_CONTROL, UNTREATED, CONTROLLED))]
    save_sheet(contact_sheet(headings, rows, zoom=2), out)


def evaluate_control(
    control: MicroControl, scales: Sequence[float], results: Path, seeds: int | None = None
) -> dict[str, dict[str, float]]:
    """Measures by key of every row, size and seed, resumed from `results`."""

    def row(name: str, grid: Grid, seed: int) -> dict[str, float]:
        picture, scene = picture_of(control, name, grid, seed), scene_of(seed)
        found = asdict(measure(picture, scene.prompt, make_layout(grid, _BALANCED)))
        return {"control_error": control_error(picture, scene)} | found

    wanted = {
        key_of((1, 1), scale, name, seed): partial(row, name, grid_for((1, 1), scale), seed)
        for scale in scales
        for name in rows_for(control, grid_for((1, 1), scale))
        for seed in range(FIRST_SEED, FIRST_SEED + (seeds or SEEDS))
    }
    return measured(wanted, results)
