"""The doctor on made-up checkouts; it reads sources and runs nothing."""

from types import SimpleNamespace

import pytest

from resdit_ext import ResDiTError
from resdit_ext.doctor import examine, host_name

HOOKS = "class Script:\n" + "\n".join(
    f"    def {name}(self): pass"
    for name in ("before_process", "process", "process_before_every_sampling", "postprocess", "after_component")
)
FLUX = {
    "Forge": "def attention(q, k, v, pe): pass",
    "Forge Neo": "def attention(q, k, v, pe, mask=None, transformer_options={}): pass",
    "ersatzForge": "def attention(q, k, v, pe): pass\nclass DoubleStreamBlock:\n    def forward(self, scratchQ): pass",
}


MMDIT = "class MMDiT:\n    def cropped_pos_embed(self, hw): self.ln_q"
SD3_MODEL = "class SD3Inferencer:\n    def create_denoiser(self): pass"


def write(root, files):
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)


def checkout(root, flux):
    files = {
        "modules/scripts.py": HOOKS,
        "modules/ui_components.py": "class InputAccordion: pass\nclass ToolButton: pass",
        "modules_forge/__init__.py": "",
        "backend/nn/flux.py": flux,
        "backend/attention.py": "def attention_pytorch(q, k, v, heads, mask=None, skip_reshape=False): pass",
        "backend/patcher/base.py": "class ModelPatcher:\n    def set_model_unet_function_wrapper(self, f): pass",
        "backend/patcher/unet.py": "class UnetPatcher:\n    def clone(self): pass",
        "backend/nn/mmditx.py": MMDIT,
    }
    write(root, files)
    return root


@pytest.mark.parametrize("name", list(FLUX))
def test_forge_and_its_forks_are_usable(tmp_path, name):
    host = checkout(tmp_path, FLUX[name])
    assert host_name(host) == name
    report = examine(host)
    assert report.usable and str(report).endswith("\nusable")


@pytest.mark.parametrize(
    ("file", "text", "line"),
    [
        ("backend/nn/flux.py", "def attention(x): pass", "NO  backend/nn/flux.py: attention(q, k, v, pe)"),
        ("backend/nn/flux.py", "this is not python", "NO  backend/nn/flux.py"),
        ("backend/attention.py", "def attention_pytorch(q, k, v): pass", "NO  backend/attention.py: attention(..."),
        (
            "modules/scripts.py",
            "class Script: pass",
            "NO  modules/scripts.py: Script.before_process -> update the WebUI",
        ),
        ("backend/nn/mmditx.py", "class MMDiTX: pass", "NO  backend/nn/mmditx.py: cropped_pos_embed"),
        ("backend/patcher/base.py", "", "NO  backend/patcher: set_model_unet_function_wrapper"),
    ],
)
def test_a_missing_hook_point_is_named(tmp_path, file, text, line):
    host = checkout(tmp_path, FLUX["Forge"])
    (host / file).write_text(text)
    report = examine(host)
    assert not report.usable and line in str(report) and str(report).endswith("\nnot usable")


def test_a_host_without_sd3_says_so_and_is_usable(tmp_path):
    host = checkout(tmp_path, FLUX["Forge"])
    assert "models: SD3-medium, SD3.5-large, SD3.5-medium" in str(examine(host))
    (host / "backend/nn/mmditx.py").unlink()
    assert "not in this WebUI: SD3" in str(examine(host)) and examine(host).usable


def test_hosts_without_flux_are_told_apart(tmp_path):
    host = checkout(tmp_path, FLUX["Forge"])
    (host / "backend").rename(host / "ldm_patched")
    assert host_name(host) == "reForge" and not examine(host).usable
    (host / "modules_forge" / "__init__.py").unlink()
    (host / "modules_forge").rmdir()
    report = examine(host)
    assert host_name(host) == "AUTOMATIC1111" and not report.usable and "this WebUI has none of" in str(report)
    write(host, {"modules/models/sd3/mmdit.py": MMDIT, "modules/models/sd3/sd3_model.py": SD3_MODEL})
    assert examine(host).usable and "models: SD3-medium\n" in str(examine(host))
    assert "ControlNet: none for these models" in str(examine(host))
    write(host, {"modules/models/sd3/sd3_model.py": ""})
    assert "NO  modules/models/sd3/sd3_model.py: SD3Inferencer.create_denoiser" in str(examine(host))
    with pytest.raises(ResDiTError, match="is no WebUI"):
        examine(tmp_path / "modules")


def test_the_running_environment():
    report = examine(None)
    assert (
        report.usable
        and "ok  torch" in str(report)
        and "ok  models/transformers/transformer_flux.py: dispatch_attention_fn" in str(report)
    )


def test_a_diffusers_that_is_too_old_to_be_hooked_is_named(tmp_path, monkeypatch):
    source = "def apply_rotary_emb(x): pass\nclass FluxTransformer2DModel: pass"
    write(tmp_path, {"__init__.py": "1 / 0", "models/transformers/transformer_flux.py": source})
    spec = SimpleNamespace(origin=str(tmp_path / "__init__.py"))  # read, never imported
    monkeypatch.setattr("resdit_ext.doctor.find_spec", lambda name: spec)
    report = examine(None)
    line = "NO  models/transformers/transformer_flux.py: dispatch_attention_fn -> install diffusers>=0.35"
    assert not report.usable and line in str(report) and "not in diffusers: SD3, Chroma" in str(report)


def test_whether_the_panel_takes_our_control_nets(tmp_path):
    host = checkout(tmp_path, FLUX["Forge Neo"])
    assert "ControlNet for these models in the WebUI's panel: no" in str(examine(host))
    (host / "extensions-builtin" / "sd_forge_controlnet").mkdir(parents=True)
    write(host, {"modules_forge/shared.py": "def add_supported_control_model(control_model):\n    pass\n"})
    assert "ControlNet for these models in the WebUI's panel: yes" in str(examine(host))
