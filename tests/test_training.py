"""The LoRA's training from end to end, on tiny pipelines of diffusers' own classes: trained, stopped, loaded."""

import json
import os
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState
from diffusers import DiffusionPipeline
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file

from resdit_ext import ResDiTError
from resdit_ext.training import loop, rpe2d
from resdit_ext.training.lora import webui_file
from resdit_ext.training.options import TrainingOptions
from resdit_ext.training.parts import ModelParts
from resdit_ext.training.trainer import Trainer
from tests.settings import range_in
from tests.training_models import SIZE, save_pictures, save_pipeline
from tests.training_processes import stopped_at

FAMILIES = ("flux", "sd3")
RANGE, STEPS, SAVED_EVERY, STOP = 16, 4, 2, 3


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """More are slower for models as small as these."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def a_new_accelerator():
    """accelerate keeps what a process has chosen first."""
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    return {family: save_pipeline(family, folder / family) for family in FAMILIES}


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return save_pictures(tmp_path_factory.mktemp("images"))


@pytest.fixture(scope="module")
def caches(tmp_path_factory):
    return {family: tmp_path_factory.mktemp(f"cache-{family}") for family in FAMILIES}


@pytest.fixture(scope="module")
def options(models, images, caches):
    """`options(family, out, ...)` of a short training in float32; two batches of one picture a step."""

    def make(family, out, **changes):
        given = dict(
            cache=caches[family],
            size=SIZE,
            maximal_range=RANGE,
            steps=STEPS,
            accumulate=2,
            save_every=SAVED_EVERY,
            validate_every=0,
            precision="fp32",
            rank=2,
            rate=1e-2,
        )
        return TrainingOptions(models[family], images, out, **given | changes)

    return make


@pytest.fixture(scope="module", params=FAMILIES)
def trained(request, options, tmp_path_factory):
    """A family and the options of its training, with validation at the end."""
    out = tmp_path_factory.mktemp(f"trained-{request.param}") / "lora.safetensors"
    made = options(
        request.param,
        out,
        validate_every=STEPS,
        validation_steps=2,
        validation_size=2 * SIZE,
        validation_prompts=("a", "b"),
    )
    assert np.isfinite(loop.train(made))
    return request.param, made


def closeness(one, two):
    """The largest difference of two files' tensors, as a share of the largest value."""
    assert one.keys() == two.keys()
    return max(float((one[name].float() - two[name].float()).abs().max() / one[name].abs().max()) for name in one)


def test_the_file_says_its_positions_and_range(trained):
    family, made = trained
    with safe_open(made.out, "pt") as file:
        assert file.metadata() == {"format": "pt", "resdit.positions": "rpe-2d", "resdit.maximal_range": "16"}
    assert range_in(made.out) == RANGE
    assert webui_file(made.out).is_file() == (family == "sd3")
    idle = {name for name, tensor in load_file(made.out).items() if not tensor.any()}
    # The last block of SD3 makes nothing of its text's queries.
    last = "transformer.transformer_blocks.1.attn.add_q_proj.lora_B.weight"
    assert idle == ({last} if family == "sd3" else set())


def test_diffusers_loads_it_and_it_is_the_sum_of_two_products(trained, models):
    """The output with the LoRA is that of the weights W + B A."""
    family, made = trained
    pipe, merged = (DiffusionPipeline.from_pretrained(models[family]) for _ in range(2))
    pipe.load_lora_weights(made.out)
    weights, layers = load_file(made.out), set()
    for name in weights:
        layer, _, side = name.removeprefix("transformer.").rpartition(".lora_")
        layers.add(layer)
        assert side in ("A.weight", "B.weight")
    assert len(pipe.get_active_adapters()) == 1
    for layer in layers:
        a, b = (weights[f"transformer.{layer}.lora_{side}.weight"].float() for side in "AB")
        merged.transformer.get_submodule(layer).weight.data += b @ a
    given = dict(height=128, width=128, num_inference_steps=1, output_type="latent")
    with_lora, by_hand = (
        one("a", generator=torch.Generator().manual_seed(0), **given).images for one in (pipe, merged)
    )
    pipe.unload_lora_weights()
    plain = pipe("a", generator=torch.Generator().manual_seed(0), **given).images
    effect = (with_lora - plain).abs().max()
    assert effect > 1e-3 and (with_lora - by_hand).abs().max() < 1e-3 * effect


def test_validation_pictures_are_there_at_their_size(trained):
    folder = trained[1].out.with_suffix(".pictures")
    assert sorted(path.name for path in folder.iterdir()) == ["step-0000004-0.png", "step-0000004-1.png"]
    one, other = (np.array(Image.open(path)) for path in sorted(folder.iterdir()))
    assert one.shape == (2 * SIZE, 2 * SIZE, 3) and (one != other).any()


def test_a_stopped_training_goes_on_from_its_last_state_as_if_never_stopped(trained, options, tmp_path, monkeypatch):
    family, made = trained
    mine = options(family, tmp_path / "lora.safetensors")
    monkeypatch.setattr(Trainer, "step", stopped_at(STOP))
    with pytest.raises(KeyboardInterrupt):
        loop.train(mine)
    (mine.out.with_suffix(".state") / "step-0000009-0-of-1.partial").write_bytes(b"cut off")
    steps, own = [], Trainer.step
    monkeypatch.setattr(Trainer, "step", lambda self, batches, step: steps.append(step) or own(self, batches, step))

    def no_second_time(*_):
        raise AssertionError("what the cache has was computed again")

    monkeypatch.setattr(ModelParts, "pipeline", no_second_time)
    loop.train(mine)
    assert steps == [2, 3] and STOP - steps[0] <= SAVED_EVERY
    whole, resumed = load_file(made.out), load_file(mine.out)
    assert all(torch.equal(resumed[name], tensor) for name, tensor in whole.items())
    steps.clear()
    loop.train(mine)
    assert not steps, "a training that is at its end was continued"
    with pytest.raises(
        ResDiTError, match=r"rank is 3 and was 2 in the training that .* is the state of; give the same"
    ):
        loop.train(replace(mine, rank=3))


def test_two_processes_learn_what_one_does(options, tmp_path, caches):
    """DDP for FLUX; FSDP for SD3, stopped on the way: the same batches as one process's with accumulation."""
    given, alone = {"stop": STOP}, {}
    for kind, family in (("ddp", "flux"), ("fsdp", "sd3")):
        alone[kind] = options(family, tmp_path / f"{family}-alone.safetensors")
        loop.train(alone[kind])
        two = replace(alone[kind], out=tmp_path / f"{family}.safetensors", accumulate=1)
        given[kind] = {name: str(x) if isinstance(x, Path) else x for name, x in asdict(two).items() if x is not None}
    for path in caches["flux"].iterdir():
        path.unlink()  # so that the two share this work as well
    (tmp_path / "given.json").write_text(json.dumps(given), encoding="utf8")
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone"]
    command += ["-m", "tests.training_processes", str(tmp_path / "given.json")]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as both:
        try:
            said, _ = both.communicate(timeout=600)
        finally:
            both.terminate()  # which ends the processes that it has started, too
    assert both.returncode == 0, said[-3000:]
    for kind in alone:
        assert closeness(load_file(alone[kind].out), load_file(given[kind]["out"])) < 1e-2
    assert len(list(caches["flux"].glob("*.safetensors"))) == 5, "four pictures and the prompts"


def test_bfloat16_and_the_command_line(models, images, caches, tmp_path, capsys):
    out = tmp_path / "lora.safetensors"
    argv = ["--model", models["flux"], "--images", images, "--out", out, "--cache", caches["flux"], "--size", SIZE]
    argv += ["--steps", 1, "--validate-every", 1, "--validation-steps", 1, "--validation-prompts", "a", "b"]
    assert rpe2d.main(list(map(str, argv))) == 0
    assert capsys.readouterr().out.endswith(f"LoRA: {out}\n")
    assert range_in(out) == 4 * SIZE // 16
    assert rpe2d.main([*map(str, argv), "--maximal-range", "3"]) == 2
    said = "error: the maximal range is 3 tokens and the picture's height is 4 tokens; choose a range of at least 4"
    assert capsys.readouterr().err.splitlines()[-1].startswith(said)


def test_a_transformers_file_with_the_parts_of_a_folder(models, options, tmp_path):
    file = next((models["sd3"] / "transformer").glob("*.safetensors"))
    mine = options("sd3", tmp_path / "lora.safetensors", steps=1, accumulate=1)
    loop.train(replace(mine, model=file, components=models["sd3"]))
    assert range_in(mine.out) == RANGE
    with pytest.raises(
        ResDiTError, match=r"diffusion_pytorch_model.* cannot be loaded as the FluxTransformer2DModel of"
    ):
        loop.train(replace(mine, model=file, components=models["flux"], out=tmp_path / "other.safetensors"))
