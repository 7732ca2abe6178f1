"""Peak activation memory of a host's full-width models, plain and with the method, from its allocations alone.

    python -m tests.hosts.memory HOST FOLDER [KIND ...]

HOST is forge, neo or ersatz, with a Python that can import it; KIND one of those in kinds.py, by default all.

Everything runs on fake tensors, which have shapes and no data, in bf16 and with PyTorch's attention: one double and one
single block of FLUX at full width, one block of each kind that the host has, and SD3.5-medium. The unit is one hidden
vector (2 bytes a channel) per token, so that sizes can be compared.
"""

import importlib
import sys
from collections.abc import Callable
from contextlib import nullcontext

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from resdit_ext.lab.benchmarks.counters import Peak
from resdit_ext.method.layout import Grid
from resdit_ext.monkeypatch import swapped
from resdit_ext.seams.sequence import Arrangement, Rotation, TokenSequence
from tests.hosts import kinds, kit, models
from tests.settings import scaled

WIDE = dict(vec_in_dim=768, context_in_dim=4096, hidden_size=3072, num_heads=24, axes_dim=[16, 56, 56])
FULL = models.TINY | WIDE | dict(depth=1, depth_single_blocks=1)
SD35_MEDIUM = models.SD3 | dict(
    depth=24,
    adm_in_channels=2048,
    context_embedder_config=dict(target="torch.nn.Linear", params=dict(in_features=4096, out_features=1536)),
    pos_embed_max_size=384,
    num_patches=384**2,
)
NEXT = dict(n_layers=1, multiple_of=256)
# By kind what makes it one block of the full width.
WIDE_KINDS = {
    "krea2": dict(features=6144, heads=48, kvheads=12, layers=1),
    "zimage": NEXT | dict(dim=3840, n_heads=30, n_kv_heads=30, axes_dims=(32, 48, 48), ffn_dim_multiplier=8 / 3),
    "lumina2": NEXT | dict(dim=2304, n_heads=24, n_kv_heads=8, axes_dims=(32, 32, 32), ffn_dim_multiplier=4.0),
    "flux2": dict(hidden_size=3072, num_heads=24, axes_dim=[32] * 4),
    "qwen": dict(num_layers=1, attention_head_dim=128, num_attention_heads=24, axes_dims_rope=(16, 56, 56)),
    "anima": dict(model_channels=2048, num_heads=16, num_blocks=1, adaln_lora_dim=256),
}
TEXT = 512
SIZES = (1024, 2048, 3072, 4096)


def found(self: Arrangement, rotation: Rotation, ids: Tensor, grid: Grid, _: int = 0) -> TokenSequence:
    """In place of `Arrangement.find`, which reads the ids, that have no data here."""
    others, nowhere = ids.shape[-2] - grid.tokens, (0.0,) * ids.shape[-1]
    before = others - -grid.tokens % self.multiple if self.text_first else 0
    return TokenSequence(rotation, before, (nowhere,) * others, nowhere, self.centre)


def count(
    name: str, model: nn.Module, latent: Callable[[int], Tensor], given: tuple, config: object, **more: object
) -> None:
    """Print a rotary model's peaks by size and phase; `given` and `more` follow latent and noise level in its call."""
    from resdit_ext.families import identify
    from resdit_ext.method.layout_steps import ModelCall
    from resdit_ext.method.run import Run

    torch.set_default_dtype(torch.float32)
    sys.modules[type(model).__module__].attention_function = sys.modules["backend.attention"].attention_pytorch
    adapter = identify(model).adapter

    def predict(x: Tensor) -> Tensor:
        with swapped(Arrangement, find=found):
            return model(x, torch.empty(1), *given, **more)

    print(f"{name:<11}{'pixels':>7}{'plain':>9}{'global':>9}{'fused':>9}{'local':>9}   hidden vectors per token")
    for pixels in SIZES:
        x, row = latent(pixels // 8).to(torch.bfloat16), []
        for sigma in (None, 0.99, 0.8, 0.1):
            run = Run(config)
            with (peak := Peak()):
                predict(x) if sigma is None else adapter.call_with_resdit(run, ModelCall(predict, None), x, TEXT, sigma)
            assert bool(run.calls["blocks"]) is (sigma is not None and pixels > 1024), "the method did not run"
            row.append(peak.most / (adapter.grid(x).tokens + TEXT) / adapter.hidden_size / 2)
        print(f"{pixels:>18}" + "".join(f"{value:>9.1f}" for value in row))


def count_flux(config: object) -> None:
    """Print FLUX's peaks by size and phase."""
    model = models.construct(models.FLUX_CLASS, FULL)
    context = torch.empty(1, TEXT, FULL["context_in_dim"], dtype=torch.bfloat16)
    vector = torch.empty(1, FULL["vec_in_dim"], dtype=torch.bfloat16)
    count("FLUX.1", model, lambda side: kit.latent(side, side), (context, vector), config, guidance=torch.empty(1))


def count_kind(host: str, kind: str, config: object) -> None:
    """Print the peaks of a kind of model that some hosts alone have."""
    torch.set_default_dtype(torch.bfloat16)
    model = kinds.build(host, kind, **WIDE_KINDS[kind])
    text = kinds.text_of(host, kind, 1, 0, length=TEXT)
    count(kind, model, lambda side: kinds.latent_of(host, kind, side, side), (text,), config)


def count_sd3() -> None:
    """Print SD3.5-medium's peaks of the plain call and of the call at scaled positions; patches need less."""
    from resdit_ext.families import identify

    torch.set_default_dtype(torch.bfloat16)
    model = models.construct(models.SD3_CLASS, SD35_MEDIUM)
    torch.set_default_dtype(torch.float32)
    adapter = identify(model).adapter
    print(f"SD3.5  {'pixels':>7}{'plain':>9}{'global':>9}")
    for pixels in SIZES:
        x = torch.empty(1, 16, pixels // 8, pixels // 8, dtype=torch.bfloat16)
        context, y = torch.empty(1, TEXT, 4096, dtype=torch.bfloat16), torch.empty(1, 2048, dtype=torch.bfloat16)
        tokens, row = adapter.grid(x).tokens, []
        for ours in (False, True):
            with (peak := Peak()):
                scope = adapter.adjusted(torch.empty(1, tokens, adapter.hidden_size), 1.1) if ours else nullcontext()
                with scope:
                    model(x, torch.empty(1), y, context)
            row.append(peak.most / (tokens + TEXT) / adapter.hidden_size / 2)
        print(f"       {pixels:>7}" + "".join(f"{value:>9.1f}" for value in row))


def main(host: str, folder: str, *kinds: str) -> None:
    kit.enter(host, folder)
    import backend.attention

    fake_item = swapped(torch.Tensor, item=lambda self: 0.5)  # ersatzForge reads the timestep, which has no data here
    with FakeTensorMode(allow_non_fake_inputs=True), torch.inference_mode(), fake_item:
        torch.set_default_dtype(torch.bfloat16)
        config = scaled(fused_until=0.57)
        count_flux(config)
        for kind in kinds or kinds.KINDS:
            # ersatzForge's Krea 2 needs the host's own layers in bf16, and of its Anima frequencies are read.
            if host in kinds.KINDS[kind][0] and (host, kind) not in (("ersatz", "krea2"), ("ersatz", "anima")):
                count_kind(host, kind, config)
        if host != "neo":
            importlib.import_module("backend.nn.mmditx").attention_function = backend.attention.attention_pytorch
            count_sd3()


if __name__ == "__main__":
    main(*sys.argv[1:])
