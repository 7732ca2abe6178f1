"""A FLUX.1-dev of full size with random weights, and calls of it in every phase."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import torch
from diffusers import FluxControlNetModel, FluxTransformer2DModel
from torch import Tensor, nn

from ... import BALANCED, PAPER, SCALED, ResDiTConfig
from ...control.call import Residuals
from ...control.token_nets import to_tokens
from ...control.treatment import PatchBlender, at_high_resolution
from ...method.blend import Joiner
from ...method.layout import Grid, Layout, layouts_in_turn, make_layout
from ...method.phases import Phase, steps_per_phase
from ...method.run import Run
from ...method.shift import shifted_sigmas
from ...seams.rotary_diffusers import RotaryProcessors
from ...seams.sequence import Rotation, TokenSequence
from ...seams.ulysses_diffusers import ranks_of

TEXT, STEPS, HEADS = 512, 35, 24
PIXELS_PER_TOKEN = 16
FLUX_DEV = dict(
    patch_size=1,
    in_channels=64,
    num_layers=19,
    num_single_layers=38,
    attention_head_dim=128,
    num_attention_heads=HEADS,
    joint_attention_dim=4096,
    pooled_projection_dim=768,
    guidance_embeds=True,
    axes_dims_rope=(16, 56, 56),
)
SETTINGS = {
    "Paper": PAPER,
    "Scaled positions": SCALED,
    "Scaled positions, fastest": replace(SCALED, speed="fastest"),
    "Balanced": BALANCED,
}


Calls = list[tuple[float, Phase | None, Callable[[], object]]]


def made(cls: Callable[..., nn.Module], device: str, double: int, single: int, heads: int = HEADS) -> nn.Module:
    """A model of FLUX.1-dev's shapes with so many blocks and heads, in bfloat16, random, made on the device."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.device(device):
            return cls(**FLUX_DEV | dict(num_layers=double, num_single_layers=single, num_attention_heads=heads)).eval()
    finally:
        torch.set_default_dtype(before)


def model(device: str, blocks: tuple[int, int] = (19, 38), heads: int = HEADS) -> FluxTransformer2DModel:
    """FLUX.1-dev's transformer."""
    return made(FluxTransformer2DModel, device, *blocks, heads)


def inputs(pixels: int, device: str) -> dict[str, Tensor]:
    """The arguments of one model call at pixels x pixels."""
    side = pixels // PIXELS_PER_TOKEN
    make = dict(device=device, dtype=torch.bfloat16)
    rows, cols = torch.meshgrid(*[torch.arange(side, device=device).float()] * 2, indexing="ij")
    return dict(
        hidden_states=torch.randn(1, side * side, 64, **make),
        encoder_hidden_states=torch.randn(1, TEXT, 4096, **make),
        pooled_projections=torch.randn(1, 768, **make),
        timestep=torch.full((1,), 0.5, device=device),
        guidance=torch.full((1,), 3.5, device=device),
        img_ids=torch.stack((torch.zeros_like(rows), rows, cols), -1).reshape(-1, 3),
        txt_ids=torch.zeros(TEXT, 3, device=device),
        return_dict=False,
    )


def control_calls(pixels: int) -> dict[str, Callable[[], object]]:
    """One call of a control net of Union Pro 2.0's shape for pixels x pixels: as it is, with patches, without them."""
    net = made(FluxControlNetModel, "cpu", 6, 0)
    side = pixels // PIXELS_PER_TOKEN
    layout = make_layout(Grid(side, side), BALANCED)
    whole, part = inputs(pixels, "cpu"), inputs(layout.base.width * PIXELS_PER_TOKEN, "cpu")
    latent = torch.randn(1, 16, 2 * side, 2 * side, dtype=torch.bfloat16)

    def call(latent: Tensor, _: tuple[int, int] | None) -> Residuals:
        tokens = to_tokens(latent)
        return Residuals(tuple(net(**part | dict(hidden_states=tokens, controlnet_cond=tokens))[0]))

    def treated(blender: PatchBlender | None) -> Residuals:
        return at_high_resolution(call, latent, layout, blender)

    return {
        "as it is": lambda: net(controlnet_cond=whole["hidden_states"], **whole),
        "exact": lambda: treated(PatchBlender(layout, Joiner(layout, BALANCED))),
        "fast": lambda: treated(None),
    }


def calls(transformer: FluxTransformer2DModel, config: ResDiTConfig | None, pixels: int, device: str) -> Calls:
    """(steps of 35, phase, one model call) for every phase and layout of a setting; None is the model as it is."""
    data = inputs(pixels, device)
    if config is None:
        return [(STEPS, None, lambda: transformer(**data))]
    side = pixels // PIXELS_PER_TOKEN
    run = Run(config, shifted_sigmas(STEPS))
    layouts = layouts_in_turn(Grid(side, side), config)
    sequence = TokenSequence.text_first(Rotation.of(transformer.pos_embed), TEXT)
    small = inputs(layouts[0].base.width * PIXELS_PER_TOKEN, device)
    middle = layouts[0].middle
    at_half = None if middle is None else inputs(middle.width * PIXELS_PER_TOKEN, device)

    def by_method(data: dict[str, Tensor], phase: Phase, layout: Layout) -> None:
        with RotaryProcessors().attention_at(transformer, run, layout, sequence, phase, ranks=ranks_of(transformer)):
            transformer(**data)

    def works(phase: Phase) -> list[Callable[[], object]]:
        if phase is Phase.LAYOUT:
            return [lambda: transformer(**small)]
        if phase is Phase.MIDDLE:
            halves = layouts_in_turn(middle, config, layouts[0].base)
            return [partial(by_method, at_half, Phase.FUSED, layout) for layout in halves]
        return [partial(by_method, data, phase, layout) for layout in layouts]

    phases = steps_per_phase(config, STEPS, middle=middle is not None)
    made = {phase: works(phase) for phase, n in phases.items() if n}
    return [(phases[phase] / len(these), phase, work) for phase, these in made.items() for work in these]
