"""A WebUI extension for tests: routes that say what of past generations is still in memory."""

import ctypes
import gc
import os
import weakref
from pathlib import Path

import torch
from modules import script_callbacks, scripts

SEEN = {"generations": [], "latents": []}


class Watch(scripts.Script):
    def title(self):
        return "Watch"

    def show(self, is_img2img):
        return scripts.AlwaysVisible

    def process(self, p, *args):
        SEEN["generations"].append(weakref.ref(p))

    def process_before_every_sampling(self, p, *args, **kwargs):
        SEEN["latents"].append(weakref.ref(kwargs["x"]))


def alive():
    """How many of the generations and of their latents are left, and the bytes of all tensors there are."""
    gc.collect()
    storages = [tensor.untyped_storage() for tensor in gc.get_objects() if issubclass(type(tensor), torch.Tensor)]
    sizes = {storage.data_ptr(): storage.nbytes() for storage in storages}
    return {name: sum(each() is not None for each in seen) for name, seen in SEEN.items()} | {
        "tensor_bytes": sum(sizes.values())
    }


def resident():
    """Megabytes that this process occupies, once what is free in its heap has gone back to the system."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


def add_routes(_, app):
    for function in (alive, resident):
        app.add_api_route(f"/resdit_test/{function.__name__}", function, methods=["GET"])


script_callbacks.on_app_started(add_routes)
