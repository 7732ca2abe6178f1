"""The method's parameters, each with the values it takes, and the presets."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, fields, replace

from ..errors import ResDiTError, quoted


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
class Allowed:
    """The values of a field: one of `choices`, a number from `low` to `high`, or either where both are given."""

    choices: tuple = ()
    low: float | None = None
    high: float | None = None
    whole: bool = False

    def check(self, name: str, value: object) -> None:
        """Raise ResDiTError, which names the field, unless `value` is one of these."""
        if self.low is None or (self.choices and isinstance(value, str)):
            check_choice(name, value, self.choices)
        else:
            check_number(name, value, self.low, self.high, self.whole)


def _one_of(default: object, *choices: object) -> object:
    """A field that takes one of the choices."""
    return field(default=default, metadata={"allowed": Allowed(choices)})


def _number(default: float | str, low: float, high: float, *choices: str) -> object:
    """A field that takes a number, whole where its default is, or one of the choices if there are any."""
    allowed = Allowed(choices, low, high, whole=isinstance(default, int))
    return field(default=default, metadata={"allowed": allowed})


@dataclass(frozen=True)
class ResDiTConfig:
    """Parameters of ResDiT; the defaults are the Balanced setting.

    A run has three phases. The first makes the layout: with `layout` "base" in calls at the base size, down to the
    noise level `layout_until`, and then, for large pictures, at half their size down to `middle_until`; with "scaled",
    the paper's way, by the global branch alone, up to `global_until`, a share of the run's steps (1 leaves scaled
    positions alone). Then both branches are fused up to `fused_until`, and after that share of the steps the local one
    is alone (1 leaves no such phase).

    Attributes:
        global_until: share of the steps with the global branch alone; no effect with `layout` "base".
        fused_until: share of the steps by which the fused phase ends.
        cutoff: pass band of the fusion's low-pass, as a share of `cutoff_unit`.
        cutoff_unit: "base" (the finest that the base grid shows: 0.5 cycles a token of it, at the full size that over
            the scale), "nyquist" (0.5 cycles/token, the paper's) or "sampling" (1 cycle/token).
        attention_scale: factor on the global branch's logits: "off", "sqrt-log", "log" or a number.
        base_tokens: image tokens of the training size (FLUX.1 at 1024 px: 64 * 64).
        base_shape: "aspect" keeps the output's aspect ratio in the base grid, "square" is the paper's.
        splice_sigma: standard deviation of the splicing weights, as a share of the patch's side.
        chunk_mb: most memory for the patches attended to at once, in MiB; it changes the speed, never the result.
        speed: "exact"; "fast": from 2x on, the global branch of fused calls sees the image in means of 2x2 tokens;
            "fastest": that of global calls as well.
        borders: "fixed", or "moving": patches have their borders elsewhere in every other step.
        layout: "base" or "scaled".
        layout_until: noise level, 0 to 1, where the steps at the base size end; no effect with `layout` "scaled".
        middle_until: noise level, 0 to 1, where the steps at half the size end that follow those above three times the
            base size; no effect with `layout` "scaled", nor where it is not below `layout_until`.
        fresh_noise: share of the noise that the model sees anew in every step, 0 to 1, as its amplitude; 0 leaves it to
            the sampler, and no effect with one that adds noise itself.
        positions: of the global branch: "scaled", the paper's; "ntk" or "yarn", for rotary positions alone; "rpe-2d",
            for a model that was trained so, which then has them at the base size and, where positions rotate, in
            patches as well; or "automatic": RPE-2D's where a WebUI's prompt has a LoRA that says so, else scaled ones.
        maximal_range: how many positions an axis such a model was trained with; no effect with other positions.
        pes, pipe, fusion, overlap, splice: the method's parts, to be left out one by one in an ablation.
    """

    global_until: float = _number(0.285, 0, 1)  # 10 of 35 steps, as 2/7 at any number of steps below 200
    fused_until: float = _number(1.0, 0, 1)
    cutoff: float = _number(0.75, 0, 1)
    cutoff_unit: str = _one_of("base", "base", "nyquist", "sampling")
    attention_scale: str | float = _number("log", 0.5, 2, "off", "sqrt-log", "log")
    base_tokens: int = _number(4096, 4, 65536)
    base_shape: str = _one_of("aspect", "aspect", "square")
    splice_sigma: float = _number(0.15, 0.05, 2)
    chunk_mb: int = _number(512, 1, 65536)
    speed: str = _one_of("fast", "exact", "fast", "fastest")
    layout: str = _one_of("base", "base", "scaled")
    layout_until: float = _number(0.8, 0, 1)
    middle_until: float = _number(0.7, 0, 1)
    fresh_noise: float = _number(1.0, 0, 1)
    borders: str = _one_of("moving", "moving", "fixed")
    positions: str = _one_of("automatic", "automatic", "scaled", "ntk", "yarn", "rpe-2d")
    maximal_range: int = _number(256, 1, 4096)
    pes: bool = _one_of(True, True, False)
    pipe: bool = _one_of(True, True, False)
    fusion: str = _one_of("frequency", "frequency", "mean")
    overlap: bool = _one_of(True, True, False)
    splice: str = _one_of("gaussian", "gaussian", "mean")

    def __post_init__(self) -> None:
        for each in fields(self):
            each.metadata["allowed"].check(each.name, getattr(self, each.name))
        if self.layout == "scaled" and self.fused_until < self.global_until:
            raise ResDiTError(
                f"fused_until is {self.fused_until!r}, below global_until {self.global_until!r}; "
                "raise it to at least that (equal: no fused phase)"
            )
        if self.speed != "exact" and self.fusion != "frequency":
            raise ResDiTError(f"fusion is {quoted(self.fusion)}; with speed {self.speed!r} it must be 'frequency'")
        if not self.pes and self.positions not in ("automatic", "scaled"):
            raise ResDiTError(f"pes is False; with positions {self.positions!r} it must be True")

    def cutoff_cycles(self, scale: float) -> float:
        """The low-pass's cut-off in cycles per token along an axis that is `scale` times as long as the base grid's."""
        return self.cutoff * {"base": 0.5 / scale, "nyquist": 0.5, "sampling": 1.0}[self.cutoff_unit]

    @property
    def acts_at_base(self) -> bool:
        """True where the method has a part in calls at the base size, whose positions RPE-2D changes as well."""
        return self.positions == "rpe-2d"

    def logit_scale(self, tokens: int, base_tokens: int) -> float:
        """Factor on the global branch's logits for `tokens` keys where training had `base_tokens` (text included).

        "log" is ln N / ln N_0 and "sqrt-log" its root (method: attention temperature), both 1 at the base size.
        """
        if isinstance(self.attention_scale, str):
            ratio = math.log(tokens) / math.log(base_tokens)
            return {"off": 1.0, "sqrt-log": math.sqrt(ratio), "log": ratio}[self.attention_scale]
        return float(self.attention_scale)


BALANCED = ResDiTConfig()
# What Balanced was before version 0.2.1.
SCALED = ResDiTConfig(
    layout="scaled",
    speed="exact",
    borders="fixed",
    splice_sigma=0.25,
    cutoff=0.2,
    cutoff_unit="nyquist",
    fresh_noise=0.0,
)
PAPER = replace(SCALED, fused_until=0.57, attention_scale="off")
PRESETS = {"Balanced": BALANCED, "Scaled positions": SCALED, "Paper": PAPER}
