"""Procedural scenes whose layout is a fraction of the frame and whose texture is fixed in pixels.

A scene is one striped object on a checkered ground below a sky. Rendered larger it is still one object in the
same place, with more stripes: the truth of a high-resolution picture is therefore known at every size.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

COLOURS = {
    "red": (220, 50, 40),
    "orange": (245, 140, 25),
    "yellow": (240, 222, 40),
    "magenta": (215, 60, 200),
    "violet": (115, 55, 205),
    "blue": (35, 75, 225),
}
GROUNDS = {
    "green": (80, 165, 70),
    "sand": (210, 185, 140),
    "grey": (140, 140, 140),
    "teal": (45, 140, 130),
}
SHAPES = ("disc", "square", "triangle")
SKY_TOP, SKY_BOTTOM = (95, 160, 235), (205, 222, 245)
STRIPE_PERIOD, CHECKER_PERIOD = 6.0, 10.0  # pixels, at every size of the picture


@dataclass(frozen=True)
class Room:
    """Ranges, in fractions of the frame, that a scene's free parameters are drawn from."""

    side: tuple[float, float]
    horizon: tuple[float, float]
    centre: tuple[float, float]


ROOM = Room(side=(0.40, 0.60), horizon=(0.52, 0.68), centre=(0.44, 0.56))
WIDE_ROOM = Room(side=(0.34, 0.62), horizon=(0.46, 0.74), centre=(0.36, 0.64))
# Half the short side of a frame longer than 2:1 is too few tokens for a smooth outline.
LONG_FRAME_ROOM = Room(side=(0.60, 0.80), horizon=(0.52, 0.68), centre=(0.44, 0.56))


@dataclass(frozen=True)
class Scene:
    """One picture: what (names), where (fractions of the frame) and the texture's phases (radians)."""

    shape: str
    colour: str
    ground: str
    side: float = 0.5  # of the frame's short side
    centre: tuple[float, float] = (0.5, 0.5)  # (row, column)
    horizon: float = 0.6
    stripe_sign: int = 1
    phases: tuple[float, float, float] = (0.0, 0.0, 0.0)

    @property
    def prompt(self) -> str:
        return f"{self.colour} {self.shape} on {self.ground} ground"


def is_long(height: int, width: int) -> bool:
    """Whether a frame is clearly longer than 2:1."""
    return max(height, width) > 2.3 * min(height, width)


#: (scene, height, width) -> the brightness patterns (height, width) of object and ground, in [-1, 1].
Patterns = Callable[[Scene, int, int], tuple[np.ndarray, np.ndarray]]


def parse_prompt(prompt: str) -> tuple[str, str, str]:
    """`"red disc on green ground"` -> `("red", "disc", "green")`; raises ValueError naming the allowed words."""
    words = prompt.lower().split()
    if len(words) == 5 and words[2] == "on" and words[4] == "ground":
        colour, shape, ground = words[0], words[1], words[3]
        if colour in COLOURS and shape in SHAPES and ground in GROUNDS:
            return colour, shape, ground
    raise ValueError(
        f"prompt {prompt!r} is not 'COLOUR SHAPE on GROUND ground' with COLOUR one of {', '.join(COLOURS)}; "
        f"SHAPE one of {', '.join(SHAPES)}; GROUND one of {', '.join(GROUNDS)}"
    )


def random_scene(rng: np.random.Generator, prompt: str | None = None, room: Room = ROOM) -> Scene:
    """Draw a scene's free parameters, and its words too where no prompt fixes them."""
    if prompt is None:
        colour, shape, ground = (str(rng.choice(tuple(names))) for names in (COLOURS, SHAPES, GROUNDS))
    else:
        colour, shape, ground = parse_prompt(prompt)
    return Scene(
        shape=shape,
        colour=colour,
        ground=ground,
        side=rng.uniform(*room.side),
        centre=(rng.uniform(*room.centre), rng.uniform(*room.centre)),
        horizon=rng.uniform(*room.horizon),
        stripe_sign=int(rng.choice((-1, 1))),
        phases=tuple(rng.uniform(0, 2 * np.pi, 3)),
    )


def signed_distance(shape: str, rows: np.ndarray, cols: np.ndarray, side: float) -> np.ndarray:
    """Distance in pixels to the outline, negative inside; `rows`, `cols` are offsets from the object's centre."""
    half = side / 2
    if shape == "disc":
        return np.hypot(rows, cols) - half
    if shape == "square":
        return np.maximum(np.abs(rows), np.abs(cols)) - half
    if shape == "triangle":  # isosceles, apex up, as tall as it is wide at its foot
        slope = np.hypot(1.0, 0.5)
        return np.maximum(rows - half, (np.abs(cols) - (rows + half) / 2) / slope)
    raise ValueError(f"shape {shape!r} is not one of {', '.join(SHAPES)}")


def object_mask(scene: Scene, height: int, width: int) -> np.ndarray:
    """(height, width) coverage of the object in [0, 1], one pixel of anti-aliasing."""
    rows, cols = np.mgrid[0:height, 0:width] + 0.5
    distance = signed_distance(
        scene.shape,
        rows - scene.centre[0] * height,
        cols - scene.centre[1] * width,
        scene.side * min(height, width),
    )
    return np.clip(0.5 - distance, 0.0, 1.0)


def depth_map(scene: Scene, height: int, width: int) -> np.ndarray:
    """(height, width) float32 nearness in [0, 1]: sky 0, the ground nearer towards the foot, the object nearest."""
    rows = np.mgrid[0:height, 0:width][0] + 0.5
    below = np.clip(rows - scene.horizon * height + 0.5, 0, 1)
    ground = below * (0.2 + 0.4 * (rows / height - scene.horizon) / (1 - scene.horizon))
    inside = object_mask(scene, height, width)
    return (inside + (1 - inside) * ground).astype(np.float32)


def drawn_patterns(scene: Scene, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """The (height, width) stripes and checker, in [-1, 1]."""
    rows, cols = np.mgrid[0:height, 0:width] + 0.5
    across = (cols + scene.stripe_sign * rows) / np.sqrt(2)
    stripes = np.clip(2.0 * np.cos(2 * np.pi * across / STRIPE_PERIOD + scene.phases[0]), -1, 1)
    checker = np.clip(
        3.0
        * np.cos(2 * np.pi * rows / CHECKER_PERIOD + scene.phases[1])
        * np.cos(2 * np.pi * cols / CHECKER_PERIOD + scene.phases[2]),
        -1,
        1,
    )
    return stripes, checker


def render(scene: Scene, height: int, width: int, patterns: Patterns = drawn_patterns) -> np.ndarray:
    """The scene as (height, width, 3) float32 in [0, 1]; layout scales with the frame, texture does not."""
    on_thing, on_ground = patterns(scene, height, width)
    rows = np.mgrid[0:height, 0:width][0] + 0.5
    depth = np.clip(rows / (scene.horizon * height), 0, 1)[..., None]
    sky = (1 - depth) * np.array(SKY_TOP) + depth * np.array(SKY_BOTTOM)
    ground = (0.78 + 0.22 * on_ground)[..., None] * np.array(GROUNDS[scene.ground])
    thing = (0.70 + 0.30 * on_thing)[..., None] * np.array(COLOURS[scene.colour])
    below = np.clip(rows - scene.horizon * height + 0.5, 0, 1)[..., None]
    inside = object_mask(scene, height, width)[..., None]
    picture = inside * thing + (1 - inside) * (below * ground + (1 - below) * sky)
    return (picture / 255).astype(np.float32)
