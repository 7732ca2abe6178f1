"""The lab: its scenes, metrics, micro model and commands, and what the trained weights show."""

import json
from dataclasses import asdict, fields, replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from resdit_ext import ResDiTError
from resdit_ext.__main__ import main
from resdit_ext.lab import train as train_module
from resdit_ext.lab.demo import parse_aspect
from resdit_ext.lab.evaluate import prompt_of
from resdit_ext.lab.methods import METHODS, grid_for
from resdit_ext.lab.metrics import Measures, fit_scene, measure, segment
from resdit_ext.lab.model import (
    BASE_TOKENS,
    MODELS,
    TEXT_TOKENS,
    load_micro,
    pictures_to_tokens,
    tokenize,
    tokens_to_pictures,
    weights_of,
)
from resdit_ext.lab.randomized import RPE2D
from resdit_ext.lab.sampling import sample
from resdit_ext.lab.scenes import SHAPES, Scene, object_mask, parse_prompt, random_scene, render
from resdit_ext.lab.train import TrainConfig, train
from resdit_ext.method.layout import Grid, make_layout
from tests.settings import with_one_block

SQUARE_2X = grid_for((1, 1), 2)
STEPS = 14  # enough to tell the methods apart
LAYOUT_2X = make_layout(SQUARE_2X, METHODS["Balanced"])


def means_of(found):
    """The mean of every measure, by name."""
    return {name: np.mean([getattr(measures, name) for measures in found]) for name in asdict(found[0])}


@pytest.fixture(scope="module")
def model():
    return load_micro("flux")


@pytest.fixture(scope="module")
def sd3():
    return load_micro("sd3")


@pytest.mark.parametrize("shape", SHAPES)
def test_layout_scales_and_texture_does_not(shape):
    scene = Scene(shape, "red", "green")
    small, large = object_mask(scene, 64, 64), object_mask(scene, 192, 192)
    assert large.mean() == pytest.approx(small.mean(), rel=0.02)
    for size in (60, 180):
        lowest = render(scene, size, size)[-5:, :, 1]
        spectrum = np.abs(np.fft.rfft(lowest - lowest.mean(1, keepdims=True))).sum(0)
        assert spectrum.argmax() / size == pytest.approx(0.1)
    assert render(scene, 40, 120).shape == (40, 120, 3)


def test_a_wide_frame_does_not_stretch_the_object():
    inside = object_mask(Scene("square", "red", "green"), 64, 192) > 0.5
    assert inside.any(1).sum() == inside.any(0).sum()


@pytest.mark.parametrize("prompt", ["", "red disc", "pink disc on green ground", "red disc on red ground", "a b c d e"])
def test_prompts_are_checked(prompt):
    with pytest.raises(ValueError, match="COLOUR one of red"):
        parse_prompt(prompt)


def test_true_renders_measure_as_true():
    for seed in range(12):
        scene = random_scene(np.random.default_rng(seed))
        found = measure(render(scene, 128, 128), scene.prompt, LAYOUT_2X)
        assert found.ok == 1 and found.iou > 0.94 and found.sky_error < 0.03
        assert found.stripes > 0.99 and found.tex_object == pytest.approx(1, abs=0.25)


def test_the_fit_finds_the_scene():
    scene = Scene("triangle", "violet", "sand", side=0.5, centre=(0.52, 0.47), horizon=0.57)
    found, iou, _ = fit_scene(segment(render(scene, 160, 160), scene.prompt), scene.prompt)
    assert iou > 0.95 and found.horizon == pytest.approx(0.57, abs=0.02)
    assert found.centre == pytest.approx(scene.centre, abs=0.02) and found.side == pytest.approx(0.5, rel=0.06)


def test_metrics_see_each_fault():
    scene = Scene("disc", "red", "green")
    truth = render(scene, 128, 128)

    def measured(picture):
        return measure(picture, scene.prompt, LAYOUT_2X)

    two = truth.copy()
    two[8:40, 8:40] = render(Scene("square", "red", "green", side=1.0), 32, 32)
    assert measured(two).one == 0 and measured(two).ok == 0
    from scipy import ndimage

    blurred = ndimage.gaussian_filter(truth, (2.5, 2.5, 0))
    assert measured(blurred).tex_object < 0.3 and measured(blurred).psd_hf > 1
    banded = truth.copy()
    banded[20:44, :30] = truth[100:124, :30]
    assert measured(banded).sky_error > measured(truth).sky_error + 0.03
    seamed = truth.copy()
    edge = 4 * LAYOUT_2X.cols[1]
    seamed[:, edge:] *= 0.4
    assert measured(seamed).seam > 2 * measured(truth).seam
    empty = render(replace(scene, side=0.001), 128, 128)
    assert measured(empty).one == 0 and measured(empty).tex_object == 0
    noise = np.random.default_rng(0).random((128, 128, 3)).astype(np.float32)
    assert all(np.isfinite(value) for value in asdict(measured(noise)).values())


def test_tokens_and_pictures_round_trip():
    pictures = torch.randn(2, 3, 24, 40)
    tokens = pictures_to_tokens(pictures)
    assert tokens.shape == (2, 60, 48) and torch.equal(tokens_to_pictures(tokens, 6), pictures)
    words = tokenize(["red disc on green ground", ""])
    assert words.shape == (2, TEXT_TOKENS) and (words[0] > 0).sum() == 5 and (words[1] == 0).all()


def test_grids():
    assert grid_for((1, 1), 1) == Grid(16, 16) and grid_for((1, 1), 3) == Grid(48, 48)
    wide = grid_for((2, 1), 3)
    assert wide.width == pytest.approx(2 * wide.height, abs=1) and wide.tokens == pytest.approx(
        9 * BASE_TOKENS, rel=0.05
    )
    assert parse_aspect("2:1") == (2, 1)


@pytest.mark.parametrize("text", ["2", "a:b", "0:1", "5:1", "-1:-1"])
def test_bad_aspects_are_named(text):
    with pytest.raises(ResDiTError, match=f"aspect is '{text}'"):
        parse_aspect(text)


@pytest.mark.parametrize("name", MODELS)
def test_training_resumes_exactly(tmp_path, monkeypatch, name):
    monkeypatch.setattr(train_module, "SQUARE", (4, 4))
    monkeypatch.setattr(train_module, "BUCKETS", ((3, 5),))
    with_one_block(monkeypatch)
    config = TrainConfig(model=name, steps=4, batch=2, save_every=2)
    train(tmp_path / "whole.safetensors", config)

    class Stop(Exception):
        pass

    def stop_at_3(config, step):
        if step == 3:
            raise Stop
        return make_batch(config, step)

    make_batch = train_module.make_batch
    monkeypatch.setattr(train_module, "make_batch", stop_at_3)
    with pytest.raises(Stop):
        train(tmp_path / "parts.safetensors", config)
    monkeypatch.setattr(train_module, "make_batch", make_batch)
    train(tmp_path / "parts.safetensors", config)
    whole, parts = (load_file(tmp_path / f"{part}.safetensors") for part in ("whole", "parts"))
    assert whole.keys() == MODELS[name]().state_dict().keys()
    assert all(torch.equal(whole[key], parts[key]) for key in whole)


def test_pictures_of_twice_the_size_have_four_times_the_tokens():
    """Of the same scenes, whose textures keep their size in pixels."""
    usual, large = (train_module.make_batch(TrainConfig(1, batch=2, scale=scale), 0) for scale in (1, 2))
    assert large[0].shape == (2, 4 * usual[0].shape[1], 48) and large[4] == 2 * usual[4]
    assert torch.equal(large[3], usual[3])  # their prompts
    assert TrainConfig(1, "sd3", scale=2, positions=RPE2D(native_share=0)).scale == 2


def test_close_ups_are_windows_of_larger_pictures_at_lower_noise(monkeypatch):
    seen, original = [], train_module.render_crop
    monkeypatch.setattr(train_module, "render_crop", lambda *given: seen.append(given[-1]) or original(*given))
    sigma = train_module.make_batch(TrainConfig(1, batch=40, close_ups=0.4), 0)[2]
    near = torch.tensor([crop.zoom > 1 for crop in seen])
    assert 8 < near.sum() < 24 and all(1.5 <= crop.zoom <= 4.5 for crop in seen if crop.zoom > 1)
    assert sigma[near].max() <= 0.92 < sigma[~near].max()


def test_a_fine_tune_begins_with_the_weights_that_it_is_given(tmp_path):
    """Into a folder that is not there yet, and at the loss of a trained model from the first step on."""
    out = tmp_path / "not" / "there.safetensors"
    config = TrainConfig(steps=1, batch=4, start=weights_of("flux"))
    assert train(out, config) < 0.2 < 1 < train_module.flow_loss(MODELS["flux"](), *train_module.make_batch(config, 0))
    before, after = load_file(weights_of("flux")), load_file(out)
    moved = max(float((after[name].float() - before[name].float()).abs().max()) for name in before)
    assert after.keys() == before.keys() and 0 < moved < 0.02


@pytest.mark.parametrize("name", MODELS)
def test_the_shipped_weights_are_small_and_missing_ones_say_how_to_train(tmp_path, name):
    assert weights_of(name).stat().st_size < 8 * 2**20
    with pytest.raises(FileNotFoundError, match=f"python -m resdit_ext train --model {name}"):
        load_micro(name, tmp_path / "none.safetensors")


@pytest.mark.parametrize("name", MODELS)
def test_the_base_model_draws_what_it_is_asked(name):
    model = load_micro(name)
    prompts = [prompt_of(seed) for seed in range(6)]
    pictures = sample(model, prompts, Grid(16, 16), range(6))
    layout = make_layout(Grid(16, 16), METHODS["Balanced"])
    assert np.mean([measure(*pair, layout).ok for pair in zip(pictures, prompts, strict=True)]) > 0.6


def test_plain_fails_at_2x_and_resdit_does_not(model):
    """The method's claim, on six seeds: one whole object with texture where the plain model has none."""
    prompts = [prompt_of(seed) for seed in range(6)]
    means = {}
    for name in ("plain", "PES only", "Balanced"):
        pictures = sample(model, prompts, SQUARE_2X, range(6), METHODS[name], STEPS)
        found = [measure(*pair, LAYOUT_2X) for pair in zip(pictures, prompts, strict=True)]
        means[name] = means_of(found)
    assert means["plain"]["ok"] < 0.2 and means["Balanced"]["ok"] > 0.6
    assert means["Balanced"]["iou"] > 0.85 > means["plain"]["iou"]
    assert means["Balanced"]["tex_object"] > 1.5 * means["PES only"]["tex_object"]


def test_sd3_patches_bring_texture_where_scaled_positions_blur(sd3):
    """SD3's share of the claim, on four seeds: the same one object, and more of the stripes."""
    prompts = [prompt_of(seed) for seed in range(4)]
    means = {}
    for name in ("PES only", "Balanced"):
        pictures = sample(sd3, prompts, SQUARE_2X, range(4), METHODS[name], STEPS)
        found = [measure(*pair, LAYOUT_2X) for pair in zip(pictures, prompts, strict=True)]
        means[name] = means_of(found)
    assert means["Balanced"]["one"] == 1 and means["Balanced"]["iou"] > 0.85
    assert means["Balanced"]["tex_object"] > 1.4 * means["PES only"]["tex_object"]
    assert means["Balanced"]["tex_ground"] > 1.2 * means["PES only"]["tex_ground"]


@pytest.mark.parametrize("name", MODELS)
def test_at_the_base_size_the_picture_is_bit_identical(name):
    model = load_micro(name)
    plain, resdit = (
        sample(model, ["red disc on green ground"], Grid(16, 16), [0], config, steps=4)
        for config in (None, METHODS["Balanced"])
    )
    assert np.array_equal(plain, resdit)


@pytest.fixture
def two_steps(monkeypatch):
    from resdit_ext.lab import demo

    real = demo.sample
    monkeypatch.setattr(demo, "sample", lambda *a, **k: real(*a[:5], steps=2, tick=k["tick"]))


def test_where_the_plain_model_has_no_positions_it_is_left_out(tmp_path, monkeypatch, capsys, two_steps):
    out = tmp_path / "out"
    monkeypatch.setattr("sys.argv", ["x", "demo", "--model", "sd3", "--scale", "4", "--out", str(out)])
    assert main() == 0
    assert "plain 4x is left out" in capsys.readouterr().out
    assert set(json.loads((out / "report.json").read_text())) == {"base", "resdit"}


@pytest.mark.parametrize("name", MODELS)
def test_the_demo_command(tmp_path, monkeypatch, capsys, two_steps, name):
    out, report = tmp_path / "out", tmp_path / "figures.json"
    arguments = ["x", "demo", "--scale", "1.5", "--aspect", "3:2", "--out", str(out), "--json", str(report)]
    monkeypatch.setattr("sys.argv", [*arguments, "--model", name])
    assert main() == 0
    assert {path.name for path in out.iterdir()} == {
        "base.png",
        "plain.png",
        "resdit.png",
        "comparison.png",
        "report.json",
    }
    figures = json.loads(report.read_text())
    assert set(figures) == {"base", "plain", "resdit"}
    assert {each.name for each in fields(Measures)} <= set(figures["plain"])
    assert "comparison.png" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["demo", "--prompt", "a cat"], "prompt 'a cat' is not"),
        (["demo", "--scale", "0.5"], "scale is 0.5; it must be"),
        (["demo", "--scale", "nan"], "scale is nan"),
        (["demo", "--aspect", "9"], "aspect is '9'"),
        (["demo", "--preset", "Best"], "preset is 'Best'"),
        (["evaluate", "--methods", "magic"], "methods has 'magic'"),
        (["evaluate", "--scales", "2,big"], "scales is '2,big'"),
        (["evaluate", "--seeds", "0"], "seeds is 0; it must be"),
        (["train", "--steps", "0"], "steps is 0; it must be"),
        (["doctor", "no/such/folder"], "is no WebUI"),
    ],
)
def test_bad_arguments_end_with_a_sentence(arguments, message, monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["x", *arguments])
    assert main() == 2
    printed = capsys.readouterr().err
    assert printed.startswith("error: ") and message in printed and "Traceback" not in printed
