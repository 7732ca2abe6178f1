"""The attentions that the method computed inside a model, recorded, and each compared with the float64 reference."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np
from torch import Tensor

from resdit_ext.method.in_attention import AttentionPlan
from resdit_ext.method.phases import Phase
from resdit_ext.monkeypatch import swapped
from resdit_ext.seams import sequence
from tests import reference


class Attention(NamedTuple):
    """What the method was given in place of an attention, what it returned, and by which plan and phase."""

    q: Tensor
    k: Tensor
    v: Tensor
    out: Tensor
    plan: AttentionPlan
    phase: Phase


@contextmanager
def recorded() -> Iterator[list[Attention]]:
    """A list that grows by one for every attention that the method computes in the block of this."""
    calls, original = [], sequence.resdit_attention

    def attention(q: Tensor, k: Tensor, v: Tensor, plan: AttentionPlan, phase: Phase, *rest: object) -> Tensor:
        taken = [x.clone() for x in (q, k, v)]  # ersatzForge reuses its buffers
        out = original(q, k, v, plan, phase, *rest)
        calls.append(Attention(*taken, out.clone(), plan, phase))
        return out

    with swapped(sequence, resdit_attention=attention):
        yield calls


def expected(
    q: np.ndarray,
    k: np.ndarray,
    v: np.ndarray,
    text: int,
    grid: tuple[int, int],
    base: tuple[int, int],
    phase: str,
    **places: object,
) -> np.ndarray:
    """The float64 reference for one picture with `tests.settings.scaled`.

    Args:
        text: tokens before the image's.
        grid, base: (rows, columns) of tokens, of the output and of a patch.
        phase: of the call.
        places: what `reference.resdit` takes of the positions: axes_dim, theta, whole, patch, laws, others, first.
    """
    scale = np.log(text + grid[0] * grid[1]) / np.log(text + base[0] * base[1])
    return reference.resdit(q, k, v, text, grid, base, phase, scale=scale, cutoff=0.1, sigma=0.25, **places)


def check(call: Attention, text: int, grid: tuple[int, int], phase: str, **places: object) -> None:
    """Fail unless the first picture of a recorded attention is the reference's; the arguments are `expected`'s."""
    q, k, v, got = (x[0].double().numpy() for x in call[:4])
    base = call.plan.layout.base
    assert call.phase.value == phase
    assert np.abs(got - expected(q, k, v, text, grid, (base.height, base.width), phase, **places)).max() < 1e-5
