"""The doctor on made-up checkouts; it reads sources and runs nothing."""

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


def checkout(root, flux):
    files = {
        "modules/scripts.py": HOOKS,
        "modules/ui_components.py": "class InputAccordion: pass\nclass ToolButton: pass",
        "modules_forge/__init__.py": "",
        "backend/nn/flux.py": flux,
        "backend/patcher/base.py": "class ModelPatcher:\n    def set_model_unet_function_wrapper(self, f): pass",
        "backend/patcher/unet.py": "class UnetPatcher:\n    def clone(self): pass",
    }
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
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
        ("backend/nn/flux.py", "def attention(x): pass", "NO  backend/nn/flux.py: attention(q, k, v, pe, ...)"),
        ("backend/nn/flux.py", "this is not python", "NO  backend/nn/flux.py"),
        (
            "modules/scripts.py",
            "class Script: pass",
            "NO  modules/scripts.py: Script.before_process -> update the WebUI",
        ),
        ("backend/patcher/base.py", "", "NO  backend/patcher: set_model_unet_function_wrapper"),
    ],
)
def test_a_missing_hook_point_is_named(tmp_path, file, text, line):
    host = checkout(tmp_path, FLUX["Forge"])
    (host / file).write_text(text)
    report = examine(host)
    assert not report.usable and line in str(report) and str(report).endswith("\nnot usable")


def test_hosts_without_flux_are_told_apart(tmp_path):
    host = checkout(tmp_path, FLUX["Forge"])
    (host / "backend").rename(host / "ldm_patched")
    assert host_name(host) == "reForge" and not examine(host).usable
    (host / "modules_forge" / "__init__.py").unlink()
    (host / "modules_forge").rmdir()
    assert host_name(host) == "A1111" and "A1111 cannot run FLUX" in str(examine(host))
    with pytest.raises(ResDiTError, match="is no WebUI"):
        examine(tmp_path / "modules")


def test_the_running_environment():
    report = examine(None)
    assert report.usable and "ok  torch" in str(report) and "ok  diffusers: transformer_flux" in str(report)
