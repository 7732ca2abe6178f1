"""SD3 inside A1111's own classes: `A1111_PYTHON -m tests.hosts.a1111 FOLDER OUT.json`, in a process of its own.

The SD3 classes, its denoiser and k-diffusion are the host's; what they import of the rest of it (its options, text
encoders and hijacks) is replaced by empty modules, so that no checkpoint is needed.
"""

from __future__ import annotations

import json
import os
import sys
import traceback
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import torch
from torch import Tensor

from resdit_ext.families import identify
from resdit_ext.hosts.a1111 import attach
from resdit_ext.method.layout import Grid, base_grid
from resdit_ext.method.run import Run
from resdit_ext.monkeypatch import swapped
from resdit_ext.webui import lifecycle
from tests import reference
from tests.hosts import kit
from tests.settings import scaled

EMPTY = ("shared", "devices", "sd_hijack", "models.sd3.sd3_cond")
TABLE, STEP, TEXT, WIDTH = 24, 1 / 3, 11, 32  # the width is the text's
CONFIG = scaled(base_tokens=64, fused_until=0.57)
PHASES = {"global": 0.99, "fused": 0.8, "local": 0.1}


def enter(folder: str) -> None:
    """Make the host's package `modules` importable."""
    os.chdir(folder)
    sys.path.insert(0, folder)
    for name in EMPTY:
        sys.modules[f"modules.{name}"] = module = ModuleType(f"modules.{name}")
        module.opts = SimpleNamespace(enable_quantization=False)
        module.SD3Cond = object
    import modules

    for name in EMPTY[:3]:
        setattr(modules, name, sys.modules[f"modules.{name}"])


def build_model() -> torch.nn.Module:
    """The host's BaseModel, two blocks of two heads, with random weights and SD3's table."""
    from modules.models.sd3.sd3_impls import BaseModel

    torch.manual_seed(0)
    shapes = {
        "x_embedder.proj.weight": (128, 16, 2, 2),
        "pos_embed": (1, TABLE**2, 128),
        "y_embedder.mlp.0.weight": (128, 16),
        "context_embedder.weight": (128, WIDTH),
    }
    model = BaseModel(shift=3, state_dict={name: torch.empty(shape) for name, shape in shapes.items()})
    index = range(TABLE)
    table = reference.sincos_table(index, index, 128, STEP).reshape(1, TABLE**2, 128)
    model.diffusion_model.pos_embed.copy_(torch.from_numpy(table))
    return model.eval().requires_grad_(False)


def build() -> object:
    """The host's SD3Inferencer around that model."""
    from modules.models.sd3.sd3_model import SD3Inferencer

    inferencer = SD3Inferencer.__new__(SD3Inferencer)
    torch.nn.Module.__init__(inferencer)
    inferencer.model = build_model()
    return inferencer


def conditioning(batch: int, seed: int) -> dict[str, Tensor]:
    """Random text as the host's text encoders return it."""
    generator = torch.Generator().manual_seed(seed)
    return {
        "crossattn": torch.randn(batch, TEXT, WIDTH, generator=generator),
        "vector": torch.randn(batch, 16, generator=generator),
    }


def latent(height: int, width: int, batch: int = 1) -> Tensor:
    return torch.randn(batch, 16, height, width, generator=torch.Generator().manual_seed(5))


@torch.inference_mode()
def call(denoiser: object, x: Tensor, sigma: float) -> Tensor:
    """The denoised latent, as the host's CFG denoiser asks for it."""
    cond = conditioning(len(x), 1) | {"c_concat": [x.new_zeros(len(x), 5, 1, 1)]}
    return denoiser(x, torch.full((len(x),), sigma), cond=cond)


def at_positions(sd3: object, x: Tensor, sigma: float, index: list[np.ndarray]) -> Tensor:
    """The host's own call with the reference's table at these indices of rows and columns."""
    table = torch.from_numpy(reference.sincos_table(*index, 128, STEP)).float().flatten(0, 1)[None]
    with swapped(sd3.model.diffusion_model, cropped_pos_embed=lambda hw: table):
        return call(sd3.create_denoiser(), x, sigma)


def base_size_is_bit_identical(sd3: object) -> None:
    for size in ((16, 16), (12, 16)):
        denoiser, run = sd3.create_denoiser(), Run(CONFIG)
        attach(denoiser, identify(sd3.model.diffusion_model), run)
        assert torch.equal(call(denoiser, latent(*size), 0.8), call(sd3.create_denoiser(), latent(*size), 0.8))
        assert run.calls == {"base": 1}


def it_is_the_method(sd3: object) -> None:
    """3x, non-square and beyond the table, batch 2, against the reference around the host's own calls."""
    model = sd3.model.diffusion_model
    for size in ((48, 48), (32, 48), (64, 64)):
        for phase, sigma in PHASES.items():
            x, denoiser, run = latent(*size, 2), sd3.create_denoiser(), Run(CONFIG)
            attach(denoiser, identify(model), run)
            got = call(denoiser, x, sigma)
            grid = [n // 2 for n in size]
            base = base_grid(Grid(*grid), CONFIG.base_tokens)
            sides = base.height, base.width
            index = [reference.whole_index(TABLE, n, b) for n, b in zip(grid, sides, strict=True)]
            factor = np.log(TEXT + grid[0] * grid[1]) / np.log(TEXT + base.tokens)
            queries = [s.attn for b in model.joint_blocks for s in (b.context_block, b.x_block)]
            for attention in queries:  # the first third of the joint projection makes queries
                attention.qkv.weight[:128] *= factor
                attention.qkv.bias[:128] *= factor
            whole = at_positions(sd3, x, sigma, index)
            for attention in queries:
                attention.qkv.weight[:128] /= factor
                attention.qkv.bias[:128] /= factor
            for i in range(2):

                def patch(part: np.ndarray, *start, i=i, sigma=sigma, grid=grid, sides=sides) -> np.ndarray:
                    both = torch.from_numpy(part)[None].float().repeat(2, 1, 1, 1)
                    index = [reference.patch_index(TABLE, *axis) for axis in zip(grid, sides, start, strict=True)]
                    return at_positions(sd3, both, sigma, index)[i].double().numpy()

                expected = reference.resdit_by_patches(
                    x[i].double().numpy(),
                    grid,
                    sides,
                    phase,
                    lambda _, i=i, whole=whole: whole[i].double().numpy(),
                    patch,
                    cutoff=CONFIG.cutoff / 2,
                    sigma=CONFIG.splice_sigma,
                )
                worst = np.abs(reference.to_tokens(got[i].double().numpy()) - expected).max()
                assert worst < 1e-4 * np.abs(expected).max(), f"{size}, {phase}: {worst}"
            assert run.calls[phase] == 1


def nothing_is_left_after_an_error_or_an_interrupt(sd3: object) -> None:
    model, x = sd3.model.diffusion_model, latent(48, 48)
    plain, before = call(sd3.create_denoiser(), x, 0.8), dict(vars(model))
    for error in (None, RuntimeError, KeyboardInterrupt):
        denoiser = sd3.create_denoiser()
        attach(denoiser, identify(model), Run(CONFIG))
        with kit.failing_inside(model, error):
            call(denoiser, x, PHASES["global"])
        assert torch.equal(call(sd3.create_denoiser(), x, 0.8), plain) and vars(model) == before
        assert not any(module._forward_hooks for module in model.modules())


def other_models_are_refused_aloud(sd3: object) -> None:
    from tests.fakes import FakeProcessing

    samplers = sys.modules["modules.sd_samplers"] = ModuleType("modules.sd_samplers")  # the host's own need its options
    samplers.create_sampler = lambda name, model: SimpleNamespace(model_wrap=model.create_denoiser())
    sd15 = SimpleNamespace(model=SimpleNamespace(diffusion_model=torch.nn.Linear(2, 2)))
    for model, expected in ((sd3, None), (sd15, "AUTOMATIC1111 has SD3-medium only")):
        p = FakeProcessing(sd_model=model)
        lifecycle.before_process(p, {"width": 3072})
        lifecycle.process(p)
        reason = p.extra_generation_params.get("ResDiT not active")
        assert (reason is None) if expected is None else (expected in reason), reason


CHECKS = {
    function.__name__: function
    for function in (
        base_size_is_bit_identical,
        it_is_the_method,
        nothing_is_left_after_an_error_or_an_interrupt,
        other_models_are_refused_aloud,
    )
}


def problem_in(function: object, sd3: object) -> str | None:
    try:
        return function(sd3)
    except Exception:
        return traceback.format_exc()


def main(folder: str, out: str) -> None:
    """Run every check; OUT.json holds {check: None or what went wrong}."""
    target = Path(out).resolve()
    enter(str(Path(folder).resolve()))
    sd3 = build()
    target.write_text(json.dumps({name: problem_in(function, sd3) for name, function in CHECKS.items()}))


if __name__ == "__main__":
    main(*sys.argv[1:])
