"""The accordion builds in gradio and its events compute what they should; hosts and browsers come on top."""

from contextlib import contextmanager

import gradio as gr
import pytest

from resdit_ext.webui.options import OPTIONS
from resdit_ext.webui.ui import Accordion, status_html


@contextmanager
def host_accordion(value, label, elem_id):
    """The host's InputAccordion: a hidden checkbox that is the accordion's state."""
    with gr.Accordion(label, open=value):
        yield gr.Checkbox(value, label=label, elem_id=elem_id, visible=False)


def host_button(text, elem_id, tooltip):
    return gr.Button(text, elem_id=elem_id)


@pytest.fixture(params=["txt2img", "img2img"])
def page(request):
    with gr.Blocks() as blocks:
        accordion = Accordion(request.param, host_accordion, host_button)
        host = {name: gr.Slider(1, 2048, value=512, elem_id=name) for name in ("width", "height", "steps")}
        accordion.follow(host)
    return request.param, blocks, accordion


def test_components_are_the_table(page):
    tab, _, accordion = page
    assert [c.value for c in accordion.components] == [option.default for option in OPTIONS]
    assert [c.label for c in accordion.components] == [option.label for option in OPTIONS]
    ids = [c.elem_id for c in accordion.components]
    assert len(set(ids)) == len(ids) and all(i.startswith(f"{tab}_resdit") for i in ids)
    assert all(c.do_not_save_to_config for c in accordion.components)


def functions_of(blocks, trigger):
    """The event functions a component's change or click triggers."""
    fns = blocks.fns.values() if isinstance(blocks.fns, dict) else blocks.fns
    return [fn for fn in fns if any(target[0] == trigger._id for target in fn.targets)]


def test_presets_fill_the_sliders(page):
    _, blocks, _ = page
    button = next(b for b in blocks.blocks.values() if isinstance(b, gr.Button) and b.value == "Paper")
    (event,) = functions_of(blocks, button)
    filled = dict(zip([c.label for c in event.outputs], event.fn(), strict=True))
    assert filled["Fused until"] == 0.57 and filled["Attention scale"] == "off"


def test_swap_turns_the_frame(page):
    _, blocks, _ = page
    button = next(b for b in blocks.blocks.values() if isinstance(b, gr.Button) and b.value == "\u21c5")
    (event,) = functions_of(blocks, button)
    assert tuple(event.fn(False, 3072, 2048)) == (True, 2048, 3072)


def test_the_status_follows_our_options_and_the_hosts(page):
    _, blocks, accordion = page
    (event,) = functions_of(blocks, accordion.by_name["ratio"])  # a second handler would race with it
    options = [c.value for c in accordion.components]
    assert "3072x3072, scale 3.00, 4x4 patches" in event.fn(512, 512, 20, *options)
    options[1] = "WebUI"
    assert "not active: 512x512 is not above" in event.fn(512, 512, 20, *options)
    assert "active: 2048x2048" in event.fn(2048, 2048, None, *options)


def test_an_error_in_an_option_is_shown_and_escaped():
    args = [option.default for option in OPTIONS]
    args[[option.name for option in OPTIONS].index("attention_scale")] = "<b>"
    html = status_html({"width": 1, "height": 1, "steps": 1}, tuple(args))
    assert "resdit-idle" in html and "&lt;b&gt;" in html and "<b>" not in html
