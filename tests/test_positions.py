"""The option Positions from the request to the model call: chosen, or found in a LoRA of the prompt."""

import logging
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from resdit_ext import BALANCED, ResDiTConfig, ResDiTError, apply_resdit, remove_resdit
from resdit_ext.families import families
from resdit_ext.hosts.loras import Lora, loras_in, loras_of_pass
from resdit_ext.method.layout import Grid, make_layout
from resdit_ext.method.positions import token_positions
from resdit_ext.method.randomized import equidistant_positions
from resdit_ext.method.run import Run
from resdit_ext.positions_metadata import positions_metadata
from resdit_ext.seams import sequence
from resdit_ext.webui.forecast import forecast
from resdit_ext.webui.options import parse_request
from resdit_ext.webui.positions import chosen_positions
from tests import fake_loras, fakes, pipelines, reference
from tests.attaching import attach
from tests.fake_loras import prompted
from tests.fakes import CHANNELS, FakeFlux, TinySD3
from tests.settings import differences, scaled
from tests.webui_host import FakeHost

TINY = {"width": 384, "base_size": 128}  # 24x24 tokens above 8x8
FLUX, SD3 = families()[0], families()[1]
LORA, WIDE = Lora("mine", positions_metadata(64)), Lora("wide", positions_metadata(256))
LAYOUT = make_layout(Grid(128, 96), BALANCED)


@pytest.fixture
def model():
    torch.manual_seed(6)
    return FakeFlux()


# What is chosen.


@pytest.mark.parametrize("loras", [[], [Lora("other", {"ss_tag": "x"})], [Lora("none")]])
def test_automatic_is_what_it_was_without_a_lora_that_says_more(loras):
    chosen = chosen_positions(BALANCED, FLUX, LAYOUT, loras)
    assert (chosen.config, chosen.told, chosen.warnings) == (BALANCED, "", ())


def test_automatic_is_rpe_2d_with_the_range_of_a_lora():
    chosen = chosen_positions(BALANCED, FLUX, LAYOUT, [Lora("other"), WIDE])
    assert differences(BALANCED, chosen.config) == {"positions": "automatic"}
    assert chosen.config.positions == "rpe-2d" and chosen.config.maximal_range == 256
    assert chosen.told == "rpe-2d, range 256, as LoRA wide says" and not chosen.warnings


@pytest.mark.parametrize("positions", ["scaled", "ntk", "yarn", "rpe-2d"])
def test_what_is_chosen_by_hand_stays_whatever_a_lora_says(positions):
    config = ResDiTConfig(positions=positions, maximal_range=128)
    assert chosen_positions(config, FLUX, LAYOUT, [WIDE]).config == config


@pytest.mark.parametrize(
    ("loras", "message"),
    [
        ([LORA], "LoRA mine has a range of 64 positions and the picture up to 128 tokens a side: scaled positions are"),
        ([Lora("bad", {"resdit.positions": "rpe-2d"})], "the metadata of LoRA bad has resdit.maximal_range None; it"),
        (
            [Lora("new", {"resdit.positions": "rpe-3d"})],
            "the metadata of LoRA new has resdit.positions 'rpe-3d'",
        ),
    ],
)
def test_a_lora_that_cannot_be_followed_is_named_and_scaled_positions_are_used(loras, message):
    chosen = chosen_positions(BALANCED, FLUX, LAYOUT, loras)
    assert chosen.config == BALANCED and not chosen.told
    (warning,) = chosen.warnings
    assert warning.startswith(message) and "scaled positions are used" in warning


def test_the_first_of_two_ranges_is_used_and_the_other_named():
    chosen = chosen_positions(BALANCED, FLUX, LAYOUT, [WIDE, Lora("mine", positions_metadata(128))])
    assert chosen.config.maximal_range == 256
    assert chosen.warnings == ("the LoRAs have different ranges (wide 256, mine 128): that of wide is used",)
    assert not chosen_positions(BALANCED, FLUX, LAYOUT, [WIDE, Lora("too", positions_metadata(256))]).warnings


@pytest.mark.parametrize("positions", ["ntk", "yarn"])
def test_a_family_whose_positions_are_added_has_scaled_ones_and_it_is_said_once(positions):
    config = ResDiTConfig(positions=positions)
    chosen = chosen_positions(config, SD3, LAYOUT, [])
    assert chosen.config.positions == "scaled" and not chosen.told
    expected = f"positions {positions} are for rotary ones, which SD3 does not have: scaled ones are used"
    assert chosen.warnings == (expected,)
    assert chosen_positions(config, FLUX, LAYOUT, []).told == positions


def test_a_range_that_is_too_small_is_refused_by_its_name():
    config = ResDiTConfig(positions="rpe-2d", maximal_range=127)
    with pytest.raises(ResDiTError, match=r"^maximal_range is 127; it must be at least 128, the tokens of the picture"):
        chosen_positions(config, FLUX, LAYOUT, [])


def test_without_pes_there_is_nothing_to_choose():
    for positions in ("ntk", "yarn", "rpe-2d"):
        with pytest.raises(ResDiTError, match=f"pes is False; with positions '{positions}' it must be True"):
            ResDiTConfig(pes=False, positions=positions)


# The prompt's LoRAs.


def names(prompt):
    return [lora.name for lora in loras_in(prompt)]


def test_the_loras_that_change_the_model_are_found(monkeypatch):
    files = {"a": {"x": 1}, "b": None, "c d": {}}
    fake_loras.install(monkeypatch, files, aliases={"other": "a", "shared": "b"}, forbidden=["shared"])
    assert names("a picture <lora:a:0.7> of <lora:c d:1><hypernet:b:1>") == ["a", "c d"]
    assert loras_in("<lora:other:1>")[0].metadata == {"x": 1} and loras_in("<lora:b:1>")[0].metadata == {}
    assert names("<lora:a:0><lora:b:1:0><lora:c d:0:unet=1>") == ["c d"]
    assert names("<lora:a:te=0><lora:b:1:unet=0><lyco:c d>") == ["c d"]
    assert names("<lora:unknown:1><lora:shared:1>") == []
    p = SimpleNamespace(**prompted("<lora:a:1>", "<lora:b:1>"))
    assert [[lora.name for lora in loras_of_pass(p, hires)] for hires in (False, True)] == [["a"], ["b"]]
    assert loras_of_pass(SimpleNamespace(disable_extra_networks=True, **vars(p)), False) == []
    assert loras_of_pass(SimpleNamespace(extra_network_data=None), False) == []


def test_outside_a_host_or_without_its_extension_there_are_none(monkeypatch):
    assert names("<lora:a:1>") == []
    fake_loras.install(monkeypatch, {"a": {}})
    monkeypatch.setattr("modules.extra_networks.extra_network_registry", {})
    assert names("<lora:a:1>") == []


@pytest.mark.parametrize("prompt", ["<lora:a:heavy>", "<lora:a:1:unet=x>"])
def test_what_the_host_cannot_read_is_no_error_of_ours(monkeypatch, caplog, prompt):
    fake_loras.install(monkeypatch, {"a": {}})
    with caplog.at_level(logging.WARNING, logger="ResDiT"):
        assert names(prompt) == []
    assert "the prompt's LoRAs are not looked at (ValueError" in caplog.text


# From the request to the model call.


def table_of(monkeypatch):
    """The image positions of every rotary table made from now on, and whether it has frequencies of its own."""
    made, original = [], sequence.rotary_table

    def spy(ids, axes_dim, theta, laws=None, grid_axes=(-2, -1)):
        made.append((ids[..., 3:, 1:], laws is not None))
        return original(ids, axes_dim, theta, laws, grid_axes)

    monkeypatch.setattr(sequence, "rotary_table", spy)
    return made


def test_a_prompt_with_such_a_lora_gets_rpe_2d(monkeypatch, model):
    host = FakeHost(monkeypatch, fakes.FakePatcher(model))
    fake_loras.install(monkeypatch, {"mine": positions_metadata(64)})
    made = table_of(monkeypatch)
    plain = host.generate(TINY, **prompted("a lighthouse"))
    assert len(plain.comments) == 1 and "rpe-2d" not in plain.comments[0]
    assert not any(torch.equal(p, equidistant(24)) for p, _ in made)
    made.clear()
    result = host.generate(TINY, **prompted("a lighthouse <lora:mine:1>"))
    assert "positions rpe-2d, range 64, as LoRA mine says" in result.comments[0] and len(result.comments) == 1
    assert result.p._resdit.runs[0].config.maximal_range == 64
    assert not torch.equal(result.pictures[0].latent, plain.pictures[0].latent)
    for side in (24, 8):  # of the whole, and of layout steps
        assert any(torch.equal(p, equidistant(side)) for p, _ in made if p.ndim == 2)
    # What an automatic choice was follows from the prompt, which is saved.
    assert set(result.pictures[0].parameters) == set(plain.pictures[0].parameters)
    again = host.generate(TINY | {"positions": "rpe-2d", "maximal_range": 64}, **prompted("a lighthouse"))
    assert torch.equal(again.pictures[0].latent, result.pictures[0].latent)
    assert again.pictures[0].parameters["ResDiT positions"] == "rpe-2d"
    assert again.pictures[0].parameters["ResDiT maximal range"] == 64


def equidistant(side, maximal=64):
    return token_positions(*equidistant_positions(Grid(side, side), Grid(maximal, maximal)))


def test_a_lora_in_the_hires_prompt_alone_counts_there(monkeypatch, model):
    host = FakeHost(monkeypatch, fakes.FakePatcher(model))
    fake_loras.install(monkeypatch, {"mine": positions_metadata(64)})
    attributes = dict(enable_hr=True, hr_resize_x=0, hr_resize_y=0, hr_scale=2.0, hr_second_pass_steps=0)
    attributes |= dict(denoising_strength=0.5, width=256, height=256)
    made = host.generate({"size": "WebUI", "base_size": 128}, **attributes, **prompted("a", "a <lora:mine:1>"))
    assert [run.config.positions for run in made.p._resdit.runs] == ["automatic", "rpe-2d"]
    assert "positions rpe-2d" in made.comments[0] and "positions: scaled" in made.comments[1]


def test_the_loras_the_host_has_parsed_decide_and_a_difference_is_said(monkeypatch, model):
    """Another extension may have changed the prompt after it was told what will happen."""
    host = FakeHost(monkeypatch, fakes.FakePatcher(model))
    fake_loras.install(monkeypatch, {"mine": positions_metadata(64), "small": positions_metadata(8)})
    changed = prompted("a <lora:mine:1>") | {"all_prompts": ["a"]}
    made = host.generate(TINY, **changed)
    assert made.p._resdit.runs[0].config.positions == "rpe-2d"
    assert made.comments[1] == "ResDiT: positions: rpe-2d, range 64, as LoRA mine says"
    changed["extra_network_data"] = fake_loras.parse_prompt("<lora:small:1>")[1]
    notes = host.generate(TINY, **changed).comments
    assert "LoRA small has a range of 8 positions" in notes[1] and len(notes) == 2


def test_at_the_base_size_rpe_2d_is_not_the_plain_picture_and_it_is_said(monkeypatch, model):
    host = FakeHost(monkeypatch, fakes.FakePatcher(model))
    at_base = {"size": "WebUI", "base_size": 256}
    for options, same in ((at_base, True), (at_base | {"positions": "rpe-2d", "maximal_range": 32}, False)):
        plain = host.generate(False, width=256, height=256).pictures[0].latent
        made = host.generate(options, width=256, height=256)
        assert torch.equal(made.pictures[0].latent, plain) is same
        assert ("not active" in made.comments[0]) is same and len(made.comments) == 1
    assert "at the base size RPE-2D's positions make another picture than the plain one" in made.comments[0]
    assert "steps: 7 global of 7; 1.00x standard attention; positions rpe-2d, range 32" in made.comments[0]
    assert "ResDiT" in made.pictures[0].parameters and made.p._resdit.runs[0].calls == {"global": 7, "blocks": 21}


def test_a_range_that_is_too_small_makes_the_picture_as_if_off(monkeypatch, model):
    host = FakeHost(monkeypatch, fakes.FakePatcher(model))
    made = host.generate(TINY | {"positions": "rpe-2d", "maximal_range": 23}, width=256, height=256)
    reason = made.pictures[0].parameters["ResDiT not active"]
    assert reason.startswith("maximal_range is 23; it must be at least 24") and made.pictures[0].size == (256, 256)
    assert torch.equal(made.pictures[0].latent, host.generate(False, width=256, height=256).pictures[0].latent)


@pytest.mark.parametrize("positions", ["ntk", "yarn"])
def test_ntk_and_yarn_reach_the_blocks_and_on_sd3_it_is_said_that_they_do_not(monkeypatch, model, positions):
    made = table_of(monkeypatch)
    host = FakeHost(monkeypatch, fakes.FakePatcher(model))
    options = TINY | {"width": 256, "layout": "scaled"}
    scaled_latent = host.generate(options).pictures[0].latent
    made.clear()
    result = host.generate(options | {"positions": positions})
    assert any(laws for _, laws in made) and f"positions {positions};" in result.comments[0]
    assert not torch.equal(result.pictures[0].latent, scaled_latent)
    torch.manual_seed(2)
    host.unet = fakes.FakePatcher(TinySD3())
    expected = host.generate(options).pictures[0].latent
    result = host.generate(options | {"positions": positions})
    assert torch.equal(result.pictures[0].latent, expected)
    assert len(result.comments) == 1 and "which SD3 does not have: scaled ones are used" in result.comments[0]


# The engines.


@pytest.mark.parametrize("size", [(8, 8), (4, 16), (24, 24)])
@pytest.mark.parametrize("layout", ["base", "scaled"])
def test_sd3s_whole_calls_have_rpe_2ds_positions(size, layout):
    """By hand: the plain model with the table read at the equidistant rows and columns of a range in its middle."""
    torch.manual_seed(3)
    model = TinySD3()
    unet, x = fakes.FakePatcher(model), torch.randn(1, CHANNELS, *size, generator=torch.Generator().manual_seed(4))
    config = scaled(base_tokens=16, positions="rpe-2d", maximal_range=20, layout=layout, attention_scale="off")
    run = Run(config, [1 - i / 7 for i in range(8)])
    got = attach(unet, run).sample(x, 0.95)
    grid = Grid(size[0] // 2, size[1] // 2)
    base = make_layout(grid, config).base

    def called(latent, grid, sigma):
        index = [reference.equidistant(n, 20) + (24 - 20) // 2 for n in (grid.height, grid.width)]
        table = torch.from_numpy(reference.sincos_table(*index, fakes.WIDTH, 1 / 3)).float()
        model.cropped_pos_embed = lambda _: table.reshape(1, -1, fakes.WIDTH)
        try:
            return unet.sample(latent, sigma)
        finally:
            del model.cropped_pos_embed

    if layout == "scaled" or grid == base:
        expected = called(x, grid, 0.95)
    else:
        clean = reference.layout_estimate(
            x.double().numpy(),
            0.95,
            (base.height, base.width),
            lambda seen, level: called(torch.from_numpy(seen).float(), base, level).double().numpy(),
        )
        expected = torch.from_numpy(clean).float()
    torch.testing.assert_close(got, expected, atol=2e-4, rtol=2e-3)
    assert run.calls["model calls"] == 1


@pytest.mark.parametrize("family", ["flux", "sd3"])
def test_in_diffusers_a_call_at_the_base_size_has_them_too(family):
    pipe = pipelines.pipeline(family)
    plain = pipelines.picture(pipe, 4, 4)
    run = apply_resdit(pipe, scaled(base_tokens=16, positions="rpe-2d", maximal_range=4))
    torch.testing.assert_close(pipelines.picture(pipe, 4, 4), plain, atol=1e-3, rtol=1e-3)  # a range of the grid
    assert run.calls["global"] == 7
    apply_resdit(pipe, scaled(base_tokens=16, positions="rpe-2d", maximal_range=11))
    assert not torch.allclose(pipelines.picture(pipe, 4, 4), plain, atol=1e-2)
    remove_resdit(pipe)
    assert torch.equal(pipelines.picture(pipe, 4, 4), plain)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_fluxs_ids_are_rpe_2ds_in_diffusers(dtype):
    """Of a call at the base size and of a layout step, beyond what bfloat16 can tell apart."""
    model, seen = pipelines.flux(), []
    model.pos_embed.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    data = dict(
        encoder_hidden_states=torch.zeros(1, 5, 12),
        pooled_projections=torch.zeros(1, 8),
        timestep=torch.tensor([0.95]),
        txt_ids=torch.zeros(5, 3, dtype=dtype),
        return_dict=False,
    )
    config = scaled(base_tokens=16, positions="rpe-2d", maximal_range=1000, layout="base")
    apply_resdit(model, config)
    for side in (4, 12):
        ids = torch.zeros(side, side, 3, dtype=dtype)
        ids[..., 1] += torch.arange(side)[:, None].to(dtype)
        ids[..., 2] += torch.arange(side).to(dtype)
        with torch.inference_mode():
            model(hidden_states=torch.randn(1, side * side, 64), img_ids=ids.reshape(-1, 3), **data)
        index = reference.equidistant(4, 1000)
        expected = np.array([(0, row, col) for row in index for col in index])
        np.testing.assert_array_equal(seen[-1][5:].double().numpy(), expected)


def test_ntk_on_sd3_in_diffusers_is_said(caplog):
    pipe = pipelines.pipeline("sd3")
    run = apply_resdit(pipe, scaled(base_tokens=16, positions="ntk"))
    assert run.config.positions == "scaled" and caplog.text.count("which SD3 does not have") == 1


# The forecast, which page, log and API show.


def test_the_forecast_says_what_is_not_usual():
    def of(side=3072, family=None, loras=(), **options):
        return forecast(parse_request((options,)), side, side, 35, family, loras=loras)

    assert of().positions == "" and of().as_dict()["positions"] == "scaled"
    assert of(loras=[WIDE]).as_dict()["positions"] == "rpe-2d, range 256, as LoRA wide says"
    assert "; positions yarn; " in of(positions="yarn").line()
    assert of(1024).idle and of(1024, loras=[LORA]).active and of(1024, positions="rpe-2d").active
    assert any("LoRA mine has a range of 64" in text for text in of(loras=[LORA]).warnings)
    assert any("which SD3 does not have" in text for text in of(family=SD3, positions="ntk").warnings)
