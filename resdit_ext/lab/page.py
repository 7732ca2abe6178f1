"""The accordion on a page of its own, with a micro FLUX behind Generate: the whole page without a WebUI.

Sixteen of the page's pixels are one of the micro model's, so that 1024, the base size of a real FLUX, is its own.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import gradio as gr
import numpy as np

from ..errors import ResDiTError
from ..method.layout import Grid
from ..version import TITLE
from ..webui import infotext
from ..webui.forecast import Forecast, forecast
from ..webui.options import OPTIONS, parse_request
from ..webui.presets import PresetStore
from ..webui.sizes import output_size
from ..webui.ui import Accordion
from .demo import to_image
from .model import MicroModel
from .sampling import sample
from .scenes import COLOURS, GROUNDS, SHAPES

ROOT = Path(__file__).parents[2]
PAGE_PIXELS = 64  # of the page, to one token of the micro model
SHOWN = 768  # pixels of the shown picture's longer side
# What the hosts' own scripts define for an extension's.
HEAD = """<script>
function gradioApp() { return document; }
function onUiLoaded(done) {
    const wait = setInterval(() => {
        if (!document.getElementById("txt2img_resdit_status")) return;
        clearInterval(wait);
        done();
    }, 50);
}
%s
</script>"""


@contextmanager
def input_accordion(value: bool, label: str, elem_id: str) -> Iterator[gr.Checkbox]:
    """In place of the hosts' accordion with a checkbox."""
    with gr.Accordion(label, open=True, elem_id=elem_id):
        yield gr.Checkbox(value, label="Enable", elem_id=f"{elem_id}-checkbox")


def tool_button(text: str, elem_id: str, tooltip: str) -> gr.Button:  # noqa: ARG001 (gradio has no tooltips)
    """In place of the hosts' small button."""
    return gr.Button(text, elem_id=elem_id, elem_classes="tool", min_width=40, size="sm")


def grid_of(width: int, height: int) -> Grid:
    """The micro model's tokens for a picture of the page's pixels."""
    return Grid(max(1, round(height / PAGE_PIXELS)), max(1, round(width / PAGE_PIXELS)))


def phase_of(expected: Forecast, step: int) -> str:
    """`global 4/10`: the phase of a step (from 0), and where in it."""
    for phase, n in expected.phases.items():
        if step < n:
            return f"{phase} {step + 1}/{n}"
        step -= n
    return f"{step + 1}/{expected.steps}"


def parameters_line(values: dict[str, object], width: int, height: int, steps: int, seed: int) -> str:
    """Generation parameters as the hosts write them into a picture."""
    written = {"Steps": steps, "Seed": seed, "Size": f"{width}x{height}"} | values
    return ", ".join(f"{key}: {value}" for key, value in written.items())


def read_parameters(line: str) -> dict[str, str]:
    """The reverse of `parameters_line`."""
    pairs = (part.partition(": ") for part in line.split(", "))
    return {key.strip(): value.strip() for key, _, value in pairs}


def generate(
    model: MicroModel, prompt: str, seed: int, width: int, height: int, steps: int, options: tuple, tick: object
) -> tuple[np.ndarray, str, str]:
    """(picture, parameters, message) for the page's inputs; options that are refused are said and left out."""
    try:
        request = parse_request(options)
    except ResDiTError as error:
        request, message = parse_request((False,)), f"not active: {error}"
        expected = Forecast(width, height, steps, idle=str(error))
    else:
        if request.enabled:
            width, height = output_size(request.values, width, height)
        expected = forecast(request, width, height, steps)
        message = expected.line()
    grid = grid_of(width, height)
    base = max(2, request.base_side // PAGE_PIXELS)
    config = replace(request.config, base_tokens=base**2) if expected.active else None
    done = itertools.count()

    def after_step() -> None:
        step = next(done)
        where = f"ResDiT: {phase_of(expected, step)}" if expected.active else f"{step + 1}/{steps}"
        tick((step + 1, steps), desc=where)

    picture = sample(model, [prompt], grid, [seed], config, steps, after_step)[0]
    written = infotext.parameters(request) if request.enabled else {}
    return picture, parameters_line(written, width, height, steps, seed), message


def build(model: MicroModel, presets: Path) -> gr.Blocks:
    """The page; the user's own presets are kept in the file `presets`."""
    with gr.Blocks(title=TITLE) as page:
        gr.Markdown(f"## {TITLE}\nThe extension's own controls, with a micro FLUX that knows drawn scenes only.")
        with gr.Row():
            with gr.Column():
                with gr.Row():
                    colour = gr.Dropdown(list(COLOURS), value="red", label="Colour", elem_id="colour")
                    shape = gr.Dropdown(list(SHAPES), value="disc", label="Shape", elem_id="shape")
                    ground = gr.Dropdown(list(GROUNDS), value="green", label="Ground", elem_id="ground")
                with gr.Row():
                    width = gr.Slider(64, 2048, 1024, step=64, label="Width", elem_id="txt2img_width")
                    height = gr.Slider(64, 2048, 1024, step=64, label="Height", elem_id="txt2img_height")
                with gr.Row():
                    steps = gr.Slider(1, 50, 35, step=1, label="Steps", elem_id="txt2img_steps")
                    seed = gr.Number(0, precision=0, label="Seed", elem_id="seed")
                accordion = Accordion("txt2img", input_accordion, tool_button, PresetStore(presets))
                accordion.follow({"width": width, "height": height, "steps": steps})
                start = gr.Button("Generate", variant="primary", elem_id="generate")
            with gr.Column():
                picture = gr.Image(label="Picture", elem_id="picture", interactive=False)
                message = gr.Textbox(label="Message", elem_id="message", interactive=False)
                parameters = gr.Textbox(label="Parameters", elem_id="parameters", lines=3)
                paste = gr.Button("Paste parameters", elem_id="paste")

        def on_generate(*inputs: object, progress: gr.Progress = gr.Progress()) -> tuple:  # noqa: B008 (gradio's way)
            colour, shape, ground, seed, width, height, steps, *options = inputs
            prompt = f"{colour} {shape} on {ground} ground"
            made, text, line = generate(
                model, prompt, int(seed), int(width), int(height), int(steps), tuple(options), progress
            )
            zoom = max(1, SHOWN // max(made.shape[:2]))
            image = to_image(made)
            return image.resize((image.width * zoom, image.height * zoom), 0), line, text

        def on_paste(line: str) -> list[object]:
            read = read_parameters(line)
            restored = [infotext.restore(option)(read) for option in OPTIONS]
            return [gr.update() if value is None else value for value in restored]

        inputs = [colour, shape, ground, seed, width, height, steps, *accordion.components]
        start.click(on_generate, inputs=inputs, outputs=[picture, message, parameters])
        paste.click(on_paste, inputs=parameters, outputs=accordion.components)
    return page


def launch(model: MicroModel, presets: Path, port: int | None, block: bool = True) -> gr.Blocks:
    """Serve the page on this computer only; returns it, running, where `block` is off."""
    page = build(model, presets)
    page.launch(
        server_name="127.0.0.1",
        server_port=port,
        share=False,
        prevent_thread_lock=not block,
        css=(ROOT / "style.css").read_text(encoding="utf8"),
        head=HEAD % (ROOT / "javascript" / "resdit.js").read_text(encoding="utf8"),
    )
    return page
