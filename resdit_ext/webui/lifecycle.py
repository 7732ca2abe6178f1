"""What happens in one generation, hook by hook. Nothing here is kept on the script or on the model."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from dataclasses import dataclass, field

from ..errors import ResDiTError, Unsupported
from ..hosts import host_of
from ..run import Run
from . import infotext
from .options import Request, output_size, parse_request
from .status import describe

logger = logging.getLogger("ResDiT")
ATTRIBUTE = "_resdit"


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
    """One order of pictures: the request, the size attributes it replaced, and the runs of its passes."""

    request: Request
    replaced: dict[str, int] = field(default_factory=dict)
    runs: list[Run] = field(default_factory=list)

    def release(self) -> None:
        """Free what the passes so far have made on the device."""
        for run in self.runs:
            run.release()


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


@guarded
def before_process(p: object, *args: object) -> None:
    """Read the options and set the output size, early enough for noise, ControlNet's hint and infotext."""
    setattr(p, ATTRIBUTE, None)
    request = parse_request(args)
    if not request.enabled:
        return
    generation = Generation(request)
    setattr(p, ATTRIBUTE, generation)
    size = output_size(request.values)
    if size is None:
        return
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
    generation = getattr(p, ATTRIBUTE, None)
    if generation is None:
        return
    try:
        family = host_of(p).family_of(p)
    except Unsupported:
        for name, side in generation.replaced.items():  # the image is to be made as if we were off
            setattr(p, name, side)
        raise
    _, line = describe(generation.request, *final_size(p), p.steps, family)
    logger.info(line)
    p.comment(f"ResDiT {line}")
    p.extra_generation_params.update(infotext.parameters(generation.request))


def run_sigmas(p: object, steps: int) -> object | None:
    """The pass's full list of noise levels from its sampler; None where the sampler has no such list."""
    get_sigmas = getattr(p.sampler, "get_sigmas", None)
    return get_sigmas(p, steps) if get_sigmas is not None else None


@guarded
def before_sampling(p: object, *_: object, **kwargs: object) -> None:
    """Attach to this pass's unet; at or below the base size leave it untouched. May be called twice."""
    generation = getattr(p, ATTRIBUTE, None)
    if generation is None:
        return
    host = host_of(p)
    family = host.family_of(p)
    x = kwargs.get("x")

    def say(message: str) -> None:
        logger.warning(message)
        p.comment(f"ResDiT: {message}")

    run = Run(generation.request.config, say=say)
    if x is not None and run.layout(family.grid(x)).is_base:
        return
    hires_steps = p.hr_second_pass_steps if getattr(p, "is_hr_pass", False) else 0
    steps = hires_steps or p.steps
    run.set_sigmas(run_sigmas(p, steps), steps)
    host.attach_to(p, run)
    generation.release()
    generation.runs.append(run)


def postprocess(p: object, processed: object) -> None:
    """Report a pass whose wrapper was never called: another extension has taken its place."""
    generation = getattr(p, ATTRIBUTE, None)
    if generation is None or not generation.runs:
        return
    generation.release()
    calls = generation.runs[-1].calls
    if calls["blocks"] or calls["model calls"]:
        logger.info(
            "done: %s", ", ".join(f"{calls[name]} {name}" for name in ("global", "fused", "local") if calls[name])
        )
        return
    message = "ResDiT did not run: another extension replaced the model function after it was attached"
    logger.error(message)
    processed.comments += f"{message}\n"
