"""The generate command in one process, on a tiny pipeline with random weights."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from resdit_ext import PRESETS, ResDiTError
from resdit_ext.__main__ import main
from resdit_ext.generate import pictures
from resdit_ext.generate.options import GenerateOptions, Picture, parse_seeds, parse_size
from resdit_ext.webui.infotext import KEY
from tests.training_models import save_pipeline


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_pipeline("flux", tmp_path_factory.mktemp("generate") / "flux")


@pytest.fixture
def command(model, tmp_path, monkeypatch):
    """Runs the command with more arguments, in a folder of its own."""

    def run(*more):
        usual = ["--model", model, "--size", "256x256", "--base-size", "192", "--steps", "2", "--out", tmp_path / "out"]
        monkeypatch.setattr("torch.cuda.is_available", lambda: False)
        monkeypatch.setattr("sys.argv", ["x", "generate", *map(str, [*usual, *more])])
        return main()

    return run


def options(model, **more):
    return GenerateOptions(**dict(model=model, prompts=("a",), seeds=(0,), size=(256, 256), out=model) | more)


def test_sizes_and_seeds_are_read():
    assert parse_size("4096x3072") == (4096, 3072)
    assert parse_seeds("7") == (7,) and parse_seeds("3-5") == (3, 4, 5)


@pytest.mark.parametrize("text", ["4096", "100x256", "128x128", "9000x256", "axb", ""])
def test_a_size_that_cannot_be_made_is_refused(text):
    with pytest.raises(ResDiTError, match="write it as WIDTHxHEIGHT"):
        parse_size(text)


@pytest.mark.parametrize("text", ["5-3", "-1", "1,2", "9" * 30, ""])
def test_seeds_that_are_none_are_refused(text):
    with pytest.raises(ResDiTError, match="seeds is"):
        parse_seeds(text)


@pytest.mark.parametrize(
    ("more", "reason"),
    [
        ({"preset": "Best"}, "preset is 'Best'; choose one of"),
        ({"steps": 0}, "steps is 0"),
        ({"prompts": ()}, "there is no prompt"),
        ({"prompts": ("a", " ")}, "or an empty one"),
        ({"share": "tokens"}, "share is 'tokens'"),
        ({"base_size": 100}, "base_size is 100"),
    ],
)
def test_options_out_of_range_are_refused(tmp_path, more, reason):
    with pytest.raises(ResDiTError, match=reason):
        options(tmp_path, **more)


def test_a_file_is_for_one_picture(tmp_path):
    assert [picture.path.name for picture in options(tmp_path, out=tmp_path / "a.png").pictures()] == ["a.png"]
    with pytest.raises(ResDiTError, match="for 2 pictures; name a folder"):
        options(tmp_path, out=tmp_path / "a.png", seeds=(1, 2))


def test_an_infotext_has_what_the_page_reads(tmp_path):
    given = options(tmp_path / "flux", preset="Paper", size=(512, 256))
    text = given.infotext(Picture("a lighthouse", 5, tmp_path), steps=20, guidance=3.5)
    assert text.startswith(
        "a lighthouse\nSteps: 20, Sampler: Euler, CFG scale: 3.5, Seed: 5, Size: 512x256, Model: flux"
    )
    assert f"{KEY}: " in text and f"{KEY} fused until: {PRESETS['Paper'].fused_until}" in text


def test_several_pictures_are_made_once(command, tmp_path, monkeypatch, capsys):
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("red disc\n\nblue disc\n", encoding="utf8")
    many = ("--prompts", prompts, "--seeds", "1-2", "--json", tmp_path / "figures.json")
    assert command(*many) == 0
    files = sorted((tmp_path / "out").iterdir())
    assert [file.name for file in files] == ["0000_1.png", "0000_2.png", "0001_1.png", "0001_2.png"]
    images = [np.asarray(Image.open(file)) for file in files]
    assert images[0].shape == (256, 256, 3) and not np.array_equal(images[0], images[1])
    report = json.loads((tmp_path / "figures.json").read_text(encoding="utf8"))
    assert report["processes"] == 1 and report["peak_bytes"][0] > 0 and len(report["pictures"]) == 4
    assert report["pictures"][0]["seconds"].keys() == {"text", "layout", "fused", "decoding", "saving"}

    made, own = [], pictures.make
    monkeypatch.setattr(pictures, "make", lambda *given: made.append(given[2].path) or own(*given))
    files[2].unlink()
    assert command(*many) == 0
    assert made == [files[2]] and np.array_equal(np.asarray(Image.open(files[2])), images[2])
    assert command(*many, "--preset", "Paper") == 2
    assert "was made with other options" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("more", "reason"),
    [
        ((), "write one of --prompt TEXT and --prompts FILE"),
        (("--prompt", "a", "--offload", "model"), "there is no GPU"),
        (("--prompt", "a", "--model", "nowhere"), "no folder of a diffusers pipeline"),
        (("--prompt", "a", "--size", "256"), "write it as WIDTHxHEIGHT"),
    ],
)
def test_the_command_says_what_is_wrong(command, more, reason, capsys):
    assert command(*more) == 2
    assert reason in capsys.readouterr().err


def test_a_transformers_file_takes_its_other_parts_from_a_folder(command, model, tmp_path, capsys):
    file = tmp_path / "fine_tune.safetensors"
    save_file({"not.a.transformer": torch.zeros(2)}, file)
    assert command("--prompt", "a", "--model", file) == 2
    assert "--components" in capsys.readouterr().err
    assert command("--prompt", "a", "--model", file, "--components", model) == 2
    assert "cannot be loaded as the FluxTransformer2DModel" in capsys.readouterr().err
