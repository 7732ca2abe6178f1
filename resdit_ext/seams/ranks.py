"""What several processes (ranks) that work on one picture have to agree on: the noise, the text, the parameters."""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..errors import Unsupported
from ..method.run import Run

if TYPE_CHECKING:  # not every build of torch has torch.distributed
    from torch.distributed import ProcessGroup

CAUSES = {
    "noise": "pass every process a generator with the same seed (generator=torch.Generator().manual_seed(1)), and with "
    "stochastic_sampling call torch.manual_seed in each",
    "text": "give every process the same prompt and the same models",
    "parameters": "give every process the same size, steps and configuration",
}
WHOLE_NUMBERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}  # by bytes


def checksum(tensor: Tensor) -> int:
    """The sum of a tensor's bits, read as whole numbers; made on its device, in no time beside a model call."""
    return int(tensor.detach().contiguous().view(WHOLE_NUMBERS[tensor.element_size()]).sum(dtype=torch.int64))


def meeting_place(group: ProcessGroup | None, device: torch.device) -> torch.device:
    """Where small tensors of a group, or of all ranks, are exchanged: on the CPU where it can, else on a device."""
    import torch.distributed as dist

    return torch.device("cpu") if "gloo" in str(dist.get_backend(group)) else device


def check_same(sums: Mapping[str, int], group: ProcessGroup, device: torch.device) -> None:
    """Raise Unsupported, on every rank of a group, where a checksum differs between its ranks.

    Args:
        sums: by what is compared, one of CAUSES; the same names on every rank.
        group: of the ranks, each of which calls this.
        device: the group's tensors'.
    """
    import torch.distributed as dist

    mine = torch.tensor(list(sums.values()), device=meeting_place(group, device))
    found = [torch.empty_like(mine) for _ in range(dist.get_world_size(group))]
    dist.all_gather(found, mine, group=group)
    same = (torch.stack(found) == found[0]).all(0).tolist()
    if different := [name for name, is_same in zip(sums, same, strict=True) if not is_same]:
        raise Unsupported(
            f"the processes that share a picture have not the same {' and '.join(different)}, which would be mixed in "
            f"it: {'; '.join(CAUSES[name] for name in different)}"
        )


def check_call(run: Run, given: Mapping[str, object], sigma: float, group: ProcessGroup) -> None:
    """Raise Unsupported, on every rank, where the ranks make different calls of a model, before they exchange anything.

    Every call is looked at: a sampler may add fresh noise after each step.

    Args:
        run: the generation's parameters and noise levels.
        given: the arguments of the call, before anything in them is divided.
        sigma: its noise level.
        group: the ranks that share the picture.
    """
    latent, text = given["hidden_states"], given["encoder_hidden_states"]
    parameters = repr((run.config, run.sigmas, sigma, tuple(latent.shape), tuple(text.shape), latent.dtype))
    sums = {"noise": checksum(latent), "text": checksum(text), "parameters": zlib.crc32(parameters.encode())}
    check_same(sums, group, latent.device)
