"""The attentions that the method computed inside a model, recorded, and each compared with the float64 reference."""

from types import SimpleNamespace

import numpy as np
import pytest

from resdit_ext.seams import sequence
from tests import reference


def recorded(monkeypatch: pytest.MonkeyPatch) -> list[SimpleNamespace]:
    """A list that grows by one for every attention by the method from now on: what was given and what came out."""
    calls, original = [], sequence.resdit_attention

    def attention(q, k, v, plan, phase, attend):
        out = original(q, k, v, plan, phase, attend)
        calls.append(SimpleNamespace(q=q, k=k, v=v, plan=plan, phase=phase, out=out))
        return out

    monkeypatch.setattr(sequence, "resdit_attention", attention)
    return calls


def check(call: SimpleNamespace, text: int, grid: tuple[int, int], phase: str, **places: object) -> None:
    """Fail unless a recorded attention, with `tests.settings.scaled`, is the reference's.

    Args:
        text: tokens before the image's.
        places: what `reference.resdit` takes of the positions: axes_dim, theta, others, first.
    """
    base = call.plan.layout.base
    expected = reference.resdit(
        *(x[0].double().numpy() for x in (call.q, call.k, call.v)),
        *(text, grid, (base.height, base.width), phase),
        scale=np.log(text + grid[0] * grid[1]) / np.log(text + base.tokens),
        cutoff=0.1,
        sigma=0.25,
        **places,
    )
    assert call.phase.value == phase
    assert np.abs(call.out[0].double().numpy() - expected).max() < 1e-5
