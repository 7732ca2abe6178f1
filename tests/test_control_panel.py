"""The units of the ControlNet panel: before the panel sees them, as it makes and links them, and where it fails."""

import gc
import logging
import math
import sys
import weakref
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import nn

from resdit_ext import ResDiTConfig
from resdit_ext.errors import Unsupported
from resdit_ext.hosts import forge, forge_control, forge_panel
from resdit_ext.hosts.forge_control import ResDiTControl
from resdit_ext.hosts.forge_heeding import heeding
from resdit_ext.memory import OutOfMemory
from resdit_ext.webui import control, lifecycle
from tests.control_host import WRAPPER, Generation, Network, family_of, unet_of
from tests.control_nets import KINDS, as_stability, as_xlabs, net_of

SIGMAS = [1 - i / 10 for i in range(11)]
PICTURE = torch.rand(1, 3, 64, 64)


class Unit:
    """ControlNetUnit, as far as it is read."""

    def __init__(self, **values):
        defaults = dict(enabled=True, module="None", model="None", image=1, processor_res=512, pixel_perfect=False)
        self.__dict__ |= defaults | values


class Panel:
    """The panel's script: `title`, its place among the arguments, and what it has prepared."""

    def __init__(self, first, count):
        self.args_from, self.args_to, self.current_params = first, first + count, {}

        self.prepared = []

    def title(self):
        return "ControlNet"

    def process(self, _, *units):
        self.prepared.append(units)


def page(*units, prepared=(), before=3, **attributes):
    """The host's `p` with these units behind other scripts' arguments."""
    panel = Panel(before, len(units))
    panel.current_params = dict.fromkeys(prepared, "prepared")
    scripts = SimpleNamespace(alwayson_scripts=[SimpleNamespace(title=lambda: "Other"), panel])
    p = SimpleNamespace(scripts=scripts, script_args=(*["other"] * before, *units, "last"), comments=[], **attributes)
    p.comment = p.comments.append
    return p


@pytest.fixture
def files(tmp_path, monkeypatch):
    """A folder of control files that the panel knows by their stems."""
    state = ModuleType("lib_controlnet.global_state")

    def get_controlnet_filename(name):
        return str({path.stem: path for path in tmp_path.iterdir()}[name])

    state.get_controlnet_filename = get_controlnet_filename
    monkeypatch.setitem(sys.modules, "lib_controlnet.global_state", state)
    save_file(net_of("flux").state_dict(), tmp_path / "good.safetensors")
    (tmp_path / "cut.safetensors").write_bytes((tmp_path / "good.safetensors").read_bytes()[:5000])
    (tmp_path / "older.pth").write_bytes(b"whatever")
    return tmp_path


def reviewed(p, most=None, family=None):
    said = []
    forge_panel.review(p, most, family, said.append)
    return said


FOR_UNETS = {
    "zero_convs.0.0.weight": "ControlNet",
    "control_model.zero_convs.0.0.weight": "ControlNet",
    "controlnet_cond_embedding.conv_in.weight": "ControlNet",
    "lora_controlnet": "Control-LoRA",
    "body.0.in_conv.weight": "T2I-Adapter",
    "adapter.body.0.in_conv.weight": "T2I-Adapter",
    "body.0.block2.weight": "T2I-Adapter",
    "adapter.body.0.resnets.0.block1.weight": "T2I-Adapter",
    "lllite_unet_input_blocks_4_1_transformer_blocks_0_attn1_to_q.conditioning1.0.weight": "ControlLLLite",
}


@pytest.mark.parametrize(("name", "what"), FOR_UNETS.items())
def test_a_file_for_a_unet_is_left_out_beside_a_transformer_alone(name, what, files):
    save_file({name: torch.zeros(1), "other": torch.zeros(1)}, files / "unets.safetensors")
    bad, good = Unit(model="unets"), Unit(model="good")
    p = page(bad, good)
    (message,) = reviewed(p, family="FLUX.1")
    assert message.startswith(f"ControlNet unets.safetensors is left out: it is a {what} for ")
    assert message.endswith(", and the model is FLUX.1")
    assert not p.script_args[3].enabled and p.script_args[4] is good and bad.enabled
    assert reviewed(page(bad, good)) == []  # beside a UNet


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_for_a_transformer_is_none_for_a_unet(kind, files):
    state = net_of(kind).state_dict()
    for names in (state, as_xlabs(state)) if kind == "flux xlabs" else (state,):
        save_file({name: torch.zeros(1) for name in names}, files / "net.safetensors")
        assert reviewed(page(Unit(model="net")), family="SD3") == []


def test_a_pickle_file_is_left_out_beside_a_transformer_unopened(files):
    (message,) = reviewed(page(Unit(model="older")), family="SD3")
    assert message == (
        "ControlNet older.pth is left out: only safetensors files are read; a pickle file can run programs"
    )


@pytest.mark.parametrize("kind", [Unit, dict])
def test_a_truncated_file_is_left_out_and_the_other_units_stay(kind, files):
    good, bad = (kind(enabled=True, model=name, image="x", processor_res=1) for name in ("good", "cut"))
    p = page(bad, good, Unit(enabled=False, image=None))
    (message,) = reviewed(p)
    assert message.startswith("ControlNet cut.safetensors is left out: it is truncated")
    assert forge_panel.value_of(p.script_args[3], "enabled") is False and p.script_args[4] is good
    assert forge_panel.value_of(bad, "enabled") is True and isinstance(p.script_args, tuple)


def test_good_and_older_files_are_the_panels_affair(files):
    p = page(Unit(model="good"), Unit(model="older"), Unit(model="unknown to it"), {"model": "good", "image": "x"})
    before = p.script_args
    assert reviewed(p) == [] and p.script_args is before


def test_a_unit_without_an_image_is_left_out():
    p = page(Unit(image=None), Unit(image=None, generated_image=1), {"enabled": True})
    assert reviewed(p) == [
        "the first ControlNet unit is left out: it has no image",
        "the third ControlNet unit is left out: it has no image",
    ]
    several = SimpleNamespace(value="batch")
    assert reviewed(page(Unit(image=None, input_mode=several))) == []
    assert reviewed(page(Unit(image=None), init_images=["picture"])) == []


def test_pixel_perfect_is_kept_at_the_base_size():
    unit = Unit(pixel_perfect=True)
    p = page(unit)
    assert reviewed(p) == []
    (message,) = reviewed(p, 1024)
    assert "works at 1024 pixels" in message
    assert (p.script_args[3].pixel_perfect, p.script_args[3].processor_res) == (False, 1024) and unit.pixel_perfect


def test_what_the_api_does_not_say_is_as_the_panels_own_default(monkeypatch):
    code = ModuleType("lib_controlnet.external_code")
    code.ControlNetUnit = type("ControlNetUnit", (), {"pixel_perfect": True, "enabled": True})
    monkeypatch.setitem(sys.modules, "lib_controlnet.external_code", code)
    p = page({"image": "x"}, {"image": "x", "pixel_perfect": False})
    (message,) = reviewed(p, 512)
    assert (
        message.startswith("the first ControlNet unit: its preprocessor works at 512")
        and p.script_args[3]["processor_res"] == 512
    )


def test_without_a_panel_nothing_happens():
    for p in (SimpleNamespace(), page(Unit(image=None))):
        if hasattr(p, "scripts"):
            p.scripts.alwayson_scripts.pop()
        assert reviewed(p) == []
        forge_panel.report_failures(p, pytest.fail)


def test_the_first_unit_that_the_panel_could_not_prepare_is_named(files):
    said = []
    forge_panel.report_failures(page(Unit(model="good"), Unit(model="older"), Unit(), prepared=[0]), said.append)
    (message,) = said
    assert message.startswith("the second ControlNet unit (older.pth) is left out, with any after it: ")
    forge_panel.report_failures(page(Unit(), Unit(enabled=False), prepared=[0]), pytest.fail)


def loaded(monkeypatch, family):
    """A model of this family, or of none that is ours."""

    def identify(model):
        if model is None:
            raise Unsupported("a UNet")
        return SimpleNamespace(name=model)

    monkeypatch.setattr(forge, "identify", identify)
    unet = SimpleNamespace(model=SimpleNamespace(diffusion_model=family))
    return SimpleNamespace(forge_objects=SimpleNamespace(unet=unet))


def prepare(p):
    """The host's call of the panel's hook; returns the units that it gets."""
    panel = p.scripts.alwayson_scripts[1]
    panel.process(p, *p.script_args[panel.args_from : panel.args_to])
    return panel.prepared[-1]


def test_the_hooks_read_the_pass_and_never_fail(files, monkeypatch):
    p = page({"model": "cut", "image": "x", "pixel_perfect": True}, {"image": "x", "pixel_perfect": True})
    p.width = p.height = 3072
    p._resdit = lifecycle.Generation(SimpleNamespace(config=ResDiTConfig(), values={"apply_to": "both"}))
    control.before_process(p)
    assert p.comments == []  # the model is not loaded yet
    p.sd_model = loaded(monkeypatch, "FLUX.1")
    prepared = prepare(p)
    assert ["cut.safetensors is left out" in p.comments[0], "works at 1024 pixels" in p.comments[1]] == [True, True]
    assert [unit.get("enabled", True) for unit in prepared] == [False, True] and prepared == p.script_args[3:5]
    control.before_sampling(p)
    assert "the second ControlNet unit" in p.comments[2]  # the first is off now
    monkeypatch.setattr(forge_panel, "review", lambda *_: 1 / 0)
    control.before_process(p)
    assert prepare(p) == prepared and len(p.comments) == 3


def test_the_panel_is_its_own_again_after_each_generation(files, monkeypatch):
    theirs = []
    p = page(Unit(model="cut"), width=64, height=64, sd_model=loaded(monkeypatch, "SD3"))
    panel = p.scripts.alwayson_scripts[1]
    for _ in range(2):  # the first generation has ended before the panel's turn
        control.before_process(p)
    prepare(p)
    assert "process" not in vars(panel) and len(panel.prepared) == len(p.comments) == 1
    panel.process = other = lambda p, *units: theirs.append(units)  # another extension's
    control.before_process(p)
    panel.process(p)
    assert panel.process is other and len(theirs) == 1


@pytest.mark.parametrize(
    ("family", "hires", "left_out"),
    [("FLUX.1", {}, True), ("SD3", {}, True), (None, {}, False)]
    + [("FLUX.1", {"enable_hr": True, "hr_checkpoint_name": name}, True) for name in (None, "Use same checkpoint")]
    + [("FLUX.1", {"enable_hr": on, "hr_checkpoint_name": "a UNet"}, not on) for on in (True, False)],
)
def test_the_loaded_model_decides_whether_a_file_for_a_unet_may_stay(family, hires, left_out, files, monkeypatch):
    save_file({"zero_convs.0.0.weight": torch.zeros(1)}, files / "unets.safetensors")
    p = page(Unit(model="unets"), width=64, height=64, sd_model=loaded(monkeypatch, family), **hires)
    control.before_process(p)
    prepare(p)
    assert p.script_args[3].enabled != left_out and len(p.comments) == left_out


JUNK = [None, True, False, 0, -3, 1e300, "", "None", "good", "cut", "\0", "x" * 5000, [], [1], {}, {"value": "batch"}]


IMAGE = np.zeros((2, 2, 3), np.uint8)


@pytest.fixture(scope="module")
def shelf(tmp_path_factory):
    folder = tmp_path_factory.mktemp("files")
    save_file({"zero_convs.0.0.weight": torch.zeros(1)}, folder / "good.safetensors")
    (folder / "cut.safetensors").write_bytes(b"cut")
    return folder


@given(data=st.data())
def test_no_unit_makes_the_review_raise(shelf, data):
    """Whatever an API request or another extension puts into a unit: saying no to it is the panel's affair."""
    fields = ("enabled", "model", "input_mode", "pixel_perfect", "processor_res", "weight", "guidance_start")
    junk = st.sampled_from(JUNK)
    fields = dict.fromkeys(fields, junk) | {name: junk | st.just(IMAGE) for name in ("image", "generated_image")}
    given = st.fixed_dictionaries({}, optional=fields)
    p = page(*data.draw(st.lists(given | given.map(lambda values: Unit(**values)) | junk, max_size=3)))
    units = len(p.script_args) - 4
    state = ModuleType("lib_controlnet.global_state")
    state.get_controlnet_filename = {"good": shelf / "good.safetensors", "cut": shelf / "cut.safetensors"}.__getitem__
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "lib_controlnet.global_state", state)
        for family in (None, "SD3"):
            forge_panel.review(p, 512, family, p.comment)
            forge_panel.report_failures(p, p.comment)
    assert len(p.script_args) == units + 4 and p.script_args[:3] == ("other",) * 3


def test_in_a1111_units_beside_sd3_are_said_to_have_no_effect(monkeypatch):
    said = []
    monkeypatch.setattr(lifecycle, "tell", lambda p, message: said.append(message))
    for model, unit, expected in (
        ({"is_sd3": True}, {"enabled": True}, [control.NOTE]),
        ({"is_sd3": True}, Unit(), [control.NOTE]),
        ({"is_sd3": True}, {"image": 1}, []),
        ({"is_sd3": True, "forge_objects": 1}, {"enabled": True, "image": 1}, []),
        ({"is_sdxl": True}, {"enabled": True}, []),
    ):
        said.clear()
        p = page(unit, sd_model=SimpleNamespace(**model), width=1024, height=1024)
        del p.scripts.alwayson_scripts[1].current_params  # as that extension's script
        control.before_process(p)
        assert said == expected, (model, unit)
    assert control.page_note() == control.NOTE  # no modules_forge here


def test_what_a_pass_is_told_follows_resdit():
    p, grid = SimpleNamespace(), lifecycle.Grid(192, 192)
    assert lifecycle.method_of_pass(p, grid) is None
    p._resdit = lifecycle.Generation(SimpleNamespace(config=ResDiTConfig(), values={"apply_to": "hires pass"}))
    layout, config = lifecycle.method_of_pass(p, grid)
    assert layout.base == lifecycle.Grid(64, 64) and config == ResDiTConfig()
    assert lifecycle.method_of_pass(p, lifecycle.Grid(64, 64)) is None
    p.enable_hr, p.is_hr_pass = True, False
    assert lifecycle.method_of_pass(p, grid) is None


@pytest.fixture
def registry(monkeypatch):
    """The host's list of classes."""
    shared = ModuleType("modules_forge.shared")
    shared.supported_control_models = [int]
    shared.add_supported_control_model = shared.supported_control_models.append
    monkeypatch.setitem(sys.modules, "modules_forge", ModuleType("modules_forge"))
    monkeypatch.setitem(sys.modules, "modules_forge.shared", shared)
    sys.modules["modules_forge"].shared = shared
    return shared.supported_control_models


def test_reloading_registers_once_and_unregistering_leaves_the_list_as_it_was(registry):
    registry.append(type("ResDiTControl", (), {}))  # an older load's
    control.register()
    control.register()
    assert registry == [int, ResDiTControl]
    forge_control.unregister()
    assert registry == [int]


def test_without_such_a_host_nothing_is_registered():
    control.register()
    forge_control.unregister()


def generation(monkeypatch, network=None, name="FLUX.1", width=64, config=None):
    def encode(picture):
        return F.avg_pool2d(picture, 8).repeat(1, 2, 1, 1)[:, :4]

    unet = unet_of(network or Network(2, 2))
    return Generation(monkeypatch, unet, family_of(name, width), encode, SIGMAS, config), torch.randn(1, 4, 8, 8)


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
    assert said.startswith(f"ControlNet {name} is left out: ") and message in said
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
    assert p.said == [f"ControlNet net.safetensors is left out: {message}: it is for another size"]
    assert p.unet.linked is None
    p.add(net_of(kind).state_dict(), PICTURE, x)
    assert p.unet.linked is not None


CONDITIONING = dict(c_crossattn=torch.randn(1, 5, 32), y=torch.randn(1, 16), guidance=torch.tensor([3.5]))


def adds(control):
    """What a call of the model gets, as one tensor."""
    return torch.cat([part[i] for part in (control["input"], control["output"]) for i in range(2)])


def count_calls(link):
    """The calls of a link's net from now on."""
    calls = []
    link.patcher.model.net.register_forward_pre_hook(lambda *_: calls.append(1))
    return calls


@pytest.mark.parametrize("config", [None, ResDiTConfig(base_tokens=4)], ids=["base", "resdit"])
@pytest.mark.parametrize("bad_last", [False, True])
def test_a_net_that_fails_while_sampling_is_left_out_and_the_others_go_on(bad_last, config, monkeypatch):
    """The model's layers do not say what goes into them, so that only the call shows that the net does not fit."""

    def made(*nets):
        p, x = generation(monkeypatch, Network(2, 2, texts=False), config=config)
        for name, changes in nets:
            p.add(net_of("flux", **changes).state_dict(), PICTURE, x, name=f"{name}.safetensors")
        return p, x

    good, bad = ("good", {}), ("bad", {"joint_attention_dim": 48})
    alone, x = made(good)
    both, _ = made(*((good, bad) if bad_last else (bad, good)))
    links = [both.unet.linked, both.unet.linked.previous_controlnet]
    calls = count_calls(links[not bad_last])
    with torch.inference_mode():
        for sigma in (0.8, 0.7):
            expected, got = (adds(p.control(x, sigma, **CONDITIONING)) for p in (alone, both))
            assert torch.equal(got, expected)
    (said,) = both.said
    assert said.startswith(
        "ControlNet bad.safetensors is left out: its calculation failed (RuntimeError: mat1 and mat2"
    )
    assert len(said.splitlines()) == 1 and calls == [1] and alone.said == []
    only, _ = made(bad)
    assert only.control(x, 0.8, **CONDITIONING) is None


def test_a_net_whose_results_do_not_fit_the_model_is_left_out(monkeypatch):
    p, x = generation(monkeypatch)
    p.add(net_of("flux").state_dict(), PICTURE, x)
    for block in p.unet.linked.patcher.model.net.controlnet_blocks:
        block.register_forward_hook(lambda _, __, out: out[..., :7])
    with torch.inference_mode():
        assert p.control(x, 0.8, **CONDITIONING) is None
    assert p.said == ["ControlNet net.safetensors is left out: it returned (1, 16, 7) where the model has (1, 16, 64)"]


def test_memory_and_interrupts_are_the_hosts_affair(monkeypatch):
    for error in (OutOfMemory, KeyboardInterrupt):
        p, x = generation(monkeypatch)
        p.add(net_of("flux").state_dict(), PICTURE, x)

        def fail(*_, error=error):
            raise error

        p.unet.linked.patcher.model.net.register_forward_pre_hook(fail)
        with pytest.raises(error):
            p.control(x, 0.8, **CONDITIONING)
        assert p.said == []


def test_a_mask_of_another_form_is_said(monkeypatch):
    p, x = generation(monkeypatch)
    p.add(net_of("flux").state_dict(), PICTURE, x, mask=torch.zeros(1, 3, 64, 64))
    assert p.said == ["ControlNet net.safetensors is left out: its mask is (1, 3, 64, 64), and one has (B, 1, H, W)"]
    assert p.unet.linked is None


def is_gone(reference):
    gc.collect()
    return reference() is None


@pytest.mark.parametrize("fails", [False, True])
def test_nothing_of_a_generation_outlives_it(fails, monkeypatch):
    """The host keeps the last pass's unet until the next generation, and after an error it does not clean up."""
    p, x = generation(monkeypatch, Network(2, 2, texts=False), config=ResDiTConfig(base_tokens=4))
    mask = torch.ones(1, 1, 64, 64)
    changes = {"joint_attention_dim": 48} if fails else {}
    unit = p.add(
        net_of("flux", **changes).state_dict(), PICTURE, x, mask=mask, advanced_mask_weighting=mask, strength=0.5
    )
    unet, link = p.unet, p.unet.linked
    hints = [link.hint, *link.patch_hints.values(), link.mask, mask, x]
    with torch.inference_mode():
        p.control(x, 0.8, **CONDITIONING)
    link.pre_run(unet.model, None)  # of a sampling that raises
    link.cond_hint = torch.zeros(1)
    watched = [weakref.ref(each) for each in (p, *hints, link.cond_hint)]
    said = p.said
    assert len(hints) > 5 and len(said) == fails
    del p, hints, mask, x
    assert [each() for each in watched if not is_gone(each)] == []
    assert unet.linked is link and unit.model_patcher is link.patcher  # which the host and the panel keep
    link.say("to nobody")
    assert len(said) == fails and link.inference_memory_requirements(torch.float32) == 0
    assert link.get_control(torch.randn(1, 4, 8, 8), torch.tensor([0.5]), CONDITIONING, 1) is None


def test_the_panels_word_that_a_picture_is_made_frees_its_hints(monkeypatch):
    """The hosts' samplers and the generation hold each other, until Python's next search for such rings."""
    p, x = generation(monkeypatch)
    state = net_of("flux").state_dict()
    unit = p.add(state, PICTURE, x)
    unit.process_before_every_sampling(p, PICTURE, None, x=x)  # a second unit of the panel with the same file
    links = [p.unet.linked, p.unet.linked.previous_controlnet]
    hints = [weakref.ref(link.hint) for link in links]
    unit.process_after_every_sampling(p, None, None)
    assert [hint() for hint in hints] == [None, None]
    unit.process_before_every_sampling(p, PICTURE, None, x=x)  # the next picture
    assert p.unet.linked.hint is not None and p.said == []


def test_an_earlier_passs_hints_go_with_its_unet(monkeypatch):
    p, x = generation(monkeypatch)
    plain, state = p.unet, net_of("flux").state_dict()
    p.add(state, PICTURE, x)
    first = weakref.ref(p.unet.linked.hint)
    p.sd_model.forge_objects.unet = plain  # as the hosts do before the next pass and the next picture
    assert is_gone(first)


def test_a_pass_may_be_sampled_more_than_once(monkeypatch):
    p, x = generation(monkeypatch)
    p.add(net_of("flux").state_dict(), PICTURE, x)
    with torch.inference_mode():
        first, second = (adds(p.control(x, 0.8, **CONDITIONING)) for _ in range(2))  # with the host's cleanup between
    assert torch.equal(first, second)


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


def test_what_is_no_picture_is_said(monkeypatch):
    p, x = generation(monkeypatch)
    p.add(net_of("flux").state_dict(), {"embeds": 1}, x)
    assert p.said == ["ControlNet net.safetensors is left out: its preprocessor gave no picture but dict"]


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
    control.before_sampling(SimpleNamespace(scripts=SimpleNamespace(alwayson_scripts=1)))
    assert "left to the WebUI (TypeError: 'int' object is not iterable)" in console() and "Traceback" not in console()


def test_no_memory_for_a_hint_is_said(monkeypatch):
    p, x = generation(monkeypatch)

    def encode(_):
        raise OutOfMemory

    p.sd_model.encode_first_stage = encode
    p.add(net_of("flux").state_dict(), PICTURE, x)
    assert p.said == ["ControlNet net.safetensors is left out: there is no memory for its hint"]
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
    assert p.said == [f"ControlNet net.safetensors is left out: its {name} is {value}, and must be a finite number"]
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
    monkeypatch.setattr(forge_control, "check_shapes", lambda _: 1 / 0)
    p.add(net_of("flux").state_dict(), PICTURE, x)
    assert p.said == ["ControlNet net.safetensors is left out: it cannot be read (ZeroDivisionError: division by zero)"]
    assert p.unet.linked is None


def test_a_file_of_another_kind_is_for_another_class():
    assert ResDiTControl.try_build_from_state_dict({"zero_convs.0.0.weight": torch.zeros(1)}, "unet.pth") is None
    assert ResDiTControl.try_build_from_state_dict({}, "empty.safetensors", {"some": "metadata"}) is None


@pytest.mark.parametrize(
    ("kind", "given", "shows", "asked"),
    [
        ("flux union", {"unit": SimpleNamespace(type_filter="Tile")}, "tile", False),
        ("flux union", {"params": SimpleNamespace(preprocessor=SimpleNamespace(tags=["OpenPose"]))}, "pose", False),
        ("flux union", {"unit": SimpleNamespace(type_filter="All")}, "canny", True),
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


def test_on_tiles_control_is_left_out_aloud(monkeypatch):
    p, x = generation(monkeypatch)
    p.add(net_of("flux").state_dict(), PICTURE, x)
    cond = dict(c_crossattn=torch.randn(1, 5, 32), y=torch.randn(1, 16))
    link = p.unet.linked
    assert link.cond_hint is None and link.cond_hint_original.ndim == 4 and link.device == torch.device("cpu")
    assert p.control(x[..., :4], 0.5, **cond) is None
    assert p.said == ["ControlNet net.safetensors is left out: another extension calls the model on tiles"]


def test_sd3_without_resdit_says_where_its_positions_end(monkeypatch):
    p, _ = generation(monkeypatch, Network(2), "SD3", 128)
    x = torch.randn(1, 4, 32, 32)  # 16 tokens a side, where the net has 12
    p.add(net_of("sd3").state_dict(), torch.rand(1, 3, 256, 256), x)
    assert p.control(x, 0.5, c_crossattn=torch.randn(1, 5, 32), y=torch.randn(1, 16)) is None
    assert "it has no positions beyond 192 pixels a side; with ResDiT it needs none" in p.said[0]


def test_the_device_is_asked_for_the_nets_and_their_memory(monkeypatch):
    p, x = generation(monkeypatch)
    for seed in (0, 1):
        p.add(net_of("flux", seed=seed).state_dict(), PICTURE, x)
    link = p.unet.linked
    assert [patcher.model.compute for patcher in link.get_models()] == [torch.float32] * 2
    one = link.previous_controlnet.inference_memory_requirements(torch.float32)
    assert link.inference_memory_requirements(torch.float32) == 2 * one > 0


def test_the_nets_weights_are_not_kept_twice(monkeypatch):
    p, x = generation(monkeypatch)
    unit = p.add(net_of("flux").state_dict(), PICTURE, x)
    patcher = unit.model_patcher
    assert unit.checkpoint.weights == {}
    unit.process_before_every_sampling(p, PICTURE, None, x=x)
    assert unit.model_patcher is patcher and p.said == []


class TwoStreams(nn.Module):
    """A FLUX whose forward drops `control`, as Forge's and ersatzForge's."""

    class Double(nn.Module):
        def forward(self, image, text):
            return image + 0, text + 0

    class Single(nn.Module):
        def forward(self, tokens):
            return tokens + 0

    def __init__(self):
        super().__init__()
        self.double_blocks = nn.ModuleList([self.Double(), self.Double()])
        self.single_blocks = nn.ModuleList([self.Single()])

    def forward(self, x, context, **_):
        image, text = x, context
        for block in self.double_blocks:
            image, text = block(image, text)
        tokens = torch.cat((text, image), 1)
        for block in self.single_blocks:
            tokens = block(tokens)
        return tokens[:, text.shape[1] :]


def test_a_flux_that_drops_control_gets_it_for_the_one_call():
    model = TwoStreams()
    unet = unet_of(model)
    seen = []

    def theirs(apply_model, args):  # another extension's, set before
        seen.append("theirs")
        return apply_model(args["input"], args["timestep"], **args["c"])

    unet.set_model_unet_function_wrapper(theirs)
    patched = heeding(heeding(unet))
    assert unet.model_options[WRAPPER] is theirs and patched.model_options[WRAPPER].resdit_heeds
    control = {"input": [torch.ones(1, 4, 2), None], "output": [10 * torch.ones(1, 4, 2)]}
    x, text = torch.zeros(1, 4, 2), torch.zeros(1, 3, 2)

    def apply_model(latent, t, c_crossattn, control=None):
        return model(latent, c_crossattn, control=control)

    def call(control):
        c = {"c_crossattn": text, "control": control}
        return patched.model_options[WRAPPER](apply_model, {"input": x, "timestep": None, "c": c})

    assert torch.equal(call(control), 11 * torch.ones(1, 4, 2)) and seen == ["theirs"]
    assert torch.equal(call(None), x)
    assert not any(module._forward_hooks for module in model.modules())
    with pytest.raises(IndexError):
        call({"input": [], "output": []})
    assert not any(module._forward_hooks for module in model.modules())


def test_a_model_that_takes_control_is_left_alone():
    unet = unet_of(Network(2, 2))
    assert heeding(unet) is unet
