"""What a generation will cost, before it starts: estimates of this project, of what the paper does not quantify."""

from __future__ import annotations

from .config import ResDiTConfig
from .in_attention import pooled_phases
from .layout import Layout, layouts_in_turn
from .phases import Phase, steps_per_phase
from .pooling import coarse_grid
from .shift import DEFAULT_SHIFT

# The VAE's values alive per pixel of a picture decoded or encoded whole: 640 and 384 are allocated by the hosts' own
# code, half as much again is for the convolutions' workspace.
DECODE_VALUES, ENCODE_VALUES = 960, 576


def attention_cost(
    layout: Layout,
    config: ResDiTConfig,
    steps: int,
    text: int,
    skipped: int = 0,
    around_calls: bool = False,
    mu: float = DEFAULT_SHIFT,
) -> float:
    """Operations of a run's attention relative to plain attention at the same size and number of steps.

    Queries times keys, summed over the branches of every step but the first `skipped`; what the method adds around them
    is not counted. `text` is the number of text tokens; `around_calls` is for models whose patches are whole calls;
    `mu` is the shift of the noise levels.
    """
    if layout.is_base:
        return 1.0
    grid, base = layout.grid, layout.base
    layouts = layouts_in_turn(grid, config)
    whole, patch = text + grid.tokens, text + base.tokens
    few = text + coarse_grid(grid).tokens
    pooled = () if around_calls else pooled_phases(layout, config)
    local = sum(len(each.patches) for each in layouts) / len(layouts) * patch**2
    if around_calls:
        of_whole = patch**2 if config.layout == "base" else whole**2
    else:
        of_whole = few**2 if Phase.FUSED in pooled else whole**2
    per_step = {
        Phase.LAYOUT: patch**2,
        Phase.GLOBAL: whole * (few if Phase.GLOBAL in pooled else whole),
        Phase.FUSED: of_whole + local,
        Phase.LOCAL: local,
    }
    phases = steps_per_phase(config, steps, skipped, mu)
    return sum(n * per_step[phase] for phase, n in phases.items()) / (sum(phases.values()) * whole**2)
