"""What can be told from a picture's pixels alone, whatever it shows."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from ..method.layout import Layout

PIXELS_PER_TOKEN = 4  # of the micro models; a larger model's pictures are reduced until a token has as many


def high_band(picture: np.ndarray) -> np.ndarray:
    """log10 power in rings of spatial frequency above 0.25 cycles/pixel."""
    grey = picture.mean(-1)
    window = np.outer(np.hanning(grey.shape[0]), np.hanning(grey.shape[1]))
    power = np.abs(np.fft.fft2((grey - grey.mean()) * window)) ** 2 / window.mean() / grey.size
    radius = np.hypot(*np.meshgrid(*(np.fft.fftfreq(n) for n in grey.shape), indexing="ij"))
    ring = np.digitize(radius, np.linspace(0.25, 0.5, 9))
    return np.array([np.log10(power[ring == k].mean() + 1e-12) for k in range(1, 9)])


def border_steps(picture: np.ndarray, borders: Iterable[int], axis: int) -> tuple[float, float]:
    """Mean squared step across the given pixel borders of an axis, and across the token borders around them."""
    step = (np.diff(picture, axis=axis) ** 2).mean((1 - axis, 2))
    at = {b - 1 for b in borders}
    around = {b + d for b in at for d in (-8, -4, 4, 8)} - at
    return step[sorted(at)].mean(), step[sorted(i for i in around if 0 <= i < len(step))].mean()


def seam(picture: np.ndarray, layout: Layout) -> float:
    """Steps at patch borders over those nearby; 1 where a border cannot be told from any other place."""
    at = near = 0.0
    sides = (layout.rows, layout.base.height, layout.grid.height), (layout.cols, layout.base.width, layout.grid.width)
    for axis, (starts, patch, length) in enumerate(sides):
        borders = {PIXELS_PER_TOKEN * b for s in starts for b in (s, s + patch) if 0 < b < length}
        if borders:
            a, n = border_steps(picture, borders, axis)
            at, near = at + a, near + n
    return at / near if near else 1.0
