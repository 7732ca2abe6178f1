"""RPE-2D in the training of the micro models: what a step draws, and that the trained model is a model as any other."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from resdit_ext.errors import ResDiTError
from resdit_ext.lab import train as train_module
from resdit_ext.lab.methods import METHODS, RANDOMIZED
from resdit_ext.lab.model import LATENT_CHANNELS, MODELS, load_micro, tokenize
from resdit_ext.lab.randomized import RPE2D, AnyPositions, Crop, Randomized, draw, random_crop, render_crop
from resdit_ext.lab.sampling import sigmas_of
from resdit_ext.lab.scenes import drawn_patterns, random_scene, render
from resdit_ext.lab.train import TrainConfig, make_batch, train
from resdit_ext.method.layout import Grid
from resdit_ext.seams.training_diffusers import Places
from tests.settings import differences, with_one_block

ALWAYS = RPE2D(native_share=0)


def given(model_name, height, width):
    tokens = torch.randn(2, height * width, 4 * LATENT_CHANNELS)
    return tokens, torch.tensor([0.3, 0.8]), tokenize(["red disc on green ground", ""]), height


@pytest.mark.parametrize("name", MODELS)
def test_at_its_own_positions_a_model_in_training_is_the_model(name):
    model = load_micro(name)
    training = AnyPositions(model)
    height, width = 16, 16
    places = Places(torch.arange(height).double(), torch.arange(width).double(), Grid(height, width))
    call = given(name, height, width)
    own = model(*call)
    assert torch.equal(training(*call), own)
    whole = Randomized(places, torch.zeros(2, 3))
    torch.testing.assert_close(training(*call, whole), own, rtol=0, atol=5e-3)
    elsewhere = whole._replace(places=places._replace(rows=places.rows * 3, maximal=Grid(64, 64)))
    assert (training(*call, elsewhere) - own).abs().max() > 0.01
    with torch.no_grad():
        training.crop.weight.normal_()
    assert torch.allclose(training(*call, whole), own, atol=5e-3), "nothing is told of a whole picture"
    assert (training(*call, whole._replace(crops=torch.ones(2, 3))) - own).abs().max() > 0.01


def test_a_crop_is_a_part_of_a_larger_picture():
    scene = random_scene(np.random.default_rng(0))
    crop = Crop(zoom=1.5, top=7, left=40)
    part = render_crop(scene, 64, 88, drawn_patterns, crop)
    assert np.array_equal(part, render(scene, 96, 132)[7:71, 40:128])
    assert np.array_equal(render_crop(scene, 64, 88, drawn_patterns, Crop()), render(scene, 64, 88))
    assert Crop(2.0, 32, 22).numbers(64, 88) == (1.0, 0.5, 0.25)
    assert Crop().numbers(64, 88) == (0, 0, 0)


def test_random_crops_lie_within_their_picture():
    rng = np.random.default_rng(0)
    crops = [random_crop(rng, 36, 112) for _ in range(200)]
    for zoom, top, left in crops:
        assert 1 <= zoom <= 2 and 0 <= top <= round(zoom * 36) - 36 and 0 <= left <= round(zoom * 112) - 112
    assert max(crop.top for crop in crops) > 25 and min(crop.zoom for crop in crops) < 1.1


def test_a_step_draws_sorted_positions_of_the_range_and_a_native_one_nothing():
    crops, randomized = draw(ALWAYS, Grid(14, 18), 3, (56, 72), (5, 6, 1))
    rows, cols, maximal = randomized.places
    assert maximal == Grid(64, 64) and len(rows) == 14 and len(cols) == 18
    assert (rows.diff() > 0).all() and (cols.diff() > 0).all() and rows.min() >= 0 and cols.max() < 64
    assert randomized.crops.tolist() == pytest.approx(np.array([crop.numbers(56, 72) for crop in crops]))
    again = draw(ALWAYS, Grid(14, 18), 3, (56, 72), (5, 6, 1))[1]
    assert torch.equal(again.places.rows, rows) and torch.equal(again.crops, randomized.crops)
    silent = draw(replace(ALWAYS, told_crops=False), Grid(14, 18), 3, (56, 72), (5, 6, 1))
    assert silent[0] == crops and not silent[1].crops.any()
    assert draw(replace(ALWAYS, crops=False), Grid(14, 18), 3, (56, 72), (5, 6, 1))[0] == [Crop()] * 3
    assert draw(RPE2D(native_share=1), Grid(14, 18), 3, (56, 72), (5, 6, 1)) == ([Crop()] * 3, None)


def test_half_of_the_steps_are_those_of_a_training_without_it():
    native, mixed = TrainConfig(9, batch=2), TrainConfig(9, batch=2, positions=RPE2D())
    same = 0
    for step in range(40):
        before, (*after, randomized) = make_batch(native, step), make_batch(mixed, step)
        assert torch.equal(before[1], after[1]) and torch.equal(before[3], after[3]), "noise and words"
        same += randomized is None
        assert (randomized is None) == torch.equal(before[0], after[0])
    assert 10 < same < 30


@pytest.mark.parametrize("name", MODELS)
def test_its_training_resumes_exactly_and_its_file_is_a_models(tmp_path, monkeypatch, name):
    monkeypatch.setattr(train_module, "SQUARE", (4, 4))
    monkeypatch.setattr(train_module, "BUCKETS", ((3, 5),))
    with_one_block(monkeypatch)
    config = TrainConfig(4, name, batch=2, save_every=2, positions=ALWAYS)
    train(tmp_path / "whole.safetensors", config)
    with monkeypatch.context() as patch:
        patch.setattr(train_module, "flow_loss", fails_at_the_fourth(train_module.flow_loss))
        with pytest.raises(KeyboardInterrupt):
            train(tmp_path / "parts.safetensors", config)
    train(tmp_path / "parts.safetensors", config)
    whole, parts = (load_file(tmp_path / f"{part}.safetensors") for part in ("whole", "parts"))
    assert whole.keys() == MODELS[name]().state_dict().keys()
    assert all(torch.equal(whole[key], parts[key]) for key in whole)
    lines = [(tmp_path / f"{part}.losses.csv").read_text() for part in ("whole", "parts")]
    assert lines[0] == lines[1] and [line.split(",")[:2] for line in lines[0].split()] == [
        [str(step), "random"] for step in range(4)
    ]


def fails_at_the_fourth(flow_loss):
    calls = []

    def loss(*args):
        calls.append(args)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return flow_loss(*args)

    return loss


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: RPE2D(maximal=31), "range is 31; it must be a whole number from 32 to 4096"),
        (lambda: RPE2D(native_share=1.5), "native_share is 1.5"),
        (lambda: TrainConfig(1, scale=5), "scale is 5; it must be a whole number from 1 to 4"),
        (lambda: TrainConfig(1, "sd3", scale=2), "scale is 2; sd3 has positions of its own for 48 tokens a side"),
        (lambda: TrainConfig(1, "sd3", scale=2, positions=RPE2D()), "scale is 2; sd3 has positions of its own for 48"),
        (lambda: TrainConfig(1, close_ups=1.2), "close_ups is 1.2; it must be a number from 0 to 1"),
        (lambda: TrainConfig(1, close_ups=0.5, positions=RPE2D()), "close_ups is 0.5; it must be 0 with RPE-2D"),
        (lambda: TrainConfig(1, "sd3-depth", close_ups=1), "close_ups is 1; it must be 0 with control nets"),
        (lambda: TrainConfig(1, "flux-depth", positions=RPE2D()), "model is 'flux-depth'; RPE-2D is for flux and sd3"),
    ],
)
def test_what_cannot_be_is_named(make, message):
    with pytest.raises(ResDiTError, match=message):
        make()


def test_rows_of_the_table_differ_in_what_their_names_say():
    off = {name: differences(config, METHODS["PES only"]) for name, config in RANDOMIZED.items() if "with" not in name}
    equidistant = {"positions": "rpe-2d", "maximal_range": 64}
    assert off["RPE-2D"] == equidistant
    assert off["RPE-2D + log scale"] == off["RPE-2D + log scale + shift"] == equidistant | {"attention_scale": "log"}
    assert differences(RANDOMIZED["Balanced with RPE-2D"], METHODS["Balanced"]) == equidistant


def test_shifted_levels_stay_high_for_longer():
    assert sigmas_of(4) == [1, 0.75, 0.5, 0.25, 0]
    assert sigmas_of(4, np.log(3)) == pytest.approx([1, 0.9, 0.75, 0.5, 0])
