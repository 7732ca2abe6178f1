"""The micro control nets: their data, their files, that control holds, and the evaluation."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from resdit_ext.control import recognise
from resdit_ext.control.nets import build
from resdit_ext.lab import evaluate_control as module
from resdit_ext.lab.control import CONTROLS, control_error, hint_of, load_control, sample_controlled
from resdit_ext.lab.evaluate import summary, table
from resdit_ext.lab.metrics import GROUND, OBJECT, SKY
from resdit_ext.lab.model import BASE_TOKENS, tokens_to_pictures, weights_of
from resdit_ext.lab.scenes import WIDE_ROOM, Scene, depth_map, random_scene, render
from resdit_ext.lab.train import TrainConfig, make_batch, train
from resdit_ext.method.config import BALANCED
from resdit_ext.method.layout import Grid
from tests.control_nets import FORMATS

SCENE = Scene("disc", "red", "green", side=0.4, centre=(0.4, 0.38), horizon=0.5)


def test_a_depth_map_tells_the_three_parts_apart_at_every_size():
    for side in (64, 192):
        depth = depth_map(SCENE, side, side)
        assert depth[2, 2] == SKY == 0 and depth[int(0.4 * side), int(0.38 * side)] == 1
        assert 0.2 <= depth[int(0.52 * side), -1] < depth[-1, -1] <= 0.6
        assert len({SKY, GROUND, OBJECT}) == 3
    tokens = hint_of(SCENE, Grid(16, 16))
    np.testing.assert_allclose(
        (tokens_to_pictures(tokens, 16)[0, 1].numpy() + 1) / 2, depth_map(SCENE, 64, 64), atol=1e-6
    )


def test_the_control_error_counts_pixels_of_another_part():
    side = 192
    picture = render(SCENE, side, side)
    assert control_error(picture, SCENE) < 0.01
    moved = replace(SCENE, centre=(0.4, 0.62))
    apart = 2 * (np.pi / 4 * 0.4**2) * 0.68  # 0.6 of their side apart, two discs share .32 of their area
    assert abs(control_error(render(moved, side, side), SCENE) - apart) < 0.02
    low = replace(SCENE, horizon=0.6)
    assert abs(control_error(render(low, side, side), SCENE) - 0.1) < 0.04


def test_the_wide_room_is_wider():
    scenes = [random_scene(np.random.default_rng(seed), room=WIDE_ROOM) for seed in range(200)]
    assert min(scene.centre[1] for scene in scenes) < 0.4 and max(scene.centre[1] for scene in scenes) > 0.6


@pytest.mark.parametrize("name", CONTROLS)
def test_the_shipped_files_are_control_nets_as_others_save_them(name):
    path = weights_of(name)
    checkpoint = recognise(load_file(path), path, FORMATS)
    family = {"flux-depth": "FLUX.1", "sd3-depth": "SD3"}[name]
    assert (checkpoint.family, checkpoint.kind, checkpoint.width) == (family, "diffusers", 128)
    head = checkpoint.arguments["attention_head_dim"]
    assert head == 32 and build(checkpoint) is not None


@pytest.mark.parametrize("name", CONTROLS)
def test_control_holds_above_the_training_size(name):
    """A scene off the middle, where the model alone would not draw it."""
    control, config = load_control(name), replace(BALANCED, base_tokens=BASE_TOKENS)
    picture = sample_controlled(control, SCENE, Grid(24, 24), 100_000, config)
    assert control_error(picture, SCENE) < 0.05 < 0.1 < control_error(picture, Scene("disc", "red", "green"))


def test_training_changes_the_net_alone_and_saves_it_as_others_do(tmp_path):
    out = tmp_path / "net.safetensors"
    before = {n: v.clone() for n, v in CONTROLS["flux-depth"]().base.state_dict().items()}
    train(out, TrainConfig(2, "flux-depth", batch=2, save_every=1))
    control = load_control("flux-depth", out)
    assert all(torch.equal(v, before[n]) for n, v in control.base.state_dict().items())
    assert not any(name.startswith("net.") for name in load_file(out))
    tokens, _, _, _, height, hint = make_batch(TrainConfig(2, "flux-depth", batch=2), 0)
    assert hint.shape == tokens.shape and tokens.shape[1] % height == 0


def test_the_evaluation_resumes_and_names_its_rows(tmp_path, monkeypatch):
    control = load_control("flux-depth")
    made = []

    def drawn(_, name, grid, seed):
        made.append((name, seed))
        return render(module.scene_of(seed), 4 * grid.height, 4 * grid.width)

    monkeypatch.setattr(module, "picture_of", drawn)
    for seeds, new in ((1, 2 + 5), (2, 2 + 5), (2, 0)):
        made.clear()
        found = module.evaluate_control(control, [1, 2], tmp_path / "results.jsonl", seeds)
        assert len(made) == new and len(found) == 7 * seeds
    cells = summary(found)
    assert cells["1:1/2/control"]["control_error"][0] < 0.02 and cells["1:1/2/control"]["ok"][2] == 2
    assert "| 2x | control net as it is | 2 |" in table(cells, module.SHOWN)
    assert "plain" not in str(cells) and Path(tmp_path / "results.jsonl").is_file()


def test_the_sheet_has_a_row_for_each_model(tmp_path, monkeypatch):
    from PIL import Image

    monkeypatch.setattr(
        module, "picture_of", lambda _, name, grid, seed: np.zeros((4 * grid.height, 4 * grid.width, 3))
    )
    module.control_sheet(tmp_path / "made" / "sheet.png", scale=2)
    sheet = Image.open(tmp_path / "made" / "sheet.png")
    assert sheet.width > 4 * 256 and sheet.height > 2 * 256
