"""The accordion, built from the option table; it knows gradio (3.41 and 4.40) and no host."""

from __future__ import annotations

import html
from collections.abc import Callable

import gradio as gr

from ..config import PRESETS
from ..errors import ResDiTError
from .options import CUSTOM_SIZE, LONG_SIDES, OPTIONS, Option, output_size, parse_request, preset_values
from .status import describe

HOST_DEFAULTS = {"width": 1024, "height": 1024, "steps": 20}


def component(option: Option, elem_id: str) -> gr.components.Component:
    """The widget of one row of the table."""
    common = dict(label=option.label, value=option.default, elem_id=elem_id, info=option.info or None)
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


def status_html(host: dict[str, int], args: tuple) -> str:
    """The status line as HTML; an error in the options is shown, not raised."""
    try:
        request = parse_request((True, *args[1:]))
        width, height = output_size(request.values) or (host["width"], host["height"])
        active, line = describe(request, int(width), int(height), int(host["steps"]))
    except ResDiTError as error:
        active, line, width, height = False, f"not active: {error}", 0, 0
    kind = "resdit-active" if active else "resdit-idle"
    size = f"{width}x{height}" if active else ""
    return f'<div class="resdit-status {kind}" data-size="{size}">{html.escape(line)}</div>'


class Accordion:
    """One tab's accordion.

    Attributes:
        components: the options' widgets, in the table's order.
    """

    def __init__(self, tab: str, input_accordion: Callable, tool_button: Callable) -> None:
        """Build it inside the current gradio page.

        Args:
            tab: "txt2img" or "img2img", part of every element's id.
            input_accordion: the host's accordion with a checkbox, `(value, label=, elem_id=)`.
            tool_button: the host's small button.
        """
        self.prefix = f"{tab}_resdit"
        by_name: dict[str, gr.components.Component] = {}

        def add(*names: str) -> None:
            rows = {option.name: option for option in OPTIONS}
            by_name.update({name: component(rows[name], f"{self.prefix}_{name}") for name in names})

        enabled = OPTIONS[0]
        with input_accordion(enabled.default, label=enabled.label, elem_id=self.prefix) as by_name[enabled.name]:
            by_name[enabled.name].do_not_save_to_config = True
            with gr.Row(elem_classes="resdit-row"):
                add("size")
                swap = tool_button("\u21c5", elem_id=f"{self.prefix}_swap", tooltip="Swap width and height")
            with gr.Row(elem_classes="resdit-row") as self.ratio_row:
                add("ratio", "portrait")
            with gr.Row(elem_classes="resdit-row", visible=False) as self.custom_row:
                add("width", "height")
            add("speed")
            self.status = gr.HTML(status_html(HOST_DEFAULTS, ()), elem_id=f"{self.prefix}_status")
            with gr.Accordion("Advanced", open=False, elem_id=f"{self.prefix}_advanced"):
                with gr.Row():
                    buttons = {
                        name: gr.Button(name, elem_id=f"{self.prefix}_{name.lower().replace(' ', '_')}")
                        for name in PRESETS
                    }
                add(*(option.name for option in OPTIONS if option.advanced))
        self.by_name = by_name
        self.components = [by_name[option.name] for option in OPTIONS]

        quiet = dict(queue=False, show_progress=False)
        by_name["size"].change(
            lambda size: (gr.update(visible=size in LONG_SIDES), gr.update(visible=size == CUSTOM_SIZE)),
            inputs=by_name["size"],
            outputs=[self.ratio_row, self.custom_row],
            **quiet,
        )
        turned = [by_name[name] for name in ("portrait", "width", "height")]
        swap.click(lambda portrait, w, h: (not portrait, h, w), inputs=turned, outputs=turned, **quiet)
        for name, button in buttons.items():
            values = preset_values(name)
            button.click(
                lambda values=values: list(values.values()),
                inputs=[],
                outputs=[by_name[option] for option in values],
                **quiet,
            )

    def follow(self, host: dict[str, gr.components.Component]) -> None:
        """Refresh the status line whenever an option or the host's `width`, `height` or `steps` changes; call once.

        A second handler for the same component would race with the first.
        """
        names = list(host)

        def refresh(*values: object) -> str:
            given, options = values[: len(names)], values[len(names) :]
            known = {name: value for name, value in zip(names, given, strict=True) if value}  # an emptied field is None
            return status_html(HOST_DEFAULTS | known, options)

        for source in (*host.values(), *self.components):
            source.change(
                refresh,
                inputs=[*host.values(), *self.components],
                outputs=self.status,
                queue=False,
                show_progress=False,
            )
