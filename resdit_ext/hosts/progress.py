"""The text before the percentage in the page's progress bar: the same object in every WebUI."""

from __future__ import annotations

PREFIX = "ResDiT: "


def _state() -> object | None:
    """The host's state; None outside a host."""
    try:
        from modules import shared
    except ImportError:
        return None
    return getattr(shared, "state", None)


def show(text: str) -> None:
    """Show `text` until it is replaced, cleared, or the host begins its next job."""
    if (state := _state()) is not None:
        state.textinfo = PREFIX + text


def clear() -> None:
    """Take our text away; another's stays."""
    state = _state()
    if str(getattr(state, "textinfo", None)).startswith(PREFIX):
        state.textinfo = None


def stopped() -> bool:
    """True where the user has interrupted or skipped what the host is doing."""
    state = _state()
    return bool(getattr(state, "interrupted", False) or getattr(state, "skipped", False))
