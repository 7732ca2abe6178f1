"""What a field test makes: twelve prompts and seeds, the sizes, the methods, and the pictures of all of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from ..errors import ResDiTError
from ..method.config import PRESETS, check_choice, check_number

BASE = "base"  # the size, and the method, of the model's own picture
PLAIN, HIRES = "plain", "hires pass"
STRENGTH = 0.5  # the hires pass's denoising strength
#: (width, height) in sides of the base size: 2048 pixels are two where that is 1024.
SIZES = {"2K": (2, 2), "3K": (3, 3), "4K": (4, 4), "4K 2:1": (4, 2)}
#: ResDiT's methods: a preset and what differs from it. How much new noise real models want only such a test can tell.
VARIANTS = {name: (name, {}) for name in PRESETS} | {"noise kept": ("Balanced", {"fresh_noise": 0.0})}
METHODS = (PLAIN, HIRES, *VARIANTS)
SAMPLERS = ("Euler", "Euler a", "LCM")


@dataclass(frozen=True)
class Scene:
    """A prompt and the seed that it is made with."""

    prompt: str
    seed: int


#: For what goes wrong at large sizes: one subject, faces, straight lines, writing, textures, many things.
SCENES = tuple(
    Scene(prompt, 1000 + number)
    for number, prompt in enumerate(
        (
            "a lighthouse on a rocky coast at dusk, long exposure, photograph",
            "portrait of an old fisherman in a yellow raincoat, photograph, 85 mm lens",
            "a red fox sleeping in autumn leaves, fur in fine detail, photograph",
            "the nave of a gothic cathedral, symmetrical, sunlight through stained glass",
            "a wooden sign in a garden that says OPEN ON SUNDAYS, photograph",
            "a busy street market in the rain seen from above, many umbrellas",
            "a mountain lake with a clear reflection, one small boat in the middle",
            "a mechanical watch without its case, gears and jewels, macro photograph",
            "a brick house with a tiled roof and a picket fence, straight on, overcast",
            "an astronaut riding a white horse on the moon, the Earth in the sky",
            "a watercolour painting of a sailing ship between icebergs",
            "a plate of sushi on a dark slate table, studio light, photograph",
        )
    )
)


@dataclass(frozen=True)
class FieldOptions:
    """What is made of a field test, and how.

    Attributes:
        prompts: how many of the twelve, from the first.
        sizes, methods: which, in this order.
        steps: of every picture; the hires pass runs half as many at its size.
        sampler: "Euler", "Euler a" (micro models and WebUIs) or "LCM".
        guidance: None for the pipeline's own, or in a WebUI for a CFG Scale of 1, as FLUX needs it.
        page_megabytes: about how large the page may be; its pictures are reduced for that.
    """

    prompts: int = 12
    sizes: tuple[str, ...] = tuple(SIZES)
    methods: tuple[str, ...] = METHODS
    steps: int = 28
    sampler: str = "Euler"
    guidance: float | None = None
    page_megabytes: int = field(default=150, compare=False)

    def __post_init__(self) -> None:
        check_number("prompts", self.prompts, 1, len(SCENES), whole=True)
        check_number("steps", self.steps, 2, 150, whole=True)
        check_number("page_megabytes", self.page_megabytes, 1, 2000, whole=True)
        if self.guidance is not None:
            check_number("guidance", self.guidance, 0, 30)
        check_choice("sampler", self.sampler, SAMPLERS)
        for name, allowed in (("sizes", tuple(SIZES)), ("methods", METHODS)):
            if not getattr(self, name):
                raise ResDiTError(f"{name} is empty; choose from {', '.join(allowed)}")
            for value in getattr(self, name):
                check_choice(name, value, allowed)


@dataclass(frozen=True)
class Order:
    """One picture to make.

    Attributes:
        number: of its scene, from 0.
        scene: its prompt and seed.
        size, method: by name; both "base" for the model's own picture at its base size.
        width, height: in pixels.
    """

    number: int
    scene: Scene
    size: str
    method: str
    width: int
    height: int

    @property
    def key(self) -> str:
        return f"{self.number:02}/{self.size}/{self.method}"

    def at_base(self, base: int, token: int) -> tuple[int, int]:
        """(width, height) of the same frame at the base size, in whole tokens: a hires pass's first picture."""
        shrink = base / (self.width * self.height) ** 0.5
        return tuple(token * round(side * shrink / token) for side in (self.width, self.height))

    @property
    def file(self) -> str:
        """The name of the picture's file."""
        return "_".join(self.key.replace(":", "-").replace("/", " ").split()) + ".png"


def orders(options: FieldOptions, scenes: Sequence[Scene], base: int) -> list[Order]:
    """All pictures in the order in which they are made: prompt by prompt, so that a part of the test is one too.

    Args:
        options: what is to be made.
        scenes: twelve of them.
        base: pixels a side of the model's base size.
    """
    found = []
    for number, scene in enumerate(scenes[: options.prompts]):
        found.append(Order(number, scene, BASE, BASE, base, base))
        for size in options.sizes:
            width, height = (base * sides for sides in SIZES[size])
            found += [Order(number, scene, size, method, width, height) for method in options.methods]
    return found
