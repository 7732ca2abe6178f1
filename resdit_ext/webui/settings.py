"""The page "ResDiT High-Res" of the WebUI's settings, and what is set there; without a host, the defaults."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from dataclasses import dataclass

from ..control.flux import MODES
from ..method.config import PRESETS
from .options import BY_NAME, DEFAULTS, preset_values
from .sizes import PIXELS_PER_TOKEN

SECTION = ("resdit", "ResDiT High-Res")
CATEGORY = "sd"  # "Stable Diffusion" in every host
LEVELS = {"Quiet": logging.WARNING, "Normal": logging.INFO, "Detailed": logging.DEBUG}


@dataclass(frozen=True)
class Setting:
    """One row of the page."""

    key: str
    label: str
    default: str
    choices: tuple[str, ...]
    info: str
    needs_reload: bool = False

    def value(self) -> str:
        """What is set; the default where there is no host, or the saved value is none of the choices."""
        try:
            from modules import shared
        except ImportError:
            return self.default
        value = getattr(shared.opts, self.key, self.default)
        return value if value in self.choices else self.default


PRESET = Setting(
    "resdit_default_preset", "Preset at start", "Balanced", tuple(PRESETS), "what the page begins with", True
)
SIZE = Setting(
    "resdit_default_size",
    "Output size at start",
    DEFAULTS["size"],
    BY_NAME["size"].choices,
    "what the page begins with",
    True,
)
VAE_TILING = Setting(
    "resdit_vae_tiling",
    "Tiled VAE for pictures made with ResDiT",
    "Auto",
    ("Auto", "Always", "Never"),
    "Auto: where the whole picture would not fit into memory",
)
UNION_MODE = Setting(
    "resdit_union_mode",
    "What a union ControlNet's hint shows",
    "canny",
    tuple(MODES),
    "where neither the panel's control type nor a preprocessor tells",
)
VERBOSITY = Setting("resdit_verbosity", "Messages in the console", "Normal", tuple(LEVELS), "Quiet: only problems")
SETTINGS = (PRESET, SIZE, VAE_TILING, UNION_MODE, VERBOSITY)


def register(opts: object, option_info: Callable) -> None:
    """Add the page to the host's options; `option_info` is the host's OptionInfo."""
    import gradio as gr  # here, as reading the settings needs none

    for setting in SETTINGS:
        info = option_info(
            setting.default,
            setting.label,
            gr.Radio,
            {"choices": list(setting.choices)},
            onchange=set_log_level if setting is VERBOSITY else None,
            section=SECTION,
            category_id=CATEGORY,
        ).info(setting.info)
        opts.add_option(setting.key, info.needs_reload_ui() if setting.needs_reload else info)


def set_log_level() -> None:
    """Let through the messages that the user wants to see."""
    logging.getLogger("ResDiT").setLevel(LEVELS[verbosity()])


def verbosity() -> str:
    """How much the console is told: "Quiet", "Normal" or "Detailed"."""
    return VERBOSITY.value()


def vae_tiling() -> str:
    """When the VAE is to work in tiles: "Auto", "Always" or "Never"."""
    return VAE_TILING.value()


def union_mode() -> str:
    """What the hint of a net that serves several kinds shows, where nothing else tells."""
    return UNION_MODE.value()


def default_preset() -> str:
    """The built-in preset that the page begins with."""
    return PRESET.value()


def size_step() -> int:
    """The multiple that sides are to be of: a token's, or the larger one that Forge Neo's own settings have."""
    try:
        from modules import shared
    except ImportError:
        return PIXELS_PER_TOKEN
    step = getattr(shared.opts, "res_step", PIXELS_PER_TOKEN)
    return math.lcm(PIXELS_PER_TOKEN, int(step))


def defaults() -> dict[str, object]:
    """The option values that replace the table's defaults in the page, and nowhere else."""
    values = preset_values(default_preset()) | {"size": SIZE.value()}
    return {name: value for name, value in values.items() if value != DEFAULTS[name]}
