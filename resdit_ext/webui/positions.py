"""Which positions a picture gets: what the options say, or a LoRA in its prompt, and what its model family has."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from ..errors import ResDiTError
from ..families import Family, fitting_positions
from ..hosts.loras import Lora
from ..method.config import ResDiTConfig
from ..method.layout import Layout
from ..positions_metadata import maximal_range

AT_BASE = "at the base size RPE-2D's positions make another picture than the plain one"


@dataclass(frozen=True)
class Positions:
    """What was chosen.

    Attributes:
        config: the method's parameters, without "automatic" where a LoRA decides.
        told: the positions in words; empty where they are the usual ones.
        warnings: what the user should know of the choice.
    """

    config: ResDiTConfig
    told: str = ""
    warnings: tuple[str, ...] = ()


def needed_range(layout: Layout) -> int:
    """How many of RPE-2D's positions a picture needs, a side."""
    return max(layout.grid.height, layout.grid.width)


def of_loras(loras: Sequence[Lora]) -> tuple[dict[str, int], list[str]]:
    """The ranges of the LoRAs made for RPE-2D, by their names, and what is wrong in the metadata of others."""
    ranges, problems = {}, []
    for lora in loras:
        try:
            found = maximal_range(lora.metadata, f"LoRA {lora.name}")
        except ResDiTError as error:
            problems.append(f"{error}; scaled positions are used")
            continue
        if found is not None:
            ranges[lora.name] = found
    return ranges, problems


def automatic(config: ResDiTConfig, layout: Layout, loras: Sequence[Lora]) -> Positions:
    """RPE-2D's positions where a LoRA says so and has enough of them, else scaled ones."""
    ranges, problems = of_loras(loras)
    if not ranges:
        return Positions(config, warnings=tuple(problems))
    name, most = next(iter(ranges.items()))
    if others := [f"{other} {n}" for other, n in ranges.items() if n != most]:
        problems.append(f"the LoRAs have different ranges ({name} {most}, {', '.join(others)}): that of {name} is used")
    if most < (needed := needed_range(layout)):
        problems.append(
            f"LoRA {name} has a range of {most} positions and the picture up to {needed} tokens a side: scaled "
            "positions are used; a smaller picture has RPE-2D's"
        )
        return Positions(config, warnings=tuple(problems))
    chosen = replace(config, positions="rpe-2d", maximal_range=most)
    return Positions(chosen, f"rpe-2d, range {most}, as LoRA {name} says", tuple(problems))


def chosen_positions(config: ResDiTConfig, family: Family, layout: Layout, loras: Sequence[Lora]) -> Positions:
    """What a pass of this layout gets; raises ResDiTError where the range that the options give is too small for it."""
    if config.positions == "automatic":
        chosen = automatic(config, layout, loras)
    else:
        config, problem = fitting_positions(config, family)
        told = {"ntk": "ntk", "yarn": "yarn", "rpe-2d": f"rpe-2d, range {config.maximal_range}"}
        chosen = Positions(config, told.get(config.positions, ""), (problem,) if problem else ())
        if config.positions == "rpe-2d" and config.maximal_range < (needed := needed_range(layout)):
            raise ResDiTError(
                f"maximal_range is {config.maximal_range}; it must be at least {needed}, the tokens of the picture's "
                "longer side: raise it, or choose a smaller picture or other positions"
            )
    if layout.is_base and chosen.config.acts_at_base:
        return replace(chosen, warnings=(*chosen.warnings, AT_BASE))
    return chosen
