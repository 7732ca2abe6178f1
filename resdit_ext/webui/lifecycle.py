"""What happens in one generation, hook by hook. Nothing here is kept on the script or on the model."""

from __future__ import annotations

import functools
import logging
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

from ..config import ResDiTConfig
from ..errors import ResDiTError, Unsupported
from ..geometry import Grid, Layout, make_layout
from ..hosts import host_of, progress
from ..run import Run
from . import infotext, settings, xyz
from .forecast import forecast
from .options import BOTH_PASSES, FIRST_PASS, HIRES_PASS, WEBUI_SIZE, Request, output_size, parse_request

logger = logging.getLogger("ResDiT")
ATTRIBUTE, SAID = "_resdit", "_resdit_said"


def log_to_console() -> None:
    """Show our messages, by name, in the host's console: the hosts set up no logging of their own by default."""
    if not logger.handlers:
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter("[ResDiT] %(message)s"))
        logger.addHandler(handler)
        logger.setLevel(logging.INFO)
        logger.propagate = False


@dataclass
class Generation:
    """One order of pictures.

    Attributes:
        request: the options.
        replaced: the size attributes that were overwritten.
        runs: of its passes.
        owns_final: whether ResDiT makes the picture that is saved, so that its VAE is our affair too.
    """

    request: Request
    replaced: dict[str, int] = field(default_factory=dict)
    runs: list[Run] = field(default_factory=list)
    owns_final: bool = False

    def release(self) -> None:
        """Free what the passes so far have made on the device."""
        for run in self.runs:
            run.release()


def tell(p: object, message: str) -> None:
    """Tell the user something, in the log and under the image, once in a generation."""
    said = getattr(p, SAID, ())
    if message not in said:
        setattr(p, SAID, (*said, message))
        logger.warning(message)
        p.comment(f"ResDiT: {message}")


def shown_steps() -> Callable[[str, int, int], None]:
    """The function that a run tells its steps: each goes to the page, each change of phase to the log."""
    last = None

    def on_step(phase: str, number: int, count: int) -> None:
        nonlocal last
        where = f"{phase} {number}/{count}" if count else phase
        progress.show(where)
        if phase != last:
            logger.info("phase: %s", where)
        last = phase

    return on_step


def refuse(p: object, reason: object) -> None:
    """Tell the user why the image is made without ResDiT, in the log, under the image and in its parameters."""
    logger.error("not active: %s", reason)
    p.comment(f"ResDiT is not active: {reason}")
    p.extra_generation_params[infotext.REFUSED_KEY] = str(reason)


def guarded(hook: Callable) -> Callable:
    """Make a hook refuse with a message where it fails: the host would print a traceback and go on unpatched."""

    @functools.wraps(hook)
    def safe(p: object, *args: object, **kwargs: object) -> None:
        try:
            hook(p, *args, **kwargs)
        except ResDiTError as reason:
            setattr(p, ATTRIBUTE, None)
            refuse(p, reason)
        except Exception as error:
            setattr(p, ATTRIBUTE, None)
            logger.exception("internal error")
            refuse(p, f"internal error ({type(error).__name__}: {error}); please report it with the console's log")

    return safe


def prepare_vae(p: object, generation: Generation) -> None:
    """Have the VAE use tiles where a picture of the final size needs it. An error here is no reason to refuse."""
    if not generation.owns_final:
        return
    try:
        host_of(p).prepare_decode(p, *final_size(p), settings.vae_tiling(), functools.partial(tell, p))
    except Exception:
        logger.exception("the VAE is left to the WebUI")


def leave_no_trace(p: object) -> None:
    """Undo what outlives a generation: the VAE's copy and the progress text."""
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
    if hasattr(p, SAID):  # of the generation that this one's object was copied from (X/Y/Z plot)
        delattr(p, SAID)
    request = parse_request(xyz.merged(p, args))
    if not request.enabled:
        return
    generation = Generation(request)
    setattr(p, ATTRIBUTE, generation)
    if request.values["size"] == WEBUI_SIZE:
        return
    size = output_size(request.values, p.width, p.height)
    # With hires the size is that of the picture that is saved.
    names = ("hr_resize_x", "hr_resize_y") if getattr(p, "enable_hr", False) else ("width", "height")
    for name, side in zip(names, size, strict=True):
        generation.replaced[name] = getattr(p, name)
        setattr(p, name, side)


def final_size(p: object) -> tuple[int, int]:
    """(width, height) of the picture that will be saved."""
    if not getattr(p, "enable_hr", False):
        return p.width, p.height
    x, y = p.hr_resize_x, p.hr_resize_y
    if x == 0 and y == 0:
        return int(p.width * p.hr_scale), int(p.height * p.hr_scale)
    return x or y * p.width // p.height, y or x * p.height // p.width


@guarded
def process(p: object, *_: object) -> None:
    """The model is loaded now: accept or refuse it, say what will happen, and write the parameters."""
    leave_no_trace(p)  # of a generation that ended in an error
    generation = getattr(p, ATTRIBUTE, None)
    if generation is None:
        return
    try:
        family = host_of(p).family_of(p)
    except Unsupported:
        for name, side in generation.replaced.items():  # the image is to be made as if we were off
            setattr(p, name, side)
        raise
    hires = getattr(p, "enable_hr", False)
    first_only = hires and generation.request.values["apply_to"] == FIRST_PASS
    size = (p.width, p.height) if first_only else final_size(p)
    # Which of its steps a later pass or img2img will run is the host's to decide.
    steps = None if (hires and not first_only) or getattr(p, "init_images", None) else p.steps
    plan = forecast(generation.request, *size, steps, family)
    logger.info(plan.line())
    p.comment(f"ResDiT {plan.line()}")
    p.extra_generation_params.update(infotext.parameters(generation.request))
    generation.owns_final = plan.active and not first_only
    if getattr(p, "init_images", None):
        prepare_vae(p, generation)  # img2img encodes its picture next; the host drops the VAE after that


def run_sigmas(p: object, steps: int) -> object | None:
    """The pass's full list of noise levels from its sampler; None where the sampler has no such list."""
    get_sigmas = getattr(p.sampler, "get_sigmas", None)
    return get_sigmas(p, steps) if get_sigmas is not None else None


def wants_this_pass(p: object, apply_to: str) -> bool:
    """True unless the choice excludes the pass that is about to begin; without hires there is one pass, the first."""
    is_hires = bool(getattr(p, "is_hr_pass", False))
    return not getattr(p, "enable_hr", False) or apply_to == BOTH_PASSES or is_hires == (apply_to == HIRES_PASS)


def steps_of_pass(p: object) -> int:
    """How many steps the pass that is about to begin was ordered with."""
    return (p.hr_second_pass_steps if getattr(p, "is_hr_pass", False) else 0) or p.steps


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
    host = host_of(p)
    family = host.family_of(p)
    x = kwargs.get("x")
    run = Run(generation.request.config, say=functools.partial(tell, p), on_step=shown_steps())
    if x is not None and run.layout(family.grid(x)).is_base:
        return
    steps = steps_of_pass(p)
    run.set_sigmas(run_sigmas(p, steps), steps)
    host.attach_to(p, run)
    generation.release()
    generation.runs.append(run)


def postprocess(p: object, processed: object) -> None:
    """Leave nothing, and report a pass in which the method never ran: another extension is in its way."""
    leave_no_trace(p)
    generation = getattr(p, ATTRIBUTE, None)
    if generation is None or not generation.runs:
        return
    generation.release()
    calls = sum((run.calls for run in generation.runs), Counter())
    if calls["blocks"] or calls["model calls"]:
        logger.info(
            "done: %s", ", ".join(f"{calls[name]} {name}" for name in ("global", "fused", "local") if calls[name])
        )
        return
    if calls["base"]:
        message = "ResDiT did nothing: another extension called the model on tiles no larger than the base size"
    else:
        message = "ResDiT did not run: another extension replaced the model function after it was attached"
    logger.error(message)
    processed.comments += f"{message}\n"
