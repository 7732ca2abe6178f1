"""Counters of what real code does on tensors without data: operations, bytes alive, bytes sent to other processes."""

from __future__ import annotations

import weakref

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count
from torch.utils.weak import WeakIdKeyDictionary

SDPA = "scaled_dot_product"


def flop_counter() -> FlopCounterMode:
    """PyTorch's counter, which lacks the CPU's attention kernel."""

    def attention(q: list[int], k: list[int], v: list[int], *_: object, **__: object) -> int:
        return sdpa_flop_count(q, k, v)

    kernel = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    return FlopCounterMode(display=False, custom_mapping={kernel: attention})


def by_kind(counter: FlopCounterMode) -> tuple[int, int]:
    """(attention proper, everything else) of what a counter saw."""
    counts = counter.get_flop_counts().get("Global", {})
    attention = sum(n for op, n in counts.items() if SDPA in str(op))
    return attention, sum(counts.values()) - attention


class Peak(TorchDispatchMode):
    """Counts the bytes of live storages made inside it, and remembers the most."""

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


class SentBytes(TorchDispatchMode):
    """Counts the bytes that this process sends to the others of a group inside it.

    Attributes:
        exchanged: by all-to-all, which leaves a process its own part.
        gathered: by all-gather, which takes its part to each of the others.
    """

    def __init__(self) -> None:
        super().__init__()
        self.exchanged = self.gathered = 0.0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = str(function)
        if "c10d" in name and "wait_tensor" not in name:
            import torch.distributed as dist

            others, size = dist.get_world_size() - 1, args[0].numel() * args[0].element_size()
            if "all_to_all" in name:
                self.exchanged += size * others / (others + 1)
            elif "all_gather" in name:
                self.gathered += size * others
            else:
                raise AssertionError(f"{name} sends something that is not counted")
        return function(*args, **(kwargs or {}))
