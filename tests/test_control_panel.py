"""The units of the ControlNet panel before the panel sees them, and where it fails; how it gets to know ours."""

import sys
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from resdit_ext import hosts
from resdit_ext.errors import Unsupported
from resdit_ext.families import RecognisedModel, families
from resdit_ext.hosts.a1111 import A1111
from resdit_ext.hosts.forge import control_panel, control_unit
from resdit_ext.hosts.forge.control_unit import ResDiTControl
from resdit_ext.webui import control, lifecycle
from tests.control_nets import KINDS, as_xlabs, net_of
from tests.fakes import TinySD3
from tests.settings import scaled

FLUX, SD3 = families()[:2]


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
    control_panel.review_units(p, most, family, said.append)
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
    (message,) = reviewed(p, family=FLUX)
    assert message.startswith(f"ControlNet unets.safetensors is ignored: it is a {what} for ")
    assert message.endswith(", and the model is FLUX.1")
    assert not p.script_args[3].enabled and p.script_args[4] is good and bad.enabled
    assert reviewed(page(bad, good)) == []  # beside a UNet


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_for_a_transformer_is_none_for_a_unet(kind, files):
    state = net_of(kind).state_dict()
    for names in (state, as_xlabs(state)) if kind == "flux xlabs" else (state,):
        save_file({name: torch.zeros(1) for name in names}, files / "net.safetensors")
        assert reviewed(page(Unit(model="net")), family=SD3) == []


def test_a_pickle_file_is_left_out_beside_a_transformer_unopened(files):
    (message,) = reviewed(page(Unit(model="older")), family=SD3)
    assert message == (
        "ControlNet older.pth is ignored: only safetensors files are read; a pickle file can run programs"
    )


@pytest.mark.parametrize("kind", [Unit, dict])
def test_a_truncated_file_is_left_out_and_the_other_units_stay(kind, files):
    good, bad = (kind(enabled=True, model=name, image="x", processor_res=1) for name in ("good", "cut"))
    p = page(bad, good, Unit(enabled=False, image=None))
    (message,) = reviewed(p)
    assert message.startswith("ControlNet cut.safetensors is ignored: it is truncated")
    assert control_panel.value_of(p.script_args[3], "enabled") is False and p.script_args[4] is good
    assert control_panel.value_of(bad, "enabled") is True and isinstance(p.script_args, tuple)


def test_good_and_older_files_are_the_panels_affair(files):
    p = page(Unit(model="good"), Unit(model="older"), Unit(model="unknown to it"), {"model": "good", "image": "x"})
    before = p.script_args
    assert reviewed(p) == [] and p.script_args is before


def test_a_unit_without_an_image_is_left_out():
    p = page(Unit(image=None), Unit(image=None, generated_image=1), {"enabled": True})
    assert reviewed(p) == [
        "the first ControlNet unit is ignored: it has no image",
        "the third ControlNet unit is ignored: it has no image",
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
        control_panel.report_units(p, pytest.fail)


def test_the_first_unit_that_the_panel_could_not_prepare_is_named(files):
    said = []
    control_panel.report_units(page(Unit(model="good"), Unit(model="older"), Unit(), prepared=[0]), said.append)
    (message,) = said
    assert message.startswith("the second ControlNet unit (older.pth) is ignored, with any after it: ")
    control_panel.report_units(page(Unit(), Unit(enabled=False), prepared=[0]), pytest.fail)


def test_an_api_request_may_order_fewer_units_than_the_panel_has(files):
    p = page(Unit(image=None), Unit(), Unit())
    p.script_args = p.script_args[:4]
    assert reviewed(p) == ["the first ControlNet unit is ignored: it has no image"] and len(p.script_args) == 4


def loaded(monkeypatch, family):
    """A model of this family, or of none that is ours."""

    def identify(model):
        if model is None:
            raise Unsupported("a UNet")
        return RecognisedModel(model, None)

    monkeypatch.setattr(hosts, "identify", identify)
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
    p._resdit = lifecycle.Generation(SimpleNamespace(config=scaled(), values={"apply_to": "both"}))
    control.before_process(p)
    assert p.comments == []  # the model is not loaded yet
    p.sd_model = loaded(monkeypatch, FLUX)
    prepared = prepare(p)
    assert ["cut.safetensors is ignored" in p.comments[0], "works at 1024 pixels" in p.comments[1]] == [True, True]
    assert [unit.get("enabled", True) for unit in prepared] == [False, True] and prepared == p.script_args[3:5]
    control.before_sampling(p)
    assert "the second ControlNet unit" in p.comments[2]  # the first is off now
    monkeypatch.setattr(control_panel, "review_units", lambda *_: 1 / 0)
    control.before_process(p)
    assert prepare(p) == prepared and len(p.comments) == 3


@pytest.mark.parametrize("size", [(3072, 1536), (1536, 3072)])
def test_pixel_perfect_is_kept_at_the_short_side_of_the_base_size(size, files, monkeypatch):
    p = page(Unit(pixel_perfect=True), sd_model=loaded(monkeypatch, FLUX))
    p.width, p.height = size
    p._resdit = lifecycle.Generation(SimpleNamespace(config=scaled(), values={"apply_to": "both"}))
    base = lifecycle.method_of_pass(p, lifecycle.Grid(size[1] // 16, size[0] // 16))[0].base
    control.before_process(p)
    assert prepare(p)[0].processor_res == 16 * min(base.height, base.width) < 16 * max(base.height, base.width)


def test_the_panel_is_its_own_again_after_each_generation(files, monkeypatch):
    theirs = []
    p = page(Unit(model="cut"), width=64, height=64, sd_model=loaded(monkeypatch, SD3))
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
    [(FLUX, {}, True), (SD3, {}, True), (None, {}, False)]
    + [(FLUX, {"enable_hr": True, "hr_checkpoint_name": name}, True) for name in (None, "Use same checkpoint")]
    + [(FLUX, {"enable_hr": on, "hr_checkpoint_name": "a UNet"}, not on) for on in (True, False)],
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
        for family in (None, SD3):
            control_panel.review_units(p, 512, family, p.comment)
            control_panel.report_units(p, p.comment)
    assert len(p.script_args) == units + 4 and p.script_args[:3] == ("other",) * 3


def test_in_a1111_units_beside_sd3_are_said_to_have_no_effect(monkeypatch):
    said, note = [], A1111().control_note()
    assert note.startswith("ControlNet has no effect on ResDiT's models in this WebUI")
    monkeypatch.setattr(lifecycle, "tell", lambda p, message: said.append(message))
    for model, unit, expected in (
        (TinySD3(), {"enabled": True}, [note]),
        (TinySD3(), Unit(), [note]),
        (TinySD3(), {"image": 1}, []),
        (torch.nn.Linear(1, 1), {"enabled": True}, []),
    ):
        said.clear()
        sd_model = SimpleNamespace(model=SimpleNamespace(diffusion_model=model))
        p = page(unit, sd_model=sd_model, width=1024, height=1024)
        del p.scripts.alwayson_scripts[1].current_params  # as that extension's script
        control.before_process(p)
        control.before_sampling(p)
        assert said == expected, (type(model), unit)
    assert control.page_note() is None  # no WebUI here
    monkeypatch.setattr("resdit_ext.hosts.a1111.find_spec", lambda name: None if name == "modules_forge" else name)
    assert control.page_note() == note


def test_what_a_pass_is_told_follows_resdit():
    p, grid = SimpleNamespace(), lifecycle.Grid(192, 192)
    assert lifecycle.method_of_pass(p, grid) is None
    p._resdit = lifecycle.Generation(SimpleNamespace(config=scaled(), values={"apply_to": "hires pass"}))
    layout, config = lifecycle.method_of_pass(p, grid)
    assert layout.base == lifecycle.Grid(64, 64) and config == scaled()
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
    control_unit.unregister()
    assert registry == [int]


def test_what_the_units_are_told_of_a_pass(registry, monkeypatch):
    control.register()
    services = ResDiTControl.services
    asked = []
    p = SimpleNamespace(steps=20, hr_second_pass_steps=7, is_hr_pass=True, comments=[])
    p.sampler = SimpleNamespace(get_sigmas=lambda p, steps: asked.append(steps) or [1.0, 0.0])
    p.comment = p.comments.append
    assert services.sigmas(p) == [1.0, 0.0] and asked == [7] and services.steps(p) == 7
    assert services.method(p, lifecycle.Grid(192, 192)) is None
    services.say(p, "once")
    services.say(p, "once")
    assert p.comments == ["ResDiT: once"]
    modules = ModuleType("modules")
    modules.shared = SimpleNamespace(opts=SimpleNamespace(resdit_union_mode="pose"))
    monkeypatch.setitem(sys.modules, "modules", modules)
    assert services.default_shows() == "pose"


def test_without_such_a_host_nothing_is_registered():
    control.register()
    control_unit.unregister()
