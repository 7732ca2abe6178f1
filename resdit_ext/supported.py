"""Which models work where, as a table in Markdown: read from the families' files."""

from __future__ import annotations

from .families import Family, families

WEBUIS = ("Forge", "Forge Neo", "ersatzForge", "AUTOMATIC1111")
YES, NO = "yes", "no"


def cell(family: Family, webui: str, models: str) -> str:
    """What a WebUI has of a family whose most complete list of models is `models`."""
    support = family.support.get(webui)
    if support is None:
        return NO
    which = YES if support.models == models else support.models
    return f"{which} ({support.note})" if support.note else which


def row(family: Family) -> list[str]:
    """A family's cells, its name first."""
    models = max((support.models for support in family.support.values()), key=len, default="")
    return [
        f"**{family.name}**: {models}" if models else f"**{family.name}**",
        *(cell(family, webui, models) for webui in WEBUIS),
        YES if family.diffusers else NO,
        YES if family.webui.pools else NO,
        YES if family.control is not None else NO,
    ]


def table() -> str:
    """The table, a row for every family; ControlNet's column is about Forge, its forks and diffusers."""
    head = ["model", *WEBUIS, "diffusers", "fast modes", "ControlNet"]
    lines = [head, ["---"] * len(head), *map(row, families())]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
