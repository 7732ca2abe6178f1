"""What makes a field test's pictures: diffusers' pipelines, and WebUIs, here one that answers as theirs do."""

import base64
import io
import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL
from PIL import Image

from resdit_ext import ResDiTError, Unsupported
from resdit_ext.families import families, family_of_class
from resdit_ext.field import webui
from resdit_ext.field.pipelines import TILES, PipelineMaker
from resdit_ext.field.plan import SCENES, FieldOptions, Order
from resdit_ext.field.webui import WebUIMaker
from resdit_ext.lab.random_model import blocks_of
from resdit_ext.method.memory import OutOfMemory
from tests.pipelines import TEXT, pipeline

OPTIONS = FieldOptions(steps=4)


def order(method, size="2K", width=128, height=128):
    return Order(0, SCENES[0], size, method, width, height)


@pytest.fixture(params=["flux"])
def maker(request):
    """A tiny pipeline of random weights, whose base size is 64 pixels."""
    pipe = pipeline(request.param)
    torch.manual_seed(0)
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(8,) * 4,
        norm_num_groups=4,
        latent_channels=16,
        shift_factor=0.1,
        sample_size=32,
    )
    pipe.register_modules(vae=vae.eval())
    inputs = dict(prompt_embeds=torch.ones(1, TEXT, 12), pooled_prompt_embeds=torch.ones(1, 8))
    if request.param == "sd3":
        inputs |= dict(negative_prompt_embeds=-torch.ones(1, TEXT, 12), negative_pooled_prompt_embeds=-torch.ones(1, 8))
    family = family_of_class(type(pipe.transformer).__name__)
    return PipelineMaker(pipe, family, "tiny", OPTIONS, 64, "cpu", inputs=inputs)


PARTS = {
    "plain": {"text": 1, "plain": 4, "vae": 1},
    "hires pass": {"text": 2, "first pass": 4, "vae": 2, "hires pass": 2},
}


def test_a_pipelines_parts_are_timed_and_nothing_is_left_in_it(maker):
    classes = [type(part) for part in (maker.pipe, maker.pipe.vae, maker.pipe.transformer, maker.pipe.scheduler)]
    pictures = {}
    for method in ("plain", "hires pass", "Balanced", "noise kept", "plain"):
        made = maker.make(order(method))
        counts = {name: len(part.times) for name, part in made.parts.items()}
        if method in ("Balanced", "noise kept"):
            assert set(counts) == {"text", "layout", "fused", "vae"} and counts["layout"] + counts["fused"] == 4
        else:
            assert counts == PARTS[method]
        assert made.picture.shape == (128, 128, 3) and made.seconds > 0
        if method in pictures:
            assert np.array_equal(made.picture, pictures[method])
        pictures[method] = made.picture
    assert not np.array_equal(pictures["plain"], pictures["Balanced"])
    assert not np.array_equal(pictures["noise kept"], pictures["Balanced"])
    parts = (maker.pipe, maker.pipe.vae, maker.pipe.transformer, maker.pipe.scheduler)
    assert [type(part) for part in parts] == classes and maker.about()["model"] == "tiny"


@pytest.mark.parametrize("maker", ["sd3"], indirect=True)
def test_a_hires_pass_of_sd3(maker):
    made = maker.make(order("hires pass", "2K 2:1", 128, 64))
    assert made.picture.shape == (64, 128, 3) and len(made.parts["hires pass"].times) == 2


def test_a_vae_that_runs_out_of_memory_decodes_in_tiles(maker, monkeypatch):
    whole = AutoencoderKL._decode

    def decode(vae, latents, return_dict=True):
        if not vae.use_tiling:
            raise OutOfMemory("CUDA out of memory")
        return whole(vae, latents, return_dict)

    monkeypatch.setattr(AutoencoderKL, "_decode", decode)
    made = maker.make(order("plain"))
    assert made.picture.shape == (128, 128, 3) and TILES in made.notes and not maker.pipe.vae.use_tiling


def test_what_diffusers_lacks_and_bad_depths_are_refused():
    with pytest.raises(Unsupported, match="sampler 'Euler a' is not in diffusers; choose Euler or LCM"):
        PipelineMaker(pipeline("flux"), families()[0], "", FieldOptions(sampler="Euler a"), 64, "cpu")
    for depth in ("19", "a,b", "20,1"):
        with pytest.raises(ResDiTError, match="depth is"):
            blocks_of(depth)


class WebUI(BaseHTTPRequestHandler):
    """Answers as a WebUI with the extension, and cannot make pictures wider than 200 pixels without it."""

    def log_message(self, *_):
        pass

    def answer(self, status, body):
        self.send_response(status)
        self.end_headers()
        self.wfile.write(json.dumps(body).encode())

    def do_GET(self):
        modes = ["Latent", "Latent (bicubic)"] if self.server.latents else []
        answers = {
            "/sdapi/v1/latent-upscale-modes": [{"name": mode} for mode in modes],
            "/resdit/v1/version": {"version": "1"},
            "/sdapi/v1/options": {"sd_model_checkpoint": "flux"},
            "/sdapi/v1/progress": {"textinfo": "ResDiT: fused 3/14", "state": {}},
            "/sdapi/v1/memory": {"cuda": {"system": {"used": 7e9}}},
        }
        self.answer(200, answers[self.path.partition("?")[0]])

    def do_POST(self):
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.asked.append(asked)
        (ours,) = asked["alwayson_scripts"]["ResDiT High-Res"]["args"]
        if asked["width"] > 200 and ours.get("enabled") is False:
            self.answer(500, {"error": "OutOfMemoryError"})
            return
        threading.Event().wait(0.2)
        file = io.BytesIO()
        Image.new("RGB", (asked.get("hr_resize_x", asked["width"]), asked["height"]), "red").save(file, "PNG")
        info = {"extra_generation_params": {"ResDiT notes": ["active"]}}
        self.answer(200, {"images": [base64.b64encode(file.getvalue()).decode()], "info": json.dumps(info)})


@contextmanager
def served():
    server = ThreadingHTTPServer(("127.0.0.1", 0), WebUI)
    server.asked, server.latents = [], True
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_a_webui_makes_pictures_and_says_how_far_it_is(monkeypatch):
    monkeypatch.setattr(webui, "EVERY", 0.02)
    with served() as server:
        maker = WebUIMaker(f"http://127.0.0.1:{server.server_port}/", OPTIONS, 128)
        assert maker.about() == {"model": "flux", "made by": "a WebUI", "extension": {"version": "1"}}
        made = maker.make(order("Balanced", width=256, height=256))
        assert made.picture.shape == (256, 256, 3) and made.notes == ["active"]
        assert made.parts["fused"].times[0] > 0 and made.parts["fused"].peak_gb == 7
        assert maker.make(order("hires pass", width=256, height=128)).picture.shape[1] == 256
        with pytest.raises(RuntimeError, match=r"/sdapi/v1/txt2img answers 500: .*OutOfMemoryError"):
            maker.make(order("plain", width=256, height=256))
        server.latents = False
        maker.make(order("hires pass", width=256, height=128))
        maker.make(order("noise kept", width=256, height=256))
        ours, hires, _, another, kept = server.asked
    assert ours["alwayson_scripts"]["ResDiT High-Res"]["args"] == [
        {"preset": "Balanced", "base_size": 128, "width": 256, "height": 256}
    ]
    assert kept["alwayson_scripts"]["ResDiT High-Res"]["args"] == [
        {"preset": "Balanced", "base_size": 128, "fresh_noise": 0.0, "width": 256, "height": 256}
    ]
    assert (ours["seed"], ours["steps"], ours["width"]) == (SCENES[0].seed, 4, 256)
    assert (hires["hr_upscaler"], another["hr_upscaler"]) == ("Latent (bicubic)", "None")
    assert hires["enable_hr"] and (hires["width"], hires["height"]) == (176, 96) and hires["hr_resize_x"] == 256
    with pytest.raises(ConnectionError, match="no WebUI answers"):
        maker.make(order("Balanced"))
    with pytest.raises(ResDiTError, match="webui is 'localhost'; write its address"):
        WebUIMaker("localhost", OPTIONS, 128)
