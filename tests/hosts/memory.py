"""Peak activation memory of a host's full-width models, plain and with the method, from its allocations alone.

    python -m tests.hosts.memory HOST FOLDER    (forge, neo or ersatz; with a Python that can import the host)

Everything runs on fake tensors, which have shapes and no data, in bf16 and with PyTorch's attention: one double and one
single block of FLUX at full width, and SD3.5-medium. The unit is one hidden vector (2 bytes a channel) per token, so
that sizes can be compared.
"""

import importlib
import sys
from contextlib import nullcontext

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from resdit_ext.lab.benchmarks.counters import Peak
from tests.hosts import kit
from tests.settings import scaled

WIDE = dict(vec_in_dim=768, context_in_dim=4096, hidden_size=3072, num_heads=24, axes_dim=[16, 56, 56])
FULL = kit.TINY | WIDE | dict(depth=1, depth_single_blocks=1)
SD35_MEDIUM = kit.SD3 | dict(
    depth=24,
    adm_in_channels=2048,
    context_embedder_config=dict(target="torch.nn.Linear", params=dict(in_features=4096, out_features=1536)),
    pos_embed_max_size=384,
    num_patches=384**2,
)
TEXT = 512
SIZES = (1024, 2048, 3072, 4096)


def count_flux(config: object) -> None:
    """Print FLUX's peaks by size and phase."""
    import backend.nn.flux

    from resdit_ext.families import identify
    from resdit_ext.method.layout_steps import ModelCall
    from resdit_ext.method.run import Run

    backend.nn.flux.attention_function = sys.modules["backend.attention"].attention_pytorch
    model = kit.construct("backend.nn.flux:IntegratedFluxTransformer2DModel", FULL)
    torch.set_default_dtype(torch.float32)
    adapter = identify(model).adapter
    print(f"FLUX.1 {'pixels':>7}{'plain':>9}{'global':>9}{'fused':>9}{'local':>9}   hidden vectors per token")
    for pixels in SIZES:
        x = torch.empty(1, 16, pixels // 8, pixels // 8, dtype=torch.bfloat16)
        context = torch.empty(1, TEXT, FULL["context_in_dim"], dtype=torch.bfloat16)
        vector = torch.empty(1, FULL["vec_in_dim"], dtype=torch.bfloat16)
        row = []
        for sigma in (None, 0.99, 0.8, 0.1):

            def predict(x: torch.Tensor, context=context, vector=vector) -> torch.Tensor:
                return model(x, torch.empty(1), context, vector, guidance=torch.empty(1))

            with (peak := Peak()):
                predict(x) if sigma is None else adapter.call_with_resdit(
                    Run(config), ModelCall(predict, None), x, TEXT, sigma
                )
            row.append(peak.most / (adapter.grid(x).tokens + TEXT) / adapter.hidden_size / 2)
        print(f"       {pixels:>7}" + "".join(f"{value:>9.1f}" for value in row))


def count_sd3() -> None:
    """Print SD3.5-medium's peaks of the plain call and of the call at scaled positions; patches need less."""
    from resdit_ext.families import identify

    torch.set_default_dtype(torch.bfloat16)
    model = kit.construct("backend.nn.mmditx:MMDiTX", SD35_MEDIUM)
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


def main(host: str, folder: str) -> None:
    kit.enter(host, folder)
    import backend.attention

    from resdit_ext.monkeypatch import swapped

    fake_item = swapped(torch.Tensor, item=lambda self: 0.5)  # ersatzForge reads the timestep, which has no data here
    with FakeTensorMode(allow_non_fake_inputs=True), torch.inference_mode(), fake_item:
        torch.set_default_dtype(torch.bfloat16)
        count_flux(scaled(fused_until=0.57))
        if host != "neo":
            importlib.import_module("backend.nn.mmditx").attention_function = backend.attention.attention_pytorch
            count_sd3()


if __name__ == "__main__":
    main(*sys.argv[1:3])
