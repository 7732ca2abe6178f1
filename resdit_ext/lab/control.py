"""The micro control nets: diffusers' own, of two blocks, which read a depth map of a scene.

Their scenes are those of the micro models, with more room: an object may lie where no prompt would put it, so that
only a picture made under control has it there.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from diffusers import FluxControlNetModel, SD3ControlNetModel
from safetensors.torch import load_file
from torch import Tensor, nn

from ..hosts.diffusers import apply_resdit, remove_resdit
from ..method.config import ResDiTConfig
from ..method.layout import Grid
from .metrics import GROUND, OBJECT, SKY, segment
from .model import (
    TEXT_TOKENS,
    MicroModel,
    load_micro,
    pictures_to_tokens,
    position_ids,
    to_latent,
    weights_of,
)
from .pixels import PIXELS_PER_TOKEN
from .sampling import STEPS, euler, sigmas_of
from .scenes import Scene, depth_map, object_mask

BLOCKS = 2


def hint_of(scene: Scene, grid: Grid) -> Tensor:
    """(1, H*W, 48) tokens of the scene's depth map."""
    depth = depth_map(scene, PIXELS_PER_TOKEN * grid.height, PIXELS_PER_TOKEN * grid.width)
    return pictures_to_tokens(torch.from_numpy(depth)[None, None].expand(1, 3, -1, -1) * 2 - 1)


class MicroControl(nn.Module):
    """A control net beside a trained micro model: `forward(tokens, sigma, words, height, hint)` -> velocity.

    `residuals`, with the same arguments, is what the net adds after the model's blocks.
    """

    name: str
    training_steps = 1200
    training_rate = 1e-3
    residuals: Callable[..., Sequence[Tensor]]

    def __init__(self, base: MicroModel, net: nn.Module) -> None:
        super().__init__()
        self.net = net
        self.__dict__["base"] = base.eval().requires_grad_(False)  # not a submodule: neither trained nor saved

    def forward(self, tokens: Tensor, sigma: Tensor, words: Tensor, height: int, hint: Tensor) -> Tensor:
        return self.base(tokens, sigma, words, height, self.residuals(tokens, sigma, words, height, hint))


class MicroFluxDepth(MicroControl):
    """FLUX: diffusers' FluxControlNetModel."""

    name = "flux-depth"

    def __init__(self) -> None:
        base = load_micro("flux")
        shape = dict(num_layers=BLOCKS, num_single_layers=0, attention_head_dim=32, num_attention_heads=4)
        super().__init__(base, FluxControlNetModel.from_transformer(base.transformer, **shape))

    def residuals(self, tokens: Tensor, sigma: Tensor, words: Tensor, height: int, hint: Tensor) -> Sequence[Tensor]:
        joint, pooled = self.base.encode(words)
        return self.net(
            hidden_states=tokens,
            controlnet_cond=hint,
            encoder_hidden_states=joint,
            pooled_projections=pooled,
            timestep=sigma,
            img_ids=position_ids(height, tokens.shape[1] // height),
            txt_ids=torch.zeros(TEXT_TOKENS, 3),
            return_dict=False,
        )[0]


class MicroSD3Depth(MicroControl):
    """SD3: diffusers' SD3ControlNetModel."""

    name = "sd3-depth"

    def __init__(self) -> None:
        base = load_micro("sd3")
        super().__init__(base, SD3ControlNetModel.from_transformer(base.transformer, BLOCKS, 0))

    def residuals(self, tokens: Tensor, sigma: Tensor, words: Tensor, height: int, hint: Tensor) -> Sequence[Tensor]:
        joint, pooled = self.base.encode(words)
        return self.net(
            hidden_states=to_latent(tokens, height),
            controlnet_cond=to_latent(hint, height),
            encoder_hidden_states=joint,
            pooled_projections=pooled,
            timestep=1000 * sigma,
            return_dict=False,
        )[0]


CONTROLS: dict[str, type[MicroControl]] = {control.name: control for control in (MicroFluxDepth, MicroSD3Depth)}


def load_control(name: str, path: Path | None = None) -> MicroControl:
    """A trained micro control net in float32, ready to sample."""
    control = CONTROLS[name]()
    control.net.load_state_dict({key: value.float() for key, value in load_file(path or weights_of(name)).items()})
    return control.eval().requires_grad_(False)


@contextmanager
def treated(control: MicroControl, config: ResDiTConfig | None, net_too: bool):
    """Apply ResDiT to the model, and to the control net or not, for the block; None leaves both plain."""
    parts = SimpleNamespace(transformer=control.base.transformer, controlnet=control.net if net_too else None)
    if config is None:
        yield
        return
    apply_resdit(parts, config, sigmas_of(STEPS))
    try:
        yield
    finally:
        remove_resdit(parts)


@torch.inference_mode()
def sample_controlled(
    control: MicroControl, scene: Scene, grid: Grid, seed: int, config: ResDiTConfig | None = None, net_too: bool = True
) -> np.ndarray:
    """(4H, 4W, 3) float32 picture in [0, 1] of the scene's prompt under control of its depth map."""
    hint = hint_of(scene, grid)
    with treated(control, config, net_too):
        return euler(lambda *call: control(*call, hint), [scene.prompt], grid, [seed])[0]


def control_error(picture: np.ndarray, scene: Scene) -> float:
    """Share of the pixels that are not what the hint says: sky, ground or object."""
    height, width = picture.shape[:2]
    rows = np.mgrid[0:height, 0:width][0] + 0.5
    said = np.where(rows > scene.horizon * height, GROUND, SKY)
    said[object_mask(scene, height, width) > 0.5] = OBJECT
    return float((segment(picture, scene.prompt) != said).mean())
