"""The timestep shift, how long noise levels stay high: sigma' = a sigma / (1 + (a - 1) sigma), a = e^mu.

The larger a picture, the more of it can be seen through noise of one level. Shifting twice is shifting once by the sum
of both mu, so that a list of levels can be shifted further without knowing how it was made.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor

DEFAULT_SHIFT = 1.15  # mu, where nothing is known of the model
LOWEST_SHIFT, HIGHEST_SHIFT = 0.0, 5.0  # of mu; at 5 the last of 28 steps begins at a noise level of .85


def shifted(sigma: float | Tensor, mu: float) -> float | Tensor:
    """sigma' = a sigma / (1 + (a - 1) sigma) with a = e^mu: 0 and 1 stay, what lies between rises with mu."""
    a = math.exp(mu)
    return a * sigma / (1 + (a - 1) * sigma)


def shifted_sigmas(steps: int, mu: float = DEFAULT_SHIFT) -> tuple[float, ...]:
    """`steps` + 1 flow-matching noise levels from 1 to 0, at equal distances before their shift."""
    return tuple(shifted(1 - i / steps, mu) for i in range(steps + 1))


def shift_by_size(tokens: int, base_tokens: int) -> float:
    """ln(N / N_0) / 2: how much mu grows from N_0 image tokens to N, so that a grows with the picture's side."""
    return math.log(tokens / base_tokens) / 2


def shift_of(levels: Sequence[float] | Tensor) -> float | None:
    """mu of noise levels for t = 1/n, 2/n, .., 1, as a WebUI's model has them; None where they follow no such law."""
    n = len(levels)
    places = [round(n * share) for share in (0.25, 0.5, 0.75)]
    if n < 100:
        return None
    pairs = [(float(levels[place - 1]), place / n) for place in places]
    if not all(0 < sigma < 1 for sigma, _ in pairs):
        return None
    found = [math.log(sigma / (1 - sigma)) - math.log(t / (1 - t)) for sigma, t in pairs]
    return found[1] if max(found) - min(found) < 1e-3 else None
