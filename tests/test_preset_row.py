"""What the list of presets reads, and when: the file is shared, and a slider moves often."""

import json
from pathlib import Path

import gradio as gr
import pytest

from resdit_ext.errors import LONGEST_QUOTE
from resdit_ext.method.config import PRESETS
from resdit_ext.webui.options import DEFAULTS, OPTIONS, PARAMETERS, preset_values
from resdit_ext.webui.presets import PresetStore
from resdit_ext.webui.ui import Accordion
from tests.test_ui import button, functions_of, host_accordion, host_button, values

MINE = preset_values("Paper") | {"cutoff": 0.3}
HOST = ("width", "height", "steps")


@pytest.fixture
def store(tmp_path):
    return PresetStore(tmp_path / "user_presets.json")


@pytest.fixture
def touched(store, monkeypatch):
    """The accesses to the file so far."""
    found = []

    def watch(name):
        own = getattr(Path, name)

        def watched(path, *args):
            if path.parent == store.path.parent:
                found.append(name)
            return own(path, *args)

        monkeypatch.setattr(Path, name, watched)

    for name in ("read_bytes", "replace", "exists"):
        watch(name)
    return found


def build(store, tab="txt2img"):
    with gr.Blocks() as blocks:
        accordion = Accordion(tab, host_accordion, host_button, store)
        accordion.follow({name: gr.Slider(1, 2048, value=512, elem_id=name) for name in HOST})
    return tab, blocks, accordion


def shown(page, chosen="Balanced", **changed):
    """What the list shows after a slider has moved."""
    _, blocks, accordion = page
    (event,) = functions_of(blocks, accordion.by_name["cutoff"])
    made = event.fn(chosen, 512, 512, 20, *((DEFAULTS | changed)[option.name] for option in OPTIONS))
    return made[event.outputs.index(accordion.presets.chosen)]


@pytest.mark.parametrize("content", ["{}", json.dumps({"mine": MINE}), "damaged", None])
def test_a_moved_slider_reads_no_file(store, touched, content):
    if content is not None:
        store.path.write_text(content)
    page = build(store)
    assert touched  # on building
    if content == "damaged":
        store.path.write_text(content)  # anew, since the first is moved aside
    touched.clear()
    for cutoff in (0.1, 0.2, 0.3):
        shown(page, cutoff=cutoff)
    assert not touched


def test_the_file_is_read_on_building_and_on_each_use_of_the_list(store, touched):
    page = build(store)
    assert touched.count("read_bytes") == 1
    _, blocks, accordion = page
    (choose,) = functions_of(blocks, accordion.presets.chosen)
    touched.clear()
    choose.fn("Paper")
    assert touched == ["read_bytes"]
    for act in (
        lambda: values(button(page, "preset_save"), "mine", "Balanced", *MINE.values()),
        lambda: values(button(page, "preset_rename"), "ours", "mine", *MINE.values()),
        lambda: values(button(page, "preset_delete"), "", "ours", *MINE.values()),
    ):
        touched.clear()
        act()
        assert touched.count("read_bytes") == 2  # before writing, and for the list


def test_a_slider_finds_what_was_saved_renamed_and_deleted_in_either_tab(store):
    one, other = build(store), build(store, "img2img")
    values(button(one, "preset_save"), "mine", "Balanced", *MINE.values())
    assert shown(one, **MINE) == shown(other, **MINE) == "mine"
    values(button(other, "preset_rename"), "ours", "mine", *MINE.values())
    assert shown(one, "mine", **MINE) == shown(other, "ours", **MINE) == "ours"
    values(button(one, "preset_delete"), "", "ours", *MINE.values())
    assert shown(one, **MINE) is None and shown(other, "ours", **MINE) is None


def test_another_process_presets_are_found_once_the_list_is_used(store):
    page = build(store)
    PresetStore(store.path).save("theirs", MINE)
    assert shown(page, **MINE) is None
    _, blocks, accordion = page
    (choose,) = functions_of(blocks, accordion.presets.chosen)
    assert choose.fn("theirs") == [MINE[field] for field in PARAMETERS]
    assert shown(page, **MINE) == "theirs"


def test_of_several_that_fit_the_chosen_then_the_built_in_then_the_first_is_shown(store):
    for name in ("first", "second"):
        store.save(name, MINE)
        store.save(f"{name} as Balanced", preset_values("Balanced"))
    page = build(store)
    assert shown(page, "second", **MINE) == "second" and shown(page, "Balanced", **MINE) == "first"
    assert shown(page, "second as Balanced") == "second as Balanced" and shown(page, "second") == "Balanced"


@pytest.mark.parametrize("name", [None, "", "  ", "x" * 5_000_000])
def test_a_name_that_cannot_be_is_said_in_a_short_message(store, name):
    page = build(store)
    for chosen, message in (
        values(button(page, "preset_save"), name, "Balanced", *MINE.values()),
        values(button(page, "preset_rename"), name, "Balanced", *MINE.values()),
    ):
        assert chosen == {"choices": list(PRESETS), "value": "Balanced"}
        assert "preset name is" in message and len(message) < 2 * LONGEST_QUOTE


def test_a_long_name_in_the_file_can_be_renamed_and_deleted_with_a_short_message(store):
    name = "x" * 5000
    store.path.write_text(json.dumps({name: MINE, f"{name}y": MINE}))
    page = build(store)
    _, message = values(button(page, "preset_rename"), "mine", name, *MINE.values())
    assert "renamed" in message and "...x" in message
    _, message = values(button(page, "preset_delete"), "", f"{name}y", *MINE.values())
    assert "deleted" in message and len(message) < 2 * LONGEST_QUOTE
    assert list(store.load()[0]) == ["mine"]
