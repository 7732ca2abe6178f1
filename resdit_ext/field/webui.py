"""A field test's pictures by a running WebUI's API: for people who have Forge, and no diffusers."""

from __future__ import annotations

import base64
import io
import json
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any
from urllib.parse import urlsplit

import numpy as np
from PIL import Image

from ..errors import ResDiTError, quoted, shortened
from ..families import LATENT_PATCH, families
from ..hosts.progress import PREFIX
from ..version import TITLE
from ..watch import GIGABYTE, Part
from .making import Made
from .plan import HIRES, SCENES, STRENGTH, VARIANTS, FieldOptions, Order

LONGEST, SHORT = 7200, 30  # seconds for a picture, and for any other answer
EVERY = 0.5  # seconds between two looks at the progress
LATENT_UPSCALER = "Latent (bicubic)"
LANCZOS = "None"  # what the WebUIs call it where no model enlarges; Forge Neo has no other


class WebUIMaker:
    """Pictures of the model that is loaded in a WebUI with this extension, started with `--api`.

    Args:
        address: of the WebUI, as http://127.0.0.1:7860.
        options: of the test.
        base: pixels a side of the model's base size.
    """

    scenes = SCENES
    token = families()[0].vae_scale * LATENT_PATCH

    def __init__(self, address: str, options: FieldOptions, base: int) -> None:
        if urlsplit(address).scheme not in ("http", "https"):
            raise ResDiTError(f"webui is {quoted(address)}; write its address as http://127.0.0.1:7860")
        self.address, self.options, self.base = address.rstrip("/"), options, base

    def ask(self, path: str, body: object = None, seconds: float = SHORT) -> Any:
        """The answer to a request.

        Raises:
            ConnectionError: nothing answers.
            RuntimeError: the WebUI answers with an error, which is quoted.
        """
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.address + path, data, {"Content-Type": "application/json"})  # noqa: S310
        try:
            with urllib.request.urlopen(request, timeout=seconds) as answer:  # noqa: S310 (http alone, see above)
                return json.loads(answer.read())
        except urllib.error.HTTPError as error:
            said = error.read().decode(errors="replace")
            raise RuntimeError(f"{path} answers {error.code}: {shortened(said)}") from error
        except urllib.error.URLError as error:
            raise ConnectionError(f"no WebUI answers at the given address ({error.reason})") from error

    def about(self) -> dict[str, object]:
        try:
            extension = self.ask("/resdit/v1/version")
        except RuntimeError as error:
            raise ResDiTError(f"the WebUI has no {TITLE} ({error}); install the extension in it") from error
        try:
            model = self.ask("/sdapi/v1/options").get("sd_model_checkpoint")
        except RuntimeError as error:
            raise ResDiTError(f"the WebUI has no API ({error}); start it with --api") from error
        return {"model": model, "made by": "a WebUI", "extension": extension}

    def upscaler(self) -> str:
        """The hires pass's."""
        modes = [mode["name"] for mode in self.ask("/sdapi/v1/latent-upscale-modes")]
        return LATENT_UPSCALER if LATENT_UPSCALER in modes else LANCZOS

    def payload(self, order: Order) -> dict[str, object]:
        """The request of a picture."""
        preset, changes = VARIANTS.get(order.method, (None, {}))
        size = {"width": order.width, "height": order.height}
        ours = {"enabled": False}
        if preset is not None:
            ours = {"preset": preset, "base_size": self.base, **changes, **size}
        more: dict[str, object] = {}
        if order.method == HIRES:
            size = dict(zip(("width", "height"), order.at_base(self.base, self.token), strict=True))
            more = {
                "enable_hr": True,
                "hr_resize_x": order.width,
                "hr_resize_y": order.height,
                "hr_upscaler": self.upscaler(),
                "denoising_strength": STRENGTH,
                "hr_additional_modules": ["Use same choices"],
            }
        return {
            "prompt": order.scene.prompt,
            "seed": order.scene.seed,
            "steps": self.options.steps,
            "sampler_name": self.options.sampler,
            "scheduler": "Simple",
            "cfg_scale": 1 if self.options.guidance is None else self.options.guidance,
            "save_images": False,
            "alwayson_scripts": {TITLE: {"args": [ours]}},
            **size,
            **more,
        }

    def make(self, order: Order) -> Made:
        began = time.perf_counter()
        with self.watched() as parts:
            answer = self.ask("/sdapi/v1/txt2img", self.payload(order), LONGEST)
        seconds = time.perf_counter() - began
        image = Image.open(io.BytesIO(base64.b64decode(answer["images"][0].partition(",")[2] or answer["images"][0])))
        told = json.loads(answer.get("info") or "{}").get("extra_generation_params", {})
        notes = [*told.get("ResDiT notes", []), *filter(None, [told.get("ResDiT not active")])]
        return Made(np.asarray(image.convert("RGB")), seconds, parts, notes)

    @contextmanager
    def watched(self) -> Iterator[dict[str, Part]]:
        """What the WebUI's progress says meanwhile: each part's seconds, and the memory in use on its device."""
        parts: dict[str, Part] = {}
        over = threading.Event()

        def look() -> None:
            last = time.perf_counter()
            while not over.wait(EVERY):
                with suppress(RuntimeError, ConnectionError, OSError, ValueError):
                    name = self.part_now()
                    now = time.perf_counter()
                    part = parts.setdefault(name, Part([0.0]))
                    part.times[0] += now - last
                    part.peak_gb = max(filter(None, (part.peak_gb, self.memory_now())), default=None)
                    last = now

        thread = threading.Thread(target=look, daemon=True)
        thread.start()
        try:
            yield parts
        finally:
            over.set()
            thread.join()

    def part_now(self) -> str:
        """The phase that the progress bar names, or whether there are steps at all."""
        progress = self.ask("/sdapi/v1/progress?skip_current_image=true")
        text, state = progress.get("textinfo") or "", progress.get("state") or {}
        if text.startswith(PREFIX):
            return text.removeprefix(PREFIX).split(" ")[0]
        steps, step = state.get("sampling_steps") or 0, state.get("sampling_step") or 0
        return "steps" if 0 < step < steps - 1 else "before and after the steps"

    def memory_now(self) -> float | None:
        """Gigabytes in use on the device, other programs' too; None where the WebUI does not tell."""
        used = (self.ask("/sdapi/v1/memory").get("cuda") or {}).get("system", {}).get("used")
        return None if used is None else used / GIGABYTE
