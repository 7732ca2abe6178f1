"""What is needed to go on after a stop, in safetensors files: the LoRA's weights, the optimizer's state, the step."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor, nn

from ..errors import ResDiTError, quoted
from .cache import save_whole

NAME = re.compile(r"step-(\d+)-(\d+)-of-(\d+)\.safetensors")


def local(tensor: Tensor) -> Tensor:
    """This process's part of a tensor that FSDP divides, or the tensor."""
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor


def like(part: Tensor, parameter: Tensor) -> Tensor:
    """This process's part of a tensor as FSDP keeps it, if it does with the parameter."""
    if not hasattr(parameter, "to_local") or part.shape != parameter.to_local().shape:
        return part
    from torch.distributed.tensor import DTensor

    return DTensor.from_local(
        part, parameter.device_mesh, parameter.placements, shape=parameter.shape, stride=parameter.stride()
    )


class StateFiles:
    """A training's state in a folder, a file for every process that has a part of it.

    Args:
        folder: of the files.
        facts: of the training, which cannot change on the way.
        part, parts: this process's number among those with a part, and how many there are; 0 of 1 where each has all.
    """

    def __init__(self, folder: Path, facts: Mapping[str, object], part: int = 0, parts: int = 1) -> None:
        self.folder, self.facts, self.part, self.parts = folder, facts, part, parts

    def _file(self, step: int, part: int) -> Path:
        return self.folder / f"step-{step:07d}-{part}-of-{self.parts}.safetensors"

    def last_step(self) -> int | None:
        """The last step whose state is whole; None where there is none. Raises ResDiTError where it is of others."""
        found: dict[tuple[int, int], set[int]] = {}
        for path in self.folder.glob("step-*.safetensors"):
            if match := NAME.fullmatch(path.name):
                step, part, parts = map(int, match.groups())
                found.setdefault((step, parts), set()).add(part)
        complete = [(step, parts) for (step, parts), those in found.items() if those == set(range(parts))]
        if not complete:
            return None
        step, parts = max(complete)
        if parts != self.parts:
            raise ResDiTError(
                f"the state in {str(self.folder)!r} is in {parts} parts, of as many processes under FSDP, and this "
                f"training has {self.parts}; start as many, or delete the folder to begin again"
            )
        return step

    def save(self, step: int, learning: Mapping[str, nn.Parameter], optimizer: torch.optim.Optimizer) -> None:
        """Write this process's part of the state after `step` steps."""
        self.folder.mkdir(parents=True, exist_ok=True)
        tensors = {f"weight/{name}": local(parameter.detach()).cpu() for name, parameter in learning.items()}
        numbers = {}
        for name, parameter in learning.items():
            for key, value in optimizer.state.get(parameter, {}).items():
                if torch.is_tensor(value):
                    tensors[f"optimizer/{key}/{name}"] = local(value.detach()).cpu()
                else:
                    numbers[f"optimizer/{key}/{name}"] = value
        tensors = {name: tensor.clone() for name, tensor in tensors.items()}  # safetensors refuses shared memory
        metadata = {"facts": json.dumps(self.facts), "numbers": json.dumps(numbers)}
        save_whole(tensors, self._file(step, self.part), metadata)

    def forget_before(self, step: int) -> None:
        """Delete the states of earlier steps."""
        for path in self.folder.glob("step-*.safetensors"):
            if (match := NAME.fullmatch(path.name)) and int(match[1]) < step:
                path.unlink(missing_ok=True)

    def load(self, step: int, learning: Mapping[str, nn.Parameter], optimizer: torch.optim.Optimizer) -> None:
        """Restore this process's part; raises ResDiTError where the training is another."""
        path = self._file(step, self.part)
        with safe_open(path, "pt") as file:
            metadata = file.metadata()
            self._check(json.loads(metadata["facts"]))
            values: dict[str, object] = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        values |= json.loads(metadata["numbers"])
        state: dict[int, dict[str, object]] = {}
        groups = optimizer.state_dict()["param_groups"]
        number = {id(parameter): i for i, parameter in enumerate(parameters_of(optimizer))}
        for name, value in values.items():
            kind, _, rest = name.partition("/")
            if kind == "weight":
                local(learning[rest].data).copy_(value)
                continue
            key, _, rest = rest.partition("/")
            parameter = learning[rest]
            value = like(value.to(parameter.device), parameter) if torch.is_tensor(value) else value
            state.setdefault(number[id(parameter)], {})[key] = value
        optimizer.load_state_dict({"state": state, "param_groups": groups})

    def _check(self, found: Mapping[str, object]) -> None:
        for name, mine in json.loads(json.dumps(self.facts)).items():
            if found.get(name) != mine:
                raise ResDiTError(
                    f"{name} is {quoted(mine)} and was {quoted(found.get(name))} in the training that "
                    f"{str(self.folder)!r} is the state of; give the same, or delete the folder to begin again"
                )


def parameters_of(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    """An optimizer's parameters, in the order of its state."""
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]
