"""The Forge-family adapter inside real checkouts of its hosts, each in a process of its own.

Set FORGE_DIR, NEO_DIR and ERSATZ_DIR to checkouts, and FORGE_PYTHON, ... to Pythons that can import them (by default
this one). A host that is not there is skipped.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from resdit_ext import apply_resdit, remove_resdit
from resdit_ext.families import families
from tests.hosts import (  # noqa: F401 (importing registers the checks)
    checks_chroma,
    checks_control,
    checks_kinds,
    checks_layout,
    checks_lora,
    checks_method,
    checks_positions,
    checks_references,
    checks_sd3,
    checks_state,
    checks_stored,
    checks_vae,
)
from tests.hosts.bench import CHECKS, PHASES
from tests.settings import scaled

HOSTS = {"forge": "Forge", "neo": "Forge Neo", "ersatz": "ersatzForge"}
REPOSITORY = Path(__file__).parents[2]
TIMEOUT = 1200  # seconds, for all checks of one host


def control_data():
    """By kind a control net's weights, a call's arguments and what diffusers' class returns."""
    from resdit_ext.control.call import Call
    from resdit_ext.method.layout import Grid
    from tests.control_nets import FITTING, KINDS, as_stability, as_xlabs, net_of

    data, side, text = {}, 4, 5
    for kind in (*KINDS, *FITTING):
        net = net_of(kind)
        form, config = families()[kind.startswith("sd3")].control, net.config
        channels = config["in_channels"] // (1 if kind.startswith("sd3") else 4)
        given = dict(
            latent=torch.randn(2, channels, 2 * side, 2 * side),
            hint=torch.randn(2, channels, 2 * side, 2 * side),
            sigma=torch.tensor([0.3, 0.8]),
            text=torch.randn(2, text, config["joint_attention_dim"] or 1),
            pooled=torch.randn(2, config["pooled_projection_dim"]),
            guidance=torch.full((2,), 3.5),
        )
        if form.sees_pixels(net):
            given["hint"] = torch.randn(2, 3, 16 * side, 16 * side)
        embedded = torch.randn(2, side * side, 128)
        with torch.inference_mode():
            out = form.residuals(net, Call(**given, grid=Grid(side, side), shows="depth", embed=lambda e=embedded: e))
        state = net.state_dict()
        state = as_xlabs(state) if form.sees_pixels(net) else state
        state = as_stability(state, 0.0) if kind == "sd3.5 8b" else state
        parts = {"weights": state, "in": given | {"embedded": embedded}}
        parts["out"] = {f"double.{i}": value for i, value in enumerate(out.double)}
        parts["out"] |= {f"single.{i}": value for i, value in enumerate(out.single)}
        data |= {f"control/{kind}/{part}/{n}": v.clone() for part, tensors in parts.items() for n, v in tensors.items()}
    return data


def write_loras(folder, flux):
    """LoRA files of random weights for the micro FLUX and for the hosts' tiny SD3, as the training writes them."""
    from resdit_ext.training.lora import add_lora, learning, lora_weights, write_lora
    from tests import pipelines

    sd3 = pipelines.sd3(
        attention_head_dim=64,
        joint_attention_dim=32,
        caption_projection_dim=128,
        pooled_projection_dim=16,
        pos_embed_max_size=24,
        sample_size=16,
    )
    for family, transformer in zip(families(), (flux, sd3), strict=False):
        add_lora(transformer, family.training.layers, 3, seed=0)
        for parameter in learning(transformer).values():
            parameter.data.normal_(std=0.1)
        write_lora(folder / f"lora_{family.key}.safetensors", lora_weights(transformer), 64, family.training)


@pytest.fixture(scope="session")
def diffusers_file(tmp_path_factory):
    """Weights, inputs and diffusers' outputs of the micro FLUX, for `it_equals_diffusers`; None without diffusers."""
    try:
        from resdit_ext.lab.model import load_micro, pictures_to_tokens, tokenize, tokens_to_pictures
    except ImportError:
        return None
    torch.manual_seed(0)
    model = load_micro("flux")
    side = 48  # tokens: three times the base size
    pictures, words = torch.randn(1, 3, 4 * side, 4 * side), tokenize(["red disc on green ground"])
    crossattn, vector = model.encode(words)
    data = {f"weights/{name}": value for name, value in model.transformer.state_dict().items()}
    data |= {"latent": F.pixel_unshuffle(pictures, 2), "crossattn": crossattn, "vector": vector}
    for kind in ("plain", "resdit"):
        if kind == "resdit":
            apply_resdit(model.transformer, scaled(base_tokens=256, fused_until=0.57))
        for phase, sigma in PHASES.items():
            with torch.inference_mode():
                tokens = model(pictures_to_tokens(pictures), torch.full((1,), sigma), words, side)
            data[f"{kind}/{phase}"] = F.pixel_unshuffle(tokens_to_pictures(tokens, side), 2).clone()
    remove_resdit(model.transformer)
    data |= control_data()
    folder = tmp_path_factory.mktemp("diffusers")
    write_loras(folder, load_micro("flux").transformer)
    model.transformer.load_lora_adapter(folder / "lora_flux.safetensors", prefix="transformer")
    with torch.inference_mode():
        tokens = model(pictures_to_tokens(pictures), torch.full((1,), PHASES["fused"]), words, side)
    data["lora/flux"] = F.pixel_unshuffle(tokens_to_pictures(tokens, side), 2).clone()
    path = folder / "micro.safetensors"
    save_file({name: value.contiguous() for name, value in data.items()}, path)
    return path


@pytest.fixture(scope="session", params=HOSTS)
def report(request, diffusers_file, tmp_path_factory):
    """What the checks found in one host: {check: {"ok", "detail", ...}}."""
    host, prefix = request.param, request.param.upper()
    folder = os.environ.get(f"{prefix}_DIR")
    if not folder:
        pytest.skip(f"{prefix}_DIR is not set: point it at a checkout of {HOSTS[host]}")
    out = tmp_path_factory.mktemp(host) / "report.json"
    command = [os.environ.get(f"{prefix}_PYTHON", sys.executable), "-m", "tests.hosts.checks"]
    command += [host, Path(folder).resolve(), out, *([diffusers_file] if diffusers_file else [])]
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY), "PYTHONDONTWRITEBYTECODE": "1"}
    try:
        done = subprocess.run(
            command, cwd=REPOSITORY, env=environment, timeout=TIMEOUT, capture_output=True, text=True, check=False
        )
    except subprocess.TimeoutExpired:
        done = None
    if not out.is_file():
        pytest.fail(f"{HOSTS[host]} did not start:\n{done.stderr[-3000:] if done else 'timeout'}")
    return json.loads(out.read_text())


@pytest.mark.parametrize("name", CHECKS)
def test_host(report, name):
    result = report.get(name, {"ok": False, "detail": "not reached: see the check before it"})
    if result.get("skipped"):
        pytest.skip(result["detail"])
    assert result["ok"], result["detail"]
