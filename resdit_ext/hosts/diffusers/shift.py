"""The shift of a pipeline's noise levels, which diffusers lets grow with the picture without a bound.

It is linear in the number of tokens: 1.15 at 1024 pixels squared, 6.7 at 3072 and 11.6 at 4096, where the last of 28
steps would begin at a noise level of .9998. What a model was trained with ends at its training size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

from ...families import Family
from ...method.config import check_number
from ...method.run import Run
from ...method.shift import HIGHEST_SHIFT, LOWEST_SHIFT, shift_by_size
from ...monkeypatch import intercepted

FAMILYS_OWN, BY_SIZE = "family", "automatic"


def check_shift(shift: object) -> None:
    """Raise ResDiTError unless `shift` is None, "family", "automatic" or a number that leaves a picture denoised."""
    if shift is not None and shift not in (FAMILYS_OWN, BY_SIZE):
        check_number("shift", shift, LOWEST_SHIFT, HIGHEST_SHIFT)


def tokens_for(mu: float, config: object) -> float:
    """The number of image tokens for which a pipeline asks its scheduler for the shift `mu`; 0 if for any number.

    The inverse of the line through (base_image_seq_len, base_shift) and (max_image_seq_len, max_shift).
    """
    low, high = config.get("base_image_seq_len", 256), config.get("max_image_seq_len", 4096)
    least, most = config.get("base_shift", 0.5), config.get("max_shift", 1.15)
    return low + (mu - least) * (high - low) / (most - least) if most != least else 0


@contextmanager
def pinned_shift(scheduler: object, run: Run, shift: float | str | None, family: Family) -> Iterator[None]:
    """Have the scheduler use `shift` above the base size for the duration of the block; None leaves it as it is.

    Only a scheduler with `use_dynamic_shifting` is given a shift by its pipeline.

    Args:
        scheduler: the pipeline's.
        run: the generation's parameters and plans.
        shift: mu, "family" for the family's own, or "automatic" for one that grows with the picture's side.
        family: the model's, with its own shift at its training size.
    """

    def around(set_timesteps: Callable, *args: object, **kwargs: object) -> object:
        mu, base = kwargs.get("mu"), run.config.base_tokens
        tokens_of = family.tokens_of_shift or partial(tokens_for, config=scheduler.config)
        tokens = 0 if mu is None else round(tokens_of(mu))
        if tokens > base:
            ours = {FAMILYS_OWN: family.shift, BY_SIZE: family.shift + shift_by_size(tokens, base)}.get(shift, shift)
            run.say(
                f"the pipeline's shift for this size, {mu:.2f}, would leave noise in the picture: {ours:.4g} is used "
                "(apply_resdit's shift; None leaves the pipeline's)"
            )
            kwargs["mu"] = ours
        return set_timesteps(*args, **kwargs)

    follows_size = getattr(scheduler.config, "use_dynamic_shifting", False)
    if shift not in (None, FAMILYS_OWN) and not follows_size:
        run.say(
            f"shift {shift} is not used: this pipeline's scheduler has one of its own for all sizes "
            "(use_dynamic_shifting is off), which can be set there"
        )
    dynamic = shift is not None and follows_size
    with intercepted([(scheduler, "set_timesteps", around)] if dynamic else []):
        yield
