"""The shift of a pipeline's noise levels, which diffusers lets grow with the picture without a bound.

It is linear in the number of tokens: 1.15 at 1024 pixels squared, 6.7 at 3072 and 11.6 at 4096, where the last of 28
steps would begin at a noise level of .9998. What a model was trained with ends at its training size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from ...method.config import check_number
from ...method.run import Run
from ...monkeypatch import intercepted

LOWEST, HIGHEST = 0.0, 5.0
FAMILYS_OWN = "family"


def check_shift(shift: object) -> None:
    """Raise ResDiTError unless `shift` is None, "family" or a number that leaves a picture denoised."""
    if shift is not None and shift != FAMILYS_OWN:
        check_number("shift", shift, LOWEST, HIGHEST)


def tokens_for(mu: float, config: object) -> float:
    """The number of image tokens for which a pipeline asks its scheduler for the shift `mu`; 0 if for any number.

    The inverse of the line through (base_image_seq_len, base_shift) and (max_image_seq_len, max_shift).
    """
    low, high = config.get("base_image_seq_len", 256), config.get("max_image_seq_len", 4096)
    least, most = config.get("base_shift", 0.5), config.get("max_shift", 1.15)
    return low + (mu - least) * (high - low) / (most - least) if most != least else 0


@contextmanager
def pinned_shift(scheduler: object, run: Run, shift: float | None) -> Iterator[None]:
    """Have the scheduler use `shift` (mu) above the base size for the duration of the block; None leaves it as it is.

    Only a scheduler with `use_dynamic_shifting` is given a shift by its pipeline.
    """

    def around(set_timesteps: Callable, *args: object, **kwargs: object) -> object:
        mu = kwargs.get("mu")
        if mu is not None and round(tokens_for(mu, scheduler.config)) > run.config.base_tokens:
            run.say(
                f"the pipeline's shift for this size, {mu:.2f}, would leave noise in the picture: {shift:g} is used "
                "(apply_resdit's shift; None leaves the pipeline's)"
            )
            kwargs["mu"] = shift
        return set_timesteps(*args, **kwargs)

    dynamic = shift is not None and getattr(scheduler.config, "use_dynamic_shifting", False)
    with intercepted([(scheduler, "set_timesteps", around)] if dynamic else []):
        yield
