"""Settings for tests of the paper's own three phases."""

from dataclasses import replace

from resdit_ext import SCALED, ResDiTConfig


def scaled(**fields: object) -> ResDiTConfig:
    """The layout from scaled positions, every branch exact and fixed borders, except where the fields say otherwise."""
    return replace(SCALED, **fields)
