"""A model with a LoRA that learns, on one device or many: its prediction, its loss and a step of the optimizer."""

from __future__ import annotations

from contextlib import nullcontext

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from torch import Tensor

from ..seams.training_diffusers import Places, Text
from .batches import Batch, Batches
from .cache import moved
from .lora import add_lora, learning
from .optimizer import make_optimizer
from .options import TrainingOptions
from .parts import ModelParts

WARM_UP, DECAY = 100, 0.2  # steps of rising rate; share of the steps, the last, of falling rate


def rate_at(step: int, options: TrainingOptions) -> float:
    """The learning rate of a step: it rises at first and falls towards zero at last, both linearly."""
    rise = (step + 1) / min(WARM_UP, options.steps)
    fall = (options.steps - step) / max(1, DECAY * options.steps)
    return options.rate * min(1, rise, fall)


class Trainer:
    """A model and the LoRA that learns in it.

    Attributes:
        transformer: the model; `network` is what accelerate has made of it.
        divided: whether FSDP keeps a part of it in each process.
        optimizer: torch's own.

    Args:
        accelerator: accelerate's, which knows the processes and devices.
        options: of the training.
        parts: of the model.
        dtype: of the model's own weights.
    """

    def __init__(
        self, accelerator: Accelerator, options: TrainingOptions, parts: ModelParts, dtype: torch.dtype
    ) -> None:
        self.accelerator, self.options, self.dtype = accelerator, options, dtype
        self.divided = accelerator.distributed_type is DistributedType.FSDP
        transformer, training = parts.transformer(dtype), parts.family.training
        self.predict = training.predictor(transformer)
        add_lora(transformer, training.layers, options.rank, options.seed)
        transformer.enable_gradient_checkpointing()
        on_cuda = accelerator.device.type == "cuda"
        optimizer = make_optimizer(options.optimizer, learning(transformer), options.rate, on_cuda, self.divided)
        self.network, prepared = accelerator.prepare(transformer.train(), optimizer)
        self.optimizer = prepared.optimizer
        self.transformer = accelerator.unwrap_model(self.network)

    def velocity(self, latent: Tensor, sigma: Tensor, text: Text, places: Places, guidance: float) -> Tensor:
        """(B, C, 2H, 2W) float32 prediction of the model, on the training's device."""
        device = self.accelerator.device
        given = latent.to(device, self.dtype), sigma.to(device), moved(text, device, self.dtype)
        with self.accelerator.autocast():
            return self.predict(self.network, *given, places, guidance).float()

    def loss(self, batch: Batch) -> Tensor:
        """Mean squared error of the velocity `noise - x0` at `x = (1 - sigma) x0 + sigma noise`."""
        mix = batch.sigma[:, None, None, None]
        noisy = (1 - mix) * batch.latent + mix * batch.noise
        velocity = self.velocity(noisy, batch.sigma, batch.text, batch.places, self.options.guidance)
        return (velocity - (batch.noise - batch.latent).to(velocity)).square().mean()

    def step(self, batches: Batches, step: int) -> float:
        """One step of the optimizer; returns the mean loss of all processes."""
        accelerator, options = self.accelerator, self.options
        for group in self.optimizer.param_groups:
            group["lr"] = rate_at(step, options)
        total = torch.zeros((), device=accelerator.device)
        for i in range(options.accumulate):
            number = (step * options.accumulate + i) * accelerator.num_processes + accelerator.process_index
            last = i + 1 == options.accumulate
            with nullcontext() if last else accelerator.no_sync(self.network):
                loss = self.loss(batches[number]) / options.accumulate
                accelerator.backward(loss)
            total += loss.detach()
        accelerator.clip_grad_norm_(list(learning(self.transformer).values()), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return float(accelerator.reduce(total, "mean"))
