"""What ResDiT will do for one picture and what it will cost, or why it does nothing: page, log and API show this."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from ..families import Family, families
from ..hosts.loras import Lora
from ..method.cost import DECODE_VALUES, attention_cost
from ..method.in_attention import pooled_phases
from ..method.layout import Layout, layouts_in_turn, make_layout
from ..method.phases import Phase, steps_per_phase
from .levels import shift_in
from .options import DEFAULTS, WEBUI_SHIFT, Request
from .positions import chosen_positions
from .sizes import PIXELS_PER_TOKEN, grid_of

MEASURED_SCALE = 6.05  # the lab went to 6x


def listed(phases: Mapping[str, int]) -> str:
    """The number of steps of each phase that has any, in words."""
    return ", ".join(f"{n} {phase}" for phase, n in phases.items() if n)


@dataclass(frozen=True)
class Forecast:
    """What ResDiT will do for one picture.

    Attributes:
        width, height: of the picture, in pixels.
        steps: that are run.
        which: of the passes this is about, where there are two: "first pass" or "hires pass".
        idle: why nothing will be done; None where ResDiT is active. What follows is only meaningful then.
        layouts: the token grid and its patches; the steps take them in turn.
        phases: number of steps by phase.
        positions: of the whole picture, in words, where they are not the usual ones.
        shift: mu of the noise levels, where the options set it.
        attention: operations of attention relative to standard attention at this size.
        activations: bytes on top of the model's weights.
        warnings: what the user should know before starting.
    """

    width: int
    height: int
    steps: int
    which: str = ""
    idle: str | None = None
    layouts: tuple[Layout, ...] = ()
    phases: dict[str, int] = field(default_factory=dict)
    positions: str = ""
    shift: float | None = None
    attention: float = 0.0
    activations: int = 0
    warnings: tuple[str, ...] = ()

    @property
    def active(self) -> bool:
        return self.idle is None

    @property
    def decode(self) -> int:
        """Bytes that the VAE needs to decode the picture as a whole, in 16 bits."""
        return self.width * self.height * DECODE_VALUES * 2

    @property
    def scale(self) -> float:
        """Of the longer-scaled side to the base grid's."""
        return max(self.layout.scales)

    @property
    def patch(self) -> tuple[int, int]:
        """(width, height) of a patch, which is the base size, in pixels."""
        return self.layout.base.width * PIXELS_PER_TOKEN, self.layout.base.height * PIXELS_PER_TOKEN

    @property
    def patches(self) -> str:
        """How many patches there are along both axes, in each layout that takes its turn."""
        return " and ".join(f"{len(each.cols)}x{len(each.rows)}" for each in self.layouts)

    @property
    def layout(self) -> Layout:
        """The layout of the first step."""
        return self.layouts[0]

    @property
    def in_phases(self) -> str:
        """The steps by phase, and of which pass they are."""
        told = listed(self.phases)
        return f"{told} ({self.which})" if self.which else told

    def line(self) -> str:
        """The whole in one line."""
        if not self.active:
            return f"not active: {self.idle}"
        patches = f"{self.patches} patches of {self.patch[0]}x{self.patch[1]}"
        told = f"active: {self.width}x{self.height}, scale {self.scale:.2f}, {patches}"
        told += f", steps: {self.in_phases} of {self.steps}; {self.attention:.2f}x standard attention"
        told += f"; positions {self.positions}" if self.positions else ""
        told += f"; timestep shift {self.shift:.2f}" if self.shift is not None else ""
        told += f"; {self.activations / 1e9:.1f} GB plus model weights"
        told += f", {self.decode / 1e9:.1f} GB for the VAE (less in tiles)"
        return "; ".join((told, *self.warnings))

    def as_dict(self) -> dict[str, object]:
        """For JSON."""
        told = {"active": self.active, "line": self.line(), "width": self.width, "height": self.height}
        if not self.active:
            return told | {"reason": self.idle}
        return told | {
            "megapixels": round(self.width * self.height / 1e6, 2),
            "scale": round(self.scale, 4),
            "patch": {"width": self.patch[0], "height": self.patch[1]},
            "patch_rows": [row * PIXELS_PER_TOKEN for row in self.layout.rows],
            "patch_columns": [col * PIXELS_PER_TOKEN for col in self.layout.cols],
            "steps": self.steps,
            "phases": self.phases,
            "positions": self.positions or "scaled",
            "shift": self.shift,
            "attention": round(self.attention, 4),
            "activation_bytes": self.activations,
            "decode_bytes": self.decode,
            "warnings": list(self.warnings),
        }


def forecast(
    request: Request,
    width: int,
    height: int,
    steps: int,
    family: Family | None = None,
    skipped: int = 0,
    which: str = "",
    loras: Sequence[Lora] = (),
) -> Forecast:
    """What ResDiT will do in one pass.

    Args:
        request: the options.
        width, height: of the picture that the pass makes, in pixels.
        steps: how many its list of noise levels has.
        family: of the model; the first of all, at its usual size, until one is loaded.
        skipped: how many of the steps, from the first, are not run.
        which: of two passes it is.
        loras: in its prompt.

    Raises:
        ResDiTError: the range of positions that the options give is too small for the picture.
    """
    run, family = steps - skipped, family or families()[0]
    request = request.for_model(family.base_tokens)
    if not request.enabled:
        return Forecast(width, height, run, idle="switched off")
    layout = make_layout(grid_of(width, height, family.pixels_per_token), request.config)
    chosen = chosen_positions(request.config, family, layout, loras)
    if layout.is_base and not chosen.config.acts_at_base:
        base = request.base_side
        return Forecast(width, height, run, idle=f"{width}x{height} is not above the base size ({base} px squared)")
    config, warnings, pools = chosen.config, list(chosen.warnings), family.webui.pools
    wants_speed = request.values["speed"] not in ("exact", DEFAULTS["speed"])
    if wants_speed and not (pools and pooled_phases(layout, config)):
        warnings.append("speed has no effect " + ("below 2x" if pools else f"on {family.name}"))
    if max(layout.scales) > MEASURED_SCALE:
        warnings.append("not tested beyond 6x")
    mu = shift_in(request.values["shift"], family.shift, layout, config.base_tokens)
    if layout.is_base:
        phases = {Phase.GLOBAL: run}
    else:
        phases = steps_per_phase(config, steps, skipped, mu, layout.middle is not None)
    return Forecast(
        width,
        height,
        run,
        which,
        layouts=(layout,) if layout.is_base else layouts_in_turn(layout.grid, config),
        phases={phase.value: n for phase, n in phases.items() if n},
        positions=chosen.told,
        shift=mu if request.values["shift"] != WEBUI_SHIFT and not layout.is_base else None,
        attention=attention_cost(layout, config, steps, family.longest_text, skipped, not pools, mu),
        activations=family.activation_bytes(layout.grid),
        warnings=tuple(warnings),
    )
