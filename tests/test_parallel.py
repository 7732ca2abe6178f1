"""Several processes for one picture: two of them are started once, over gloo, and what they found is looked at here."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import ContextParallelConfig, FluxControlNetModel
from PIL import Image

from resdit_ext import ResDiTConfig, Unsupported, apply_resdit, enable_parallelism
from resdit_ext.generate.pictures import generate
from resdit_ext.method.layout import Grid, make_layout
from resdit_ext.seams.joint_processor import share
from resdit_ext.seams.masks_diffusers import KeyMask
from resdit_ext.seams.ulysses_diffusers import Ranks
from tests import parallel_processes, pipelines
from tests.training_models import save_pipeline

SAME = 1e-5  # of the largest value
BF16 = 0.02


def pixels(path):
    """A picture file's values, 0 to 255."""
    with Image.open(path) as image:
        return np.asarray(image).astype(int)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """With whole pipelines, and what the processes write."""
    folder = tmp_path_factory.mktemp("ranks")
    for family in ("flux", "sd3"):
        save_pipeline(family, folder / family)
    return folder


@pytest.fixture(scope="module")
def found(folder):
    """What each of the two processes found, by the name of a case."""
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = [*launch, "-m", "tests.parallel_processes", str(folder)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        command, cwd=Path(__file__).parents[1], env=environment, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return [json.loads((folder / f"{rank}.json").read_text(encoding="utf8")) for rank in range(2)]


def test_shared_work_is_one_processs(found):
    """Every phase, speed, ablation, frame and model, with control and masks: within float32's own noise."""
    for rank in found:
        distances = {name: value for name, value in rank.items() if isinstance(value, float)}
        assert len(distances) > 40 and distances.pop("without the reorder") > 1e-3
        limits = {name: BF16 if name == "bfloat16" else SAME for name in distances}
        assert not {name: value for name, value in distances.items() if not value < limits[name]}


@pytest.mark.parametrize("case", ["base size", "after removal", "sd3 halves, base size"])
def test_it_is_bit_identical(found, case):
    assert [rank[case] for rank in found] == [True, True]


@pytest.mark.parametrize(
    ("case", "reason"),
    [
        ("ring", "ring attention (ring_degree=2) never has all tokens"),
        ("ring after", "ring attention (ring_degree=2) never has all tokens"),
        ("another engine", "ParaAttention, xDiT or another engine"),
        ("other noise", "have not the same noise, which"),
        ("other noise of halves", "have not the same noise, which"),
        ("other fresh noise", "have not the same noise, which"),
        ("other text", "have not the same text, which"),
        ("mask over text", "with a mask over this model's text yet"),
        ("references", "several devices cannot make one picture with reference images yet"),
        ("unknown order", "several devices cannot make one picture with SimpleNamespace yet"),
        ("odd text", "5 text tokens are not divisible by 2 processes"),
        ("processors set afterwards", "FluxAttnProcessor does not take part"),
        ("sd3 without ours", "JointAttnProcessor2_0 does not take part"),
        ("control net's own", "a control net is called whole on every process"),
    ],
)
def test_it_is_refused_on_every_rank(found, case, reason):
    assert all(reason in rank[case] for rank in found), [rank[case] for rank in found]


@pytest.mark.parametrize("picture", ["flux", "sd3"])
def test_the_command_makes_one_processs_picture(found, folder, picture, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    made, alone = (folder / f"{picture}_{how}.png" for how in ("shared", "alone"))
    (wanted,) = generate(parallel_processes.command(folder, picture, "alone"))
    assert wanted == alone
    difference = np.abs(pixels(made) - pixels(alone)).max()
    assert difference <= 1 and pixels(alone).std() > 1
    report = json.loads((folder / f"{picture}.json").read_text(encoding="utf8"))
    assert report["processes"] == 2 and len(report["peak_bytes"]) == 2 and all(report["peak_bytes"])
    assert report["pictures"][0]["seconds"].keys() == {"text", "layout", "fused", "decoding", "saving"}


def test_batch_groups_are_for_models_that_are_called_with_both_halves():
    with pytest.raises(Unsupported, match=r"batch_group is for models .* FLUX.1 is not"):
        apply_resdit(pipelines.flux(), batch_group=object())


def test_xdits_wrappers_are_refused_by_name():
    wrapper = type("xFuserFluxTransformer2DWrapper", (), {})()
    with pytest.raises(Unsupported, match="ParaAttention, xDiT or another engine"):
        apply_resdit(wrapper)


def test_what_cannot_be_shared_is_said():
    fused = pipelines.sd3()
    fused.fuse_qkv_projections()
    with pytest.raises(Unsupported, match="FusedJointAttnProcessor2_0 cannot share its tokens"):
        share(fused)
    with pytest.raises(Unsupported, match="an attention mask for each of 2 heads"):
        KeyMask.in_order(torch.ones(1, 2, 1, 9), torch.arange(9))
    net = FluxControlNetModel(num_layers=1, num_single_layers=0, num_attention_heads=2, attention_head_dim=16)
    with pytest.raises(Unsupported, match="no plan for sharing the tokens of a FluxControlNetModel"):
        enable_parallelism(net, ContextParallelConfig(ulysses_degree=2))
    with pytest.raises(Unsupported, match="1 text tokens are too few for 2 processes"):
        Ranks(2, 0, False, None).check_lengths(2, 1, make_layout(Grid(8, 8), ResDiTConfig(base_tokens=16)))
