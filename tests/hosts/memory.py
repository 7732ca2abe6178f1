"""Peak activation memory of a host's full-width FLUX, plain and with the method, from its allocations alone.

    python -m tests.hosts.memory HOST FOLDER    (forge, neo or ersatz; with a Python that can import the host)

Everything runs on fake tensors, which have shapes and no data: one double and one single block at full width, bf16,
with PyTorch's attention. The unit is one hidden vector (3072 x 2 bytes) per token, so that sizes can be compared.
"""

import sys
import weakref
from contextlib import nullcontext

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakIdKeyDictionary

from tests.hosts import kit

WIDE = dict(vec_in_dim=768, context_in_dim=4096, hidden_size=3072, num_heads=24, axes_dim=[16, 56, 56])
FULL = kit.TINY | WIDE | dict(depth=1, depth_single_blocks=1)
TEXT = 512


class Peak(TorchDispatchMode):
    """Counts the bytes of live storages and remembers the most."""

    def __init__(self) -> None:
        super().__init__()
        self.live = self.most = 0
        self.seen = WeakIdKeyDictionary()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, torch.Tensor) and (storage := tensor.untyped_storage()) not in self.seen:
                self.seen[storage] = size = storage.nbytes()
                self.live += size
                self.most = max(self.most, self.live)
                weakref.finalize(storage, self.release, size)
        return out

    def release(self, size: int) -> None:
        self.live -= size


def main(host: str, folder: str) -> None:
    kit.enter(host, folder)
    import backend.attention
    import backend.nn.flux

    from resdit_ext import ResDiTConfig
    from resdit_ext.families import identify
    from resdit_ext.patching import swapped
    from resdit_ext.run import Run

    backend.nn.flux.attention_function = backend.attention.attention_pytorch
    config = ResDiTConfig(fused_until=0.57)
    fake_item = swapped(torch.Tensor, item=lambda self: 0.5)  # ersatzForge reads the timestep, which has no data here
    with FakeTensorMode(allow_non_fake_inputs=True), torch.inference_mode(), fake_item:
        torch.set_default_dtype(torch.bfloat16)
        model = kit.construct("backend.nn.flux:IntegratedFluxTransformer2DModel", FULL)
        torch.set_default_dtype(torch.float32)
        family = identify(model)
        print(f"{'pixels':>7}{'plain':>9}{'global':>9}{'fused':>9}{'local':>9}   hidden vectors per token")
        for pixels in (1024, 2048, 3072, 4096):
            x = torch.empty(1, 16, pixels // 8, pixels // 8, dtype=torch.bfloat16)
            context = torch.empty(1, TEXT, FULL["context_in_dim"], dtype=torch.bfloat16)
            vector = torch.empty(1, FULL["vec_in_dim"], dtype=torch.bfloat16)
            row = []
            for sigma in (None, 0.99, 0.8, 0.1):
                run = Run(config)
                scope = nullcontext() if sigma is None else family.attention_at(run, x, TEXT, sigma)
                with (peak := Peak()), scope:
                    model(x, torch.empty(1), context, vector, guidance=torch.empty(1))
                row.append(peak.most / (family.grid(x).tokens + TEXT) / FULL["hidden_size"] / 2)
            print(f"{pixels:>7}" + "".join(f"{value:>9.1f}" for value in row))


if __name__ == "__main__":
    main(*sys.argv[1:3])
