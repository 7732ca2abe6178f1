"""The hosts' LoRA extension: how a prompt's entries are parsed, and the list of files with their metadata."""

import re
import sys
from collections import defaultdict
from types import ModuleType, SimpleNamespace


class Entry:
    """One `<lora:name:1:unet=0.5>` of a prompt."""

    def __init__(self, text):
        items = text.split(":")
        self.positional = [item for item in items if "=" not in item]
        self.named = dict(item.split("=") for item in items if "=" in item)


def parse_prompt(prompt):
    """(the prompt without them, {kind: entries})."""
    found = defaultdict(list)
    for kind, rest in re.findall(r"<(\w+):([^>]+)>", prompt):
        found[kind].append(Entry(rest))
    return re.sub(r"<\w+:[^>]+>", "", prompt), found


class ExtraNetworkLora:
    pass


def install(monkeypatch, files, aliases=None, forbidden=()):
    """Put the extension into the host's modules with these files: {name: metadata}."""
    if "modules" not in sys.modules:
        monkeypatch.setitem(sys.modules, "modules", ModuleType("modules"))
    known = {name: SimpleNamespace(name=name, metadata=metadata) for name, metadata in files.items()}
    networks = SimpleNamespace(
        available_networks=known,
        available_network_aliases=known | {alias: known[name] for alias, name in (aliases or {}).items()},
        forbidden_network_aliases=dict.fromkeys(forbidden, 1),
    )
    own, extra = ModuleType("extra_networks_lora"), ModuleType("modules.extra_networks")
    own.networks = networks
    monkeypatch.setattr(ExtraNetworkLora, "__module__", own.__name__)
    extra.extra_network_registry, extra.parse_prompt = {"lora": ExtraNetworkLora()}, parse_prompt
    monkeypatch.setattr(sys.modules["modules"], "extra_networks", extra, raising=False)
    for module in (own, extra):
        monkeypatch.setitem(sys.modules, module.__name__, module)


def prompted(prompt, hires_prompt=None):
    """What the host's `p` has of a prompt by the time of sampling."""
    return dict(
        prompt=prompt,
        all_prompts=[prompt],
        all_hr_prompts=[prompt if hires_prompt is None else hires_prompt],
        extra_network_data=parse_prompt(prompt)[1],
        hr_extra_network_data=parse_prompt(prompt if hires_prompt is None else hires_prompt)[1],
    )
