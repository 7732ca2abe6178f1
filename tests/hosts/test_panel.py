"""The ControlNet panel of real WebUIs, driven through their API, with tiny random models and control nets.

Which hosts take part: see tests/hosts/webui.py.
"""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

pytest.importorskip("diffusers", reason="diffusers is not installed")

from tests.control_nets import as_stability, as_xlabs, net_of
from tests.hosts import webui
from tests.hosts.webui import BASE, ORDER, THRICE, VISIBLE, apart, as_text, hint

SITES = [("forge", "flux"), ("neo", "flux"), ("ersatz", "flux"), ("forge", "sd3"), ("ersatz", "sd3")]
HIRES = dict(enable_hr=True, hr_scale=2, hr_upscaler="None", denoising_strength=0.7, hr_second_pass_steps=3)
HIRES |= dict(hr_additional_modules=["Use same choices"])  # Forge takes nothing else for "none"

FLUX, SD3 = dict(in_channels=64), dict(in_channels=16, out_channels=16)
# name of the file -> (kind of tests.control_nets, how it differs, to fit the tiny model)
NETS = {
    "flux": {
        "plain": ("flux", FLUX),
        "double": ("flux without single blocks", FLUX),
        "union": ("flux union", FLUX),
        "xlabs": ("flux xlabs", FLUX | dict(conditioning_embedding_channels=16)),
    },
    "sd3": {
        "plain": ("sd3", SD3 | dict(pos_embed_max_size=24)),
        "normed": ("sd3.5", SD3 | dict(pos_embed_max_size=24)),
        "stability": ("sd3.5 8b", SD3),
    },
}
NARROW = {"flux": dict(num_attention_heads=3), "sd3": dict(num_attention_heads=3, caption_projection_dim=192)}
# ersatzForge's FLUX has its full width: nets with the fewest blocks there are.
WIDE = dict(attention_head_dim=128, num_attention_heads=24, axes_dims_rope=(16, 56, 56))
ONE_DOUBLE, ONE_SINGLE = dict(num_layers=1), dict(num_layers=0, num_single_layers=1)
WIDE_BLOCKS = dict(plain=ONE_SINGLE, double=ONE_DOUBLE, union=ONE_SINGLE, xlabs=ONE_DOUBLE)

BAD = {  # file -> what is said of it
    "truncated.safetensors": "it is truncated",
    "numberless.safetensors": "values that are not numbers",
    "lacking.safetensors": "it lacks controlnet_blocks.1.bias",
    "alien.safetensors": "and the model is",
    "narrow.safetensors": "it is for another size",
    "wordy.safetensors": "it is for another size",  # its text's channels
    "unets.safetensors": "it is a ControlNet for SD 1.5, SD 2 or SDXL, and the model is",
    "pickled.pth": "only safetensors files are read",
}
# A net that fits the model by its sizes and fails when it is called, and what is said of it.
FAILING = {
    "flux": (("flux xlabs", FLUX | dict(conditioning_embedding_channels=8)), "its calculation failed (RuntimeError: "),
    "sd3": (("sd3", SD3 | dict(pos_embed_max_size=4)), "it has no positions beyond 64 pixels a side"),
}


def state_of(kind, changes, seed):
    """A net's tensors as its makers save them."""
    net = net_of(kind, seed, **changes)
    for name, parameter in net.named_parameters():
        if parameter.ndim == 2 and "hint" not in name:
            parameter.mul_(8 * parameter.shape[1] ** -0.5)  # a wide layer's are smaller
    state = {name: value.to(torch.bfloat16) for name, value in net.state_dict().items()}
    if kind == "flux xlabs":
        state = as_xlabs(state)
    elif kind == "sd3.5 8b":
        state = as_stability(state, 2.0)
    return {name: value.clone(memory_format=torch.contiguous_format) for name, value in state.items()}


def write_nets(folder, host, model):
    """The control files of all tests; the bad ones are small in every host."""
    for seed, (name, (kind, changes)) in enumerate(NETS[model].items()):
        if (host, model) == ("ersatz", "flux"):
            changes = changes | WIDE | WIDE_BLOCKS[name]
        save_file(state_of(kind, changes, seed), folder / f"{name}.safetensors")
    kind, changes = NETS[model]["plain"]
    small = state_of(kind, changes, 9)
    nan = {"controlnet_blocks.0.weight": torch.full_like(small["controlnet_blocks.0.weight"], torch.nan)}
    save_file(small | nan, folder / "numberless.safetensors")
    save_file({k: v for k, v in small.items() if k != "controlnet_blocks.1.bias"}, folder / "lacking.safetensors")
    save_file(state_of(*NETS["sd3" if model == "flux" else "flux"]["plain"], 9), folder / "alien.safetensors")
    save_file(state_of(kind, changes | NARROW[model], 9), folder / "narrow.safetensors")
    save_file(state_of(kind, changes | dict(joint_attention_dim=48), 9), folder / "wordy.safetensors")
    unets = {"zero_convs.0.0.weight": torch.ones(4, 4, 1, 1), "input_hint_block.0.weight": torch.ones(4, 3, 3, 3)}
    save_file(unets, folder / "unets.safetensors")
    kind, changes = FAILING[model][0]
    if (host, model) == ("ersatz", "flux"):
        changes = changes | WIDE | ONE_DOUBLE
    save_file(state_of(kind, changes, 9), folder / "failing.safetensors")
    torch.save(small, folder / "pickled.pth")
    truncated = folder / "truncated.safetensors"
    save_file(small, truncated)
    os.truncate(truncated, truncated.stat().st_size // 2)
    lora = {f"lora_unet_double_blocks_0_img_mlp_0.lora_{side}.weight": torch.ones(4, 4) for side in ("up", "down")}
    save_file(lora, folder / "lora.safetensors")


@pytest.fixture(scope="module", params=SITES, ids=" ".join)
def ui(request, tmp_path_factory):
    host, model = request.param
    webui.place_of(host)
    data = tmp_path_factory.mktemp(f"{host}_{model}")
    nets = data / "control"
    nets.mkdir()
    write_nets(nets, host, model)
    with webui.started(host, model, data, "--controlnet-dir", nets) as site:
        names = site.ask("/controlnet/model_list")["model_list"]
        site.models |= {name.split(" [")[0]: name for name in names}
        yield site


@pytest.fixture(scope="module")
def plain(ui):
    """The order without control."""
    return ui.make()


@pytest.fixture(scope="module")
def controlled(ui):
    """The order with one unit."""
    return ui.make(ui.unit())


def test_control_acts_and_leaves_nothing_behind(ui, plain, controlled):
    assert controlled.differs(plain)
    assert ui.make().equals(plain) and ui.make(ui.unit()).equals(controlled)
    assert ui.make(ui.unit(weight=0)).equals(plain)
    assert ui.make(ui.unit(weight=0.5)).differs(plain, controlled)
    assert ui.make(ui.unit(enabled=False)).equals(plain)


def test_every_kind_acts(ui, plain):
    made = {name: ui.make(ui.unit(name)) for name in NETS[ui.model]}
    assert all(it.differs(plain) for it in made.values()), {n: apart(m.picture, plain.picture) for n, m in made.items()}
    assert not any("is ignored" in it.said for it in made.values())


def test_a_union_net_is_told_what_its_hint_shows(ui):
    if ui.model != "flux":
        pytest.skip("a net for FLUX")
    untold = ui.make(ui.unit("union"))
    assert "union.safetensors serves several kinds of hints" in untold.said and "'canny'" in untold.said
    tile = ui.make(ui.unit("union", module="tile_resample"))
    assert "several kinds" not in tile.said and not tile.equals(untold)
    if ui.host != "forge":  # whose units have no control type
        depth = ui.make(ui.unit("union", type_filter="Depth"))
        assert "several kinds" not in depth.said and not depth.equals(untold) and not depth.equals(tile)


@pytest.mark.parametrize("resdit", [None, THRICE], ids=["base", "resdit"])
def test_two_units_add_up(ui, resdit):
    first, second = ui.unit(), ui.unit(list(NETS[ui.model])[1], image=as_text(hint()[::-1]))
    same = ui.unit(image=second["image"])  # the first one's file
    orders = ((), (first,), (second,), (first, second), (first, same))
    none, one, other, both, twice = (ui.make(*units, resdit=resdit) for units in orders)
    assert one.differs(none) and other.differs(none, one)
    assert both.differs(none, one, other) and twice.differs(none, one, both)
    for made in (none, one, other, both, twice):
        assert made.picture.shape[0] == (BASE if resdit is None else 3 * BASE)
        assert ("ResDiT" in made.parameters) == ("done: " in made.said) == (resdit is not None)


def test_the_range_of_steps(ui, plain, controlled):
    for start, end in ((0, 0), (0.5, 0.5), (1, 1)):
        assert ui.make(ui.unit(guidance_start=start, guidance_end=end)).equals(plain), (start, end)
    half, rest = ui.make(ui.unit(guidance_end=0.5)), ui.make(ui.unit(guidance_start=0.5))
    assert half.differs(plain, controlled) and rest.differs(plain, controlled, half)


@pytest.mark.parametrize("cfg_scale", [1, 4])
def test_control_modes(ui, cfg_scale):
    modes = ("Balanced", "My prompt is more important", "ControlNet is more important")
    none = ui.make(cfg_scale=cfg_scale)
    balanced, prompt, control = (ui.make(ui.unit(control_mode=mode), cfg_scale=cfg_scale) for mode in modes)
    assert balanced.differs(none) and prompt.differs(none, balanced) and control.differs(none, balanced)
    assert control.equals(prompt) if cfg_scale == 1 else control.differs(prompt)


def test_masks(ui, plain, controlled):
    mask = np.zeros((BASE, BASE, 3), np.uint8)
    assert ui.make(ui.unit(mask_image=as_text(mask))).equals(controlled)  # the panel takes it for none
    assert ui.make(ui.unit(mask_image=as_text(mask + 255))).equals(controlled)
    mask[:, : BASE // 2] = 255
    assert ui.make(ui.unit(mask_image=as_text(mask))).differs(plain, controlled)


def test_a_hint_of_another_size_is_fitted(ui, plain):
    image = as_text(hint(150, 250))
    modes = ("Just Resize", "Crop and Resize", "Resize and Fill")
    squeezed, cropped, filled = (ui.make(ui.unit(image=image, resize_mode=mode)) for mode in modes)
    assert squeezed.differs(plain) and cropped.differs(plain, squeezed) and filled.differs(plain, squeezed, cropped)


@pytest.mark.parametrize("resdit", [None, dict(size="WebUI", base_size=BASE)], ids=["base", "resdit"])
def test_hires_passes(ui, resdit):
    options = ("Both", "Low res only", "High res only")
    none = ui.make(resdit=resdit, **HIRES)
    both, low, high = (ui.make(ui.unit(hr_option=option), resdit=resdit, **HIRES) for option in options)
    assert none.picture.shape[0] == 2 * BASE and ("done: " in none.said) == (resdit is not None)
    assert low.differs(none) and high.differs(none, low) and both.differs(none, low, high)


def test_img2img_gives_a_unit_without_image_its_own(ui):
    given = as_text(hint()[:, ::-1])
    order = dict(path="img2img", init_images=[given], denoising_strength=0.7)
    none, own, other = ui.make(**order), ui.make(ui.unit(image=None), **order), ui.make(ui.unit(), **order)
    assert own.differs(none) and other.differs(none, own)
    assert own.equals(ui.make(ui.unit(image=given), **order))


@pytest.mark.parametrize("several", ["batch_size", "n_iter"])
def test_several_pictures(ui, controlled, several):
    none, made = ui.make(**{several: 2}), ui.make(ui.unit(), **{several: 2})
    second = ui.make(ui.unit(), seed=ORDER["seed"] + 1)
    assert made.differs(none) and apart(made.pictures[1], none.pictures[1]) > VISIBLE
    assert apart(made.picture, controlled.picture) < 0.01 and apart(made.pictures[1], second.picture) < 0.01


@pytest.mark.parametrize("file", BAD)
def test_a_bad_file_is_left_out(ui, plain, file):
    made = ui.make(ui.unit(Path(file).stem))
    assert made.equals(plain)
    assert f"ControlNet {file} is ignored: " in made.said and BAD[file] in made.said
    assert "sd_forge_controlnet" not in made.said  # no traceback of the panel's


def test_a_good_unit_acts_beside_a_bad_one(ui, controlled):
    assert ui.make(ui.unit("truncated"), ui.unit()).equals(controlled)
    assert ui.make(ui.unit(), ui.unit("lacking")).equals(controlled)
    beside = ui.make(ui.unit("unets"), ui.unit("wordy"), ui.unit())
    assert beside.equals(controlled) and "Traceback" not in beside.said


@pytest.mark.parametrize("resdit", [None, THRICE], ids=["base", "resdit"])
def test_a_net_that_fails_while_sampling_is_left_out(ui, resdit):
    said = FAILING[ui.model][1]
    none, good = ui.make(resdit=resdit), ui.make(ui.unit(), resdit=resdit)
    bad, first, last = (
        ui.make(*units, resdit=resdit)
        for units in ((ui.unit("failing"),), (ui.unit("failing"), ui.unit()), (ui.unit(), ui.unit("failing")))
    )
    assert good.differs(none) and bad.equals(none) and first.equals(good) and last.equals(good)
    for made in (bad, first, last):
        assert made.said.count(f"ControlNet failing.safetensors is ignored: {said}") == 1
        assert "Traceback" not in made.said


def test_a_file_that_is_no_control_net_is_named(ui, plain, controlled):
    made = ui.make(ui.unit("lora"))
    assert made.equals(plain) and "the first ControlNet unit (lora.safetensors) is ignored" in made.said
    beside = ui.make(ui.unit(), ui.unit("lora"))
    assert beside.equals(controlled) and "the second ControlNet unit (lora.safetensors) is ignored" in beside.said


def test_a_unit_without_image_is_left_out(ui, plain, controlled):
    made = ui.make(ui.unit(image=None))
    assert made.equals(plain) and "the first ControlNet unit is ignored: it has no image" in made.said
    assert ui.make(ui.unit(image=None), ui.unit()).equals(controlled)


def test_pixel_perfect_keeps_to_the_base_size(ui):
    made = ui.make(ui.unit(pixel_perfect=True), resdit=THRICE)
    assert f"its preprocessor works at {BASE} pixels" in made.said
    assert made.differs(ui.make(resdit=THRICE))


def test_pixel_perfect_unless_said_otherwise(ui):
    if ui.host != "ersatz":
        pytest.skip("only ersatzForge's units are")
    unit = ui.unit()
    del unit["pixel_perfect"]
    assert f"its preprocessor works at {BASE} pixels" in ui.make(unit, resdit=THRICE).said
