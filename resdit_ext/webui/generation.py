"""One generation request: its state on the host's object, and what becomes of it where ResDiT cannot act."""

from __future__ import annotations

import functools
import logging
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

from ..errors import ResDiTError
from ..hosts import fixed_size, progress
from ..method.run import Run
from . import infotext
from .forecast import Forecast
from .messages import tell
from .options import Request

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
        told: what the user was told of one of its passes before it began.
        owns_final: whether ResDiT makes the picture that is saved, and so also prepares the VAE for it.
    """

    request: Request
    replaced: dict[str, int] = field(default_factory=dict)
    begun: bool = False
    runs: list[Run] = field(default_factory=list)
    sampler: Callable[[], object | None] = field(default=lambda: None)
    told: Forecast | None = None
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
