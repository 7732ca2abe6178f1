"""The accordion, built from the option table; it knows gradio (3.41 to 6) and no host."""

from __future__ import annotations

import html
from collections.abc import Callable, Mapping
from types import SimpleNamespace

import gradio as gr

from ..errors import ResDiTError
from ..hosts import fixed_size, loaded_model
from . import readout, settings
from .forecast import Forecast
from .option import ADVANCED, METHOD, Option
from .options import BY_NAME, DEFAULTS, OPTIONS, parse_request
from .passes import forecast_of, set_size
from .preset_row import QUIET, PresetRow
from .presets import PresetStore
from .send_size import SendSize
from .sizes import CUSTOM_SIZE, FREE_RATIO, LONG_SIDES, WEBUI_RATIO, WEBUI_SIZE, snap

# The host's controls that the read-out follows, by their names in the host's `p`; the values for a page without them.
HOST_DEFAULTS = {
    "width": 1024,
    "height": 1024,
    "steps": 20,
    "denoising_strength": 0.75,
    "enable_hr": False,
    "hr_second_pass_steps": 0,
    "hr_scale": 2.0,
    "hr_resize_x": 0,
    "hr_resize_y": 0,
    "init_images": (),
    "prompt": "",
}
OWN_NUMBERS = "The method's own numbers, for experiments"
POSITIVE = ("width", "height", "steps")  # an emptied field is None or 0
WHOLE = ("width", "height", "steps", "hr_second_pass_steps", "hr_resize_x", "hr_resize_y")


def component(option: Option, elem_id: str, value: object) -> gr.components.Component:
    """The widget of one row of the table."""
    common = dict(label=option.label, value=value, elem_id=elem_id, info=option.info or None)
    if option.kind == "bool":
        made = gr.Checkbox(**common)
    elif option.kind == "scale":
        made = gr.Dropdown(**common, choices=list(option.choices), allow_custom_value=True)
    elif option.kind == "choice":
        widget = gr.Radio if len(option.choices) <= 5 else gr.Dropdown
        made = widget(**common, choices=list(option.choices))
    else:
        made = gr.Slider(**common, minimum=option.low, maximum=option.high, step=option.step)
    made.do_not_save_to_config = True  # a saved bound or default would freeze later releases
    return made


def forecast_of_page(host: Mapping[str, object], args: tuple) -> Forecast:
    """What ResDiT will do with these options and the page's own values; an error is the reason why it does nothing."""
    p = SimpleNamespace(**HOST_DEFAULTS | host)
    for name in WHOLE:
        setattr(p, name, int(getattr(p, name)))
    try:
        request = parse_request((True, *args[1:]))
        set_size(p, request, {})
        p.width, p.height = fixed_size(loaded_model(), p.width, p.height)
        return forecast_of(p, request)
    except ResDiTError as error:
        return Forecast(p.width, p.height, p.steps, idle=str(error))


def enlarged(size: str, ratio: str, width: float | None, height: float | None) -> list[object]:
    """With the ratio Free: width and height after a click on 2K, 3K or 4K, scaled to that long side."""
    if ratio != FREE_RATIO or size not in LONG_SIDES or not width or not height:
        return [gr.update(), gr.update()]
    scale = LONG_SIDES[size] / max(width, height)
    low = BY_NAME["width"].low
    return [max(low, snap(side * scale, settings.size_step())) for side in (width, height)]


class Accordion:
    """One tab's accordion.

    Attributes:
        components: the options' widgets, in the table's order.
    """

    def __init__(
        self,
        tab: str,
        input_accordion: Callable,
        tool_button: Callable,
        store: PresetStore,
        defaults: Mapping[str, object] = DEFAULTS,
        note: str | None = None,
    ) -> None:
        """Build it inside the current gradio page.

        Args:
            tab: "txt2img" or "img2img", part of every element's id.
            input_accordion: the host's accordion with a checkbox, `(value, label=, elem_id=)`.
            tool_button: the host's small button.
            store: the user's own presets.
            defaults: the options' values when the page loads.
            note: a line for the user on what this host cannot do.
        """
        self.prefix = f"{tab}_resdit"
        self.given = {"init_images": (None,)} if tab == "img2img" else {}
        by_name: dict[str, gr.components.Component] = {}

        def add(*names: str) -> None:
            rows = {option.name: option for option in OPTIONS}
            by_name.update({name: component(rows[name], f"{self.prefix}_{name}", defaults[name]) for name in names})

        enabled, free, custom = OPTIONS[0], defaults["ratio"] == FREE_RATIO, defaults["size"] == CUSTOM_SIZE
        with input_accordion(defaults["enabled"], label=enabled.label, elem_id=self.prefix) as by_name[enabled.name]:
            by_name[enabled.name].do_not_save_to_config = True
            self.presets = PresetRow(self.prefix, store, defaults)
            with gr.Row(elem_classes="resdit-row"):
                add("size")
                self.send = SendSize(self.prefix, tool_button)
            with gr.Row(elem_classes="resdit-row", visible=defaults["size"] != WEBUI_SIZE) as ratio_row:
                add("ratio", "portrait")
                swap = tool_button("\u21c5", elem_id=f"{self.prefix}_swap", tooltip="Swap width and height")
            with gr.Row(elem_classes="resdit-row", visible=custom and not free) as long_row:
                add("long_side")
            with gr.Row(elem_classes="resdit-row", visible=free) as free_row:
                add("width", "height")
            add("compare")
            start = readout.html(forecast_of_page(self.given, tuple(defaults.values())))
            with gr.Column(elem_id=f"{self.prefix}_status"):  # gradio 3 would give the text's id to two elements
                self.status = gr.HTML(start)
            if note:
                gr.HTML(f"<p>{html.escape(note)}</p>")
            with gr.Accordion("Advanced", open=False, elem_id=f"{self.prefix}_advanced"):
                add(*(option.name for option in OPTIONS if option.place == ADVANCED))
                with gr.Accordion(OWN_NUMBERS, open=False, elem_id=f"{self.prefix}_method"):
                    add(*(option.name for option in OPTIONS if option.place == METHOD))
                self.presets.build_own(tool_button)
        self.by_name = {option.name: by_name[option.name] for option in OPTIONS}
        self.components, self.rows = list(self.by_name.values()), [ratio_row, long_row, free_row]
        rotated = [by_name[name] for name in ("portrait", "width", "height")]
        swap.click(lambda portrait, w, h: (not portrait, h, w), inputs=rotated, outputs=rotated, **QUIET)
        sides = [by_name["width"], by_name["height"]]
        by_name["size"].input(enlarged, inputs=[by_name["size"], by_name["ratio"], *sides], outputs=sides, **QUIET)
        self.presets.connect(by_name)

    def follow(self, host: dict[str, gr.components.Component]) -> None:
        """Keep the read-out up to date with our options and the host's controls.

        Call this once: a second handler for the same component would race with this one.

        Args:
            host: `width`, `height`, `steps`, and of the other names of `HOST_DEFAULTS` those that the page has.
        """
        names = list(host)

        def refresh(preset: str | None, *values: object) -> tuple:
            given, options = values[: len(names)], values[len(names) :]
            page = zip(names, given, strict=True)
            known = {name: value for name, value in page if value or (value is not None and name not in POSITIVE)}
            chosen = dict(zip(self.by_name, options, strict=True))
            sized, free = chosen["size"] != WEBUI_SIZE, chosen["ratio"] == FREE_RATIO
            return (
                readout.html(forecast_of_page(self.given | known, options)),
                gr.update(visible=sized),
                gr.update(visible=chosen["size"] == CUSTOM_SIZE and not free),
                gr.update(visible=sized and free),
                gr.update(interactive=chosen["ratio"] != WEBUI_RATIO and not free),
                self.presets.matching(preset, chosen),
                # With the ratio Free the size is a custom one, whatever a pasted picture or a click says.
                CUSTOM_SIZE if sized and free else gr.update(),
            )

        # Of the prompt only its LoRAs count, so it is read when it is left and not at every key.
        prompt = [host["prompt"].blur] if "prompt" in host else []
        others = [component for name, component in host.items() if name != "prompt"]
        for event in (*prompt, *(source.change for source in (*others, *self.components))):
            event(
                refresh,
                inputs=[self.presets.chosen, *host.values(), *self.components],
                outputs=[
                    self.status,
                    *self.rows,
                    self.by_name["portrait"],
                    self.presets.chosen,
                    self.by_name["size"],
                ],
                **QUIET,
            )
        self.send.connect(self.components, host)
