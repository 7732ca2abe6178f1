"""Checks of the VAE in tiles, on the host's own patcher around an autoencoder that costs nothing."""

from __future__ import annotations

import copy
from types import SimpleNamespace

import torch
from torch import Tensor

from resdit_ext.hosts.forge.vae import prepare_decode, release_decode
from resdit_ext.monkeypatch import swapped
from tests.hosts import kit
from tests.hosts.bench import Bench, check, same

LATENT = 96  # a side: more than the hosts' tiles of 64
PIXELS = 8 * LATENT


class Stopped(BaseException):
    """Like KeyboardInterrupt."""


class Decoding:
    """The host's VAE in the holder of a generation, and the areas that its network saw."""

    def __init__(self) -> None:
        from backend import memory_management

        self.memory, self.vae, self.areas, self.said = memory_management, kit.build_vae(), [], []
        self.error: BaseException | None = None
        self.p = SimpleNamespace(sd_model=SimpleNamespace(forge_objects=SimpleNamespace(vae=self.vae)))
        network = self.vae.first_stage_model
        for name in ("decode", "encode"):
            setattr(network, name, self.noted(getattr(network, name)))
        self.before = dict(vars(self.vae))

    def noted(self, method: object) -> object:
        def call(x: Tensor, *args: object) -> Tensor:
            self.areas.append(x.shape[-2] * x.shape[-1])
            if self.error is not None:
                raise self.error
            return method(x, *args)

        return call

    @torch.inference_mode()
    def work(self, policy: str, method: str = "decode") -> tuple[Tensor, bool]:
        """(result, whether it was made in tiles) of one generation."""
        generator = torch.Generator().manual_seed(3)
        latent = torch.randn(1, 16, LATENT, LATENT, generator=generator)
        pixels = torch.rand(1, PIXELS, PIXELS, 3, generator=generator)
        self.areas.clear()
        prepare_decode(self.p, PIXELS, PIXELS, policy, self.said.append)
        try:
            out = getattr(self.p.sd_model.forge_objects.vae, method)(latent if method == "decode" else pixels)
        finally:
            release_decode(self.p)
            assert self.p.sd_model.forge_objects.vae is self.vae, "the holder keeps ours"
            same(dict(vars(self.vae)), self.before, "the VAE's attributes")
            same(self.memory.VAE_ALWAYS_TILED, False, "the switch")
        return out, not {LATENT**2, PIXELS**2} & set(self.areas)


@check
def the_vae_tiles_as_the_policy_says(_: Bench) -> str:
    """Always, Never, and Auto with much and with little memory; the picture is whole in every case."""
    decoding, plenty = Decoding(), 2**50
    cases = ("Never", 2**20, False), ("Always", plenty, True), ("Auto", plenty, False), ("Auto", 2**20, True)
    for method, shape in (("decode", (1, PIXELS, PIXELS, 3)), ("encode", (1, 16, LATENT, LATENT))):
        for policy, free, expected in cases:
            decoding.said.clear()
            room = dict(get_free_memory=lambda *_, free=free: free, get_total_memory=lambda *_: plenty)
            with swapped(decoding.memory, **room):
                out, tiled = decoding.work(policy, method)
            same((tuple(out.shape), tiled, len(decoding.said)), (shape, expected, expected), f"{policy}, {free}")
            assert out.isfinite().all()
    return "decode and encode"


@check
def the_vaes_tiles_are_the_hosts_own(_: Bench) -> str:
    """The same bits as with the host's own switch."""
    decoding = Decoding()
    ours, _ = decoding.work("Always")
    own = copy.copy(decoding.vae)
    own.tile_info = (512, 512, 64, "original")
    latent = torch.randn(1, 16, LATENT, LATENT, generator=torch.Generator().manual_seed(3))
    with torch.inference_mode(), swapped(decoding.memory, VAE_ALWAYS_TILED=True):
        assert torch.equal(own.decode(latent), ours)
    return "the same bits"


@check
def the_vae_is_as_before_after_an_error(_: Bench) -> str:
    """An error in the tiles goes on to the host's own decode, and out of it; an interrupt straight out."""
    decoding = Decoding()
    for error in (ValueError("broken"), Stopped()):
        decoding.error = error
        try:
            decoding.work("Always")
        except (ValueError, Stopped) as raised:
            same(raised, error, "error")
        else:
            raise AssertionError("it was swallowed")
        same(LATENT**2 in decoding.areas, isinstance(error, ValueError), "a second attempt at once")
    decoding.error = None
    same(decoding.work("Never")[1], False, "tiles afterwards")
    return "after ValueError and a BaseException"
