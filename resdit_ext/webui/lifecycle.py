"""What happens in one generation, hook by hook. Nothing here is kept on the script or on the model."""

from __future__ import annotations

import functools
import logging
import weakref
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

from ..errors import ResDiTError, Unsupported
from ..hosts import fixed_size, host_of, progress, recognised_model
from ..method.config import ResDiTConfig
from ..method.layout import Grid, Layout, make_layout
from ..method.phases import Phase
from ..method.run import UNSUITABLE, Run
from . import infotext, settings, xyz
from .messages import answer, forget, log_to_console, tell, teller
from .options import Request, parse_request
from .passes import final_size, forecast_of, in_hires, set_size, sigmas_of_pass, steps_of, wants_this_pass

__all__ = ["log_to_console", "tell"]

logger = logging.getLogger("ResDiT")
ATTRIBUTE = "_resdit"


@dataclass
class Generation:
    """One generation request.

    Attributes:
        request: the options.
        replaced: the host's own values of the size attributes that were overwritten.
        begun: True once the noise is drawn: from then on the host's own size cannot be restored.
        runs: of its passes.
        sampler: a weak reference to the sampler of the last run.
        owns_final: whether ResDiT makes the picture that is saved, and so also prepares the VAE for it.
    """

    request: Request
    replaced: dict[str, int] = field(default_factory=dict)
    begun: bool = False
    runs: list[Run] = field(default_factory=list)
    sampler: Callable[[], object | None] = field(default=lambda: None)
    owns_final: bool = False

    def release(self) -> None:
        """Free the tensors that the passes so far have kept."""
        for run in self.runs:
            run.release()

    def run_of(self, sampler: object) -> Run | None:
        """The run of the pass that this sampler makes; every pass has a sampler of its own."""
        return self.runs[-1] if self.runs and self.sampler() is sampler else None

    @property
    def calls(self) -> Counter[str]:
        """What happened in all passes so far."""
        return sum((run.calls for run in self.runs), Counter())

    @property
    def acted(self) -> bool:
        """True where the method has run in a model call."""
        return bool(self.calls["blocks"] or self.calls["model calls"])


def shown_steps() -> Callable[[str, int, int], None]:
    """A function to call at each step: it shows the step on the page, and each change of phase in the log."""
    last = None

    def on_step(phase: str, number: int, count: int) -> None:
        nonlocal last
        where = f"{phase} {number}/{count}" if count else phase
        progress.show(where)
        if phase != last:
            logger.info("phase: %s", where)
        last = phase

    return on_step


def refuse(p: object, reason: str) -> None:
    """Let the rest of the generation run as if ResDiT were off, and say why.

    Before the noise is drawn, the host's own size is restored. After that it cannot be, and the reason is one that
    could not be known before: an error of ours, another extension that took the model function, another model in the
    hires pass. The host is not interrupted: it would save noise and drop the rest of a batch, and a pass that starts
    from a picture (img2img, hires) may still turn out well. The progress bar says at once why the user may want to.
    """
    generation = getattr(p, ATTRIBUTE, None)
    if generation is not None and generation.begun:
        progress.show("not active, the console says why")
        if generation.acted:  # the picture is partly ResDiT's: its parameters stay
            generation.sampler = lambda: None
            tell(p, f"not active from here on: {reason}", logging.ERROR)
            return
        reason += "; it was too late to restore the WebUI's size" if generation.replaced else ""
    elif generation is not None:
        put_back(p, generation.replaced)
    setattr(p, ATTRIBUTE, None)
    infotext.remove(p.extra_generation_params)
    p.extra_generation_params[infotext.REFUSED_KEY] = reason
    tell(p, f"not active: {reason}", logging.ERROR)


def put_back(p: object, replaced: dict[str, int]) -> None:
    """Restore the host's own size, rounded as the host has rounded ours by the time of `process`."""
    for name, side in replaced.items():
        setattr(p, name, side)
    if "width" in replaced:
        p.width, p.height = fixed_size(p.sd_model, p.width, p.height)


def guarded(hook: Callable) -> Callable:
    """Make a hook that fails refuse with a message: the host would print a traceback and go on without ResDiT."""

    @functools.wraps(hook)
    def safe(p: object, *args: object, **kwargs: object) -> None:
        try:
            hook(p, *args, **kwargs)
        except ResDiTError as reason:
            refuse(p, str(reason))
        except Exception as error:
            logger.exception("internal error")
            refuse(p, f"internal error ({type(error).__name__}: {error}); please report it with the console's log")

    return safe


def prepare_vae(p: object, generation: Generation) -> None:
    """Let the VAE use tiles where a picture of the final size needs them. An error here is no reason to refuse."""
    if not generation.owns_final:
        return
    try:
        host_of(p).prepare_decode(p, *final_size(p), settings.vae_tiling(), teller(p))
    except Exception:
        logger.exception("the VAE is left to the WebUI")


def clean_up(p: object) -> None:
    """Undo what would outlive the generation: the VAE's copy and the progress text."""
    try:
        progress.clear()
        host_of(p).release_decode(p)
    except Unsupported:
        pass
    except Exception:
        logger.exception("cleaning up failed")


@guarded
def before_process(p: object, *args: object) -> None:
    """Read the options and set the output size, early enough for noise, ControlNet's hint and infotext."""
    setattr(p, ATTRIBUTE, None)
    # What is left of the generation that `p` was copied from (X/Y/Z plot), or of the picture before (img2img's batch).
    forget(p)
    infotext.remove(p.extra_generation_params)
    request = parse_request(xyz.merged(p, args))
    if not request.enabled:
        return
    generation = Generation(request)
    setattr(p, ATTRIBUTE, generation)
    # After an error no hook is called, and the host's unet keeps our wrapper until the next generation.
    weakref.finalize(p, generation.release).atexit = False
    set_size(p, request, generation.replaced)


@guarded
def process(p: object, *_: object) -> None:
    """The model is loaded now: accept or refuse it, say what will happen, and write the parameters."""
    clean_up(p)  # of a generation that ended in an error
    generation = getattr(p, ATTRIBUTE, None)
    if generation is None:
        return
    model = recognised_model(p)
    host_of(p).check_samplers(p)
    forecast = forecast_of(p, generation.request, model.family)
    tell(p, forecast.line(), logging.INFO)
    if forecast.active:
        p.extra_generation_params.update(infotext.parameters(generation.request, final_size(p)))
    else:
        p.extra_generation_params[infotext.REFUSED_KEY] = forecast.idle
    generation.owns_final = forecast.active and (forecast.width, forecast.height) == final_size(p)
    if getattr(p, "init_images", None):
        prepare_vae(p, generation)  # img2img encodes its picture next; the host drops the VAE after that
    generation.begun = True


def method_of_pass(p: object, grid: Grid) -> tuple[Layout, ResDiTConfig] | None:
    """ResDiT's layout of a picture and parameters in the pass that is about to begin; None where it will not act."""
    generation = getattr(p, ATTRIBUTE, None)
    if generation is None or not wants_this_pass(p, generation.request.values["apply_to"]):
        return None
    config = generation.request.config
    layout = make_layout(grid, config)
    return None if layout.is_base else (layout, config)


@guarded
def before_sampling(p: object, *_: object, **kwargs: object) -> None:
    """Attach to this pass's unet; at or below the base size leave it untouched. May be called twice."""
    generation = getattr(p, ATTRIBUTE, None)
    if generation is None:
        return
    prepare_vae(p, generation)
    if not wants_this_pass(p, generation.request.values["apply_to"]):
        return
    model, x = recognised_model(p), kwargs.get("x")
    if x is not None and method_of_pass(p, model.adapter.grid(x)) is None:
        return
    generation.release()  # the passes before, and after a change of model what was made for the other one
    run = generation.run_of(p.sampler)
    if run is None:
        run = Run(generation.request.config, say=teller(p), on_step=shown_steps())
        steps = steps_of(p, in_hires(p))
        run.set_sigmas(sigmas_of_pass(p), steps.listed, steps.skipped)
        if hasattr(p.sampler, "get_timesteps"):
            run.say(f"the sampler's timesteps are made for older models: they {UNSUITABLE}")
        generation.runs.append(run)
        generation.sampler = weakref.ref(p.sampler)
    host_of(p).attach(p, model, run)


@guarded
def before_step(p: object) -> None:
    """Attach again where the host has changed the model in the middle of a pass (refiner), which drops what was set."""
    generation = getattr(p, ATTRIBUTE, None)
    run = None if generation is None else generation.run_of(p.sampler)
    if run is None or host_of(p).is_attached(p):
        return
    run.release()  # made for the other model
    host_of(p).attach(p, recognised_model(p), run)
    logger.info("the model was changed: it has ResDiT too")


@guarded
def after_batch(p: object, *_: object, **__: object) -> None:
    """Report pictures on which the method never ran, before their parameters are written."""
    generation = getattr(p, ATTRIBUTE, None)
    if generation is None or not generation.runs or generation.acted or progress.stopped():
        return
    calls = generation.calls
    if any(calls[phase.value] for phase in Phase):
        refuse(p, "no block's attention was changed: reference images (Kontext) and attention masks are not supported")
    elif calls["base"]:
        refuse(p, "another extension called the model on tiles no larger than the base size")
    else:
        refuse(p, "another extension replaced the model function after ResDiT was attached")


def postprocess(p: object, processed: object) -> None:
    """Clean up, and put the messages into the API's answer."""
    clean_up(p)
    answer(p, processed)
    generation = getattr(p, ATTRIBUTE, None)
    if generation is None:
        return
    generation.release()
    if generation.acted:
        calls = generation.calls
        made = {phase.value: calls[phase.value] for phase in Phase if calls[phase.value]}
        logger.info("done: %s", ", ".join(f"{n} {phase}" for phase, n in made.items()))
