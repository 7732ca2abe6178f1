"""The forecast as HTML: its figures, its warnings, and the picture's frame with the patches drawn small."""

from __future__ import annotations

from html import escape

from .forecast import Forecast
from .sizes import PIXELS_PER_TOKEN

DRAWN = 96  # pixels of the drawing's longer side


def drawing(forecast: Forecast) -> str:
    """An SVG of the frame and its overlapping patches."""
    width, height, patches = forecast.width, forecast.height, forecast.layout.patches
    w, h = forecast.patch
    shrink = DRAWN / max(width, height)
    drawn = "".join(
        f'<rect x="{col * PIXELS_PER_TOKEN}" y="{row * PIXELS_PER_TOKEN}" width="{w}" height="{h}"/>'
        for row, col in patches
    )
    return (
        f'<svg class="resdit-frame" role="img" width="{width * shrink:.0f}" height="{height * shrink:.0f}" '
        f'viewBox="0 0 {width} {height}"><title>{len(patches)} patches</title>{drawn}</svg>'
    )


def figures(forecast: Forecast) -> list[tuple[str, str]]:
    """(name, value) of each line of the read-out."""
    width, height = forecast.width, forecast.height
    w, h = forecast.patch
    chosen = [("Positions", forecast.positions)] if forecast.positions else []
    shift = [("Timestep shift", f"{forecast.shift:.2f}")] if forecast.shift is not None else []
    return [
        ("Picture", f"{width}x{height}, {width * height / 1e6:.1f} MP, {forecast.scale:.2f}x"),
        ("Patches", f"{forecast.patches} of {w}x{h}"),
        ("Steps", forecast.in_phases),
        *chosen,
        *shift,
        ("Attention", f"{forecast.attention:.2f}x standard attention"),
        ("Memory", f"{forecast.activations / 1e9:.1f} GB plus model weights"),
        ("VAE", f"{forecast.decode / 1e9:.1f} GB, less in tiles"),
    ]


def html(forecast: Forecast) -> str:
    """The read-out; `data-size` holds the size for the accordion's title."""
    kind = "resdit-active" if forecast.active else "resdit-idle"
    if not forecast.active:
        return f'<div class="resdit-status {kind}" data-size="">{escape(forecast.line())}</div>'
    rows = "".join(f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>" for name, value in figures(forecast))
    warnings = "".join(f'<p class="resdit-warning">{escape(text)}</p>' for text in forecast.warnings)
    return (
        f'<div class="resdit-status {kind}" data-size="{forecast.width}x{forecast.height}">{drawing(forecast)}'
        f"<div><dl>{rows}</dl>{warnings}</div></div>"
    )
