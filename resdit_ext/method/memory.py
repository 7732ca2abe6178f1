"""How much memory to work in at once, and what running out of it looks like; not of the paper."""

from __future__ import annotations

import torch

OutOfMemory = getattr(torch, "OutOfMemoryError", torch.cuda.OutOfMemoryError)  # its name until torch 2.5
CPU_BYTES = 64 * 2**20  # about what a CPU's caches hold: twice as fast as 512 MiB there


def working_bytes(device: torch.device, at_most: int) -> int:
    """`at_most` bytes, or less: half of what is free on a CUDA or ROCm device, on a CPU what stays in its caches."""
    if device.type == "cpu":
        return min(at_most, CPU_BYTES)
    if device.type != "cuda":
        return at_most
    unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return min(at_most, (torch.cuda.mem_get_info(device)[0] + unused) // 2)
