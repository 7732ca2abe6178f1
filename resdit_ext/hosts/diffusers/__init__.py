"""diffusers: `apply_resdit(pipe, config)` for the pipelines, transformers and control nets of the families.

Only calls of the objects that are given go through this package, and only of them: a second pipeline in the process is
never touched, and offloading, compiling, LoRA and IP-Adapter may come before or after.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from ...errors import ResDiTError, Unsupported
from ...families import Family, families, family_of_class, fitting_positions
from ...method.config import ResDiTConfig
from ...method.run import Run
from ...monkeypatch import intercept, let_go
from ...seams.ulysses_diffusers import ranks_of
from .halves import check_batch_group, in_parts
from .parallel import enable_parallelism
from .shift import FAMILYS_OWN, check_shift, pinned_shift

if TYPE_CHECKING:  # not every build of torch has torch.distributed
    from torch.distributed import ProcessGroup

__all__ = ["apply_resdit", "enable_parallelism", "remove_resdit"]


def models_of(pipe_or_model: object) -> list[object]:
    """The transformer of a pipeline and its control nets, or the model itself."""
    transformer = getattr(pipe_or_model, "transformer", pipe_or_model)
    controlnet = getattr(pipe_or_model, "controlnet", None)
    return [transformer, *getattr(controlnet, "nets", [] if controlnet is None else [controlnet])]


def inner(model: object) -> object:
    """The model without torch.compile's wrapper."""
    return getattr(model, "_orig_mod", model)


def is_pipeline(given: object) -> bool:
    """True for what has a transformer and a scheduler and is called for pictures."""
    return all(getattr(given, name, None) is not None for name in ("transformer", "scheduler"))


class Levels:
    """The noise levels of a scheduler, read into the run when there are new ones; those given by hand stay."""

    def __init__(self, run: Run, fixed: bool) -> None:
        self.run, self.fixed, self.scheduler, self._read = run, fixed, None, None

    def refresh(self) -> None:
        """Read them again if the scheduler has made others since; reading waits for the device."""
        sigmas = None if self.fixed else getattr(self.scheduler, "sigmas", None)
        if sigmas is not None and sigmas is not self._read:
            self.run.set_sigmas(sigmas)
            self._read = sigmas


def wants_one_graph(error: Exception) -> bool:
    """True for the error of a model compiled with `fullgraph=True` that meets code which is not to be compiled."""
    return type(error).__module__ == "torch._dynamo.exc" and "torch.compiler.disable" in str(error)


def one_by_one(levels: Levels, around: Callable) -> Callable:
    """`around` with what every model's call needs first; two threads' calls of one model come one after another."""
    lock = threading.RLock()

    def guarded(call: Callable, *args: object, **kwargs: object) -> object:
        with lock:
            levels.refresh()
            try:
                return around(call, *args, **kwargs)
            except RuntimeError as error:
                if not wants_one_graph(error):
                    raise
                raise Unsupported(
                    "the model is compiled with fullgraph=True, and ResDiT needs a graph break in every attention: "
                    "compile it without fullgraph"
                ) from error

    return guarded


def around_pipeline(pipe: object, levels: Levels, shift: float | str | None, family: Family) -> Callable:
    """`around(call, ...)` for a pipeline: its scheduler, whichever it has by then, is followed and its shift pinned."""

    def around(call: Callable, *args: object, **kwargs: object) -> object:
        levels.scheduler = pipe.scheduler
        with pinned_shift(pipe.scheduler, levels.run, shift, family):
            try:
                return call(*args, **kwargs)
            finally:
                levels.run.fresh_noise.forget()

    return around


def apply_resdit(
    pipe_or_transformer: object,
    config: ResDiTConfig | None = None,
    sigmas: Sequence[float] | None = None,
    shift: float | str | None = FAMILYS_OWN,
    batch_group: ProcessGroup | None = None,
) -> Run:
    """Make a diffusers pipeline or transformer generate above its training size; applying again replaces.

    Args:
        pipe_or_transformer: a pipeline of a supported family (any variant, with its control nets), or the transformer
            of one, compiled or not.
        config: the method's parameters, by default the Balanced setting at the family's base size.
        sigmas: the run's full list of noise levels; by default the pipeline's scheduler's, or the family's own.
        shift: mu of the noise levels above the base size, 0 to 5, by default the family's at its training size; without
            it diffusers' would grow until pictures above 2048 pixels are not denoised. "automatic" adds half of ln of
            the ratio of areas, so that e^mu grows with the side. None leaves the pipeline's own; a transformer alone
            has none.
        batch_group: processes that share a batch, as SD3's two halves of guidance (two are enough for it); each must be
            given the same.

    Returns:
        The Run, whose `calls` counts what was computed.

    Raises:
        Unsupported: a transformer of no supported family, a diffusers too old to be hooked, or tokens that are shared
            among devices in another way than diffusers' Ulysses.
        ResDiTError: `config` is no ResDiTConfig, or `shift` is out of range.

    Example:
        >>> apply_resdit(pipe)  # doctest: +SKIP
        >>> pipe("a lighthouse at dusk", height=3072, width=3072)  # doctest: +SKIP
    """
    if not isinstance(config, ResDiTConfig | None):
        raise ResDiTError(f"config is {config!r}; pass a ResDiTConfig")
    check_shift(shift)
    models = models_of(pipe_or_transformer)
    found = [family_of_class(type(inner(model)).__name__) for model in models]
    if None in found:
        ranks_of(inner(models[found.index(None)]))  # which refuses other engines' wrappers with a better reason
        known = ", ".join(name for family in families() for name in family.diffusers)
        raise Unsupported(f"{type(inner(models[found.index(None)])).__name__} is not one of {known}")
    config = ResDiTConfig(base_tokens=found[0].base_tokens) if config is None else config
    config, problem = fitting_positions(config, found[0])
    check_batch_group(batch_group, found[0])
    run, arounds = Run(config, sigmas), []
    if problem:
        run.say(problem)
    levels = Levels(run, fixed=sigmas is not None)
    for model, family in zip(models, found, strict=True):
        around = family.diffusers[type(inner(model)).__name__](inner(model), run)
        if batch_group is not None:
            around = in_parts(inner(model), run, around, batch_group)
        arounds.append(one_by_one(levels, around))
    remove_resdit(pipe_or_transformer)
    for model, around in zip(models, arounds, strict=True):
        intercept(model, "__call__", around)
    if is_pipeline(pipe_or_transformer):
        intercept(pipe_or_transformer, "__call__", around_pipeline(pipe_or_transformer, levels, shift, found[0]))
    return run


def remove_resdit(pipe_or_transformer: object) -> None:
    """Undo `apply_resdit`; does nothing where it was not applied."""
    for model in models_of(pipe_or_transformer):
        let_go(model)
        let_go(inner(model))
    let_go(pipe_or_transformer)
