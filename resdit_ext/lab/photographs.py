"""Scenes filled with photographs of brick, grass and gravel, and how far a picture's texture is from theirs.

Nothing in a photograph repeats exactly, so no texel has a right place: what is measured is whether small pieces of the
picture have the distribution of small pieces of the truth.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from scipy import ndimage

from ..method.layout import Layout
from .metrics import SEEN_IOU, contrast, explained
from .pixels import high_band, seam
from .scenes import Patterns, Scene, drawn_patterns, render

REDUCTION = {"brick": 4, "grass": 3, "gravel": 3}  # of scikit-image's 512 x 512 pixels
OF_SHAPE = {"disc": "gravel", "square": "brick", "triangle": "grass"}
OF_GROUND = {"green": "grass", "sand": "gravel", "grey": "brick", "teal": "gravel"}
SIDE, STEPS = 7, (1, 2, 4)  # of a piece, and the pixels between its samples, by level
DIRECTIONS, QUANTILES = 64, 200


@cache
def photograph(name: str) -> np.ndarray:
    """(H, W) brightness in [-1, 1], reduced by means, with the darkest and brightest 1 % cut off."""
    from skimage import data

    whole, n = getattr(data, name)().astype(np.float64), REDUCTION[name]
    side = len(whole) // n
    small = whole[: side * n, : side * n].reshape(side, n, side, n).mean((1, 3))
    low, high = np.quantile(small, (0.01, 0.99))
    return np.clip((small - low) / (high - low), 0, 1) * 2 - 1


def cut(name: str, height: int, width: int, phases: tuple[float, float]) -> np.ndarray:
    """(height, width) of a photograph that goes on mirrored beyond its edges, from where two phases (radians) say."""
    whole = photograph(name)
    there_and_back = np.concatenate((np.arange(len(whole)), np.arange(len(whole))[::-1]))
    starts = [int(phase / (2 * np.pi) * len(there_and_back)) for phase in phases]
    rows, cols = (
        there_and_back[(start + np.arange(n)) % len(there_and_back)]
        for start, n in zip(starts, (height, width), strict=True)
    )
    return whole[np.ix_(rows, cols)]


def patterns(scene: Scene, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """The (height, width) patterns of object and ground, for `render`."""
    a, b, c = scene.phases
    return (
        cut(OF_SHAPE[scene.shape], height, width, (a, b)),
        cut(OF_GROUND[scene.ground], height, width, (b, c)),
    )


#: What fills objects and grounds.
TEXTURES: dict[str, Patterns] = {"drawn": drawn_patterns, "photographs": patterns}


def pieces(picture: np.ndarray, region: np.ndarray) -> list[np.ndarray]:
    """By level of a Laplacian pyramid, not decimated: the pieces (N, 49) of the contrast that lie within `region`."""
    smooth, levels = contrast(picture), []
    for step in STEPS:
        blurred, reach = ndimage.gaussian_filter(smooth, step, mode="nearest"), (SIDE - 1) * step + 1
        windows = sliding_window_view(smooth - blurred, (reach, reach))[:, :, ::step, ::step]
        within = sliding_window_view(region, (reach, reach)).all((2, 3))
        levels.append(windows[within].reshape(-1, SIDE * SIDE))
        smooth = blurred
    return levels


def texture_distance(picture: np.ndarray, truth: np.ndarray, region: np.ndarray) -> float:
    """Sliced Wasserstein distance of pieces of two pictures' contrast in a region, in deviations of the truth's.

    As Karras et al. (1710.10196, section 5) compare pictures: pieces of 7 x 7 from the levels of a Laplacian pyramid,
    projected on random directions; the distance of the sorted projections, mean over directions and levels.
    """
    directions = np.random.default_rng(0).standard_normal((SIDE * SIDE, DIRECTIONS))
    at, distances = np.linspace(0, 1, QUANTILES), []
    for mine, its in zip(pieces(picture, region), pieces(truth, region), strict=True):
        if not len(its):
            continue
        a, b = (np.quantile(part @ directions, at, axis=0) for part in (mine, its))
        distances.append(np.abs(a - b).mean() / (its @ directions).std())
    return float(np.mean(distances)) if distances else float("nan")


@dataclass(frozen=True)
class PhotographMeasures:
    """Figures of one picture of photographs; those that `Measures` has too are the same.

    Attributes:
        far_object: distance of the object's texture from the photograph's (0: the same; a missing object is flat).
        far_ground: the ground's.
    """

    ok: float
    one: float
    iou: float
    sky_error: float
    far_object: float
    far_ground: float
    psd_hf: float
    seam: float


def measure_photographs(picture: np.ndarray, prompt: str, layout: Layout, seed: int) -> PhotographMeasures:
    """All figures of a picture (4H, 4W, 3) in [0, 1]; the truth has the picture's layout and other cuts, of `seed`."""
    found = explained(picture, prompt)
    seen = picture if found.iou > SEEN_IOU else np.full_like(picture, 0.5)
    phases = tuple(np.random.default_rng((seed, 1)).uniform(0, 2 * np.pi, 3))
    truth = render(replace(found.scene, phases=phases), *picture.shape[:2], patterns)
    return PhotographMeasures(
        ok=found.ok,
        one=found.one,
        iou=found.iou,
        sky_error=found.sky_error,
        far_object=texture_distance(seen, truth, found.inside),
        far_ground=texture_distance(picture, truth, found.below),
        psd_hf=float(np.abs(high_band(picture) - high_band(truth)).mean()),
        seam=float(seam(picture, layout)),
    )
