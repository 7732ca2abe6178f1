"""One of several processes of a training, started by torch.distributed.run: by DDP, or by FSDP, stopped on the way."""

import json
import sys
from dataclasses import fields
from pathlib import Path

from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin

from resdit_ext.training import loop, trainer
from resdit_ext.training.options import TrainingOptions

PATHS = ("model", "images", "out", "cache")


def options_of(given: dict) -> TrainingOptions:
    """Options that were written as JSON."""
    return TrainingOptions(**{name: Path(value) if name in PATHS else value for name, value in given.items()})


def divided(*_, **__) -> Accelerator:
    """accelerate with FSDP, which it does not offer on a CPU: the same code of its, told that it may."""
    accelerator = Accelerator(cpu=True)
    accelerator.state.distributed_type = DistributedType.FSDP
    accelerator.state.fsdp_plugin = FullyShardedDataParallelPlugin(
        fsdp_version=2,
        auto_wrap_policy="transformer_based_wrap",
        transformer_cls_names_to_wrap=["JointTransformerBlock"],
        cpu_ram_efficient_loading=False,
        cpu_offload=False,
    )
    return accelerator


def stopped_at(step: int):
    """A trainer's step that ends the training at a step, and the first time only."""
    own, done = trainer.Trainer.step, []

    def step_of(self, batches, now):
        if now == step and not done:
            done.append(now)
            raise KeyboardInterrupt
        return own(self, batches, now)

    return step_of


def main(path: str) -> None:
    given = json.loads(Path(path).read_text(encoding="utf8"))
    assert {field.name for field in fields(TrainingOptions)} >= set(given["ddp"])
    loop.train(options_of(given["ddp"]))
    AcceleratorState._reset_state()
    loop.Accelerator = divided
    trainer.Trainer.step = stopped_at(given["stop"])
    try:
        loop.train(options_of(given["fsdp"]))
    except KeyboardInterrupt:
        loop.train(options_of(given["fsdp"]))
    else:
        raise AssertionError("the training was to be stopped")


if __name__ == "__main__":
    main(sys.argv[1])
