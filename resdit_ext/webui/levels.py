"""The noise levels of a pass: the host's list, shifted further where the options ask for it.

The host's own shift belongs to its model, which all pictures share, and is left alone. What is shifted is the list that
one sampler gives, and every pass has a sampler of its own: whatever ends the pass, nothing has to be put back.
"""

from __future__ import annotations

from collections.abc import Callable

from ..method.layout import Layout
from ..method.shift import shift_by_size, shift_of, shifted
from ..monkeypatch import replacing, without_ours
from .options import WEBUI_SHIFT, Request

SHIFTED = "get_sigmas"


def shift_in(choice: str | float, own: float, layout: Layout, base_tokens: int) -> float:
    """mu of a pass' noise levels, where the model's own is `own`; at or below the base size that is kept."""
    if choice == WEBUI_SHIFT or layout.is_base:
        return own
    return own + shift_by_size(layout.grid.tokens, base_tokens) if isinstance(choice, str) else choice


def shift_added(p: object, request: Request, layout: Layout, say: Callable[[str], None]) -> float:
    """How much mu grows in the pass that is about to begin; 0 with a message where its sampler leaves no choice."""
    choice, sampler = request.values["shift"], p.sampler
    if choice == WEBUI_SHIFT or layout.is_base:
        return 0.0
    if getattr(sampler, "get_sigmas", None) is None:
        say("timestep shift has no effect: this sampler has no list of noise levels (try Euler with Simple)")
        return 0.0
    own = 0.0 if isinstance(choice, str) else shift_of(getattr(getattr(sampler, "model_wrap", None), "sigmas", ()))
    if own is None:
        say(f"timestep shift {choice:g} has no effect: the model's own is not known; automatic works")
        return 0.0
    return shift_in(choice, own, layout, request.config.base_tokens) - own


def sigmas_of(p: object, steps: int, mu: float) -> object | None:
    """That pass' list of so many steps, shifted by `mu`; None where its sampler has no list."""
    get_sigmas = without_ours(getattr(p.sampler, "get_sigmas", None), SHIFTED)
    if get_sigmas is None:
        return None
    levels = get_sigmas(p, steps)
    return shifted(levels, mu) if mu else levels


def shift_levels(sampler: object, mu: float) -> None:
    """Have this sampler's list shifted by `mu`; doing it again replaces."""
    get_sigmas = without_ours(sampler.get_sigmas, SHIFTED)
    sampler.get_sigmas = replacing(lambda p, steps: shifted(get_sigmas(p, steps), mu), get_sigmas, SHIFTED)
