"""The LoRAs of a generation, with the metadata that the host has read: the same extension in every WebUI.

Only names are looked up, in the host's own list of files; nothing is opened here.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from types import ModuleType

from ..errors import in_words

logger = logging.getLogger("ResDiT")
KINDS = ("lora", "lyco")  # <lora:name:1>, and the older word for the same


@dataclass(frozen=True)
class Lora:
    """A LoRA that changes the model.

    Attributes:
        name: as the prompt has it.
        metadata: of its file.
    """

    name: str
    metadata: Mapping[str, object] = field(default_factory=dict)


def _networks() -> ModuleType | None:
    """The module in which the host lists its LoRAs; None outside a host, or without its LoRA extension."""
    try:
        from modules import extra_networks
    except ImportError:
        return None
    lora = getattr(extra_networks, "extra_network_registry", {}).get(KINDS[0])
    return getattr(sys.modules.get(type(lora).__module__), "networks", None)


def weight_of(entry: object) -> float:
    """The weight of a prompt's entry in the diffusion model: its third item or `unet=`, else that of the text."""
    named, items = entry.named, entry.positional
    text = named.get("te", items[1] if len(items) > 1 else 1)
    return float(named.get("unet", items[2] if len(items) > 2 else text))


def _known(entries: Iterable[object]) -> list[Lora]:
    """Those of a prompt's entries that the host has files of and that change the diffusion model."""
    networks, found = _networks(), []
    for entry in entries if networks is not None else ():
        name = entry.positional[0]
        ambiguous = name.lower() in networks.forbidden_network_aliases
        file = (networks.available_networks if ambiguous else networks.available_network_aliases).get(name)
        if file is not None and weight_of(entry):
            found.append(Lora(name, file.metadata or {}))
    return found


def loras_in(prompt: str) -> list[Lora]:
    """The LoRAs that a prompt names."""
    if _networks() is None or "<" not in prompt:
        return []
    from modules import extra_networks

    return _guarded(lambda: extra_networks.parse_prompt(prompt)[1])


def loras_of_pass(p: object, hires: bool) -> list[Lora]:
    """The LoRAs of the pass that is about to begin, of which the host has parsed the prompt."""
    name = "hr_extra_network_data" if hires else "extra_network_data"
    return [] if getattr(p, "disable_extra_networks", False) else _guarded(lambda: getattr(p, name, None) or {})


def _guarded(parse: Callable[[], Mapping[str, Iterable[object]]]) -> list[Lora]:
    """The LoRAs of the entries that `parse` returns by their kind; none, with a line in the log, where that fails."""
    try:
        data = parse()
        return _known(entry for kind in KINDS for entry in data.get(kind, ()))
    except Exception as error:
        logger.warning("the prompt's LoRAs are not looked at (%s)", in_words(error))
        return []
