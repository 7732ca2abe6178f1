"""One control net in one pass of Forge, Forge Neo or ersatzForge: what the host's lists of control nets want of it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...control.added import LazyResiduals, UnitShare
from ...control.call import Call, Residuals
from ...control.format import ControlFormat
from ...control.hint import repeated
from ...control.treatment import PatchBlender, at_high_resolution
from ...errors import Unsupported, in_words
from ...families import RecognisedModel
from ...method.blend import Joiner
from ...method.layout import Grid
from ...method.memory import OutOfMemory
from ..protocol import ActiveMethod

logger = logging.getLogger("ResDiT")
GUIDANCE = 3.5  # for a net that wants one where the model has none
LIVE_VECTORS = 25  # a net's activations at their peak in hidden vectors a token, as counted for the model's own blocks


class NetModule(nn.Module):
    """A net in a module of ours: the hosts' patchers set attributes that diffusers' models do not allow."""

    def __init__(self, net: nn.Module, compute: torch.dtype) -> None:
        super().__init__()
        self.net, self.compute = net, compute


@dataclass(eq=False)
class ControlUnitPass:
    """One unit in one pass.

    Attributes:
        form: of the net.
        recognised: the model of this pass.
        patcher: the host's, of a `NetModule` net.
        hint: its latents, or pixels, on the grid to run at; None once the unit is out.
        patch_hints: the same of each patch, by its first token (row, column).
        picture: the picture's grid.
        method: ResDiT's layout and parameters, where it acts.
        strength: the unit's weight.
        sides: its weights along the depth for conditional and unconditional rows, each a list or None.
        mask: (1 or B, H, W, 1) on the picture's tokens, in [0, 1], or None.
        levels: (highest, lowest) noise level at which it acts.
        shows: what the hint shows.
        say: tells the user once.
    """

    form: ControlFormat
    recognised: RecognisedModel
    patcher: object
    hint: Tensor | None
    patch_hints: Mapping[tuple[int, int], Tensor]
    picture: Grid
    method: ActiveMethod | None
    strength: float
    sides: tuple[Sequence[float] | None, Sequence[float] | None]
    mask: Tensor | None
    levels: tuple[float, float]
    shows: str | None
    say: Callable[[str], None]
    previous_controlnet: object = None  # this and the next are the host's to set
    transformer_options: dict = field(default_factory=dict)
    model: object = None
    cond_hint: Tensor | None = None  # MultiDiffusion puts its tiles' hints here
    _blender: PatchBlender | None = None

    @property
    def grid(self) -> Grid:
        """What the net runs at: the picture's, or the base grid where ResDiT acts."""
        return self.picture if self.method is None else self.method[0].base

    @property
    def joins(self) -> bool:
        """True where the net's residuals for the patches are joined into the picture's."""
        return bool(self.patch_hints) and not self.form.model_on_patches

    @property
    def cond_hint_original(self) -> Tensor:
        """What MultiDiffusion enlarges and cuts into tiles; they are of no use here, so it gets little to do."""
        return torch.zeros(1, 1, 8, 8)

    @property
    def device(self) -> torch.device:
        """Where MultiDiffusion puts its tiles."""
        return self.patcher.load_device

    def set_previous_controlnet(self, previous: object) -> ControlUnitPass:
        """Called by the host when this is linked."""
        self.previous_controlnet = previous
        return self

    def get_models(self) -> list[object]:
        """What the host is to have on the device."""
        before = self.previous_controlnet.get_models() if self.previous_controlnet is not None else []
        return [*before, self.patcher]

    def inference_memory_requirements(self, dtype: torch.dtype) -> float:
        """Bytes: the net's activations, what it returns, and that, or two of it at a time, on the picture's tokens."""
        held = self.patcher.model
        returned = len(held.net.controlnet_blocks) + len(getattr(held.net, "controlnet_single_blocks", ()))
        vectors = (LIVE_VECTORS + returned) * self.grid.tokens
        vectors += (returned if self.joins else 2) * self.picture.tokens
        rows = 0 if self.hint is None else len(self.hint)
        mine = rows * vectors * self.recognised.family.hidden_size * held.compute.itemsize
        before = self.previous_controlnet
        return mine + (before.inference_memory_requirements(dtype) if before is not None else 0)

    def pre_run(self, model: object, percent_to_timestep_function: object) -> None:
        """Called by the host before sampling, with the model and its predictor."""
        self.model = model
        if self.previous_controlnet is not None:
            self.previous_controlnet.pre_run(model, percent_to_timestep_function)

    def cleanup(self) -> None:
        """Called by the host after each sampling of the pass, unless that raised."""
        self.model = None
        if self.previous_controlnet is not None:
            self.previous_controlnet.cleanup()

    def release(self) -> None:
        """Let go of all that belongs to the generation, and add nothing from now on."""
        self.hint = self.mask = self.cond_hint = self._blender = None
        self.patch_hints, self.transformer_options = {}, {}

    def get_control(self, x: Tensor, t: Tensor, cond: dict, batched_number: int) -> object | None:  # noqa: ARG002
        """What all linked units add in one call, as the host's model wants it; None where none acts."""
        shares = self.shares(x, t, cond)
        if not shares:
            return None
        dtype, blocks = self.model.computation_dtype, self.block_counts()
        double, single = zip(*shares, strict=True)
        if self.form.model_on_patches:
            return LazyResiduals(double, blocks[0], self.picture, dtype, 0, partial(self.on_patch, t, cond))
        return {
            "input": LazyResiduals(double, blocks[0], self.picture, dtype),
            "output": LazyResiduals(single, blocks[1], self.picture, dtype),
        }

    def on_patch(self, t: Tensor, cond: dict, patch: Tensor, tokens: Tensor) -> LazyResiduals:
        """What all linked units add in a call of the model on the patch of the picture with these tokens."""
        start = divmod(int(tokens[0]), self.picture.width)
        double = [double for double, _ in self.shares(patch, t, cond, start)]
        return LazyResiduals(double, self.block_counts()[0], self.grid, self.model.computation_dtype, 0)

    def block_counts(self) -> list[int]:
        """How many blocks of each kind the model has."""
        return [len(getattr(self.model.diffusion_model, name)) for name in self.form.blocks]

    def shares(
        self, x: Tensor, t: Tensor, cond: dict, start: tuple[int, int] | None = None
    ) -> list[tuple[UnitShare, UnitShare]]:
        """Shares after double and after single blocks, of this unit and of those linked before it.

        `x` is the picture, or the patch of it that begins at the token `start`.
        """
        previous = self.previous_controlnet
        before = previous.shares(x, t, cond, start) if isinstance(previous, ControlUnitPass) else []
        highest, lowest = self.levels
        if self.hint is None or not self.strength or not lowest < float(t[0]) <= highest:
            return before
        if self.recognised.adapter.grid(x) != (self.picture if start is None else self.grid):
            self.say("is ignored: another extension calls the model on tiles")
            return before
        try:
            return [*before, self.share(x, t, cond, start)]
        except OutOfMemory:
            raise
        except Unsupported as reason:
            self.say(f"is ignored: {reason}")
        except Exception as error:
            logger.debug("a control net failed", exc_info=True)
            self.say(f"is ignored: its calculation failed ({in_words(error)})")
        self.release()
        return before

    def share(self, x: Tensor, t: Tensor, cond: dict, start: tuple[int, int] | None) -> tuple[UnitShare, UnitShare]:
        """What this unit adds after double and after single blocks; raises what the net raises."""
        returned, grid = self.returned(x, t, cond, start)
        expected = len(x), grid.tokens, self.recognised.family.hidden_size
        for residual in returned.both:
            if tuple(residual.shape) != expected:
                raise Unsupported(f"it returned {tuple(residual.shape)} where the model has {expected}")
        rows = mask = None
        if self.sides != (None, None):
            rows = [self.sides[int(mark)] for mark in self.transformer_options["cond_mark"].flatten()]
        if self.mask is not None:
            row, col = start or (0, 0)
            extent = self.picture if start is None else self.grid
            mask = self.mask[:, row : row + extent.height, col : col + extent.width].flatten(1, 2)
        double, single = (
            UnitShare(blocks, grid, self.strength, self.form.index_of, returned.cyclic, mask, rows)
            for blocks in (returned.double, returned.single)
        )
        return double, single

    def returned(self, x: Tensor, t: Tensor, cond: dict, start: tuple[int, int] | None) -> tuple[Residuals, Grid]:
        """What the net returns, and the grid that it is on."""
        latent = self.model.predictor.calculate_input(t, x)
        latent = F.pad(latent, (0, x.shape[-1] % 2, 0, x.shape[-2] % 2), mode="circular")

        def run(latent: Tensor, start: tuple[int, int] | None) -> Residuals:
            hint = self.hint if start is None else self.patch_hints[start]
            return self.form.residuals(self.patcher.model.net, self.call(latent, t, cond, hint))

        if start is not None or self.method is None:
            return run(latent, start), self.grid
        layout, config = self.method
        if self.joins:
            try:
                self._blender = self._blender or PatchBlender(layout, Joiner(layout, config, x.device))
                return at_high_resolution(run, latent, layout, self._blender), self.picture
            except OutOfMemory:
                self.patch_hints = {}
                self.say("has no memory for its patches: it goes on at the base size alone")
        return at_high_resolution(run, latent, layout, None), self.grid

    def call(self, latent: Tensor, t: Tensor, cond: dict, hint: Tensor) -> Call:
        """The net's arguments for a latent on its grid."""
        held = self.patcher.model

        def ready(value: Tensor) -> Tensor:
            return value.to(latent.device, held.compute)

        return Call(
            latent=ready(latent),
            hint=ready(repeated(hint, len(latent))),
            grid=self.grid,
            sigma=t.to(latent.device).float(),
            text=ready(cond["c_crossattn"]),
            pooled=ready(cond["y"]),
            guidance=ready(cond.get("guidance", latent.new_full((len(latent),), GUIDANCE))),
            shows=self.shows,
            embed=lambda: ready(self.embedded(latent)),
        )

    def embedded(self, latent: Tensor) -> Tensor:
        """(B, h*w, C) tokens of a latent by the model's own embedding and positions."""
        model = self.model.diffusion_model
        tokens = model.x_embedder(latent.to(self.model.computation_dtype))
        return tokens + model.cropped_pos_embed(latent.shape[-2:]).to(tokens)
