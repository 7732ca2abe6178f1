"""The table of methods: quality and cost of each on held-out seeds, resumable, with standard errors."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from functools import cache, partial
from pathlib import Path

import numpy as np

from ..method.layout import Grid, make_layout
from ..method.shift import shift_by_size
from .benchmarks.counters import by_kind, flop_counter
from .methods import METHODS, RANDOMIZED, SHIFT, grid_for
from .metrics import measure
from .model import BASE_TOKENS, MicroModel
from .photographs import TEXTURES, measure_photographs
from .resume import measured
from .rivals import RIVALS
from .sampling import SAMPLERS, STEPS, sample
from .scenes import Patterns, drawn_patterns, random_scene, render

FIRST_SEED = 100_000  # development used seeds below it
DIGITS = {"control_error": 3, "cpu": 1}
TRUTH = "true render"
OWN = "1x"  # the model's own pictures, at its training size: the ceiling
CONFIGS = METHODS | RANDOMIZED
#: The rows of the table where none are chosen.
ROWS = (TRUTH, *(f"{OWN}, {sampler}" for sampler in SAMPLERS), *METHODS)
ROWS += tuple(f"{name}, {sampler}" for name in ("Scaled positions", "Balanced") for sampler in ("Euler a", "LCM"))


def default_seeds(scale: float) -> int:
    """64 seeds up to 2x, 48 up to 3x, 32 above: .05 of texture is then more than two standard errors."""
    return 64 if scale <= 2 else 48 if scale <= 3 else 32


def key_of(aspect: tuple[int, int], scale: float, name: str, seed: int) -> str:
    return f"{aspect[0]}:{aspect[1]}/{scale:g}/{name}/{seed}"


def picture_of(
    model: MicroModel,
    name: str,
    grid: Grid,
    prompt: str,
    seed: int,
    patterns: Patterns = drawn_patterns,
    steps: int = STEPS,
) -> np.ndarray:
    """The (4H, 4W, 3) picture of one row and seed; the truth is a render of a random scene of the prompt."""
    if name == TRUTH:
        scene = random_scene(np.random.default_rng(seed), prompt)
        return render(scene, 4 * grid.height, 4 * grid.width, patterns)
    method, eta = method_and_eta(name)
    if method in RIVALS:
        return RIVALS[method](model, [prompt], grid, [seed], steps, eta=eta)[0]
    shift = shift_by_size(grid.tokens, BASE_TOKENS) if method.endswith(SHIFT) else 0.0
    return sample(model, [prompt], grid, [seed], CONFIGS.get(method), steps, eta=eta, shift=shift)[0]


def method_and_eta(name: str) -> tuple[str, float]:
    """A row's method, and the eta of the sampler that is named after it, Euler's by default."""
    method, _, sampler = name.rpartition(", ")
    return (method, SAMPLERS[sampler]) if sampler in SAMPLERS else (name, 0.0)


def operations(model: MicroModel, name: str, grid: Grid) -> int:
    """Floating point operations of one picture."""
    with flop_counter() as counter:
        picture_of(model, name, grid, prompt_of(FIRST_SEED), FIRST_SEED)
    return sum(by_kind(counter))


def costs(model: MicroModel) -> Callable[[str, Grid, Grid], float]:
    """A function (row, its grid, the grid that it stands for) -> operations relative to the plain model's there."""
    counted = cache(partial(operations, model))

    def relative(name: str, grid: Grid, of: Grid) -> float:
        if name == TRUTH:
            return 0.0
        # Scaled positions in one whole call have the plain model's operations, and go beyond SD3's table.
        return counted(name, grid) / counted("PES only", of)

    return relative


def prompt_of(seed: int) -> str:
    """The prompt that goes with a seed."""
    return random_scene(np.random.default_rng(seed)).prompt


def evaluate(
    model: MicroModel,
    scales: Sequence[float],
    results: Path,
    seeds: int | None = None,
    chosen: Iterable[str] = ROWS,
    aspects: Sequence[tuple[int, int]] = ((1, 1),),
    textures: str = "drawn",
    steps: int = STEPS,
) -> dict[str, dict[str, float]]:
    """Measures by key of every method, size and seed, resumed from `results`, which is of one number of steps.

    The plain model is left out where it has no positions for the size. Operations are those of 35 steps.
    """
    cost = costs(model)

    def row(name: str, aspect: tuple[int, int], scale: float, seed: int) -> dict[str, float]:
        prompt, of, (method, _) = prompt_of(seed), grid_for(aspect, scale), method_and_eta(name)
        grid = grid_for(aspect, 1) if method == OWN else of
        layout = make_layout(grid, CONFIGS.get(method) or METHODS["Balanced"])
        before = time.process_time()
        picture = picture_of(model, name, grid, prompt, seed, TEXTURES[textures], steps)
        cpu = time.process_time() - before
        drawn = textures == "drawn"
        figures = measure(picture, prompt, layout) if drawn else measure_photographs(picture, prompt, layout, seed)
        return asdict(figures) | {"flops": cost(name, grid, of), "cpu": cpu}

    wanted = {
        key_of(aspect, scale, name, seed): partial(row, name, aspect, scale, seed)
        for aspect in aspects
        for scale in scales
        for name in chosen
        for seed in range(FIRST_SEED, FIRST_SEED + (seeds or default_seeds(scale)))
        if method_and_eta(name)[0] != "plain" or model.reaches(grid_for(aspect, scale))
    }
    return measured(wanted, results)


def summary(measured: dict[str, dict[str, float]]) -> dict[str, dict[str, tuple[float, float, int]]]:
    """Mean, standard error and count of every measure, by "aspect/scale/method"."""
    cells: dict[str, list[dict[str, float]]] = {}
    for key, row in measured.items():
        cells.setdefault(key.rsplit("/", 1)[0], []).append(row)
    return {
        cell: {
            name: (
                float(np.mean(column := [row[name] for row in rows])),
                float(np.std(column, ddof=1) / len(column) ** 0.5) if len(column) > 1 else float("nan"),
                len(column),
            )
            for name in rows[0]
        }
        for cell, rows in cells.items()
    }


def table(cells: dict[str, dict[str, tuple[float, float, int]]], shown: Sequence[str] = ()) -> str:
    """The summary as a Markdown table of the measures `shown`, by default all; mean +- standard error."""
    shown = shown or tuple(next(iter(cells.values())))
    lines = [
        "| size | method | n | " + " | ".join(shown) + " |",
        "|---|---|---|" + "---|" * len(shown),
    ]
    for cell, row in cells.items():
        aspect, scale, name = cell.split("/", 2)
        size = f"{scale}x" if aspect == "1:1" else f"{scale}x {aspect}"
        figures = []
        for column in shown:
            (mean, error, _), digits = row[column], DIGITS.get(column, 2)
            figures.append(f"{mean:.{digits}f}±{error:.{digits}f}")
        lines.append(f"| {size} | {name} | {row[shown[0]][2]} | " + " | ".join(figures) + " |")
    return "\n".join(lines)
