"""What can be chosen of pictures to generate, and which pictures that makes."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from ..errors import ResDiTError, quoted
from ..families import Family
from ..method.config import PRESETS, ResDiTConfig, check_choice, check_number
from ..method.layout import Grid
from ..webui.infotext import parameters
from ..webui.options import parse_request
from ..webui.sizes import MAX_SIDE, MIN_SIDE, PIXELS_PER_TOKEN

OFFLOADS = ("none", "model", "sequential")
SHARES = ("heads", "halves")
SAMPLERS = ("Euler", "LCM")  # as the WebUIs call them; diffusers' stochastic_sampling is the second
DTYPES = ("bfloat16", "float16", "float32")
TILES_FROM = 2048  # pixels a side, on average, above which the autoencoder works in tiles unless told otherwise


@dataclass(frozen=True)
class Picture:
    """One picture to make.

    Attributes:
        prompt: its text.
        seed: of its noise.
        path: its file.
    """

    prompt: str
    seed: int
    path: Path


@dataclass(frozen=True)
class GenerateOptions:
    """What to generate, and how.

    Attributes:
        model: a folder of a diffusers pipeline, or a .safetensors file of a transformer.
        components: where the model is a file, a folder with all other parts.
        prompts: the texts, each for every seed.
        seeds: of the noise.
        size: (width, height) in pixels.
        out: the file of a single picture, the folder of several.
        preset: one of PRESETS.
        base_size: pixels a side of the model's training pictures; None is as usual for the model.
        steps: how many; None is the family's usual number.
        guidance: None is the pipeline's own.
        sampler: one of SAMPLERS.
        share: what several devices share of a model call: its attention heads, or the halves of guidance.
        offload: what waits in the CPU's memory: nothing, each model that is not at work, or each layer.
        vae_tiles: whether the autoencoder works in tiles; None is by size.
        dtype: of the weights; None is bfloat16 on a GPU and float32 on a CPU.
    """

    model: Path
    prompts: tuple[str, ...]
    seeds: tuple[int, ...]
    size: tuple[int, int]
    out: Path
    components: Path | None = None
    preset: str = "Balanced"
    base_size: int | None = None
    steps: int | None = None
    guidance: float | None = None
    sampler: str = "Euler"
    share: str = "heads"
    offload: str = "none"
    vae_tiles: bool | None = None
    dtype: str | None = None

    def __post_init__(self) -> None:
        check_choice("preset", self.preset, tuple(PRESETS))
        check_choice("sampler", self.sampler, SAMPLERS)
        check_choice("share", self.share, SHARES)
        check_choice("offload", self.offload, OFFLOADS)
        if self.steps is not None:
            check_number("steps", self.steps, 1, 1000, whole=True)
        if self.guidance is not None:
            check_number("guidance", self.guidance, 0, 100)
        if self.dtype is not None:
            check_choice("dtype", self.dtype, DTYPES)
        if not self.prompts or not all(text.strip() for text in self.prompts):
            raise ResDiTError(
                "there is no prompt, or an empty one; write --prompt TEXT, or --prompts FILE with one a line"
            )
        self._request, self.pictures()  # which refuse what is out of range before a model is loaded

    def config_for(self, family: Family) -> ResDiTConfig:
        """The method's parameters for a model of a family."""
        return self._request.for_model(family.base_tokens).config

    @property
    def _request(self) -> object:
        width, height = self.size
        given = {"preset": self.preset, "width": width, "height": height}
        return parse_request((given | ({} if self.base_size is None else {"base_size": self.base_size}),))

    @property
    def grid(self) -> Grid:
        """The picture's tokens."""
        return Grid(self.size[1] // PIXELS_PER_TOKEN, self.size[0] // PIXELS_PER_TOKEN)

    @property
    def tiles(self) -> bool:
        """Whether the autoencoder works in tiles."""
        width, height = self.size
        return width * height > TILES_FROM**2 if self.vae_tiles is None else self.vae_tiles

    def pictures(self) -> list[Picture]:
        """What to make: every prompt at every seed, a file each."""
        jobs = [(number, text, seed) for number, text in enumerate(self.prompts) for seed in self.seeds]
        if self.out.suffix.lower() == ".png":
            if len(jobs) > 1:
                raise ResDiTError(f"out is {str(self.out)!r}, a file, for {len(jobs)} pictures; name a folder")
            return [Picture(self.prompts[0], self.seeds[0], self.out)]
        return [Picture(text, seed, self.out / f"{number:04}_{seed}.png") for number, text, seed in jobs]

    def infotext(self, picture: Picture, steps: int, guidance: float | None) -> str:
        """The text in the file, in the WebUIs' form, from which their page can be set."""
        width, height = self.size
        made = {"Steps": steps, "Sampler": self.sampler}
        if guidance is not None:
            made["CFG scale"] = guidance
        made |= {"Seed": picture.seed, "Size": f"{width}x{height}", "Model": self.model.stem}
        rows = made | parameters(self._request)
        return f"{picture.prompt}\n" + ", ".join(f"{key}: {value}" for key, value in rows.items())


def parse_size(text: str) -> tuple[int, int]:
    """`"4096x3072"` -> (4096, 3072); raises ResDiTError where a side cannot be made."""
    found = re.fullmatch(r"(\d+)x(\d+)", text)
    sides = tuple(map(int, found.groups())) if found else ()
    if not sides or any(side % PIXELS_PER_TOKEN or not MIN_SIDE <= side <= MAX_SIDE for side in sides):
        raise ResDiTError(
            f"size is {quoted(text)}; write it as WIDTHxHEIGHT, multiples of {PIXELS_PER_TOKEN} from {MIN_SIDE} to "
            f"{MAX_SIDE}"
        )
    return sides


def parse_seeds(text: str) -> tuple[int, ...]:
    """`"3-5"` -> (3, 4, 5) and `"7"` -> (7,); raises ResDiTError for what is neither."""
    found = re.fullmatch(r"(\d+)(?:-(\d+))?", text)
    first, last = (int(found[1]), int(found[2] or found[1])) if found else (1, 0)
    if first > last or last >= 2**63:
        raise ResDiTError(f"seeds is {quoted(text)}; write a whole number, or the first and the last as 1-8")
    return tuple(range(first, last + 1))
