"""A WebUI extension for tests: GET /resdit_test/alive says what of past generations is still in memory."""

import gc
import weakref

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


script_callbacks.on_app_started(lambda _, app: app.add_api_route("/resdit_test/alive", alive, methods=["GET"]))
