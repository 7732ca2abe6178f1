"""The method's parameters, validated once, and the two named settings."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

from ..errors import ResDiTError, quoted

ATTENTION_SCALES = ("off", "sqrt-log", "log")
SPEEDS = ("exact", "fast", "fastest")


def check_choice(name: str, value: object, allowed: tuple) -> None:
    """Raise ResDiTError unless `value` is one of `allowed`."""
    if value not in allowed:
        raise ResDiTError(f"{name} is {quoted(value)}; choose one of {', '.join(map(repr, allowed))}")


def check_number(name: str, value: object, low: float, high: float, whole: bool = False) -> None:
    """Raise ResDiTError unless `value` is a finite number (an int where `whole`) in [low, high]."""
    types = int if whole else (int, float)
    if isinstance(value, bool) or not isinstance(value, types) or not low <= value <= high:
        kind = "whole number" if whole else "number"
        raise ResDiTError(f"{name} is {quoted(value)}; it must be a {kind} from {low} to {high}")


@dataclass(frozen=True)
class ResDiTConfig:
    """Parameters of ResDiT; the defaults are the Balanced setting.

    Phases are shares of the run's steps: global only up to `global_until`, fused up to `fused_until`, local only
    after it (`fused_until=1` leaves no local phase; `global_until=1` leaves scaled positions alone).

    Attributes:
        global_until: share of the steps with the global branch alone.
        fused_until: share of the steps by which the fused phase ends.
        cutoff: pass band of the fusion's low-pass, as a share of `cutoff_unit`.
        cutoff_unit: "nyquist" (0.5 cycles/token) or "sampling" (1 cycle/token).
        attention_scale: factor on the global branch's logits: "off", "sqrt-log", "log" or a number.
        base_tokens: image tokens of the training size (FLUX.1 at 1024 px: 64 * 64).
        base_shape: "aspect" keeps the output's aspect ratio in the base grid, "square" is the paper's.
        splice_sigma: standard deviation of the splicing weights, as a share of the patch's side.
        chunk_mb: most memory for the patches attended to at once, in MiB; it changes the speed, never the result.
        speed: "exact"; "fast": from 2x on, the global branch of fused calls sees the image in means of 2x2 tokens;
            "fastest": that of global calls as well.
        pes, pipe, fusion, overlap, splice: the method's parts, to be left out one by one in an ablation.
    """

    global_until: float = 0.285  # 10 of 35 steps, as 2/7 at any number of steps below 200
    fused_until: float = 1.0
    cutoff: float = 0.2
    cutoff_unit: str = "nyquist"
    attention_scale: str | float = "log"
    base_tokens: int = 4096
    base_shape: str = "aspect"
    splice_sigma: float = 0.25
    chunk_mb: int = 512
    speed: str = "exact"
    pes: bool = True
    pipe: bool = True
    fusion: str = "frequency"
    overlap: bool = True
    splice: str = "gaussian"

    def __post_init__(self) -> None:
        check_number("global_until", self.global_until, 0, 1)
        check_number("fused_until", self.fused_until, 0, 1)
        if self.fused_until < self.global_until:
            raise ResDiTError(
                f"fused_until is {self.fused_until!r}, below global_until {self.global_until!r}; "
                "raise it to at least that (equal: no fused phase)"
            )
        check_number("cutoff", self.cutoff, 0, 1)
        check_choice("cutoff_unit", self.cutoff_unit, ("nyquist", "sampling"))
        if isinstance(self.attention_scale, str):
            check_choice("attention_scale", self.attention_scale, ATTENTION_SCALES)
        else:
            check_number("attention_scale", self.attention_scale, 0.5, 2)
        check_number("base_tokens", self.base_tokens, 4, 65536, whole=True)
        check_choice("base_shape", self.base_shape, ("aspect", "square"))
        check_number("splice_sigma", self.splice_sigma, 0.05, 2)
        check_number("chunk_mb", self.chunk_mb, 1, 65536, whole=True)
        check_choice("speed", self.speed, SPEEDS)
        if self.speed != "exact" and self.fusion != "frequency":
            raise ResDiTError(f"fusion is {quoted(self.fusion)}; with speed {self.speed!r} it must be 'frequency'")
        check_choice("fusion", self.fusion, ("frequency", "mean"))
        check_choice("splice", self.splice, ("gaussian", "mean"))
        for name in ("pes", "pipe", "overlap"):
            check_choice(name, getattr(self, name), (True, False))

    @property
    def cutoff_cycles(self) -> float:
        """The low-pass's cut-off in cycles per token."""
        return self.cutoff * (0.5 if self.cutoff_unit == "nyquist" else 1.0)

    def logit_scale(self, tokens: int, base_tokens: int) -> float:
        """Factor on the global branch's logits for `tokens` keys where training had `base_tokens` (text included).

        "log" is ln N / ln N_0 and "sqrt-log" its root (method: attention temperature), both 1 at the base size.
        """
        if isinstance(self.attention_scale, str):
            ratio = math.log(tokens) / math.log(base_tokens)
            return {"off": 1.0, "sqrt-log": math.sqrt(ratio), "log": ratio}[self.attention_scale]
        return float(self.attention_scale)

    def differences(self, other: ResDiTConfig) -> dict[str, object]:
        """The fields in which this differs from `other`, by name."""
        pairs = ((field.name, getattr(self, field.name), getattr(other, field.name)) for field in fields(self))
        return {name: mine for name, mine, theirs in pairs if mine != theirs}


BALANCED = ResDiTConfig()
PAPER = ResDiTConfig(fused_until=0.57, attention_scale="off")
MORE_DETAIL = ResDiTConfig(global_until=0.14)  # 5 of 35 steps: patches have longer to agree on the texture
MORE_STRUCTURE = ResDiTConfig(global_until=0.43)  # 16 of 35 steps
FAST = ResDiTConfig(speed="fast")
PRESETS = {
    "Balanced": BALANCED,
    "Fast": FAST,
    "More detail": MORE_DETAIL,
    "More structure": MORE_STRUCTURE,
    "Paper": PAPER,
}
