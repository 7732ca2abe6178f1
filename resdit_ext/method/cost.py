"""What a generation will cost, before it starts: estimates of this project, of what the paper does not quantify."""

from __future__ import annotations

from .config import ResDiTConfig
from .in_attention import pooled_phases
from .layout import Grid, Layout, layouts_in_turn
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
    base, middle = layout.base, layout.middle
    whole, patch = text + layout.grid.tokens, text + base.tokens

    def costs_on(grid: Grid) -> tuple[float, float, float]:
        """Of a call with the global branch alone, with both, and with the local one."""
        layouts, whole = layouts_in_turn(grid, config, base), text + grid.tokens
        few = text + coarse_grid(grid).tokens
        pooled = () if around_calls else pooled_phases(layouts[0], config)
        local = sum(len(each.patches) for each in layouts) / len(layouts) * patch**2
        if around_calls:
            of_whole = patch**2 if config.layout == "base" else whole**2
        else:
            of_whole = few**2 if Phase.FUSED in pooled else whole**2
        return whole * (few if Phase.GLOBAL in pooled else whole), of_whole + local, local

    at_full = dict(zip((Phase.GLOBAL, Phase.FUSED, Phase.LOCAL), costs_on(layout.grid), strict=True))
    per_step = {Phase.LAYOUT: patch**2, Phase.MIDDLE: costs_on(middle)[1] if middle else 0.0, **at_full}
    phases = steps_per_phase(config, steps, skipped, mu, middle is not None)
    return sum(n * per_step[phase] for phase, n in phases.items()) / (sum(phases.values()) * whole**2)
