"""The translations: every text of the accordion and of the settings has one, and none is of a text that is gone."""

import json
import re
from contextlib import contextmanager
from pathlib import Path

import gradio as gr
import pytest

from resdit_ext.hosts.a1111 import A1111
from resdit_ext.method.config import PRESETS
from resdit_ext.webui import readout
from resdit_ext.webui.options import DEFAULTS, OPTIONS
from resdit_ext.webui.presets import PresetStore
from resdit_ext.webui.settings import SETTINGS
from resdit_ext.webui.ui import HOST_DEFAULTS, Accordion, forecast_of_page

FOLDER = Path(__file__).parents[1] / "localizations"
LANGUAGES = {"zh_CN", "ja_JP"}
# Names and formulas, which are the same in every language.
LEFT = {"WebUI", "2K", "3K", "4K", "log", "sqrt-log", "ntk", "yarn", "rpe-2d"}


def load(language):
    def once(pairs):
        assert len(dict(pairs)) == len(pairs), "a key occurs twice"
        return dict(pairs)

    return json.loads((FOLDER / f"{language}.json").read_text(encoding="utf8"), object_pairs_hook=once)


@pytest.fixture(scope="module")
def shown(tmp_path_factory):
    """Every text of ours that the WebUI's localization finds: the accordion, its read-out and the settings' page."""
    texts = set()

    @contextmanager
    def input_accordion(value, label, elem_id):
        with gr.Accordion(label, open=value):
            yield gr.Checkbox(value, label=label)

    def tool_button(text, elem_id, tooltip):
        texts.add(tooltip)
        return gr.Button(text, elem_id=elem_id)

    with gr.Blocks() as page:
        Accordion("txt2img", input_accordion, tool_button, PresetStore(tmp_path_factory.mktemp("own") / "presets.json"))
    for block in page.blocks.values():
        texts |= {getattr(block, name, None) for name in ("label", "info", "placeholder")}
        texts |= {name for name, _ in getattr(block, "choices", None) or ()}
        if isinstance(block, gr.Button):
            texts.add(block.value)
    texts.add(A1111().control_note())
    texts |= {name for name, _ in readout.figures(forecast_of_page(HOST_DEFAULTS, tuple(DEFAULTS.values())))}
    for setting in SETTINGS:
        texts |= {setting.label, f"({setting.info})", *setting.choices}  # the hosts put the parentheses
    return {text for text in texts - {None} if any(c.isascii() and c.isalpha() for c in text)} - LEFT


def test_the_languages_are_there():
    assert {path.stem for path in FOLDER.iterdir()} == LANGUAGES


@pytest.mark.parametrize("language", sorted(LANGUAGES))
def test_every_text_is_translated_and_nothing_else(shown, language):
    translated = load(language)
    assert set(translated) == shown
    assert all(isinstance(text, str) and text.strip() == text != "" for text in translated.values())


def test_the_option_table_and_the_presets_are_on_the_page(shown):
    table = {text for option in OPTIONS for text in (option.label, option.info, *option.choices)} - {""}
    wanted = {text for text in table if any(map(str.isalpha, text))} | set(PRESETS) | {"Advanced"}
    assert wanted - LEFT <= shown


@pytest.mark.parametrize("language", sorted(LANGUAGES))
def test_translations_are_in_the_language(language):
    assert all(any(ord(character) > 0x3000 for character in text) for text in load(language).values())


@pytest.mark.parametrize("language", sorted(LANGUAGES))
def test_no_two_choices_of_one_control_look_the_same(language):
    translated = load(language)
    for choices in (*(option.choices for option in OPTIONS), PRESETS):
        assert len({translated.get(choice, choice) for choice in choices}) == len(choices)


@pytest.mark.parametrize("language", sorted(LANGUAGES))
def test_no_text_names_a_model(shown, language):
    """The page is made before a model is chosen, and is the same for every family."""
    assert not [text for text in (*shown, *load(language).values()) if re.search("flux|sd ?3|chroma", text, re.I)]
