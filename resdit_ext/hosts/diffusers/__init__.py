"""diffusers: `apply_resdit(pipe, config)` for the pipelines and transformers of FLUX and SD3."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from ...config import ResDiTConfig
from ...errors import ResDiTError, Unsupported
from ...run import Run
from . import flux, sd3

ADAPTERS = {"FluxTransformer2DModel": flux.resdit_forward, "SD3Transformer2DModel": sd3.resdit_forward}
MARK = "_resdit"


def transformer_of(pipe_or_transformer: object) -> object:
    """The transformer of a pipeline, or itself; the one inside where it was wrapped by torch.compile."""
    transformer = getattr(pipe_or_transformer, "transformer", pipe_or_transformer)
    return getattr(transformer, "_orig_mod", transformer)


def following(scheduler: object | None, run: Run, forward: Callable) -> Callable:
    """`forward`, reading the noise levels first, which a pipeline's scheduler only has once it runs."""

    def wrapped(*args: object, **kwargs: object) -> object:
        if scheduler is not None and scheduler.sigmas is not None:
            run.set_sigmas(scheduler.sigmas)
        return forward(*args, **kwargs)

    return wrapped


def apply_resdit(
    pipe_or_transformer: object, config: ResDiTConfig | None = None, sigmas: Sequence[float] | None = None
) -> Run:
    """Make a diffusers pipeline or transformer generate above its training size; applying again replaces.

    Args:
        pipe_or_transformer: a FluxPipeline or StableDiffusion3Pipeline (any variant), or the transformer of one.
        config: the method's parameters, by default the Balanced setting.
        sigmas: the run's full list of noise levels; by default the pipeline's scheduler's, or FLUX.1's own.

    Returns:
        The Run, whose `calls` counts what was computed.

    Raises:
        Unsupported: neither a FLUX.1 nor an SD3 transformer, or a diffusers too old to be hooked.

    Example:
        >>> apply_resdit(pipe)  # doctest: +SKIP
        >>> pipe("a lighthouse at dusk", height=3072, width=3072)  # doctest: +SKIP
    """
    config = ResDiTConfig() if config is None else config
    if not isinstance(config, ResDiTConfig):
        raise ResDiTError(f"config is {config!r}; pass a ResDiTConfig")
    transformer = transformer_of(pipe_or_transformer)
    scheduler = getattr(pipe_or_transformer, "scheduler", None) if sigmas is None else None
    adapter = ADAPTERS.get(type(transformer).__name__)
    if adapter is None:
        raise Unsupported(f"{type(transformer).__name__} is not one of {', '.join(ADAPTERS)}")
    remove_resdit(transformer)
    run = Run(config, sigmas)
    before = transformer.forward
    after = following(scheduler, run, adapter(transformer, run, before))
    setattr(transformer, MARK, (before, after))
    transformer.forward = after
    return run


def remove_resdit(pipe_or_transformer: object) -> None:
    """Undo `apply_resdit`; does nothing where it was not applied.

    Raises:
        ResDiTError: something else (an offload hook) has wrapped the forward since; remove that first.
    """
    transformer = transformer_of(pipe_or_transformer)
    if not hasattr(transformer, MARK):
        return
    before, after = getattr(transformer, MARK)
    if transformer.forward is not after:
        raise ResDiTError("the transformer's forward was wrapped again after apply_resdit; remove that wrapper first")
    if getattr(before, "__self__", None) is transformer and before.__name__ == "forward":
        del transformer.forward  # the class's own method shows through again
    else:
        transformer.forward = before
    delattr(transformer, MARK)
