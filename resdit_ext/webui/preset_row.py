"""The list of presets, built-in and the user's own, and the controls that save, rename and delete the latter."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from html import escape

import gradio as gr

from ..errors import ResDiTError, quoted
from ..method.config import PRESETS
from .options import PARAMETERS, preset_values
from .presets import PresetStore, check_name

QUIET = dict(queue=False, show_progress=False)


def built_in(values: Mapping[str, object]) -> str | None:
    """The built-in preset that these options match, if any."""
    return next((name for name in PRESETS if preset_values(name).items() <= values.items()), None)


class PresetRow:
    """Both parts in one tab: the list on top, and below it the controls of the user's own presets."""

    def __init__(self, prefix: str, store: PresetStore, values: Mapping[str, object]) -> None:
        self.prefix, self.store = prefix, store
        self.chosen = gr.Dropdown(
            self.names()[0],
            label="Preset",
            value=built_in(values),
            elem_id=f"{prefix}_preset",
            info="Sets several options at once; you can still change each of them",
        )
        self.chosen.do_not_save_to_config = True

    def names(self) -> tuple[list[str], str | None]:
        """All presets' names, and a message about what is wrong with the user's file, if anything."""
        own, problem = self.store.load()
        return [*PRESETS, *own], problem

    def matching(self, chosen: str | None, values: Mapping[str, object]) -> str | None:
        """The preset that the page's options match: the chosen one if it does, else a built-in or one of the user's.

        No file is read, as this runs on every move of a slider.
        """
        own = {name: mine for name, mine in self.store.known.items() if mine.items() <= values.items()}
        return chosen if chosen in own else built_in(values) or next(iter(own), None)

    def build_own(self, tool_button: Callable) -> None:
        """The controls of the user's own presets."""
        with gr.Row(elem_classes="resdit-row"):
            self.name = gr.Textbox(label="Preset name", elem_id=f"{self.prefix}_preset_name", max_lines=1)
            self.name.do_not_save_to_config = True
            self.buttons = {
                verb: tool_button(icon, elem_id=f"{self.prefix}_preset_{verb.lower()}", tooltip=f"{verb} preset")
                for verb, icon in (("Save", "\U0001f4be"), ("Rename", "\u270f\ufe0f"), ("Delete", "\U0001f5d1\ufe0f"))
            }
        self.message = gr.HTML("", elem_id=f"{self.prefix}_preset_message")

    def connect(self, by_name: dict[str, gr.components.Component]) -> None:
        """Bind the list and the buttons to the options' widgets."""
        fields = [by_name[name] for name in PARAMETERS]

        def values_of(name: str) -> list[object]:
            own, _ = self.store.load()
            try:
                values = own[name] if name in own else preset_values(name)
            except ResDiTError:  # deleted in another tab
                return [gr.update()] * len(PARAMETERS)
            return [values[field] for field in PARAMETERS]

        self.chosen.input(values_of, inputs=self.chosen, outputs=fields, **QUIET)

        def answer(done: str, chosen: str, problem: str | None = None) -> tuple:
            names, trouble = self.names()
            text = " ".join(filter(None, (problem or done, trouble)))
            update = gr.update(choices=names, value=chosen if chosen in names else "Balanced")
            return update, f'<p class="resdit-message">{escape(text)}</p>'

        def guarded(act: Callable[..., tuple[str, str]]) -> Callable[..., tuple]:
            def handler(name: str, chosen: str, *values: object) -> tuple:
                try:
                    return answer(*act(name, chosen, values))
                except ResDiTError as error:
                    return answer("", chosen, str(error))

            return handler

        def save(name: str, _: str, values: tuple) -> tuple[str, str]:
            name = check_name(name)
            self.store.save(name, dict(zip(PARAMETERS, values, strict=True)))
            return f"saved {quoted(name)}", name

        def rename(name: str, chosen: str, _: tuple) -> tuple[str, str]:
            name = check_name(name)
            self.store.rename(chosen, name)
            return f"renamed {quoted(chosen)} to {quoted(name)}", name

        def delete(_: str, chosen: str, __: tuple) -> tuple[str, str]:
            self.store.delete(chosen)
            return f"deleted {quoted(chosen)}", "Balanced"

        for verb, act in (("Save", save), ("Rename", rename), ("Delete", delete)):
            self.buttons[verb].click(
                guarded(act),
                inputs=[self.name, self.chosen, *fields],
                outputs=[self.chosen, self.message],
                **QUIET,
            )
