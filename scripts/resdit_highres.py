"""Registers ResDiT High-Res with the WebUI; everything it does is in the package `resdit_ext`."""

from pathlib import Path

from modules import script_callbacks, scripts, shared
from modules.ui_components import InputAccordion, ToolButton

from resdit_ext.version import TITLE
from resdit_ext.webui import api, control, infotext, lifecycle, routes, settings, xyz
from resdit_ext.webui.options import DEFAULTS, OPTIONS
from resdit_ext.webui.presets import PresetStore
from resdit_ext.webui.ui import Accordion

# The host's controls that the read-out follows, by the ends of their ids, under the names of the host's `p`.
FOLLOWED = {
    "prompt": "prompt",
    "width": "width",
    "height": "height",
    "steps": "steps",
    "denoising_strength": "denoising_strength",
    "hr-checkbox": "enable_hr",
    "hires_steps": "hr_second_pass_steps",
    "hr_scale": "hr_scale",
    "hr_resize_x": "hr_resize_x",
    "hr_resize_y": "hr_resize_y",
}
STORE = PresetStore(Path(__file__).parents[1] / "user_presets.json")


class ResDiTHighRes(scripts.Script):
    def __init__(self):
        super().__init__()
        self.accordion = None
        self.host = {}

    def title(self):
        return TITLE

    def show(self, is_img2img):
        return scripts.AlwaysVisible

    def ui(self, is_img2img):
        tab = "img2img" if is_img2img else "txt2img"
        defaults = DEFAULTS | settings.defaults()
        self.accordion = Accordion(tab, InputAccordion, ToolButton, STORE, defaults, control.page_note())
        self.infotext_fields = [
            (component, infotext.PasteField(option))
            for component, option in zip(self.accordion.components, OPTIONS, strict=True)
        ]
        self.paste_field_names = [name for _, name in self.infotext_fields]
        return self.accordion.components

    def after_component(self, component, **kwargs):
        tab, _, name = (kwargs.get("elem_id") or "").partition("_")
        if tab != ("img2img" if self.is_img2img else "txt2img"):
            return
        if name in FOLLOWED:
            self.host[FOLLOWED[name]] = component
        # The pictures come last on the page, wherever the user has put the rest.
        if name == "gallery" and {"width", "height", "steps"} <= self.host.keys():
            self.accordion.follow(self.host)

    def before_process(self, p, *args):
        lifecycle.before_process(p, *args)
        control.before_process(p)

    def process(self, p, *args):
        lifecycle.process(p, *args)

    def process_before_every_sampling(self, p, *args, **kwargs):
        control.before_sampling(p)
        lifecycle.before_sampling(p, *args, **kwargs)

    def postprocess_batch(self, p, *args, **kwargs):
        lifecycle.after_batch(p)

    def postprocess(self, p, processed, *args):
        lifecycle.postprocess(p, processed)


lifecycle.log_to_console()
control.register()
script_callbacks.on_cfg_denoiser(lambda params: lifecycle.before_step(params.denoiser.p))
script_callbacks.on_script_unloaded(control.unregister)
script_callbacks.on_app_started(lambda _, app: api.add_validation(app))
script_callbacks.on_app_started(lambda _, app: routes.add_routes(app))
script_callbacks.on_ui_settings(lambda: settings.register(shared.opts, shared.OptionInfo))
script_callbacks.on_before_ui(settings.set_log_level)
script_callbacks.on_before_ui(xyz.add_axes)
