"""One line that says what ResDiT will do, or why it does nothing."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

from ..cost import activation_bytes, attention_cost
from ..families import Family, Flux
from ..geometry import Grid, make_layout
from ..schedule import steps_per_phase
from .options import PIXELS_PER_TOKEN, Request

# What the page assumes before a model is loaded.
FLUX_DEV = SimpleNamespace(name=Flux.name, hidden_size=3072, peak_vectors=Flux.peak_vectors, pools=Flux.pools)


def describe(request: Request, width: int, height: int, steps: int, family: Family = FLUX_DEV) -> tuple[bool, str]:
    """(active, line) for an output of `width` x `height` pixels in `steps` steps."""
    if not request.enabled:
        return False, "not active: switched off"
    layout = make_layout(Grid(-(-height // PIXELS_PER_TOKEN), -(-width // PIXELS_PER_TOKEN)), request.config)
    base = f"{layout.base.width * PIXELS_PER_TOKEN}x{layout.base.height * PIXELS_PER_TOKEN}"
    size = f"{width}x{height}"
    if layout.is_base:
        return False, f"not active: {size} is not above the base size ({request.values['base_size']} px squared)"
    phases = ", ".join(f"{n} {phase.value}" for phase, n in steps_per_phase(request.config, steps).items() if n)
    scale = max(layout.scales)
    beyond = "; beyond 4x nothing was measured" if scale > 4.05 else ""
    count = f"{len(layout.rows)}x{len(layout.cols)} patches of {base}"
    config = request.config if family.pools else replace(request.config, speed="exact")
    cost = f"attention {attention_cost(layout, config, steps):.2f}x of plain"
    if config != request.config:
        cost += f" (the fast modes have no effect on {family.name})"
    memory = f"{activation_bytes(layout.grid, family) / 1e9:.1f} GB beside {family.name}'s weights"
    return True, f"active: {size}, scale {scale:.2f}, {count}, steps: {phases} of {steps}; {cost}, {memory}{beyond}"
