"""The VAE of Forge, Forge Neo and ersatzForge at large sizes: their own tiles, before the memory has run out.

The hosts go over to tiles after an out-of-memory error, which never comes where the driver swaps to main memory
instead. This generation gets a shallow copy of the VAE, in the holder that the host makes anew for every pass; the copy
decides when it is called, where memory is what it will be. The host has no hook between the hires pass and its decode.
"""

from __future__ import annotations

import copy
import logging
import threading
from collections.abc import Callable

from torch import Tensor

from ...method.cost import DECODE_VALUES, ENCODE_VALUES
from ...monkeypatch import is_ours, replacing, swapped, without_ours

logger = logging.getLogger("ResDiT")

AUTO, ALWAYS, NEVER = "Auto", "Always", "Never"
OURS = "vae"
LATENT_PIXEL = 8  # pixels a side of a latent, where the VAE does not say
NEARLY = 0.9  # a picture of this share of the final one's area is taken for it: sides may have been rounded
ERSATZ_TILES = (512, 512, 64, "original")  # ersatzForge's own defaults; without any its tiles fail
_switch = threading.RLock()  # a live preview may decode in another thread


def latent_pixel(vae: object) -> int:
    """Pixels a side of a latent; video autoencoders give a tuple or a function."""
    ratio = getattr(vae, "downscale_ratio", LATENT_PIXEL)
    return ratio if isinstance(ratio, int) else LATENT_PIXEL


def need(vae: object, method: str, size: tuple[int, ...], shape: tuple[int, ...]) -> float:
    """Bytes for a whole decode or encode of (height, width) pixels: ours, or the host's estimate where that is less.

    Forge's and Neo's are 3.4 and 4.6 times what is allocated, and would tile pictures that fit.
    """
    values = DECODE_VALUES if method == "decode" else ENCODE_VALUES
    counted = values * size[0] * size[1] * vae.vae_dtype.itemsize
    return min(counted, getattr(vae, f"memory_used_{method}")(shape, vae.vae_dtype))


def why_tiled(vae: object, method: str, size: tuple[int, ...], shape: tuple[int, ...], policy: str) -> str | None:
    """The message for the user where tiles are to be used, None where the host goes on in its own way."""
    from backend import memory_management as memory

    if memory.VAE_ALWAYS_TILED or policy == NEVER:
        return None
    if policy == ALWAYS:
        return f"the VAE will {method} in tiles, as set"
    needed, room = need(vae, method, size, shape), memory.get_total_memory(vae.device)
    if needed <= room:  # else it is in vain to push the model off the device
        memory.load_models_gpu([vae.patcher], memory_required=needed)
        memory.soft_empty_cache()  # ersatzForge counts what sampling has left in the allocator as taken
        room = memory.get_free_memory(vae.device)
    if needed <= room:
        return None
    return f"the VAE will {method} in tiles: at once it may need {needed / 1e9:.1f} GB, there are {room / 1e9:.1f} GB"


def in_tiles(vae: object, method: str, samples: Tensor) -> Tensor:
    """The host's own tiled decode or encode: its switch, which is global, is on for this call only."""
    from backend import memory_management as memory

    tiled = copy.copy(vae)
    tiled.tile_info = getattr(vae, "tile_info", None) or ERSATZ_TILES
    with _switch, swapped(memory, VAE_ALWAYS_TILED=True):
        return getattr(tiled, method)(samples)


def watched(vae: object, method: str, pixels: float, policy: str, say: Callable[[str], None]) -> Callable:
    """The VAE's `method` ("decode" or "encode"), in tiles where that is decided, as the host has it after an error."""
    whole = getattr(vae, method)

    def call(samples: Tensor) -> Tensor:
        # Pixels come with their channels last, latents with theirs first.
        shape = samples.shape if method == "decode" else samples.movedim(-1, 1).shape
        size = tuple(side * (latent_pixel(vae) if method == "decode" else 1) for side in shape[-2:])
        if size[0] * size[1] < NEARLY * pixels:
            return whole(samples)
        try:
            reason = why_tiled(vae, method, size, shape, policy)
            if reason is not None:
                say(reason)
                return in_tiles(vae, method, samples)
        except Exception:
            logger.exception("the VAE is left to the WebUI")
        return whole(samples)

    return call


def prepare_decode(p: object, width: int, height: int, policy: str, say: Callable[[str], None]) -> None:
    """Have this generation's VAE tile pictures of `width` x `height` where memory, or the policy, asks for it.

    Doing it again replaces, never nests; "Never" leaves the host's own.

    Args:
        p: the host's object of the generation.
        width, height: of the final picture; smaller ones, as of a first pass, stay the host's affair.
        policy: "Auto", "Always" or "Never".
        say: receives the message for the user, when and if tiles are used.
    """
    release_decode(p)
    if policy == NEVER:
        return
    vae = p.sd_model.forge_objects.vae
    ours = copy.copy(vae)  # not clone(), which forgets attributes in Neo and would be loaded as another model
    ours.decode, ours.encode = (watched(vae, name, width * height, policy, say) for name in ("decode", "encode"))
    p.sd_model.forge_objects.vae = replacing(ours, vae, OURS)


def release_decode(p: object) -> None:
    """Put the host's VAE back wherever ours is found: a change of LoRA between two passes copies the holder."""
    for name in ("forge_objects", "forge_objects_after_applying_lora"):
        holder = getattr(p.sd_model, name, None)
        vae = getattr(holder, "vae", None)
        if is_ours(vae, OURS):
            holder.vae = without_ours(vae, OURS)
