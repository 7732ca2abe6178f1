"""A unit as the panel makes it of a file, and as it is linked into a pass, or refused with a reason."""

import logging
import math
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file

from resdit_ext.control.hint import pixels
from resdit_ext.hosts.forge import control_unit
from resdit_ext.hosts.forge.control_unit import ResDiTControl
from resdit_ext.method.memory import OutOfMemory
from resdit_ext.webui import control
from tests.control_host import CONDITIONING, PICTURE, Network, generation
from tests.control_nets import as_stability, net_of
from tests.settings import scaled


def broken(change):
    state = dict(net_of("flux").state_dict())
    change(state)
    return state


@pytest.mark.parametrize(
    ("state", "name", "message"),
    [
        (broken(lambda s: s.pop("x_embedder.bias")), "net.safetensors", "it lacks x_embedder.bias"),
        (broken(lambda s: s["x_embedder.bias"].fill_(torch.nan)), "net.safetensors", "x_embedder.bias has values"),
        (net_of("flux").state_dict(), "net.pth", "only safetensors files are read"),
        (net_of("sd3").state_dict(), "net.safetensors", "it is for SD3, and the model is FLUX.1"),
        (
            net_of("flux", num_attention_heads=4).state_dict(),
            "net.safetensors",
            "its tokens have 128 channels and the model's 64",
        ),
    ],
)
def test_a_bad_file_is_said_and_the_unet_stays(state, name, message, monkeypatch):
    p, x = generation(monkeypatch)
    unet = p.unet
    p.add(state, PICTURE, x, name=name)
    (said,) = p.said
    assert said.startswith(f"ControlNet {name} is ignored: ") and message in said
    assert p.unet is unet and unet.linked is None and not unet.model_options


@pytest.mark.parametrize(
    ("kind", "changes", "message"),
    [
        ("flux", {"joint_attention_dim": 48}, "its text tokens have 48 channels and the model's 32"),
        ("flux", {"pooled_projection_dim": 24}, "its text vectors have 24 channels and the model's 16"),
        ("flux", {"in_channels": 64}, "its latents have 16 channels and the model's 4"),
        ("sd3", {"joint_attention_dim": 48}, "its text tokens have 48 channels and the model's 32"),
        ("sd3", {"pooled_projection_dim": 24}, "its text vectors have 24 channels and the model's 16"),
        ("sd3", {"in_channels": 16}, "its latents have 16 channels and the model's 4"),
        ("sd3.5 8b", {"pooled_projection_dim": 24}, "its text vectors have 24 channels and the model's 16"),
    ],
)
def test_a_net_for_another_size_is_said_before_sampling(kind, changes, message, monkeypatch):
    of_flux = kind == "flux"
    p, x = generation(monkeypatch, None if of_flux else Network(2), *(() if of_flux else ("SD3", 128)))
    p.add(net_of(kind, **changes).state_dict(), PICTURE, x)
    assert p.said == [f"ControlNet net.safetensors is ignored: {message}: it is for another size"]
    assert p.unet.linked is None
    p.add(net_of(kind).state_dict(), PICTURE, x)
    assert p.unet.linked is not None


def test_a_mask_of_another_form_is_said(monkeypatch):
    p, x = generation(monkeypatch)
    p.add(net_of("flux").state_dict(), PICTURE, x, mask=torch.zeros(1, 3, 64, 64))
    assert p.said == ["ControlNet net.safetensors is ignored: its mask is (1, 3, 64, 64), and one has (B, 1, H, W)"]
    assert p.unet.linked is None


def test_a_refused_file_that_was_replaced_is_read_again(tmp_path, monkeypatch):
    p, x = generation(monkeypatch)
    path = tmp_path / "net.safetensors"
    lacking = broken(lambda s: s.pop("x_embedder.bias"))
    save_file(lacking, path)
    unit = p.add(lacking, PICTURE, x, name=path)
    assert "it lacks x_embedder.bias" in p.said[0]
    unit.process_after_running_preprocessors(process=p, params=None)
    assert unit.refusal is not None
    save_file(net_of("flux").state_dict(), path)
    unit.process_after_running_preprocessors(p, None)
    unit.process_before_every_sampling(p, PICTURE, None, x=x)
    assert unit.refusal is None and len(p.said) == 1 and p.unet.linked is not None


def test_a_refused_file_is_read_once_as_long_as_it_is_the_same(tmp_path, monkeypatch):
    p, x = generation(monkeypatch)
    path, read = tmp_path / "net.safetensors", []
    lacking = broken(lambda s: s.pop("x_embedder.bias"))

    def load(path):
        read.append(path)
        return load_file(path)

    monkeypatch.setattr(control_unit, "load_file", load)
    save_file(lacking, path)
    unit = p.add(lacking, PICTURE, x, name=path)
    unit.process_after_running_preprocessors(p, None)
    assert read == []
    save_file(lacking | {"more": torch.zeros(1)}, path)
    for _ in range(2):
        unit.process_after_running_preprocessors(p, None)
    assert read == [path] and unit.refusal is not None
    path.write_bytes(b"truncated")
    unit.process_after_running_preprocessors(p, None)
    path.unlink()
    unit.process_after_running_preprocessors(p, None)
    assert read == [path] and unit.refusal is not None


def test_a_refused_pickle_file_is_never_opened(tmp_path, monkeypatch):
    p, x = generation(monkeypatch)
    path = tmp_path / "net.pth"
    path.write_bytes(b"one")
    unit = p.add(net_of("flux").state_dict(), PICTURE, x, name=path)
    monkeypatch.setattr(control_unit, "load_file", lambda _: pytest.fail("opened"))
    path.write_bytes(b"another")
    unit.process_after_running_preprocessors(p, None)
    assert "only safetensors files are read" in unit.refusal


@pytest.mark.parametrize("kind", ["flux", "flux xlabs"])
def test_each_patch_has_its_part_of_the_hint(kind, monkeypatch):
    p, x = generation(monkeypatch, config=scaled(base_tokens=6), height=12, width=8)  # 6 x 4 tokens
    hint = torch.rand(1, 3, 96, 64)
    p.add(net_of(kind).state_dict(), hint, x)
    link, layout = p.unet.linked, p.unet.linked.method[0]

    def seen(picture):
        toned = 2 * picture - 1
        return toned if kind == "flux xlabs" else p.sd_model.encode_first_stage(toned)

    assert (layout.base.height, layout.base.width) == (3, 2) and set(link.patch_hints) == set(layout.patches)
    for (row, col), got in link.patch_hints.items():
        assert torch.equal(got, seen(hint[..., 16 * row : 16 * (row + 3), 16 * col : 16 * (col + 2)]))
    assert torch.equal(link.hint, seen(pixels(hint, 48, 32)))


@pytest.mark.parametrize("ratio", [8, (lambda side: side // 8, 8, 8), None])
def test_the_hint_is_eight_pixels_a_latents_side_where_the_vae_says_nothing_else(ratio, monkeypatch):
    p, x = generation(monkeypatch)
    p.sd_model.forge_objects.vae.downscale_ratio = ratio
    p.add(net_of("flux xlabs").state_dict(), torch.rand(1, 3, 40, 56), x)
    assert p.unet.linked.hint.shape == (1, 3, 64, 64) and p.said == []


def test_the_net_computes_as_the_model_does(monkeypatch):
    p, x = generation(monkeypatch)
    p.unet.model.computation_dtype = torch.bfloat16
    p.add(net_of("flux").state_dict(), PICTURE, x)
    held = p.unet.linked.patcher.model
    assert held.compute == torch.bfloat16 == next(held.net.parameters()).dtype


def test_what_is_no_picture_is_said(monkeypatch):
    p, x = generation(monkeypatch)
    p.add(net_of("flux").state_dict(), {"embeds": 1}, x)
    assert p.said == ["ControlNet net.safetensors is ignored: its preprocessor gave no picture but dict"]


@pytest.fixture
def console(caplog):
    """What the console gets as the settings are at first: the log's text, tracebacks and all."""
    caplog.set_level(logging.INFO, "ResDiT")
    logging.getLogger("ResDiT").addHandler(caplog.handler)
    yield lambda: caplog.text
    logging.getLogger("ResDiT").removeHandler(caplog.handler)


def test_an_error_of_ours_is_said_and_the_image_is_made(monkeypatch, console):
    p, x = generation(monkeypatch)
    p.sd_model.encode_first_stage = lambda _: 1 / 0
    p.add(net_of("flux").state_dict(), PICTURE, x)
    (said,) = p.said
    assert "internal error (ZeroDivisionError: division by zero); please report it" in said and p.unet.linked is None
    made = SimpleNamespace(forge_objects=1)
    control.before_sampling(SimpleNamespace(sd_model=made, scripts=SimpleNamespace(alwayson_scripts=1)))
    assert "left to the WebUI (TypeError: 'int' object is not iterable)" in console() and "Traceback" not in console()


def test_no_memory_for_a_hint_is_said(monkeypatch):
    p, x = generation(monkeypatch)

    def encode(_):
        raise OutOfMemory

    p.sd_model.encode_first_stage = encode
    p.add(net_of("flux").state_dict(), PICTURE, x)
    assert p.said == ["ControlNet net.safetensors is ignored: there is no memory for its hint"]
    assert p.unet.linked is None


@pytest.mark.parametrize(
    ("attribute", "value", "name"),
    [
        ("strength", math.nan, "weight"),
        ("strength", math.inf, "weight"),
        ("start_percent", math.nan, "first step"),
        ("end_percent", -math.inf, "last step"),
    ],
)
def test_numbers_that_are_none_are_said(attribute, value, name, monkeypatch):
    p, x = generation(monkeypatch)
    p.add(net_of("flux").state_dict(), PICTURE, x, **{attribute: value})
    assert p.said == [f"ControlNet net.safetensors is ignored: its {name} is {value}, and must be a finite number"]
    assert p.unet.linked is None


@pytest.mark.parametrize(("start", "end", "acts"), [(0.8, 0.2, False), (-3, 7, True), (5, 9, False), (1, 1, False)])
def test_a_range_out_of_order_or_bounds_is_no_error(start, end, acts, monkeypatch):
    p, x = generation(monkeypatch)
    p.add(net_of("flux").state_dict(), PICTURE, x, start_percent=start, end_percent=end)
    with torch.inference_mode():
        assert [p.control(x, sigma, **CONDITIONING) is not None for sigma in (1.0, 0.5, 0.1)] == [acts] * 3
    assert p.said == []


def test_a_file_that_cannot_be_read_is_said(tmp_path, monkeypatch):
    """Whatever goes wrong while the panel makes the unit; an error there would cost the units after it too."""
    p, x = generation(monkeypatch)
    monkeypatch.setattr(control_unit, "check_shapes", lambda _: 1 / 0)
    p.add(net_of("flux").state_dict(), PICTURE, x)
    assert p.said == ["ControlNet net.safetensors is ignored: it cannot be read (ZeroDivisionError: division by zero)"]
    assert p.unet.linked is None


def test_a_file_of_another_kind_is_for_another_class():
    assert ResDiTControl.try_build_from_state_dict({"zero_convs.0.0.weight": torch.zeros(1)}, "unet.pth") is None
    assert ResDiTControl.try_build_from_state_dict({}, "empty.safetensors", {"some": "metadata"}) is None


EDGES = SimpleNamespace(tags=["Canny"])


@pytest.mark.parametrize(
    ("kind", "given", "shows", "asked"),
    [
        ("flux union", {"unit": SimpleNamespace(type_filter="Tile")}, "tile", False),
        ("flux union", {"params": SimpleNamespace(preprocessor=SimpleNamespace(tags=["OpenPose"]))}, "pose", False),
        ("flux union", {"unit": SimpleNamespace(type_filter="All")}, "canny", True),
        (
            "flux union",
            {"unit": SimpleNamespace(type_filter="Depth"), "params": SimpleNamespace(preprocessor=EDGES)},
            "depth",
            False,
        ),
        ("flux", {}, None, False),
        ("sd3.5 8b", {}, "canny", True),
    ],
)
def test_what_the_hint_shows_is_asked_where_it_matters(kind, given, shows, asked, monkeypatch):
    flux = kind.startswith("flux")
    p, x = generation(monkeypatch, None if flux else Network(2), *(() if flux else ("SD3", 128)))
    p.add(net_of(kind).state_dict(), PICTURE, x, given=given)
    assert p.unet.linked.shows == shows and ["serves several kinds" in said for said in p.said] == [True] * asked


def test_a_file_that_says_what_it_is_for_is_not_asked(monkeypatch):
    p, x = generation(monkeypatch, Network(2), "SD3", 128)
    unit = SimpleNamespace(type_filter="Canny")
    p.add(as_stability(net_of("sd3.5 8b").state_dict(), 2.0), PICTURE, x, given={"unit": unit})
    assert p.unet.linked.shows == "depth" and p.said == []


def test_the_nets_weights_are_not_kept_twice(monkeypatch):
    p, x = generation(monkeypatch)
    unit = p.add(net_of("flux").state_dict(), PICTURE, x)
    patcher = unit.model_patcher
    assert unit.checkpoint.weights == {}
    unit.process_before_every_sampling(p, PICTURE, None, x=x)
    assert unit.model_patcher is patcher and p.said == []
