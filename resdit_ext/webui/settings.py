"""The page "ResDiT High-Res" of the WebUI's settings, and the values set there; without a host, the defaults."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from dataclasses import dataclass

from ..control.token_nets import MODES
from ..method.config import PRESETS
from ..version import TITLE
from .options import BY_NAME, DEFAULTS, preset_values
from .sizes import PIXELS_PER_TOKEN

SECTION = ("resdit", TITLE)
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
        """The saved value; the default where there is no host, or what is saved is none of the choices."""
        try:
            from modules import shared
        except ImportError:
            return self.default
        value = getattr(shared.opts, self.key, self.default)
        return value if value in self.choices else self.default


PRESET = Setting(
    "resdit_default_preset", "Preset at start", "Balanced", tuple(PRESETS), "selected when the page loads", True
)
SIZE = Setting(
    "resdit_default_size",
    "Output size at start",
    DEFAULTS["size"],
    BY_NAME["size"].choices,
    "selected when the page loads",
    True,
)
VAE_TILING = Setting(
    "resdit_vae_tiling",
    "Tiled VAE for pictures made with ResDiT",
    "Auto",
    ("Auto", "Always", "Never"),
    "Auto: only when the whole picture does not fit into memory",
)
UNION_MODE = Setting(
    "resdit_union_mode",
    "Control type for a union ControlNet",
    "canny",
    tuple(MODES),
    "used when neither the panel nor the preprocessor sets one",
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
    """Show the messages that the user wants to see."""
    logging.getLogger("ResDiT").setLevel(LEVELS[verbosity()])


def verbosity() -> str:
    """Which messages the console shows: "Quiet", "Normal" or "Detailed"."""
    return VERBOSITY.value()


def vae_tiling() -> str:
    """When the VAE works in tiles: "Auto", "Always" or "Never"."""
    return VAE_TILING.value()


def union_mode() -> str:
    """The control type for a net that serves several, where nothing else sets one."""
    return UNION_MODE.value()


def default_preset() -> str:
    """The built-in preset that is selected when the page loads."""
    return PRESET.value()


def size_step() -> int:
    """Sides of a picture are multiples of this: of a token's pixels, and of the step that is set in Forge Neo."""
    try:
        from modules import shared
    except ImportError:
        return PIXELS_PER_TOKEN
    step = getattr(shared.opts, "res_step", PIXELS_PER_TOKEN)
    return math.lcm(PIXELS_PER_TOKEN, int(step))


def defaults() -> dict[str, object]:
    """The options whose values on a new page are not the table's defaults; the API keeps those."""
    values = preset_values(default_preset()) | {"size": SIZE.value()}
    return {name: value for name, value in values.items() if value != DEFAULTS[name]}
