"""A new model family is one new file: this one is written by the test, and everything that there is finds it."""

import ast
import re
from pathlib import Path

import pytest
import torch
from diffusers import FluxTransformer2DModel
from torch import nn

import resdit_ext
from resdit_ext import ResDiTError, Unsupported, apply_resdit, doctor, families, remove_resdit
from resdit_ext.families import identify
from resdit_ext.hosts import recognised_model
from resdit_ext.webui import lifecycle, routes
from resdit_ext.webui.forecast import forecast
from resdit_ext.webui.options import parse_request
from tests import fakes
from tests.settings import scaled
from tests.test_diffusers import AXES, run
from tests.test_doctor import FLUX, checkout

FILE = '''
"""Lumen, which no one else has."""

from resdit_ext.families import Family, Support
from resdit_ext.seams.rotary import RotaryBlocks
from resdit_ext.seams.rotary_diffusers import RotaryProcessors

FAMILY = Family(
    name="Lumen",
    key="lumen",
    rank=9,
    webui=RotaryBlocks(lambda model: hasattr(model, "layers"), blocks=("layers",), embedder="rope"),
    diffusers={"LumenTransformer2DModel": RotaryProcessors().around_calls},
    support={"Forge": Support("Lumen 1", {"backend/nn/lumen.py": ("attention(q, k, v, pe)",)}, note="by a test")},
    hidden_size=640,
    longest_text=64,
    live_vectors=20,
    steps=8,
)
'''


class Lumen(fakes.FakeFlux):
    def __init__(self):
        super().__init__()
        self.layers, self.rope = nn.ModuleList([*self.double_blocks, *self.single_blocks]), self.pe_embedder
        del self.double_blocks, self.single_blocks, self.pe_embedder

    def parts(self):
        return self.rope, self.layers


class LumenTransformer2DModel(FluxTransformer2DModel):
    pass


@pytest.fixture(autouse=True)
def lumen(tmp_path, monkeypatch):
    (tmp_path / "lumen.py").write_text(FILE)
    monkeypatch.setattr(families, "__path__", [*families.__path__, str(tmp_path)])
    families.families.cache_clear()
    (found,) = [family for family in families.families() if family.name == "Lumen"]
    yield found
    families.families.cache_clear()


def test_it_is_found_last_and_the_others_first(lumen):
    names = [family.name for family in families.families()]
    assert names[:3] == ["FLUX.1", "SD3", "Chroma"] and names[-1] == "Lumen"
    with pytest.raises(Unsupported, match=r"\(FLUX.1, SD3, Chroma, .*, Lumen\)"):
        identify(nn.Linear(1, 1))


def test_a_host_makes_a_picture_with_it():
    torch.manual_seed(2)
    p = fakes.FakeProcessing(Lumen())
    options = {"width": 768, "base_size": 128}
    lifecycle.before_process(p, options)
    lifecycle.process(p)
    x = torch.randn(1, fakes.CHANNELS, p.height // 8, p.width // 8)
    plain = p.sd_model.forge_objects.unet
    lifecycle.before_sampling(p, x=x)
    assert recognised_model(p).family.name == "Lumen" and recognised_model(p).family.hidden_size == fakes.WIDTH
    assert not torch.equal(p.sd_model.forge_objects.unet.sample(x, 0.8), plain.sample(x, 0.8))
    assert p._resdit.calls["blocks"] == 3


def test_diffusers_has_it():
    torch.manual_seed(1)
    model = LumenTransformer2DModel(
        patch_size=1,
        in_channels=64,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=sum(AXES),
        num_attention_heads=2,
        joint_attention_dim=12,
        pooled_projection_dim=8,
        axes_dims_rope=AXES,
    ).eval()
    plain = run(model, 12, 12)
    made = apply_resdit(model, scaled(base_tokens=16))
    assert not torch.allclose(run(model, 12, 12), plain, atol=1e-3) and made.calls["global"] == 1
    remove_resdit(model)
    assert torch.equal(run(model, 12, 12), plain)


def test_the_forecast_the_routes_and_the_doctor_know_it(lumen, tmp_path):
    request = parse_request(({"size": "3K"},))
    made, usual = (forecast(request, 3072, 3072, 20, family) for family in (lumen, None))
    assert made.activations == (64 + 192**2) * 640 * 20 * 2 != usual.activations
    query = dict(width="3072", height="3072", steps="20", size="3K", model="lumen")
    assert routes.forecast_of_query(query)["activation_bytes"] == made.activations
    with pytest.raises(
        ResDiTError,
        match=r"model is 'luna'; choose one of 'flux', 'sd3', 'chroma', .*, 'lumen'",
    ):
        routes.forecast_of_query(query | {"model": "luna"})
    host = checkout(tmp_path / "host", FLUX["Forge"])
    assert re.search("not in this WebUI: Chroma, .*Lumen", str(doctor.examine(host)))
    (host / "backend" / "nn" / "lumen.py").write_text("def attention(q, k, v, pe): pass")
    assert "models: Lumen 1 (by a test)" in str(doctor.examine(host))
    (host / "backend" / "nn" / "lumen.py").write_text("def attention(x): pass")
    assert "NO  backend/nn/lumen.py: attention(q, k, v, pe)" in str(doctor.examine(host))


NAMED = re.compile(r"flux|sd3|chroma|krea|z.?image|lumina|qwen", re.IGNORECASE)
# The lab's micro models are of two families, and Forge's forks are told apart by a file that all of them have.
MAY_NAME = {"__main__.py", "doctor.py"}


def words_of(source):
    """(line, word) of a file's names and texts, its docstrings aside."""
    tree = ast.parse(source)
    owners = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    docs = {
        id(owner.body[0].value) for owner in ast.walk(tree) if isinstance(owner, owners) and ast.get_docstring(owner)
    }
    for node in ast.walk(tree):
        for field in ("id", "attr", "arg", "name", "module", "value"):
            word = getattr(node, field, None)
            if isinstance(word, str) and id(node) not in docs:
                yield node.lineno, word


def test_no_other_file_names_a_family():
    package = Path(resdit_ext.__file__).parent
    files = [path for path in package.rglob("*.py") if path.relative_to(package).parts[0] not in ("families", "lab")]
    named = [
        f"{path.relative_to(package)}:{line}: {word}"
        for path in files
        if path.name not in MAY_NAME
        for line, word in words_of(path.read_text(encoding="utf8"))
        if NAMED.search(word)
    ]
    assert len(files) > 50 and not named, "\n".join(named)
