"""As much of a host as a unit of the ControlNet panel touches: a unet that links nets, a VAE, and what it is handed."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from resdit_ext.control.nets import build
from resdit_ext.families import RecognisedModel, families
from resdit_ext.hosts.forge import control_unit
from resdit_ext.hosts.forge.control_pass import NetModule
from resdit_ext.hosts.protocol import ControlServices
from resdit_ext.method.layout import Grid, make_layout

WRAPPER = "model_function_wrapper"
SIGMAS = [1 - i / 10 for i in range(11)]
PICTURE = torch.rand(1, 3, 64, 64)
CONDITIONING = dict(c_crossattn=torch.randn(1, 5, 32), y=torch.randn(1, 16), guidance=torch.tensor([3.5]))


class Unet:
    """Forge's UnetPatcher, as far as control goes."""

    def __init__(self, model: object) -> None:
        self.model, self.model_options, self.linked = model, {}, None

    def clone(self) -> Unet:
        other = Unet(self.model)
        other.model_options, other.linked = dict(self.model_options), self.linked
        return other

    def add_patched_controlnet(self, link: object) -> None:
        self.linked = link.set_previous_controlnet(self.linked)

    def set_model_unet_function_wrapper(self, wrapper: object) -> None:
        self.model_options[WRAPPER] = wrapper


class Network(nn.Module):
    """A model with so many blocks, and no more than the layers that take the text, which can be left out too."""

    def __init__(self, double: int, single: int = 0, texts: bool = True) -> None:
        super().__init__()
        self.double_blocks = nn.ModuleList(nn.Identity() for _ in range(double))
        self.single_blocks = nn.ModuleList(nn.Identity() for _ in range(single))
        self.joint_blocks = self.double_blocks
        if texts:
            self.txt_in = self.context_embedder = nn.Linear(32, 1)
            self.vector_in, self.y_embedder = nn.Module(), nn.Module()
            self.vector_in.in_layer = nn.Linear(16, 1)
            self.y_embedder.mlp = nn.Sequential(self.vector_in.in_layer)

    def forward(self, x: Tensor, control: object = None) -> Tensor:  # noqa: ARG002 (Neo's FLUX and every SD3 take it)
        return x


def unet_of(network: nn.Module) -> Unet:
    """A unet of it in float32, whose noise levels are the model's own."""
    predictor = SimpleNamespace(calculate_input=lambda sigma, x: x)
    return Unet(SimpleNamespace(diffusion_model=network, computation_dtype=torch.float32, predictor=predictor))


def family_of(name: str, width: int) -> object:
    """A recognised model of a family, as the units see it."""
    family = next(family for family in families() if family.name == name)
    adapter = SimpleNamespace(grid=lambda x: Grid(-(-x.shape[-2] // 2), -(-x.shape[-1] // 2)))
    return RecognisedModel(replace(family, hidden_size=width), adapter)


class Generation:
    """The host's `p`, with one unit of the panel after another.

    Args:
        monkeypatch: pytest's; makes nets without the host's patcher, and the model of this family.
        unet: the host's.
        encode: pixels in [-1, 1] -> latents.
        sigmas: of the pass.
        config: ResDiT's, where it acts.
        shift, scale: of the autoencoder.
    """

    def __init__(self, monkeypatch, unet, family, encode, sigmas, config=None, shift=0.0, scale=1.0) -> None:
        self.said = said = []
        first_stage = SimpleNamespace(shift_factor=shift, scaling_factor=scale)
        vae = SimpleNamespace(downscale_ratio=8, first_stage_model=first_stage)
        objects = SimpleNamespace(unet=unet, vae=vae)
        self.sd_model = SimpleNamespace(forge_objects=objects, encode_first_stage=encode)
        monkeypatch.setattr(control_unit, "hold", self.hold)
        services = ControlServices(
            recognise=lambda p: family,
            method=lambda p, grid: config and (make_layout(grid, config), config),
            sigmas=lambda p: sigmas,
            steps=lambda p: len(sigmas) - 1,
            default_shows=lambda: "canny",
            say=lambda p, message: said.append(message),
        )
        monkeypatch.setattr(control_unit.ResDiTControl, "services", services, raising=False)

    @staticmethod
    def hold(checkpoint: object, compute: torch.dtype) -> object:
        return SimpleNamespace(model=NetModule(build(checkpoint, compute), compute), load_device=torch.device("cpu"))

    @property
    def unet(self) -> Unet:
        return self.sd_model.forge_objects.unet

    def add(self, state, hint, x, *, name="net.safetensors", mask=None, given=None, **attributes) -> object:
        """Have the panel make a unit of a file's tensors, set its attributes and link it; returns the unit."""
        unit = control_unit.ResDiTControl.try_build_from_state_dict(state, name)
        for attribute, value in attributes.items():
            setattr(unit, attribute, value)
        unit.process_before_every_sampling(self, hint, mask, x=x, **(given or {}))
        return unit

    def control(self, x: Tensor, sigma: float, marks: list[int] | None = None, **cond: Tensor) -> object:
        """What the host's sampling function gets for one call of the model."""
        link = self.unet.linked
        if link is None:
            return None
        link.pre_run(self.unet.model, None)
        each = link
        while each is not None:
            each.transformer_options = {"cond_mark": torch.tensor(marks or [0] * len(x)).float()}
            each = each.previous_controlnet
        try:
            return link.get_control(x, torch.full((len(x),), sigma), cond, 1)
        finally:
            link.cleanup()


def generation(
    monkeypatch: object,
    network: nn.Module | None = None,
    name: str = "FLUX.1",
    hidden: int = 64,
    config: object = None,
    height: int = 8,
    width: int = 8,
    batch: int = 1,
) -> tuple[Generation, Tensor]:
    """A generation by a model with two blocks of each kind, unless told otherwise, and its latent."""

    def encode(picture: Tensor) -> Tensor:
        return F.avg_pool2d(picture, 8).repeat(1, 2, 1, 1)[:, :4]

    unet = unet_of(network or Network(2, 2))
    p = Generation(monkeypatch, unet, family_of(name, hidden), encode, SIGMAS, config)
    return p, torch.randn(batch, 4, height, width)
