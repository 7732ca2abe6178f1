"""Settings for tests: of the paper's own three phases, and micro models small enough to be trained here."""

from dataclasses import fields, replace
from pathlib import Path

from safetensors import safe_open

from resdit_ext import SCALED, ResDiTConfig
from resdit_ext.positions_metadata import maximal_range


def scaled(**fields: object) -> ResDiTConfig:
    """The layout from scaled positions, every branch exact and fixed borders, except where the fields say otherwise."""
    return replace(SCALED, **fields)


def differences(config: ResDiTConfig, other: ResDiTConfig) -> dict[str, object]:
    """The fields in which a configuration differs from another, by name."""
    pairs = ((each.name, getattr(config, each.name), getattr(other, each.name)) for each in fields(config))
    return {name: mine for name, mine, theirs in pairs if mine != theirs}


def range_in(path: Path) -> int | None:
    """The maximal range that a LoRA's file tells."""
    with safe_open(path, "pt") as file:
        return maximal_range(file.metadata(), path.name)


def with_one_block(monkeypatch: object) -> None:
    """Make new micro models of one block of each kind: whole ones take seconds a step."""
    from resdit_ext.lab import model  # which needs diffusers

    monkeypatch.setitem(model.FLUX_CONFIG, "num_layers", 1)
    monkeypatch.setitem(model.FLUX_CONFIG, "num_single_layers", 1)
    monkeypatch.setitem(model.SD3_CONFIG, "num_layers", 1)
