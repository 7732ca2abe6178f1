"""diffusers: `apply_resdit(pipe, config)` for the pipelines, transformers and control nets of FLUX and SD3."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from ...config import ResDiTConfig
from ...errors import ResDiTError, Unsupported
from ...run import Run
from . import control, flux, sd3

ADAPTERS = {
    "FluxTransformer2DModel": flux.resdit_forward,
    "SD3Transformer2DModel": sd3.resdit_forward,
    "FluxControlNetModel": control.flux_forward,
    "SD3ControlNetModel": control.sd3_forward,
}
MARK = "_resdit"


def models_of(pipe_or_model: object) -> list[object]:
    """The transformer of a pipeline and its control nets, or the model itself; without torch.compile's wrapper."""
    transformer = getattr(pipe_or_model, "transformer", pipe_or_model)
    controlnet = getattr(pipe_or_model, "controlnet", None)
    models = [transformer, *getattr(controlnet, "nets", [] if controlnet is None else [controlnet])]
    return [getattr(model, "_orig_mod", model) for model in models]


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
        pipe_or_transformer: a FluxPipeline or StableDiffusion3Pipeline (any variant, with its control nets), or the
            transformer of one.
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
    models = models_of(pipe_or_transformer)
    scheduler = getattr(pipe_or_transformer, "scheduler", None) if sigmas is None else None
    if unknown := [model for model in models if type(model).__name__ not in ADAPTERS]:
        raise Unsupported(f"{type(unknown[0]).__name__} is not one of {', '.join(ADAPTERS)}")
    remove_resdit(pipe_or_transformer)
    run, forwards = Run(config, sigmas), []
    for model in models:
        adapter = ADAPTERS[type(model).__name__]
        forwards.append((model.forward, following(scheduler, run, adapter(model, run, model.forward))))
    for model, (before, after) in zip(models, forwards, strict=True):
        setattr(model, MARK, (before, after))
        model.forward = after
    return run


def remove_resdit(pipe_or_transformer: object) -> None:
    """Undo `apply_resdit`; does nothing where it was not applied.

    Raises:
        ResDiTError: something else (an offload hook) has wrapped the forward since; remove that first.
    """
    marked = [model for model in models_of(pipe_or_transformer) if hasattr(model, MARK)]
    if any(model.forward is not getattr(model, MARK)[1] for model in marked):
        raise ResDiTError("the model's forward was wrapped again after apply_resdit; remove that wrapper first")
    for model in marked:
        before, _ = getattr(model, MARK)
        if getattr(before, "__self__", None) is model and before.__name__ == "forward":
            del model.forward  # the class's own method shows through again
        else:
            model.forward = before
        delattr(model, MARK)
