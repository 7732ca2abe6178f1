"""The halves of guidance on several ranks: each calls the model for its part of the batch, and gets the others'."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ...errors import ResDiTError, Unsupported
from ...families import Family
from ...method.layout import Grid
from ...method.run import Run
from ...seams.ranks import check_call

if TYPE_CHECKING:  # not every build of torch has torch.distributed
    from torch.distributed import ProcessGroup

PER_PICTURE = (
    "hidden_states",
    "encoder_hidden_states",
    "pooled_projections",
    "timestep",
    "controlnet_cond",
    "block_controlnet_hidden_states",
    "joint_attention_kwargs",
)


def check_batch_group(group: ProcessGroup | None, family: Family) -> None:
    """Raise ResDiTError unless the models of a family can share a batch in this group, or there is none."""
    if group is None:
        return
    if family.webui.rotates:
        raise Unsupported(
            f"batch_group is for models that are called for both halves of guidance at once; {family.name} is not: use "
            "enable_parallelism with ContextParallelConfig(ulysses_degree=...)"
        )
    import torch.distributed as dist

    if dist.get_rank(group) < 0 or dist.get_world_size(group) < 2:
        raise ResDiTError("batch_group must be a group of two or more processes, with this one among them")


def part_of(value: object, batch: int, count: int, mine: int) -> object:
    """A rank's part of what is given for each picture of a batch; what is not, or is a part already, as it is."""
    if isinstance(value, Tensor):
        return value.chunk(count)[mine] if value.ndim and len(value) == batch else value
    if type(value) in (list, tuple):
        return [part_of(each, batch, count, mine) for each in value]
    if isinstance(value, Mapping):
        return {name: part_of(each, batch, count, mine) for name, each in value.items()}
    return value


def in_parts(model: object, run: Run, around: Callable, group: ProcessGroup) -> Callable:
    """`around(call, ...)` for this rank's part of a batch of latents, above the base size; the others' parts are got.

    A control net's residuals are not gathered, as the transformer's call on this rank wants its own part alone. A batch
    that cannot be shared equally is made by every rank.
    """
    import torch.distributed as dist

    count, mine = dist.get_world_size(group), dist.get_rank(group)
    names = list(inspect.signature(type(model).forward).parameters)[1:]

    def gathered(part: Tensor) -> Tensor:
        parts = [torch.empty_like(part, memory_format=torch.contiguous_format) for _ in range(count)]
        dist.all_gather(parts, part.contiguous(), group=group)
        return torch.cat(parts)

    def divided(call: Callable, *args: object, **kwargs: object) -> object:
        given = dict(zip(names, args, strict=False)) | kwargs
        latent = given["hidden_states"]
        if run.layout(Grid(latent.shape[-2] // 2, latent.shape[-1] // 2)).is_base:
            return around(call, **given)
        if "controlnet_cond" not in given:
            check_call(run, given, float(given["timestep"].max()), group)
        if (batch := len(latent)) % count:
            return around(call, **given)
        parts = {name: part_of(given[name], batch, count, mine) for name in PER_PICTURE if name in given}
        out = around(call, **given | parts)
        if not isinstance(out[0], Tensor):
            return out
        return (gathered(out[0]),) if isinstance(out, tuple) else type(out)(sample=gathered(out[0]))

    return divided
