"""Hosts: where a model call is intercepted. None of these modules imports its host before it is used.

Each WebUI is an object of `protocol.Host`; `progress` is the same in all of them. `diffusers` is no WebUI and has
`apply_resdit` in its place.
"""

from __future__ import annotations

from ..errors import Unsupported
from ..families import RecognisedModel, identify
from .a1111 import A1111
from .forge import Forge
from .protocol import Host

HOSTS: tuple[Host, ...] = (Forge(), A1111())
RECOGNISED = "_resdit_model"


def host_of(p: object) -> Host:
    """The WebUI that made `p`; raises Unsupported where it keeps its model as none that is known."""
    for host in HOSTS:
        if host.made(p):
            return host
    raise Unsupported("this WebUI is not supported: Forge, Forge Neo, ersatzForge and AUTOMATIC1111 are")


def running_host() -> Host | None:
    """The WebUI that this process is; None outside one."""
    return next((host for host in HOSTS if host.is_running()), None)


def recognised_model(p: object) -> RecognisedModel:
    """The model of a generation, identified once, and again after a change of it; raises Unsupported."""
    host = host_of(p)
    model = host.model_of(p)
    known = getattr(p, RECOGNISED, None)
    if known is None or known[0] is not model:
        try:
            known = model, identify(model)
        except Unsupported as reason:
            raise Unsupported(f"{reason}{host.advice()}") from None
        setattr(p, RECOGNISED, known)
    return known[1]


def fixed_size(model: object, width: int, height: int) -> tuple[int, int]:
    """A size as the host rounds it by the model's own rule, where it has one: A1111 takes multiples of 16."""
    fix = getattr(model, "fix_dimensions", None)
    return (width, height) if fix is None else fix(width, height)


def loaded_model() -> object | None:
    """The host's model, without having it loaded; None outside a host."""
    try:
        from modules.sd_models import model_data
    except ImportError:
        return None
    return getattr(model_data, "sd_model", None)
