"""Rows of the report, and how a time is taken."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes:
        what: the quantity, and what it is compared with.
        target: what this project aims at, as text.
        value: the figure; None where it was not measured in this run.
        spread: lowest and highest of the repetitions; None where a count has none.
        unit: "x" for ratios, "GB" or "%".
        how: "counted" on tensors without data, "timed", or why there is no figure.
    """

    what: str
    target: str
    value: float | None
    spread: tuple[float, float] | None = None
    unit: str = "x"
    how: str = "counted"

    def cells(self) -> tuple[str, ...]:
        """The row as Markdown cells."""
        figure = "not measured" if self.value is None else f"{self.value:.2f}{self.unit}"
        spread = "" if self.spread is None else f"{self.spread[0]:.2f} to {self.spread[1]:.2f}"
        return self.what, self.target, figure, spread, self.how


def markdown(rows: list[Row]) -> str:
    """The rows as a Markdown table."""
    lines = ["| what | aim | measured | spread | how |", "|---|---|---|---|---|"]
    return "\n".join(lines + ["| " + " | ".join(row.cells()) + " |" for row in rows])


def seconds(work: Callable[[], object], device: str) -> float:
    """How long one call takes; on a GPU by device events."""
    if device == "cpu":
        start = time.perf_counter()
        work()
        return time.perf_counter() - start
    begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    begin.record()
    work()
    end.record()
    torch.cuda.synchronize()
    return begin.elapsed_time(end) / 1000


def ratio(work: Callable[[], object], to: Callable[[], object], device: str, rounds: int) -> tuple[float, float, float]:
    """Median, lowest and highest of time(work) / time(to), taken in turns after a warm-up of each."""
    work(), to()
    found = []
    for _ in range(rounds):
        reference = seconds(to, device)
        found.append(seconds(work, device) / reference)
    return statistics.median(found), min(found), max(found)
