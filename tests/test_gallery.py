"""The gallery: which seeds it takes, what its sheet shows and how its command ends."""

import numpy as np
import pytest
from PIL import Image

from resdit_ext import ResDiTError
from resdit_ext.__main__ import main
from resdit_ext.lab import demo
from resdit_ext.lab.evaluate import FIRST_SEED, prompt_of
from resdit_ext.lab.methods import METHODS, grid_for
from resdit_ext.lab.scenes import random_scene, render
from resdit_ext.method.layout import Grid

COLUMNS = len(demo.GALLERY_COLUMNS)


@pytest.fixture
def drawn(monkeypatch):
    """Replaces sampling by renders of the truth, except that the first seed's base pictures are empty; the calls."""
    calls = []

    def sample(_, prompts, grid, seeds, config=None, tick=lambda: None, eta=0.0):
        calls.append((grid, seeds[0], config))
        height, width = 4 * grid.height, 4 * grid.width
        if config is None and seeds[0] == FIRST_SEED:
            return np.zeros((1, height, width, 3), np.float32)
        return render(random_scene(np.random.default_rng(seeds[0]), prompts[0]), height, width)[None]

    monkeypatch.setattr(demo, "sample", sample)
    return calls


def test_the_seed_is_the_first_whose_base_picture_is_fine(drawn):
    seed, picture = demo.base_picture(None, Grid(16, 16))
    assert seed == FIRST_SEED + 1 and picture.shape == (64, 64, 3)
    assert [call[1] for call in drawn] == [FIRST_SEED, FIRST_SEED + 1]


def test_without_a_fine_base_picture_there_is_no_gallery(drawn, monkeypatch):
    monkeypatch.setattr(demo, "SEEDS_TRIED", 1)
    with pytest.raises(ResDiTError, match="none of 1 seeds"):
        demo.base_picture(None, Grid(16, 16))


def test_a_row_has_one_prompt_and_seed_and_every_method(drawn, tmp_path):
    report = demo.gallery(None, tmp_path / "made" / "gallery.png")
    assert list(report) == ["1:1", "2:1", "1:2"]
    high = [call for call in drawn if call[0].tokens > 1000]
    assert len(high) == 3 * COLUMNS
    assert [call[2] for call in high] == [METHODS[name] for name in ("plain", "Paper", "Balanced")] * 3
    assert {call[0] for call in high} == {grid_for(aspect, 3) for aspect in ((1, 1), (2, 1), (1, 2))}
    for row in report.values():
        assert row["seed"] == FIRST_SEED + 1 and row["prompt"] == prompt_of(row["seed"])
        assert row["measures"]["Balanced"]["ok"] == 1


def test_the_sheet_holds_every_picture_apart_from_the_text():
    rng = np.random.default_rng(0)
    shapes = [(30, 20), (60, 90), (60, 90)]
    rows = [(caption, [rng.uniform(0, 0.5, (*shape, 3)) for shape in shapes]) for caption in ("one", "two")]
    sheet = demo.contact_sheet(["base", "plain", "a heading wider than its pictures"], rows, zoom=2)
    pixels = np.asarray(sheet)
    at = []
    for _, pictures in rows:
        for picture in pictures:
            zoomed = np.asarray(demo.to_image(picture)).repeat(2, 0).repeat(2, 1)
            found = np.argwhere((pixels[:, :, :] == zoomed[0, 0]).all(-1))
            height, width = zoomed.shape[:2]
            at += [
                (y, x, y + height, x + width)
                for y, x in found
                if np.array_equal(pixels[y : y + height, x : x + width], zoomed)
            ]
    assert len(at) == 6
    assert all(bottom < sheet.height and right < sheet.width for _, _, bottom, right in at)
    assert [x for _, x, _, _ in at[:3]] == [x for _, x, _, _ in at[3:]]
    tops = sorted({y for y, *_ in at})
    assert len(tops) == 2 and tops[1] > max(bottom for y, _, bottom, _ in at if y == tops[0])


def test_the_gallery_command(drawn, tmp_path, monkeypatch, capsys):
    out = tmp_path / "gallery.png"
    monkeypatch.setattr("sys.argv", ["x", "gallery", "--out", str(out)])
    assert main() == 0
    printed = capsys.readouterr().out
    assert f"1:2: seed {FIRST_SEED + 1}" in printed and "Balanced ok" in printed and str(out) in printed
    with Image.open(out) as sheet:
        assert sheet.width > 3 * 544
