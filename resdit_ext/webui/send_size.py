"""Two small buttons: set the WebUI's own sliders, which end at 2048, to our size, and restore theirs."""

from __future__ import annotations

from collections.abc import Callable

import gradio as gr

from ..errors import ResDiTError
from . import settings
from .options import BY_NAME, OPTIONS, parse_request
from .preset_row import QUIET
from .sizes import MAX_SIDE, WEBUI_SIZE, output_size

SIZE = [option.name for option in OPTIONS].index("size")


class SendSize:
    """The buttons of one tab; the old size is kept in the page alone."""

    def __init__(self, prefix: str, tool_button: Callable) -> None:
        self.there = tool_button("\u2197", elem_id=f"{prefix}_send", tooltip="Send to WebUI size")
        self.back = tool_button("\u21a9", elem_id=f"{prefix}_back", tooltip="Restore WebUI size")
        self.before = gr.State(None)  # (width, height, our size) as they were

    def connect(self, options: list[gr.components.Component], host: dict[str, gr.components.Component]) -> None:
        """Bind the buttons to our options and the host's width and height, whose bounds come back with the old size."""
        sides = [host["width"], host["height"]]
        bounds = [side.maximum for side in sides]
        size = options[SIZE]

        def send(width: int, height: int, before: tuple | None, *args: object) -> tuple:
            try:
                request = parse_request((True, *args[1:]))
            except ResDiTError:  # the read-out says what is wrong
                return gr.update(), gr.update(), gr.update(), before
            new = output_size(request.values, width, height, settings.size_step())
            lifted = [gr.update(value=v, maximum=max(b, MAX_SIDE)) for v, b in zip(new, bounds, strict=True)]
            return *lifted, WEBUI_SIZE, before or (width, height, args[SIZE])

        def restore(before: tuple | None) -> tuple:
            if before is None:
                return gr.update(), gr.update(), gr.update(), None
            *old, ours = before
            lowered = [gr.update(value=v, maximum=max(b, v)) for v, b in zip(old, bounds, strict=True)]
            return *lowered, ours if ours in BY_NAME["size"].choices else gr.update(), None

        outputs = [*sides, size, self.before]
        self.there.click(send, inputs=[*sides, self.before, *options], outputs=outputs, **QUIET)
        self.back.click(restore, inputs=self.before, outputs=outputs, **QUIET)
