"""Real WebUIs started for the tests, with a tiny random model behind their page, and asked through their API.

A host is there where FORGE_DIR, NEO_DIR, ERSATZ_DIR or A1111_DIR is its folder and FORGE_UI_PYTHON, ... a Python that
can start its page. What it writes goes to a folder of the test's, which holds its extensions too: this repository and
those in `extensions`.
"""

import base64
import contextlib
import io
import json
import os
import socket
import subprocess
import time
import urllib.error
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from resdit_ext.positions_metadata import positions_metadata
from tests.hosts.kit import CPU_FLAG

HERE, REPOSITORY = Path(__file__).parent, Path(__file__).parents[2]
START, ANSWER = 600, 600  # seconds for a WebUI to come up and for an answer, on a small machine
FLAGS = ["--skip-prepare-environment", "--skip-install", "--skip-torch-cuda-test", "--skip-python-version-check"]
CPU_FLAGS = {name: [flag] for name, flag in CPU_FLAG.items()}
CPU_FLAGS["a1111"] = ["--use-cpu", "all", "--no-half", "--skip-version-check", "--no-download-sd-model"]
QUIET = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "PYTHONDONTWRITEBYTECODE": "1", "PYTHONUNBUFFERED": "1"}

BASE = 128  # pixels a side
ORDER = dict(prompt="a lighthouse", steps=4, cfg_scale=1, sampler_name="Euler", scheduler="Simple", seed=7)
ORDER |= dict(width=BASE, height=BASE)
ORDER |= dict(override_settings=dict(show_progress_type="Approx cheap"))  # for the default SD3 fetches a file
THRICE = dict(size="Custom", width=3 * BASE, height=3 * BASE, base_size=BASE)
RANGE = 64  # positions a side, of a LoRA for RPE-2D
# Files that change no weight, by their metadata.
LORAS = {"rpe": positions_metadata(RANGE), "narrow": positions_metadata(8), "other": {"ss_tag": "x"}}
VISIBLE = 0.5  # mean difference of two pictures, in levels of 255


def as_text(picture):
    """A picture as the API takes it."""
    file = io.BytesIO()
    Image.fromarray(picture).save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


def hint(height=BASE, width=BASE):
    """A bright disc on a slope of colours."""
    y, x = np.mgrid[:height, :width] / min(height, width) - 0.5
    return np.uint8(255 * np.stack([np.hypot(x + 0.1, y) < 0.3, 0.5 + y / 2, x % 1], -1))


def apart(a, b):
    """Mean difference of two pictures."""
    return np.abs(a.astype(float) - b).mean()


@dataclass
class Made:
    """What came of an order: pictures, its parameters, and what was said in the console meanwhile."""

    pictures: list
    parameters: str
    said: str

    @property
    def picture(self):
        return self.pictures[0]

    def differs(self, *others):
        """True where this is a picture, and not the same as any of the others."""
        assert self.picture.std() > 1, "no picture"
        return all(apart(self.picture, other.picture) > VISIBLE for other in others)

    def equals(self, other):
        return np.array_equal(self.picture, other.picture)


@dataclass
class WebUI:
    """A running WebUI; `models` are the control nets that its panel lists, by the names of their files."""

    host: str
    model: str
    address: str
    log: Path
    process: subprocess.Popen
    models: dict = field(default_factory=dict)

    def answer(self, path, body=None, user=None):
        """(status, body) of the answer to a request, made as `user`, "name:password"; bytes are sent as they are."""
        headers = {"Content-Type": "application/json"}
        if user is not None:
            headers["Authorization"] = "Basic " + base64.b64encode(user.encode()).decode()
        data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
        request = urllib.request.Request(self.address + path, data, headers)  # noqa: S310 (loopback)
        try:
            with urllib.request.urlopen(request, timeout=ANSWER) as answer:  # noqa: S310
                return answer.status, answer.read()
        except urllib.error.HTTPError as error:
            return error.code, error.read()

    def ask(self, path, body=None):
        """The answer to a request that must succeed."""
        status, text = self.answer(path, body)
        if status != 200:
            pytest.fail(f"{path}: {status} {text.decode()[:1000]}")
        return json.loads(text)

    def unit(self, net="plain", **changes):
        """A unit of the panel as the API takes it."""
        default = dict(module="None", image=as_text(hint()), resize_mode="Just Resize", pixel_perfect=False)
        return default | dict(model=self.models[net]) | changes

    def make(self, *units, resdit=None, path="txt2img", **changes):
        """Order pictures, with units of the ControlNet panel and ResDiT's options."""
        scripts = {"ControlNet": {"args": units}} if units else {}
        if resdit is not None:
            scripts["ResDiT High-Res"] = {"args": [resdit]}
        before = self.log.stat().st_size
        answer = self.ask(f"/sdapi/v1/{path}", ORDER | changes | dict(alwayson_scripts=scripts))
        decoded = (Image.open(io.BytesIO(base64.b64decode(picture))) for picture in answer["images"])
        return Made(
            [np.asarray(picture.convert("RGB")) for picture in decoded],
            json.loads(answer["info"])["infotexts"][0],
            self.log.read_bytes()[before:].decode(errors="replace"),
        )


def place_of(host):
    """(folder, Python) of a host; skips the test where the environment names none."""
    folder, python = (os.environ.get(f"{host.upper()}_{what}") for what in ("DIR", "UI_PYTHON"))
    if not folder or not python:
        pytest.skip(f"{host.upper()}_DIR or {host.upper()}_UI_PYTHON is not set")
    return Path(folder), python


def furnish(host, data):
    """Fill the folder of a WebUI's own: this repository and the tests' extensions, a checkpoint, LoRAs."""
    for name in ("extensions", "checkpoints"):
        (data / name).mkdir()
    (data / "extensions" / "resdit").symlink_to(REPOSITORY)
    for extension in ("watch", "tiny_a1111" if host == "a1111" else "tiny_webui"):
        (data / "extensions" / extension).symlink_to(HERE / extension)
    save_file({"nothing": torch.zeros(1)}, data / "checkpoints" / "tiny.safetensors")
    (data / "models" / "Lora").mkdir(parents=True)
    for name, metadata in LORAS.items():
        save_file({"nothing": torch.zeros(1)}, data / "models" / "Lora" / f"{name}.safetensors", metadata)


@contextlib.contextmanager
def started(host, model, data, *flags):
    """A WebUI whose own folder is `data`, whose model is the tiny `model` and whose API is on; `flags` come last.

    The folder is furnished where it has no extensions.
    """
    folder, python = place_of(host)
    if not (data / "extensions").exists():
        furnish(host, data)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [python, "launch.py", "--port", str(port), "--api", *FLAGS, *CPU_FLAGS[host], "--data-dir", data]
    if host != "a1111":  # or they do not serve their own scripts, for which they look in `data` alone
        command += ["--gradio-allowed-path", folder.resolve()]
    command += ["--ckpt-dirs" if host == "neo" else "--ckpt-dir", data / "checkpoints", *flags]
    environment = os.environ | QUIET | {"RESDIT_TINY_HOST": host, "RESDIT_TINY_MODEL": model}
    log = data / "log.txt"
    with (
        log.open("wb") as output,
        subprocess.Popen(command, cwd=folder, env=environment, stdout=output, stderr=output) as process,
    ):
        site = WebUI(host, model, f"http://127.0.0.1:{port}", log, process)
        try:
            # Not asked before it says so: AUTOMATIC1111 ends where a request comes before its API is there.
            for _ in range(START):
                if "Startup time: " in (said := log.read_text(errors="replace")):
                    break
                assert process.poll() is None, f"{host} did not start:\n{said[-3000:]}"
                time.sleep(1)
            yield site
        finally:
            process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(30)
            process.kill()
