"""One row of the option table: what an option is called, and which values it takes."""

from __future__ import annotations

import re
from dataclasses import dataclass

from ..errors import ResDiTError, quoted
from ..method.config import check_choice

# Where an option is on the page: at its top, under "Advanced", or under the method's own numbers, for experiments.
MAIN, ADVANCED, METHOD = "main", "advanced", "method"


@dataclass(frozen=True)
class Option:
    """One row.

    Attributes:
        name: in the API, and of the method's parameter where it is one.
        label: on the page.
        kind: "bool", "choice", "number", or "scale": a number or a choice.
        default: on the page and in the API.
        info: the hint on the page.
        choices: of a "choice" or "scale".
        low, high: the range of a number.
        step: of a number's slider; the API takes what is between.
        place: on the page.
        key: its name in a picture's parameters.
        parameter: whether it is a parameter of the method.
        integer: whether the number of a "scale" is a whole one, as that of a "number" is whose default is.
        older: (version, what stood for a value that is not mentioned in versions before it), the first version first.
    """

    name: str
    label: str
    kind: str
    default: object
    info: str = ""
    choices: tuple[str, ...] = ()
    low: float = 0
    high: float = 1
    step: float = 1
    place: str = ADVANCED
    key: str = ""
    parameter: bool = False
    integer: bool = False
    older: tuple[tuple[str, object], ...] = ()

    @property
    def whole(self) -> bool:
        return self.integer or isinstance(self.default, int)

    def parse(self, value: object) -> object:
        """The value as its type; raises ResDiTError naming the field, the value and what is allowed."""
        if self.kind == "bool":
            if isinstance(value, bool):
                return value
            raise ResDiTError(f"{self.name} is {quoted(value)}; it must be true or false")
        if self.kind == "choice":
            check_choice(self.name, value, self.choices)
            return value
        if self.kind == "scale" and value in self.choices:
            return value
        return self._parse_number(value)

    def _parse_number(self, value: object) -> int | float:
        allowed = f"a {'whole ' if self.whole else ''}number from {self.low} to {self.high}"
        if self.kind == "scale":
            allowed = f"one of {', '.join(map(repr, self.choices))} or {allowed}"
        try:
            number = float("nan" if isinstance(value, bool) else value)
        except (TypeError, ValueError, OverflowError):
            number = float("nan")
        if not self.low <= number <= self.high or (self.whole and number != int(number)):
            raise ResDiTError(f"{self.name} is {quoted(value)}; it must be {allowed}")
        return int(number) if self.whole else number


def numbers_of(version: object) -> list[int]:
    """A version's first three numbers, for comparison; none of a text that has none."""
    return [int(part) for part in re.findall(r"\d+", str(version))[:3]]


def unmentioned(option: Option, version: object = "") -> object:
    """What an option that is not mentioned stood for in a version, by default in the first one."""
    return next((value for later, value in option.older if numbers_of(version) < numbers_of(later)), option.default)
