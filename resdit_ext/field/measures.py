"""Figures of a picture that need no other model, most of them against the model's own picture at its base size."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from PIL import Image

from ..lab.pixels import PIXELS_PER_TOKEN, high_band, seam
from ..method.config import BALANCED
from ..method.layout import Grid, make_layout

SEEN = 16  # pixels that a base side has where repetition is looked for: whole objects, no textures
PATCH = 12  # of those a side of a patch; further apart than that, two have nothing in common
TELLING, FAINT = 0.25, 0.01  # the share of the patches looked for, those of most contrast, and the least contrast
BLOCK = 16  # pixels a side of the blocks whose statistics are compared


@dataclass(frozen=True)
class Figures:
    """Figures of one picture.

    Attributes:
        repetition: how like a patch the most similar distant one is, up to 1, mean over the quarter with most contrast;
            to be compared between methods at one size, as a larger picture has more patches to be like.
        seam: squared steps across the patches' borders over those across other token borders nearby; 1: not to be told.
        fine: log10 of the power above a quarter cycle per pixel over the base picture's; -1: a tenth of the detail.
        spectrum: distance of the log10 power in rings up there from the base picture's.
        patches: distance of the statistics of small blocks in crops of the base size from the base picture's.
    """

    repetition: float | None
    seam: float
    fine: float | None
    spectrum: float | None
    patches: float | None


def reduced(picture: np.ndarray, width: int, height: int) -> np.ndarray:
    """A picture (H, W, 3) uint8 at a smaller size, in [0, 1]."""
    return np.asarray(Image.fromarray(picture).resize((width, height), Image.Resampling.BOX), np.float32) / 255


def repetition(picture: np.ndarray, base: int) -> float | None:
    """Similarity of distant patches; None where all are faint, or none is further than a patch's side away."""
    height, width = (max(PATCH, round(side * SEEN / base)) for side in picture.shape[:2])
    small = reduced(picture, width, height)
    small = small - small.mean(1, keepdims=True)  # sky, horizon and ground go on along a row in any picture
    view = np.lib.stride_tricks.sliding_window_view(small, (PATCH, PATCH), axis=(0, 1))
    places = np.stack(np.meshgrid(*map(np.arange, view.shape[:2]), indexing="ij"), -1).reshape(-1, 2)
    rows = view.reshape(len(places), -1)
    rows = rows - rows.mean(1, keepdims=True)
    contrast = rows.std(1)
    told = (contrast >= np.quantile(contrast, 1 - TELLING)) & (contrast > FAINT)
    rows = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-6)
    distant = np.abs(places[told][:, None] - places).max(-1) >= PATCH
    best = np.where(distant, rows[told] @ rows.T, -np.inf).max(1, initial=-np.inf)
    return float(best[np.isfinite(best)].mean()) if np.isfinite(best).any() else None


def crops(picture: np.ndarray, side: int) -> list[np.ndarray]:
    """Crops of side x side pixels that lie next to each other from the middle out, at least one."""
    starts = []
    for length in picture.shape[:2]:
        count = max(1, length // side)
        first = max(0, (length - count * side) // 2)
        starts.append([first + side * i for i in range(count)])
    return [picture[y : y + side, x : x + side] for y in starts[0] for x in starts[1]]


def block_statistics(crop: np.ndarray) -> np.ndarray:
    """(N, 6) of blocks: brightness, log contrast, log fine detail along both axes, and two of colour."""
    rows, cols = (side // BLOCK for side in crop.shape[:2])
    blocks = crop[: rows * BLOCK, : cols * BLOCK].astype(np.float32) / 255
    blocks = blocks.reshape(rows, BLOCK, cols, BLOCK, 3).swapaxes(1, 2).reshape(-1, BLOCK, BLOCK, 3)
    grey, colour = blocks.mean(-1), blocks.mean((1, 2))
    energies = [grey.var((1, 2)), *((np.diff(grey, axis=axis) ** 2).mean((1, 2)) for axis in (1, 2))]
    logs = [np.log10(energy + 1e-5) for energy in energies]
    return np.stack([grey.mean((1, 2)), *logs, colour[:, 0] - colour[:, 1], colour[:, 2] - colour[:, 1]], 1)


def root(matrix: np.ndarray) -> np.ndarray:
    """The square root of a symmetric matrix without negative eigenvalues."""
    values, vectors = np.linalg.eigh(matrix)
    return (vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T


def distance(mine: np.ndarray, its: np.ndarray) -> float:
    """Frechet's distance of two sets (N, C), each taken for a Gaussian, in standard deviations of `its`."""
    unit = its.std(0) + 1e-3
    (mean, spread), (its_mean, its_spread) = (((x / unit).mean(0), np.cov(x / unit, rowvar=False)) for x in (mine, its))
    half = root(its_spread)
    squared = ((mean - its_mean) ** 2).sum() + np.trace(spread + its_spread - 2 * root(half @ spread @ half))
    return float(max(squared, 0.0) ** 0.5)


def borders(picture: np.ndarray, base: int, token: int) -> float:
    """The seam at the borders that the patches of every other step have, with all presets."""
    grid = Grid(picture.shape[0] // token, picture.shape[1] // token)
    small = reduced(picture, grid.width * PIXELS_PER_TOKEN, grid.height * PIXELS_PER_TOKEN)
    return float(seam(small, make_layout(grid, replace(BALANCED, base_tokens=(base // token) ** 2))))


def figures_of(picture: np.ndarray, own: np.ndarray | None, base: int, token: int) -> Figures:
    """All figures.

    Args:
        picture: (H, W, 3) uint8.
        own: the model's own of the same prompt at the base size, (base, base, 3); None where it could not be made.
        base, token: pixels a side of the base size, and of a token.
    """
    fine = spectrum = patches = None
    if own is not None and own is not picture:
        mine = np.mean([high_band(crop / 255) for crop in crops(picture, base)], 0)
        its = high_band(own / 255)
        fine, spectrum = float((mine - its).mean()), float(np.abs(mine - its).mean())
        mine_too = np.concatenate([block_statistics(crop) for crop in crops(picture, base)])
        patches = distance(mine_too, block_statistics(own))
    return Figures(repetition(picture, base), borders(picture, base, token), fine, spectrum, patches)
