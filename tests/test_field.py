"""The field test: its plan, its measures, its folder and its page, on a micro model and on pictures that are drawn."""

import json
import subprocess
import sys

import numpy as np
import pytest
from transformers import CLIPConfig, CLIPModel

from resdit_ext import ResDiTError
from resdit_ext.__main__ import main
from resdit_ext.field.clip import find_clip
from resdit_ext.field.kit import PICTURES, ROWS, FieldTest
from resdit_ext.field.making import Made
from resdit_ext.field.measures import figures_of, repetition
from resdit_ext.field.page import in_script
from resdit_ext.field.plan import METHODS, SCENES, SIZES, FieldOptions, orders
from resdit_ext.field.summary import report, table
from resdit_ext.lab.scenes import random_scene, render
from resdit_ext.watch import Watch

FEW = FieldOptions(prompts=2, sizes=("2K",), methods=("plain", "Balanced"), steps=2)


def drawn(seed, side):
    scene = random_scene(np.random.default_rng(seed), "violet disc on green ground")
    return np.uint8(255 * render(scene, side, side))


class Drawing:
    """A maker that draws, and whose plain pictures do not fit into memory."""

    base, token, scenes = 64, 4, SCENES

    def __init__(self):
        self.made = []

    def about(self):
        return {"model": "a drawing"}

    def make(self, order):
        self.made.append(order.key)
        if order.method == "plain":
            raise MemoryError("CUDA out of memory")
        watch = Watch("cpu")
        watch.mark("text")
        watch.mark("fused")
        watch.mark("fused")
        return Made(drawn(order.scene.seed, order.width), 2.0, watch.parts, ["a note"])


def test_the_plan_is_prompt_by_prompt_and_has_every_size_and_method():
    found = orders(FieldOptions(), SCENES, 1024)
    assert len(found) == 12 * (1 + len(SIZES) * len(METHODS)) == len({order.file for order in found})
    assert [order.number for order in found] == sorted(order.number for order in found)
    wide = next(order for order in found if order.size == "4K 2:1")
    assert (wide.width, wide.height) == (4096, 2048)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"prompts": 13}, "prompts is 13; it must be a whole number from 1 to 12"),
        ({"sizes": ("5K",)}, "sizes is '5K'; choose one of '2K'"),
        ({"methods": ()}, "methods is empty; choose from plain"),
        ({"sampler": "DDIM"}, "sampler is 'DDIM'; choose one of 'Euler'"),
    ],
)
def test_options_out_of_range_are_refused(change, message):
    with pytest.raises(ResDiTError, match=message):
        FieldOptions(**change)


def test_repetition_tells_copies_from_one_large_object():
    one = drawn(1, 192)
    several = np.concatenate([np.concatenate([drawn(10 + 3 * i + j, 64) for j in range(3)], 1) for i in range(3)])
    assert repetition(one, 64) < 0.7 < 0.8 < repetition(several, 64)
    assert repetition(np.full_like(one, 128), 64) is None


def test_a_picture_is_measured_against_the_models_own():
    own, noise = drawn(2, 64), np.random.default_rng(0).normal(0, 8, (128, 128, 3))
    same = figures_of(np.tile(own, (2, 2, 1)), own, 64, 4)
    assert same.fine == pytest.approx(0, abs=1e-6) and same.spectrum < 1e-6 and same.patches < 0.2
    smooth = figures_of(drawn(2, 64).repeat(2, 0).repeat(2, 1), own, 64, 4)
    rough = figures_of(np.uint8(np.clip(np.tile(own, (2, 2, 1)) + noise, 0, 255)), own, 64, 4)
    assert smooth.fine < -0.3 and rough.fine > 0.03 and rough.patches > 5 * same.patches
    assert figures_of(np.tile(own, (2, 2, 1)), None, 64, 4).fine is None


def test_seams_at_the_patches_borders_are_seen_at_any_size_of_a_token():
    """Patches of 16x16 tokens on 32x32 begin at 0, 8 and 16."""
    flat = np.random.default_rng(0).normal(128, 2, (512, 512, 3))
    lined = flat.copy()
    lined[128:256] += 12
    plain, seen = (figures_of(np.uint8(picture), None, 256, 16).seam for picture in (flat, lined))
    assert 0.5 < plain < 1.5 and seen > 10


def test_a_test_goes_on_where_it_was_and_an_error_is_a_row(tmp_path, capsys):
    maker = Drawing()
    rows = FieldTest(maker, FEW, tmp_path).run()
    assert list(rows) == [
        "00/base/base",
        "00/2K/plain",
        "00/2K/Balanced",
        "01/base/base",
        "01/2K/plain",
        "01/2K/Balanced",
    ]
    assert rows["00/2K/plain"] == {"error": "MemoryError: CUDA out of memory"}
    row = rows["00/2K/Balanced"]
    assert row["made"] == [128, 128] and row["notes"] == ["a note"] and len(row["parts"]["fused"]["times"]) == 2
    assert (tmp_path / PICTURES / "00_2K_Balanced.png").is_file() and row["fine"] is not None

    text = (tmp_path / ROWS).read_text()
    (tmp_path / ROWS).write_text(text[: len(text) - 30])  # killed while it wrote the last row
    again = Drawing()
    assert FieldTest(again, FEW, tmp_path).run().keys() == rows.keys() and again.made == ["01/2K/Balanced"]
    again = Drawing()
    FieldTest(again, FEW, tmp_path).run(retry=True)
    assert again.made == ["00/2K/plain", "01/2K/plain"]
    with pytest.raises(ResDiTError, match=r"steps is 3 and was 2 in the test that .* has; give the same"):
        FieldTest(maker, FieldOptions(steps=3), tmp_path).run()


def test_a_test_that_can_reach_nothing_ends_without_a_row(tmp_path, capsys):
    maker = Drawing()
    maker.make = lambda order: (_ for _ in ()).throw(ConnectionError("no WebUI answers"))
    assert FieldTest(maker, FEW, tmp_path).run() == {}
    assert "stopped: ConnectionError: no WebUI answers; the same command goes on" in capsys.readouterr().out


def test_the_report_has_means_by_size_and_method(tmp_path):
    test = FieldTest(Drawing(), FEW, tmp_path, clip=lambda picture, prompt: float(len(prompt)))
    found = report({"model": "a drawing"}, FEW, test.orders, test.run())
    assert found.means["2K/plain"]["errors"] == 2 and found.means["2K/plain"]["seconds"] is None
    mine = found.means["2K/Balanced"]
    assert mine["made"] == 2 and mine["seconds"] == 2 and mine["s/step"] is not None and mine["peak GB"] is None
    assert mine["clip"] == np.mean([len(scene.prompt) for scene in SCENES[:2]])
    lines = table(found).splitlines()
    assert lines[3].startswith("| 2K | plain | 0 (2 errors) |  |") and lines[4].startswith(
        "| 2K | Balanced | 2 | 2.0 |"
    )
    assert json.loads(found.text())["rows"]["00/2K/plain"]["prompt"] == SCENES[0].prompt


def test_the_watch_reads_the_peak_of_every_part(monkeypatch):
    peaks = iter([3e9, 5e9, 4e9])
    for name in ("synchronize", "reset_peak_memory_stats"):
        monkeypatch.setattr(f"torch.cuda.{name}", lambda device: None)
    monkeypatch.setattr("torch.cuda.max_memory_allocated", lambda device: next(peaks))
    watch = Watch("cuda")
    for name in ("layout", "fused", "fused"):
        watch.mark(name)
    assert {name: (len(part.times), part.peak_gb) for name, part in watch.parts.items()} == {
        "layout": (1, 3.0),
        "fused": (2, 5.0),
    }


def test_nothing_in_a_prompt_ends_the_pages_script():
    assert "</script>" not in in_script({"prompt": "</script><img>"})
    assert json.loads(in_script({"prompt": "</script>"})) == {"prompt": "</script>"}


@pytest.fixture(scope="module")
def micro(tmp_path_factory):
    """The folder of a field test of the micro FLUX, made by the command."""
    folder = tmp_path_factory.mktemp("field")
    argv = ["x", "field-test", "--model", "micro-flux", "--out", str(folder), "--prompts", "1", "--sizes", "2K"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", [*argv, "--steps", "3", "--sampler", "LCM", "--methods", "hires pass,Balanced"])
        assert main() == 0
    return folder


def test_the_command_makes_every_picture_of_a_micro_model(micro):
    written = json.loads((micro / "report.json").read_text())
    assert [key.rpartition("/")[2] for key in written["rows"]] == ["base", "hires pass", "Balanced"]
    assert not any("error" in row for row in written["rows"].values())
    assert set(written["rows"]["00/2K/Balanced"]["parts"]) == {"layout", "fused"}
    assert str(micro) not in (micro / "report.json").read_text()


def test_a_webui_needs_neither_diffusers_nor_scipy():
    lines = (
        "import sys",
        "sys.modules.update(diffusers=None, scipy=None, skimage=None)",
        "from resdit_ext.field import clip, command, kit, page, summary, webui",
    )
    subprocess.run([sys.executable, "-c", "; ".join(lines)], check=True)


def test_a_clip_on_this_computer_scores_and_a_folder_without_one_is_refused(tmp_path):
    small = dict(hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2)
    text, vision = dict(vocab_size=4, eos_token_id=1, **small), dict(image_size=16, patch_size=8, **small)
    CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=8)).save_pretrained(tmp_path)
    words = {"<|startoftext|>": 0, "<|endoftext|>": 1, "a</w>": 2, "b</w>": 3}
    (tmp_path / "vocab.json").write_text(json.dumps(words))
    (tmp_path / "merges.txt").write_text("#version: 0.2\n")
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "CLIPTokenizer"}))
    name, score = find_clip(tmp_path)
    here, there = score(drawn(1, 40), "a b"), score(drawn(2, 40)[:, :30], "a b")
    assert name == tmp_path.name and -100 <= here <= 100 and here != there
    with pytest.raises(
        ResDiTError, match=r"clip is .*nothing', which cannot be loaded .*; name a folder of a CLIPModel"
    ):
        find_clip(tmp_path / "nothing")
