"""Checks of models whose weights the host stores in fewer bits than it computes in: float8, GGUF and NF4.

Each is compared with the same model in float32 that has the very weights which the stored ones stand for.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from resdit_ext.method.run import Run
from tests.attaching import attach
from tests.hosts import kit, models
from tests.hosts.bench import CONFIG, PHASES, TRIPLE, Bench, Skipped, big, check, small

CPU = torch.device("cpu")
FLOAT8 = torch.float8_e4m3fn
BLOCK = {"gguf": 32, "nf4": 64}  # weights that share a scale: a layer narrower than that is not quantised


def loaded(make: Callable[[], nn.Module], state: dict, storage: torch.dtype | str) -> nn.Module:
    """The model as the host's loader makes it: built of its own layers, which then load these weights."""
    from backend.operations import using_forge_operations

    if isinstance(storage, str):
        with using_forge_operations(device=CPU, dtype=torch.float32, manual_cast_enabled=False, bnb_dtype=storage):
            model = make()
    else:
        with using_forge_operations(device=CPU, dtype=storage, manual_cast_enabled=True):
            model = make().to(device=CPU, dtype=storage)
    model.load_state_dict(state, strict=False)
    return model


def through_gguf(state: dict[str, Tensor]) -> tuple[dict[str, object], dict[str, Tensor]]:
    """The weights read by the host from a GGUF file of theirs in 8 bits, and what they stand for."""
    import gguf
    from backend.utils import load_torch_file

    meant = dict(state)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "tiny.gguf"
        writer = gguf.GGUFWriter(path, "flux")
        for name, value in state.items():
            if value.ndim == 2 and value.shape[1] % BLOCK["gguf"] == 0:
                kind = gguf.GGMLQuantizationType.Q8_0
                packed = gguf.quants.quantize(value.numpy(), kind)
                meant[name] = torch.from_numpy(gguf.quants.dequantize(packed, kind)).reshape(value.shape)
                writer.add_tensor(name, packed, raw_dtype=kind)
            else:
                writer.add_tensor(name, value.numpy())
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return load_torch_file(str(path)), meant


def through_nf4(state: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The weights as a prequantised NF4 file holds them, and what they stand for."""
    from bitsandbytes.functional import dequantize_4bit, quantize_4bit

    given, meant = dict(state), dict(state)
    for name, value in state.items():
        if value.ndim == 2:
            packed, how = quantize_4bit(value, blocksize=BLOCK["nf4"], quant_type="nf4")
            given[name], meant[name] = packed, dequantize_4bit(packed, how)
            given |= {f"{name}.{key}": part for key, part in how.as_dict(packed=True).items()}
    return given, meant


def compared(unets: tuple[object, object]) -> str:
    """The stored model with ResDiT against its float32 twin with ResDiT, beside the host's own error without it."""
    found, x = [], kit.latent(*TRIPLE)
    alone = kit.error(*(kit.velocity(unet, x, PHASES["fused"]) for unet in unets))
    for phase, sigma in PHASES.items():
        runs = Run(CONFIG), Run(CONFIG)
        got, expected = (kit.velocity(attach(unet, run), x, sigma) for unet, run in zip(unets, runs, strict=True))
        assert runs[0].calls == runs[1].calls and runs[0].calls[phase], f"{phase}: {runs[0].calls}"
        found.append(small(kit.error(got, expected), 1e-5 + 2 * alone, f"{phase}: error"))
        big(kit.error(got, kit.velocity(unets[0], x, sigma)), 1e-2, f"{phase}: difference from plain")
    return f"the host's own error {alone:.2g}; " + ", ".join(found)


def flux_stored(bench: Bench, storage: torch.dtype | str, through: Callable[[dict], tuple[dict, dict]]) -> str:
    """A tiny FLUX."""
    if bench.host == "ersatz":
        raise Skipped("ersatzForge's FLUX is built at its full width: too large here")
    twin = models.build_flux(bench.host)
    given, meant = through({name: value.detach() for name, value in twin.state_dict().items()})
    twin.load_state_dict(meant)
    stored = loaded(lambda: models.construct(models.FLUX_CLASS, models.TINY), given, storage)
    return compared((kit.build_unet(bench.host, stored, storage=storage), kit.build_unet(bench.host, twin)))


@check
def flux_stored_as_float8(bench: Bench) -> str:
    return flux_stored(bench, FLOAT8, lambda state: (state, {name: v.to(FLOAT8).float() for name, v in state.items()}))


@check
def flux_stored_as_gguf(bench: Bench) -> str:
    return flux_stored(bench, "gguf", through_gguf)


@check
def flux_stored_as_nf4(bench: Bench) -> str:
    if bench.host == "neo":
        raise Skipped("Forge Neo takes NF4 only where it was started with --bnb")
    try:
        import bitsandbytes  # noqa: F401
    except ImportError:
        raise Skipped("bitsandbytes is not installed") from None
    return flux_stored(bench, "nf4", through_nf4)


@check
def sd3_stored_as_float8(bench: Bench) -> str:
    """The host's loader casts the position table too; its twin has the table as it was."""
    if bench.host == "neo":
        raise Skipped("Forge Neo has no SD3")
    twin = models.build_sd3(bench.host)
    given = {name: value.detach().clone() for name, value in twin.state_dict().items()}
    twin.load_state_dict({name: v if name == "pos_embed" else v.to(FLOAT8).float() for name, v in given.items()})
    stored = loaded(lambda: models.construct(models.SD3_CLASS, models.SD3), given, FLOAT8)
    assert stored.pos_embed.dtype == FLOAT8
    flow = kit.discrete_flow
    unets = kit.build_unet(bench.host, stored, predictor=flow(), storage=FLOAT8)
    return compared((unets, kit.build_unet(bench.host, twin, predictor=flow())))
