"""The forecast as HTML: a line, its warnings, and the frame with its patches drawn small."""

from __future__ import annotations

from html import escape

from .forecast import Forecast
from .sizes import PIXELS_PER_TOKEN

DRAWN = 96  # pixels of the drawing's longer side


def drawing(plan: Forecast) -> str:
    """An SVG of the frame and its overlapping patches."""
    w, h = plan.patch
    shrink = DRAWN / max(plan.width, plan.height)
    patches = "".join(
        f'<rect x="{col * PIXELS_PER_TOKEN}" y="{row * PIXELS_PER_TOKEN}" width="{w}" height="{h}"/>'
        for row, col in plan.layout.patches
    )
    return (
        f'<svg class="resdit-frame" role="img" width="{plan.width * shrink:.0f}" height="{plan.height * shrink:.0f}" '
        f'viewBox="0 0 {plan.width} {plan.height}"><title>{len(plan.layout.patches)} patches</title>{patches}</svg>'
    )


def figures(plan: Forecast) -> list[tuple[str, str]]:
    """(name, value) of what the read-out lists."""
    w, h = plan.patch
    return [
        ("Picture", f"{plan.width}x{plan.height}, {plan.width * plan.height / 1e6:.1f} MP, {plan.scale:.2f}x"),
        ("Patches", f"{len(plan.layout.cols)}x{len(plan.layout.rows)} of {w}x{h}"),
        ("Steps", plan.in_phases),
        ("Attention", f"{plan.attention:.2f}x of plain"),
        ("Memory", f"{plan.activations / 1e9:.1f} GB beside the weights"),
        ("VAE", f"{plan.decode / 1e9:.1f} GB, or in tiles"),
    ]


def html(plan: Forecast) -> str:
    """The read-out; `data-size` holds the size for the accordion's title."""
    kind = "resdit-active" if plan.active else "resdit-idle"
    if not plan.active:
        return f'<div class="resdit-status {kind}" data-size="">{escape(plan.line())}</div>'
    rows = "".join(f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>" for name, value in figures(plan))
    warnings = "".join(f'<p class="resdit-warning">{escape(text)}</p>' for text in plan.warnings)
    return (
        f'<div class="resdit-status {kind}" data-size="{plan.width}x{plan.height}">{drawing(plan)}'
        f"<div><dl>{rows}</dl>{warnings}</div></div>"
    )
