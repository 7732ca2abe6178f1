"""Layout and detail of a picture, against the scene it should show."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from ..method.layout import Layout
from .pixels import high_band, seam
from .scenes import (
    CHECKER_PERIOD,
    COLOURS,
    GROUNDS,
    SKY_BOTTOM,
    SKY_TOP,
    STRIPE_PERIOD,
    Scene,
    is_long,
    object_mask,
    parse_prompt,
    render,
)

SKY, GROUND, OBJECT = range(3)
OK_IOU, OK_SKY_ERROR, OK_SIDE, OK_HORIZON = 0.85, 0.10, (0.30, 0.70), (0.42, 0.78)
SEEN_IOU = 0.3  # without an object its texture counts as missing
SMALLEST_OBJECT = 0.03  # of the area of a disc half as wide as the frame's short side


@dataclass(frozen=True)
class Measures:
    """Figures of one picture; energies are relative to the true render of the scene the picture shows.

    Attributes:
        ok: 1 where it is one object of the right shape and size under one straight horizon.
        one: 1 where there is exactly one object.
        iou: overlap of the object's pixels with the best-fitting shape of the prompt.
        sky_error: share of the background on the wrong side of the best horizon.
        tex_object: energy at the stripes' period in any direction, in the object.
        tex_ground: energy at the checker's period in any direction, on the ground.
        stripes: share of the stripes' energy in their main direction (1: all parallel, .5: no order).
        psd_hf: distance of the high band's log10 power from the true render's.
        seam: squared steps across patch borders over those across other token borders nearby.
    """

    ok: float
    one: float
    iou: float
    sky_error: float
    tex_object: float
    tex_ground: float
    stripes: float
    psd_hf: float
    seam: float


def chroma(colour: np.ndarray) -> np.ndarray:
    """Colours (..., 3) without their brightness."""
    colour = np.asarray(colour, dtype=np.float64)
    return colour / np.maximum(colour.sum(-1, keepdims=True), 1e-6)


def segment(picture: np.ndarray, prompt: str) -> np.ndarray:
    """(H, W) class of every pixel (SKY, GROUND, OBJECT), by the nearest chroma; texture only changes brightness."""
    colour, _, ground = parse_prompt(prompt)
    smooth = ndimage.gaussian_filter(picture, (1.5, 1.5, 0), mode="nearest")
    sky = np.linspace(SKY_TOP, SKY_BOTTOM, 5)
    references = chroma(np.stack([*sky, GROUNDS[ground], COLOURS[colour]]))
    distance = np.linalg.norm(chroma(smooth)[:, :, None] - references, axis=-1)
    nearest = np.array([SKY] * len(sky) + [GROUND, OBJECT])[distance.argmin(-1)]
    return ndimage.median_filter(nearest, 5, mode="nearest")


def count_objects(mask: np.ndarray) -> int:
    """Connected regions of the mask that are large enough to be seen as objects."""
    labels, _ = ndimage.label(mask)
    smallest = SMALLEST_OBJECT * np.pi / 16 * min(mask.shape) ** 2
    return int((np.bincount(labels.ravel())[1:] >= smallest).sum())


def fit_scene(classes: np.ndarray, prompt: str) -> tuple[Scene, float, float]:
    """(scene, IoU, sky error): the shape and horizon that explain the classes best."""
    colour, shape, ground = parse_prompt(prompt)
    height, width = classes.shape
    mask = classes == OBJECT
    background = ~mask
    # Wrong pixels if the horizon is below row r: ground above it and sky beneath it.
    ground_above = np.concatenate(([0], np.cumsum((classes == GROUND).sum(1))))
    sky_above = np.concatenate(([0], np.cumsum((classes == SKY).sum(1))))
    wrong = ground_above + sky_above[-1] - sky_above
    horizon = int(wrong.argmin())
    sky_error = float(wrong[horizon] / max(1, background.sum()))
    bare = Scene(shape, colour, ground, horizon=horizon / height)
    if mask.sum() < 9:
        return bare, 0.0, sky_error
    row, col = np.array(ndimage.center_of_mass(mask)) + 0.5
    fill = {"disc": np.pi / 4, "square": 1.0, "triangle": 0.5}[shape]
    rise = {"triangle": 1 / 6}.get(shape, 0.0)  # how far the centroid lies below the middle, in sides
    first_guess = np.sqrt(mask.sum() / fill)
    best, best_iou = bare, 0.0
    for side in first_guess * np.linspace(0.85, 1.15, 25):
        scene = Scene(
            shape,
            colour,
            ground,
            side=side / min(height, width),
            centre=((row - rise * side) / height, col / width),
            horizon=horizon / height,
        )
        template = object_mask(scene, height, width) > 0.5
        iou = float((template & mask).sum() / (template | mask).sum())
        if iou > best_iou:
            best, best_iou = scene, iou
    return best, best_iou, sky_error


def contrast(picture: np.ndarray) -> np.ndarray:
    """(H, W) brightness relative to its surroundings."""
    grey = picture.mean(-1)
    return grey / np.maximum(ndimage.gaussian_filter(grey, CHECKER_PERIOD / 2, mode="nearest"), 0.05) - 1


def in_band(signal: np.ndarray, frequency: float) -> np.ndarray:
    """The part of a signal (H, W) within about a quarter octave of `frequency` cycles/pixel, in any direction."""
    radius = np.hypot(*np.meshgrid(*(np.fft.fftfreq(n) for n in signal.shape), indexing="ij"))
    band = np.exp(-(np.log2(np.maximum(radius, 1e-6) / frequency) ** 2) / (2 * 0.25**2))
    return np.fft.ifft2(band * np.fft.fft2(signal)).real


def energy_along(signal: np.ndarray, frequency: tuple[float, float]) -> np.ndarray:
    """(H, W) local energy of one wave, `frequency` in cycles/pixel (row, column): demodulate, then average nearby."""
    rows, cols = np.mgrid[0 : signal.shape[0], 0 : signal.shape[1]]
    wave = signal * np.exp(-2j * np.pi * (frequency[0] * rows + frequency[1] * cols))
    smooth = [ndimage.gaussian_filter(part, 3.0, mode="nearest") for part in (wave.real, wave.imag)]
    return smooth[0] ** 2 + smooth[1] ** 2


def texture(picture: np.ndarray, truth: np.ndarray, region: np.ndarray, frequency: float) -> float:
    """Energy in `region` at a texture's frequency, in any direction, as a share of the true render's."""
    if not region.any():
        return 0.0
    mine, its = ((in_band(contrast(image), frequency)[region] ** 2).mean() for image in (picture, truth))
    return float(mine / its)


def main_direction(picture: np.ndarray, region: np.ndarray) -> float:
    """Share of the stripes' energy in the stronger of the two diagonals, mean over `region`'s whole (.5 to 1)."""
    if not region.any():
        return 0.5
    step = 1 / (np.sqrt(2) * STRIPE_PERIOD)
    along = [energy_along(contrast(picture), (step, sign * step))[region].mean() for sign in (1, -1)]
    return float(max(along) / max(sum(along), 1e-12))


@dataclass(frozen=True)
class Explained:
    """The scene that a picture shows, how well it does so, and where object and ground lie well within it."""

    scene: Scene
    ok: float
    one: float
    iou: float
    sky_error: float
    inside: np.ndarray  # (H, W) of the object, away from its outline
    below: np.ndarray  # (H, W) of the ground, away from the object and the horizon


def explained(picture: np.ndarray, prompt: str) -> Explained:
    """The scene of a picture (H, W, 3) in [0, 1] made with `prompt`."""
    height, width = picture.shape[:2]
    classes = segment(picture, prompt)
    scene, iou, sky_error = fit_scene(classes, prompt)
    one = count_objects(classes == OBJECT) == 1
    largest = OK_SIDE[1] + 0.2 * is_long(height, width)
    sane = OK_SIDE[0] < scene.side < largest and OK_HORIZON[0] < scene.horizon < OK_HORIZON[1]
    margin = int(STRIPE_PERIOD)
    template = object_mask(scene, height, width) > 0.5
    below = np.zeros_like(template)
    below[min(height - 8, int(scene.horizon * height) + margin) :] = True
    return Explained(
        scene=scene,
        ok=float(one and iou > OK_IOU and sky_error < OK_SKY_ERROR and sane),
        one=float(one),
        iou=iou,
        sky_error=sky_error,
        inside=ndimage.binary_erosion(template, iterations=margin),
        below=below & ~ndimage.binary_dilation(template, iterations=margin),
    )


def measure(picture: np.ndarray, prompt: str, layout: Layout) -> Measures:
    """All figures of a picture (4H, 4W, 3) in [0, 1] made with `prompt` on the layout's grid."""
    found = explained(picture, prompt)
    truth = render(found.scene, *picture.shape[:2])
    seen = found.inside if found.iou > SEEN_IOU else np.zeros_like(found.inside)
    return Measures(
        ok=found.ok,
        one=found.one,
        iou=found.iou,
        sky_error=found.sky_error,
        tex_object=texture(picture, truth, seen, 1 / STRIPE_PERIOD),
        tex_ground=texture(picture, truth, found.below, np.sqrt(2) / CHECKER_PERIOD),
        stripes=main_direction(picture, seen),
        psd_hf=float(np.abs(high_band(picture) - high_band(truth)).mean()),
        seam=float(seam(picture, layout)),
    )
