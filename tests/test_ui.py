"""The accordion builds in gradio and its events compute what they should; hosts and browsers come on top."""

import sys
from contextlib import contextmanager
from types import ModuleType, SimpleNamespace

import gradio as gr
import pytest

from resdit_ext.method.config import PRESETS
from resdit_ext.webui import readout, settings
from resdit_ext.webui.options import DEFAULTS, OPTIONS, PARAMETERS
from resdit_ext.webui.presets import PresetStore
from resdit_ext.webui.ui import Accordion, enlarged, forecast_of_page

NAMES = [option.name for option in OPTIONS]


@contextmanager
def host_accordion(value, label, elem_id):
    """The host's InputAccordion: a hidden checkbox that is the accordion's state."""
    with gr.Accordion(label, open=value):
        yield gr.Checkbox(value, label=label, elem_id=elem_id, visible=False)


def host_button(text, elem_id, tooltip):
    return gr.Button(text, elem_id=elem_id)


@pytest.fixture
def store(tmp_path):
    return PresetStore(tmp_path / "user_presets.json")


@pytest.fixture(params=["txt2img", "img2img"])
def page(request, store):
    with gr.Blocks() as blocks:
        accordion = Accordion(request.param, host_accordion, host_button, store)
        host = {name: gr.Slider(1, 2048, value=512, elem_id=name) for name in ("width", "height", "steps")}
        accordion.follow(host)
    return request.param, blocks, accordion


def test_components_are_the_table(page):
    tab, _, accordion = page
    assert [c.value for c in accordion.components] == [option.default for option in OPTIONS]
    assert [c.label for c in accordion.components] == [option.label for option in OPTIONS]
    ids = [c.elem_id for c in accordion.components]
    assert len(set(ids)) == len(ids) and all(i.startswith(f"{tab}_resdit") for i in ids)


def test_nothing_of_ours_is_saved_into_the_hosts_ui_config(page):
    tab, blocks, _ = page
    ours = [b for b in blocks.blocks.values() if str(getattr(b, "elem_id", "")).startswith(f"{tab}_resdit")]
    kept = (gr.Checkbox, gr.Slider, gr.Dropdown, gr.Radio, gr.Textbox)
    assert all(b.do_not_save_to_config for b in ours if isinstance(b, kept))


def test_every_control_has_a_hint():
    assert all(option.info for option in OPTIONS if option.name != "enabled")


def test_the_pages_defaults_may_be_others(store):
    with gr.Blocks():
        accordion = Accordion("txt2img", host_accordion, host_button, store, DEFAULTS | {"size": "4K", "ratio": "2:1"})
    assert accordion.by_name["size"].value == "4K" and "4096x2048" in accordion.status.value


def functions_of(blocks, trigger):
    """The event functions a component's change or click triggers, in gradio 3.41 as in later ones."""
    if isinstance(blocks.fns, dict):
        return [fn for fn in blocks.fns.values() if any(target[0] == trigger._id for target in fn.targets)]
    pairs = zip(blocks.fns, blocks.dependencies, strict=True)
    return [fn for fn, event in pairs if trigger._id in event["targets"]]


def button(page, name):
    tab, blocks, _ = page
    made = next(b for b in blocks.blocks.values() if getattr(b, "elem_id", None) == f"{tab}_resdit_{name}")
    (event,) = functions_of(blocks, made)
    return event


def values(event, *args):
    """What an event returns, updates as their dicts."""
    return [x if not isinstance(x, dict) else {k: v for k, v in x.items() if k != "__type__"} for x in event.fn(*args)]


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_fills_its_options(page, name):
    _, blocks, accordion = page
    (event,) = functions_of(blocks, accordion.presets.chosen)
    filled = dict(zip(PARAMETERS, event.fn(name), strict=True))
    assert filled == {field: getattr(PRESETS[name], field) for field in PARAMETERS}


def test_own_presets_are_saved_renamed_used_and_deleted(page):
    _, blocks, accordion = page
    own = [getattr(PRESETS["Paper"], field) for field in PARAMETERS]
    chosen, message = values(button(page, "preset_save"), "  mine ", "Balanced", *own)
    assert chosen == {"choices": [*PRESETS, "mine"], "value": "mine"} and "saved &#x27;mine&#x27;" in message
    (event,) = functions_of(blocks, accordion.presets.chosen)
    assert event.fn("mine") == own
    chosen, _ = values(button(page, "preset_rename"), "theirs", "mine", *own)
    assert chosen["value"] == "theirs"
    chosen, message = values(button(page, "preset_save"), "paper", "theirs", *own)
    assert chosen["value"] == "theirs" and "paper" in message
    chosen, _ = values(button(page, "preset_delete"), "", "theirs", *own)
    assert chosen == {"choices": list(PRESETS), "value": "Balanced"}
    chosen, message = values(button(page, "preset_delete"), "", "Paper", *own)
    assert chosen["value"] == "Balanced" or chosen["value"] == "Paper"
    assert "resdit-message" in message and "Paper" in message


def test_swap_turns_the_frame(page):
    assert tuple(button(page, "swap").fn(False, 3072, 2048)) == (True, 2048, 3072)


def test_the_size_goes_to_the_webui_and_back(page):
    args = [option.default for option in OPTIONS]
    width, height, size, before = values(button(page, "send"), 1024, 768, None, *args)
    assert (width, height, size) == ({"value": 3072, "maximum": 8192}, {"value": 3072, "maximum": 8192}, "WebUI")
    args[NAMES.index("size")] = "WebUI"
    *_, still = values(button(page, "send"), 3072, 3072, before, *args)
    assert still == before == (1024, 768, "3K")
    width, height, size, none = values(button(page, "back"), before)
    assert (width, height) == ({"value": 1024, "maximum": 2048}, {"value": 768, "maximum": 2048})
    assert size == "3K" and none is None
    assert values(button(page, "back"), None) == [{}, {}, {}, None]


def refreshed(page, host=(512, 512, 20), **changed):
    """(HTML, visible rows, portrait usable) after a change of options."""
    _, blocks, accordion = page
    (event,) = functions_of(blocks, accordion.by_name["ratio"])  # a second handler would race with it
    options = [changed.get(option.name, option.default) for option in OPTIONS]
    html, *rows, portrait, _, _ = event.fn("Balanced", *host, *options)
    return html, [row["visible"] for row in rows], portrait["interactive"]


def test_the_list_of_presets_shows_what_the_options_are(page, store):
    _, blocks, accordion = page
    (event,) = functions_of(blocks, accordion.by_name["cutoff"])

    def shown(chosen, **changed):
        return event.fn(chosen, 512, 512, 20, *(changed.get(o.name, o.default) for o in OPTIONS))[-2]

    assert shown("Paper") == "Balanced"
    assert shown("Balanced", **{name: getattr(PRESETS["Paper"], name) for name in PARAMETERS}) == "Paper"
    assert shown("Balanced", cutoff=0.33) is None
    own = {field: getattr(PRESETS["Balanced"], field) for field in PARAMETERS}
    store.save("as balanced", own)
    store.save("mine", own | {"cutoff": 0.33})
    assert shown("Balanced", cutoff=0.33) == "mine" and shown("as balanced") == "as balanced"


def test_the_read_out_follows_our_options_and_the_hosts(page):
    assert "3072x3072, 9.4 MP, 3.00x" in refreshed(page)[0]
    assert "not active: 512x512 is not above" in refreshed(page, size="WebUI")[0]
    assert "2048x2048" in refreshed(page, (2048, 2048, None), size="WebUI")[0]
    assert "3072x1536" in refreshed(page, (1024, 512, 20), ratio="WebUI")[0]


def test_only_the_controls_that_count_are_shown(page):
    """The rows of ratio, long side, and width with height."""
    assert refreshed(page)[1:] == ([True, False, False], True)
    assert refreshed(page, size="WebUI")[1] == [False, False, False]
    assert refreshed(page, size="Custom")[1] == [True, True, False]
    assert refreshed(page, size="Custom", ratio="Free")[1:] == ([True, False, True], False)
    assert refreshed(page, ratio="WebUI")[1:] == ([True, False, False], False)


def test_an_error_in_an_option_is_shown_and_escaped():
    args = [option.default for option in OPTIONS]
    args[NAMES.index("attention_scale")] = "<b>"
    html = readout.html(forecast_of_page({"width": 1, "height": 1, "steps": 1}, tuple(args)))
    assert "resdit-idle" in html and "&lt;b&gt;" in html and "<b>" not in html


def test_the_drawing_shows_every_patch_inside_the_frame():
    args = [option.default for option in OPTIONS]
    args[NAMES.index("ratio")] = "2:1"
    made = forecast_of_page({"width": 512, "height": 512, "steps": 20}, tuple(args))
    svg = readout.drawing(made)
    assert svg.count("<rect") == len(made.layout.patches) == 9 and 'viewBox="0 0 3072 1536"' in svg
    w, h = made.patch
    assert made.layout.rows[-1] * 16 + h == 1536 and made.layout.cols[-1] * 16 + w == 3072


def test_img2img_shows_the_steps_that_its_strength_leaves(page, monkeypatch):
    monkeypatch.setitem(sys.modules, "modules", ModuleType("modules"))
    common = ModuleType("modules.sd_samplers_common")
    common.setup_img2img_steps = lambda p, ordered=None: (p.steps, int(p.denoising_strength * p.steps))
    monkeypatch.setitem(sys.modules, common.__name__, common)
    tab, *_ = page
    html, *_ = refreshed(page, (512, 512, 6))
    assert "<dd>3 layout, 3 fused</dd>" in html if tab == "txt2img" else "<dd>2 layout, 3 fused</dd>" in html


def test_a_strength_of_nothing_is_no_emptied_field(followed, monkeypatch):
    monkeypatch.setitem(sys.modules, "modules", ModuleType("modules"))
    common, strengths = ModuleType("modules.sd_samplers_common"), []
    common.setup_img2img_steps = lambda p, ordered=None: strengths.append(p.denoising_strength) or (0, ordered - 1)
    monkeypatch.setitem(sys.modules, common.__name__, common)
    assert "hires pass" in followed(1024, 768, 20, 0, 7, 2.0, 0, 0, True)
    assert set(strengths) == {0}


@pytest.fixture
def followed(store):
    """The txt2img tab with all that it follows."""
    with gr.Blocks() as blocks:
        accordion = Accordion("txt2img", host_accordion, host_button, store)
        names = ("width", "height", "steps", "denoising_strength", "hr_second_pass_steps", "hr_scale")
        host = {name: gr.Slider(0, 2048, value=512) for name in (*names, "hr_resize_x", "hr_resize_y")}
        host["enable_hr"] = gr.Checkbox()
        accordion.follow(host)
    (event,) = functions_of(blocks, host["enable_hr"])

    def shown(*given, **changed):
        return event.fn("Balanced", *given, *(changed.get(o.name, o.default) for o in OPTIONS))[0]

    return shown


def test_hires_is_followed(followed, monkeypatch):
    monkeypatch.setitem(sys.modules, "modules", ModuleType("modules"))
    common = ModuleType("modules.sd_samplers_common")
    common.setup_img2img_steps = lambda p, ordered=None: (round(ordered / p.denoising_strength), ordered - 1)
    monkeypatch.setitem(sys.modules, common.__name__, common)
    page = (1024, 768, 20, 0.5, 7, 2.0, 0, 0)
    assert "<dd>7 fused (hires pass)</dd>" in followed(*page, True)
    assert "2048x1536" in followed(*page, True, size="WebUI")
    assert "not active: 1024x768" in followed(*page, False, size="WebUI")
    assert "not active: 1024x768" in followed(*page, True, size="WebUI", apply_to="first pass")
    assert "3072x2304" in followed(*page, True, ratio="WebUI")
    emptied = (None, 0, None, None, None, None, None, None)
    assert "3072x3072" in followed(*emptied, True)


def test_the_hosts_own_rounding_is_shown(page, monkeypatch):
    fix = SimpleNamespace(fix_dimensions=lambda width, height: (width // 16 * 16, height // 16 * 16))
    models = ModuleType("modules.sd_models")
    models.model_data = SimpleNamespace(sd_model=fix)
    monkeypatch.setitem(sys.modules, "modules", ModuleType("modules"))
    monkeypatch.setitem(sys.modules, models.__name__, models)
    assert "2032x2032" in refreshed(page, (2040, 2047, 20), size="WebUI")[0]


def test_sizes_are_those_that_the_host_can_make(page, monkeypatch):
    monkeypatch.setattr(settings, "size_step", lambda: 64)
    assert "2048x1344" in refreshed(page, size="2K", ratio="3:2")[0]
    args = [{"size": "2K", "ratio": "3:2"}.get(option.name, option.default) for option in OPTIONS]
    width, height, *_ = values(button(page, "send"), 1024, 768, None, *args)
    assert (width["value"], height["value"]) == (2048, 1344)


def test_a_free_frame_is_of_a_custom_size(page):
    """2K, 3K and 4K would be chosen beside a frame of another size; pasted pictures may bring both."""
    _, blocks, accordion = page
    (event,) = functions_of(blocks, accordion.by_name["ratio"])

    def size(**changed):
        made = event.fn("Balanced", 512, 512, 20, *(changed.get(o.name, o.default) for o in OPTIONS))[-1]
        return made if isinstance(made, str) else None

    assert size(size="4K", ratio="Free") == size(size="Custom", ratio="Free") == "Custom"
    assert size(size="4K") is size(size="WebUI", ratio="Free") is None


def test_a_named_size_enlarges_a_free_frame():
    assert enlarged("4K", "Free", 3072, 2048) == [4096, 2736]
    assert enlarged("2K", "Free", 256, 8192) == [256, 2048]
    for unchanged in (("4K", "1:1", 3072, 2048), ("Custom", "Free", 3072, 2048), ("4K", "Free", None, 2048)):
        assert all(not isinstance(side, int) for side in enlarged(*unchanged))


def test_a_click_on_a_named_size_is_bound(page):
    _, blocks, accordion = page
    events = functions_of(blocks, accordion.by_name["size"])
    assert [event.fn for event in events].count(enlarged) == 1 and len(events) == 2


def test_texts_leave_their_ids_to_what_is_around_them(page):
    """gradio 3 gives a text's id to two elements; the page's script looks for the one around it."""
    tab, blocks, _ = page
    ids = [block.elem_id for block in blocks.blocks.values() if getattr(block, "elem_id", None)]
    assert ids.count(f"{tab}_resdit_status") == 1
    texts = [block.elem_id for block in blocks.blocks.values() if isinstance(block, gr.HTML)]
    assert f"{tab}_resdit_status" not in texts
