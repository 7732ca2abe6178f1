"""The VAE in tiles: when, with which message, and that the host finds everything as it was."""

import copy
import sys
import threading
from types import ModuleType, SimpleNamespace

import pytest
import torch

from resdit_ext.hosts.a1111 import A1111
from resdit_ext.hosts.forge import vae as forge_vae
from resdit_ext.hosts.forge.vae import need
from resdit_ext.monkeypatch import without_ours
from resdit_ext.webui import lifecycle, settings
from tests.fakes import CHANNELS, FakeFlux, FakeMemory, FakeProcessing, FakeVAE

WHOLE, TILES = "decode at once", "decode in tiles"


def meta(side):
    return torch.empty(1, 16, side // 8, side // 8, device="meta")


@pytest.fixture
def memory(monkeypatch):
    memory, backend = FakeMemory(), ModuleType("backend")
    backend.memory_management = memory
    monkeypatch.setitem(sys.modules, "backend", backend)
    return memory


@pytest.fixture
def vae(memory):
    return FakeVAE(memory)


def holder(vae):
    return SimpleNamespace(vae=vae)


def prepared(vae, policy, side=4096):
    """(p, messages) with the VAE of this generation in place."""
    said = []
    p = SimpleNamespace(sd_model=SimpleNamespace(forge_objects=holder(vae)))
    forge_vae.prepare_decode(p, side, side, policy, said.append)
    return p, said


@pytest.mark.parametrize(
    ("policy", "side", "expected"),
    [
        ("Always", 1024, TILES),
        ("Never", 4096, WHOLE),
        ("Auto", 4096, TILES),  # 32 GB of 24
        ("Auto", 3072, WHOLE),  # 18 GB: they are free once the host has moved the other model
    ],
)
def test_the_policy_decides(vae, memory, policy, side, expected):
    p, said = prepared(vae, policy, side)
    out = p.sd_model.forge_objects.vae.decode(meta(side))
    assert vae.worked == [expected] and out.shape == (1, side, side, 3)
    assert len(said) == (expected == TILES) and all("decode in tiles" in text for text in said)
    assert memory.VAE_ALWAYS_TILED is False


def test_what_cannot_fit_pushes_no_model_off_the_card(vae, memory):
    p, said = prepared(vae, "Auto")
    p.sd_model.forge_objects.vae.decode(meta(4096))
    assert memory.required == [] and said == [
        "the VAE will decode in tiles: at once it may need 32.2 GB, there are 24.0 GB"
    ]
    p, _ = prepared(vae, "Auto", 3072)
    p.sd_model.forge_objects.vae.decode(meta(3072))
    assert memory.required == [960 * 3072**2 * 2]


def test_what_the_host_cannot_free_is_not_counted_on(vae, memory, monkeypatch):
    monkeypatch.setattr(memory, "load_models_gpu", lambda models, memory_required: None)
    p, said = prepared(vae, "Auto", 3072)
    p.sd_model.forge_objects.vae.decode(meta(3072))
    assert vae.worked == [TILES] and "18.1 GB, there are 4.0 GB" in said[0]


def test_the_hosts_estimate_counts_where_it_is_less(vae):
    vae.memory_used_decode = lambda shape, dtype: 5
    assert need(vae, "decode", (4096, 4096), (1, 16, 512, 512)) == 5


def test_encoding_a_large_picture_too(vae):
    p, said = prepared(vae, "Auto", 6144)
    out = p.sd_model.forge_objects.vae.encode(torch.empty(1, 6144, 6144, 3, device="meta"))
    assert vae.worked == ["encode in tiles"] and out.shape == (1, 16, 768, 768) and "encode in tiles" in said[0]


def test_smaller_pictures_stay_the_hosts_affair(vae):
    p, said = prepared(vae, "Always", 4096)
    p.sd_model.forge_objects.vae.decode(meta(1024))  # the first pass of hires
    p.sd_model.forge_objects.vae.decode(meta(4088))
    assert vae.worked == [WHOLE, TILES] and len(said) == 1


def test_the_users_own_switch_stays(vae, memory):
    memory.VAE_ALWAYS_TILED = True
    p, said = prepared(vae, "Always")
    p.sd_model.forge_objects.vae.decode(meta(4096))
    assert vae.worked == [TILES] and not said and memory.VAE_ALWAYS_TILED is True


def test_tiles_get_a_size_and_the_users_own_if_there_is_one(vae, monkeypatch):
    seen = []
    monkeypatch.setattr(FakeVAE, "decode", lambda self, _: seen.append(self.tile_info))
    for own, expected in ((None, (512, 512, 64, "original")), ((768, 768, 32, "DoE"), (768, 768, 32, "DoE"))):
        vae.tile_info = own
        p, _ = prepared(vae, "Always")
        p.sd_model.forge_objects.vae.decode(meta(4096))
        assert seen.pop() == expected and vae.tile_info == own


def test_an_error_of_ours_or_in_the_tiles_does_not_lose_the_picture(vae, memory, monkeypatch, caplog):
    memory.fail_in_tiles = ValueError("tiles")
    p, _ = prepared(vae, "Always")
    assert p.sd_model.forge_objects.vae.decode(meta(4096)).shape == (1, 4096, 4096, 3)
    assert vae.worked == [TILES, WHOLE] and memory.VAE_ALWAYS_TILED is False and "tiles" in caplog.text
    monkeypatch.delattr(vae, "memory_used_decode")
    vae.worked.clear()
    p, _ = prepared(vae, "Auto")
    p.sd_model.forge_objects.vae.decode(meta(4096))
    assert vae.worked == [WHOLE]


def test_an_interrupt_leaves_the_switch_off(vae, memory):
    memory.fail_in_tiles = KeyboardInterrupt()
    p, _ = prepared(vae, "Always")
    with pytest.raises(KeyboardInterrupt):
        p.sd_model.forge_objects.vae.decode(meta(4096))
    assert memory.VAE_ALWAYS_TILED is False


def test_two_threads_leave_the_switch_off(vae, memory, monkeypatch):
    """A live preview decodes while the generation does."""
    inside, seen = threading.Barrier(2), []

    def slow(self, _):
        seen.append(self.memory.VAE_ALWAYS_TILED)
        threading.Event().wait(0.02)

    monkeypatch.setattr(FakeVAE, "decode", slow)
    p, _ = prepared(vae, "Always")

    def work():
        inside.wait()
        p.sd_model.forge_objects.vae.decode(meta(4096))

    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert seen == [True, True] and memory.VAE_ALWAYS_TILED is False


def test_the_hosts_vae_is_untouched_and_comes_back(vae):
    before = dict(vars(vae))
    p, _ = prepared(vae, "Always")
    assert p.sd_model.forge_objects.vae is not vae
    forge_vae.prepare_decode(p, 4096, 4096, "Always", print)
    assert without_ours(p.sd_model.forge_objects.vae, forge_vae.OURS) is vae  # never nested
    # The host's LoRA loader copies the holder between two passes.
    p.sd_model.forge_objects_after_applying_lora = copy.copy(p.sd_model.forge_objects)
    forge_vae.release_decode(p)
    assert p.sd_model.forge_objects.vae is p.sd_model.forge_objects_after_applying_lora.vae is vae
    assert dict(vars(vae)) == before


def test_a1111_says_that_it_cannot():
    said = []
    for policy in ("Auto", "Never", "Always"):
        A1111().prepare_decode(None, 4096, 4096, policy, said.append)
        A1111().release_decode(None)
    assert len(said) == 1 and "no tiled VAE" in said[0]


class Generation:
    """A host that generates once: its holder is made anew for every pass."""

    def __init__(self, vae, **attributes):
        torch.manual_seed(6)
        self.vae, self.p = vae, FakeProcessing(FakeFlux(), **attributes)
        self.unet = self.p.sd_model.forge_objects.unet
        self.reset()

    def reset(self):
        self.p.sd_model.forge_objects = SimpleNamespace(unet=self.unet, vae=self.vae)

    def begin(self, **options):
        lifecycle.before_process(self.p, options)
        lifecycle.process(self.p, options)

    def sample(self, width, height):
        self.reset()
        x = torch.randn(1, CHANNELS, height // 8, width // 8)
        lifecycle.before_sampling(self.p, x=x, noise=x, c=None, uc=None)
        self.p.sd_model.forge_objects.unet.sample(x, 0.5)

    def decode(self, side):
        return self.p.sd_model.forge_objects.vae.decode(meta(side))

    def end(self):
        lifecycle.postprocess(self.p, SimpleNamespace(comments=""))


SMALL = {"width": 768, "base_size": 256}


def test_a_generation(vae, monkeypatch):
    monkeypatch.setattr(settings, "vae_tiling", lambda: "Always")
    generation = Generation(vae)
    generation.begin(**SMALL)
    for _ in range(2):
        generation.sample(768, 768)
        generation.decode(768)
    assert vae.worked == [TILES, TILES] and generation.p.sd_model.forge_objects.vae is not vae
    assert [text for text in generation.p.comments if "will decode" in text] == [
        "ResDiT: the VAE will decode in tiles, as set"
    ]
    generation.end()
    assert generation.p.sd_model.forge_objects.vae is vae


def test_without_resdit_the_vae_is_the_hosts(vae, monkeypatch):
    monkeypatch.setattr(settings, "vae_tiling", lambda: "Always")
    for options in ({"enabled": False}, {"size": "WebUI", "base_size": 1024}):
        generation = Generation(vae)
        generation.begin(**options)
        generation.sample(1024, 1024)
        assert generation.p.sd_model.forge_objects.vae is vae
    generation = Generation(vae, enable_hr=True, hr_resize_x=0, hr_resize_y=0, hr_scale=2.0)
    generation.begin(**SMALL, apply_to="first pass")
    generation.sample(1024, 1024)
    assert generation.p.sd_model.forge_objects.vae is vae


def test_hires_has_it_from_the_first_pass_on(vae, monkeypatch):
    """Between the passes the host encodes the upscaled picture; the first pass is decoded in the host's way."""
    monkeypatch.setattr(settings, "vae_tiling", lambda: "Always")
    hires = dict(enable_hr=True, hr_resize_x=0, hr_resize_y=0, hr_scale=2.0, hr_second_pass_steps=0)
    generation = Generation(vae, width=256, height=256, **hires)
    generation.begin(**SMALL)
    generation.sample(256, 256)
    generation.decode(256)
    generation.p.sd_model.forge_objects.vae.encode(torch.empty(1, 768, 768, 3, device="meta"))
    generation.p.is_hr_pass = True
    generation.sample(768, 768)
    generation.decode(768)
    assert vae.worked == [WHOLE, "encode in tiles", TILES]


def test_img2img_encodes_its_picture_in_tiles(vae, monkeypatch):
    monkeypatch.setattr(settings, "vae_tiling", lambda: "Always")
    generation = Generation(vae, init_images=["picture"])
    generation.begin(**SMALL)
    generation.p.sd_model.forge_objects.vae.encode(torch.empty(1, 768, 768, 3, device="meta"))
    assert vae.worked == ["encode in tiles"]


def test_what_an_error_left_is_gone_in_the_next_generation_even_if_off(vae, monkeypatch):
    monkeypatch.setattr(settings, "vae_tiling", lambda: "Always")
    generation = Generation(vae)
    generation.begin(**SMALL)
    generation.sample(768, 768)  # and then the host fails: no hook is called any more
    model = generation.p.sd_model
    model.forge_objects_after_applying_lora = copy.copy(model.forge_objects)
    after = FakeProcessing(sd_model=model)
    lifecycle.before_process(after, {"enabled": False})
    lifecycle.process(after, {"enabled": False})
    assert model.forge_objects.vae is model.forge_objects_after_applying_lora.vae is vae


def test_an_error_in_preparing_is_no_refusal(vae, monkeypatch, caplog):
    monkeypatch.setattr(settings, "vae_tiling", lambda: 1 / 0)
    generation = Generation(vae)
    generation.begin(**SMALL)
    generation.sample(768, 768)
    assert "the VAE is left to the WebUI" in caplog.text
    assert "ResDiT not active" not in generation.p.extra_generation_params
    assert generation.p._resdit.runs[0].calls["blocks"] == 3
