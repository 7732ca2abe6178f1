"""Train a micro model on scenes drawn as they are needed, from scratch or from weights: resumable, on two cores."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from tqdm import trange

from ..errors import ResDiTError
from ..method.config import check_number
from ..method.layout import Grid
from .control import CONTROLS, hint_of
from .model import MODELS, load_weights, pictures_to_tokens, save_weights, tokenize
from .muon import has_fast_bfloat16, muon_for_this_cpu
from .photographs import TEXTURES
from .pixels import PIXELS_PER_TOKEN
from .randomized import RPE2D, AnyPositions, Crop, draw, random_crop, render_crop
from .scenes import LONG_FRAME_ROOM, ROOM, WIDE_ROOM, is_long, random_scene

TRAINABLE = MODELS | CONTROLS

# FLUX and SD3 saw many aspect ratios in training, so the micro models do: (rows, columns) of about 256 tokens each.
SQUARE = (16, 16)
BUCKETS = ((14, 18), (18, 14), (13, 20), (20, 13), (11, 23), (23, 11), (9, 28), (28, 9))
SQUARE_SHARE = 0.5
CLOSE_UP_ZOOM = (1.5, 4.5)
CLOSE_UP_NOISE = 0.92  # the highest level of a close-up: above it the layout of the whole is made


@dataclass(frozen=True)
class TrainConfig:
    """What to train, and the length and rates of the run."""

    steps: int
    model: str = "flux"
    decay_from: float = 0.4  # share of the run at constant rate before the linear decay to zero
    batch: int = 32
    rate: float | None = None  # the model's own by default, half of it in a fine-tune
    text_dropout: float = 0.1
    seed: int = 0
    save_every: int = 250
    start: Path | None = None  # weights to go on from: a fine-tune
    textures: str = "drawn"
    positions: RPE2D | None = None  # the model's own by default
    scale: int = 1  # of the pictures: their sides over those of the usual training
    close_ups: float = 0.0  # share of the pictures that are windows of larger ones, as patches are

    def __post_init__(self) -> None:
        check_number("scale", self.scale, 1, 4, whole=True)
        check_number("close_ups", self.close_ups, 0, 1)
        if self.close_ups and (self.positions or self.model in CONTROLS):
            what = "RPE-2D, which has crops of its own" if self.positions else "control nets"
            raise ResDiTError(f"close_ups is {self.close_ups}; it must be 0 with {what}")
        most = getattr(TRAINABLE[self.model], "largest_side", None)
        own = self.positions is None or self.positions.native_share > 0
        if own and most and self.scale * max(map(max, BUCKETS)) > most:
            raise ResDiTError(f"scale is {self.scale}; {self.model} has positions of its own for {most} tokens a side")
        if self.positions and self.model in CONTROLS:
            raise ResDiTError(f"model is {self.model!r}; RPE-2D is for {' and '.join(MODELS)}, not for control nets")

    def network(self) -> nn.Module:
        """The model as it is trained, with fresh weights; what has the weights of its file is its `net`, if any."""
        model = TRAINABLE[self.model]()
        return AnyPositions(model) if self.positions else model


def make_batch(config: TrainConfig, step: int) -> tuple:
    """(tokens, noise, sigma, words, height) of one step, and a control net's hint or what RPE-2D draws.

    Of the seed and the step alone; all but RPE-2D's draws is the same with it and without.
    """
    rng = np.random.default_rng((config.seed, step))
    bucket = SQUARE if rng.random() < SQUARE_SHARE else BUCKETS[rng.integers(len(BUCKETS))]
    height, width = (config.scale * side for side in bucket)
    controlled = config.model in CONTROLS
    room = WIDE_ROOM if controlled else LONG_FRAME_ROOM if is_long(height, width) else ROOM
    scenes = [random_scene(rng, room=room) for _ in range(config.batch)]
    size, patterns = (PIXELS_PER_TOKEN * height, PIXELS_PER_TOKEN * width), TEXTURES[config.textures]
    crops, more = [Crop()] * config.batch, ()
    if controlled:
        more = (torch.cat([hint_of(scene, Grid(height, width)) for scene in scenes]),)
    elif config.positions:
        crops, *more = draw(config.positions, Grid(height, width), config.batch, size, (config.seed, step, 1))
    elif config.close_ups:
        crops = [random_crop(rng, *size, *CLOSE_UP_ZOOM) if rng.random() < config.close_ups else Crop() for _ in scenes]
    pictures = np.stack([render_crop(scene, *size, patterns, crop) for scene, crop in zip(scenes, crops, strict=True)])
    tokens = pictures_to_tokens(torch.from_numpy(pictures).permute(0, 3, 1, 2) * 2 - 1)
    prompts = ["" if rng.random() < config.text_dropout else scene.prompt for scene in scenes]
    noise = torch.from_numpy(rng.standard_normal(tokens.shape, dtype=np.float32))
    sigma = torch.sigmoid(torch.from_numpy(0.4 + 1.2 * rng.standard_normal(config.batch, dtype=np.float32)))
    if config.close_ups:
        sigma *= torch.tensor([CLOSE_UP_NOISE if crop.zoom > 1 else 1.0 for crop in crops])
    return tokens, noise, sigma, tokenize(prompts), height, *more


def make_optimizers(model: nn.Module, rate: float, fine_tune: bool = False) -> list[torch.optim.Optimizer]:
    """Muon for the blocks' matrices and AdamW for all else; a fine-tune, which needs less, has AdamW alone."""
    if fine_tune:
        return [torch.optim.AdamW(model.parameters(), lr=rate, betas=(0.9, 0.98), weight_decay=0.0)]
    matrices, others = [], []
    for name, parameter in model.named_parameters():
        in_block = "transformer_blocks" in name
        (matrices if in_block and parameter.ndim == 2 else others).append(parameter)
    return [
        torch.optim.Muon(matrices, lr=rate, weight_decay=0.01, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(others, lr=rate, betas=(0.9, 0.98), weight_decay=0.0),
    ]


def flow_loss(model: nn.Module, tokens: Tensor, noise: Tensor, sigma: Tensor, *given: object) -> Tensor:
    """Mean squared error of the velocity `noise - x0` at `x = (1 - sigma) x0 + sigma noise`."""
    mix = sigma[:, None, None]
    # At 288 tokens the plain product's backward is faster on a CPU than the fused kernel's.
    with torch.autocast("cpu", torch.bfloat16, has_fast_bfloat16()), sdpa_kernel(SDPBackend.MATH):
        velocity = model((1 - mix) * tokens + mix * noise, sigma, *given)
    return (velocity.float() - (noise - tokens)).square().mean()


def save_state(path: Path, step: int, model: nn.Module, average: dict, optimizers: list) -> None:
    """Everything needed to go on, as one safetensors file written beside and renamed over the old one."""
    tensors = {f"model/{k}": v.detach().clone() for k, v in model.state_dict().items()}
    tensors |= {f"average/{k}": v.clone() for k, v in average.items()}
    for i, optimizer in enumerate(optimizers):
        for index, slots in optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer/{i}/{index}/{slot}": v.detach().clone() for slot, v in slots.items()}
    partial = path.with_suffix(".partial")
    save_file(tensors, partial, metadata={"step": str(step)})
    partial.replace(path)


def load_state(path: Path, model: nn.Module, average: dict, optimizers: list) -> int:
    """Restore what `save_state` wrote; returns the step to go on from."""
    states: list[dict] = [{} for _ in optimizers]
    weights = {}
    with safe_open(path, "pt") as file:
        for key in file.keys():  # noqa: SIM118 (a file, not a dict)
            kind, _, rest = key.partition("/")
            if kind == "model":
                weights[rest] = file.get_tensor(key)
            elif kind == "average":
                average[rest].copy_(file.get_tensor(key))
            else:
                i, index, slot = rest.split("/")
                states[int(i)].setdefault(int(index), {})[slot] = file.get_tensor(key)
        step = int(file.metadata()["step"])
    model.load_state_dict(weights)
    for optimizer, state in zip(optimizers, states, strict=True):
        optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
    return step


@muon_for_this_cpu()
def train(out: Path, config: TrainConfig) -> float:
    """Train, resuming from `out`'s .state file if there is one; returns the mean loss of the last 100 steps.

    A line for every step (its number, at which positions, its loss) goes to `out`'s .losses.csv.
    """
    torch.manual_seed(config.seed)
    model = config.network()
    fine_tune = config.start is not None
    if fine_tune:
        load_weights(getattr(model, "net", model), config.start)
    average = {name: value.detach().clone() for name, value in model.state_dict().items()}
    rate = config.rate or model.training_rate / (2 if fine_tune else 1)
    optimizers = make_optimizers(model, rate, fine_tune)
    state = out.with_suffix(".state")
    out.parent.mkdir(parents=True, exist_ok=True)
    start = load_state(state, model, average, optimizers) if state.is_file() else 0
    losses: list[float] = []
    lines: list[str] = []  # of the file of losses, since the last save
    for step in (bar := trange(start, config.steps, initial=start, total=config.steps, desc="train")):
        warm_up = min(1.0, (step + 1) / 50)
        decay = min(1.0, (config.steps - step) / (config.steps * (1 - config.decay_from)))
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rate * warm_up * decay
        batch = make_batch(config, step)
        loss = flow_loss(model, *batch)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        keep = min(0.998, (step + 1) / (step + 10))
        for name, value in model.state_dict().items():
            average[name].lerp_(value.detach(), 1 - keep)
        losses = [*losses[-99:], loss.item()]
        if not math.isfinite(losses[-1]):
            raise FloatingPointError(f"the loss is {losses[-1]} at step {step}: lower the rate ({rate})")
        bar.set_postfix(loss=f"{np.mean(losses):.4f}")
        lines.append(f"{step},{'random' if config.positions and batch[-1] else 'native'},{losses[-1]:.5f}\n")
        if (step + 1) % config.save_every == 0 or step + 1 == config.steps:
            save_state(state, step + 1, model, average, optimizers)
            with out.with_suffix(".losses.csv").open("a", encoding="utf8") as file:
                file.writelines(lines)
            lines = []
            trained = config.network()
            trained.load_state_dict(average)
            save_weights(getattr(trained, "net", trained), out)  # a control net's file is one as others save them
    return float(np.mean(losses))
