"""Forge, Forge Neo and ersatzForge: what the page and the hooks want of them, each in a module of this folder."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec

from ...families import Family, RecognisedModel
from ...method.run import Run
from ..protocol import ControlServices, Say
from . import control_panel, control_unit, model, vae


class Forge:
    """The `Host` of Forge and its forks."""

    name = "Forge"

    def is_running(self) -> bool:
        return find_spec("modules_forge") is not None

    def made(self, p: object) -> bool:
        return hasattr(p.sd_model, "forge_objects")

    def model_of(self, p: object) -> object:
        return p.sd_model.forge_objects.unet.model.diffusion_model

    def advice(self) -> str:
        return ""

    def check_samplers(self, p: object) -> None:
        """All of them call the model function."""

    def attach(self, p: object, recognised: RecognisedModel, run: Run) -> None:
        p.sd_model.forge_objects.unet = model.attach(p.sd_model.forge_objects.unet, recognised, run)

    def is_attached(self, p: object) -> bool:
        return model.ATTACHED in p.sd_model.forge_objects.unet.model_options

    def prepare_decode(self, p: object, width: int, height: int, policy: str, say: Say) -> None:
        vae.prepare_decode(p, width, height, policy, say)

    def release_decode(self, p: object) -> None:
        vae.release_decode(p)

    def register_control(self, services: ControlServices) -> None:
        control_unit.register(services)

    def unregister_control(self) -> None:
        control_unit.unregister()

    def before_units_are_prepared(self, p: object, act: Callable[[object], None]) -> None:
        control_panel.before_units_are_prepared(p, act)

    def control_note(self) -> str | None:
        return None

    def review_units(self, p: object, most: int | None, family: Family | None, say: Say) -> None:
        control_panel.review_units(p, most, family, say)

    def report_units(self, p: object, say: Say) -> None:
        control_panel.report_units(p, say)
