"""What a WebUI checkout, or the running environment, offers the extension: read from source, nothing is executed."""

from __future__ import annotations

import ast
import sys
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

from .errors import ResDiTError
from .families import Support, families, names_of_all

PACKAGES = {"torch": (2, 3), "numpy": (1, 26), "safetensors": (0, 4), "einops": (0, 4, 1)}


@dataclass
class Report:
    """Findings by line; `usable` unless one of them is an obstacle."""

    lines: list[str] = field(default_factory=list)
    usable: bool = True

    def say(self, good: bool, what: str, advice: str = "") -> None:
        """Add a finding; one that is not good makes the whole unusable and carries advice."""
        self.lines.append(f"{'ok ' if good else 'NO '} {what}{'' if good or not advice else f' -> {advice}'}")
        self.usable &= good

    def note(self, what: str) -> None:
        """Add a fact that is neither good nor bad."""
        self.lines.append(f"--  {what}")

    def __str__(self) -> str:
        return "\n".join([*self.lines, "usable" if self.usable else "not usable"])


def functions(source: Path) -> dict[str, list[str]]:
    """Argument names of every function and `Class.method` in a Python file; empty where it cannot be read."""
    try:
        tree = ast.parse(source.read_text(encoding="utf8"))
    except (OSError, SyntaxError, UnicodeDecodeError):
        return {}
    found = {}
    for node in tree.body:
        if isinstance(node, ast.FunctionDef):
            found[node.name] = [a.arg for a in node.args.args]
        elif isinstance(node, ast.ClassDef):
            found[node.name] = []
            for item in node.body:
                if isinstance(item, ast.FunctionDef):
                    found[f"{node.name}.{item.name}"] = [a.arg for a in item.args.args]
    return found


def host_name(host: Path) -> str:
    """Which of the five known WebUIs a folder holds."""
    if not (host / "modules" / "scripts.py").is_file():
        raise ResDiTError(f"host is {str(host)!r}, which is no WebUI: it has no modules/scripts.py; name its folder")
    if not (host / "modules_forge").is_dir():
        return "AUTOMATIC1111"
    if not (host / "backend").is_dir():
        return "reForge"
    flux = functions(host / "backend" / "nn" / "flux.py")
    if "transformer_options" in flux.get("attention", []):
        return "Forge Neo"
    return "ersatzForge" if "scratchQ" in flux.get("DoubleStreamBlock.forward", []) else "Forge"


def examine_host(host: Path) -> Report:
    """The hook points of a WebUI checkout and the models they serve."""
    report, name = Report(), host_name(host)
    report.note(f"{name} in {host}")
    if name == "reForge":
        report.say(False, f"reForge can load none of {names_of_all()}", "use Forge, Forge Neo or ersatzForge")
        return report
    scripts = functions(host / "modules" / "scripts.py")
    for hook in ("before_process", "process", "process_before_every_sampling", "postprocess", "after_component"):
        report.say(f"Script.{hook}" in scripts, f"modules/scripts.py: Script.{hook}", "update the WebUI")
    components = functions(host / "modules" / "ui_components.py")
    for needed in ("InputAccordion", "ToolButton"):
        report.say(needed in components, f"modules/ui_components.py: {needed}", "update the WebUI")
    if name == "AUTOMATIC1111":
        report.note("ControlNet: none for these models (this WebUI's extension does not know them)")
    else:
        examine_forge(host, report)
    examine_families(host, name, report, "this WebUI", "update the WebUI")
    return report


def found_in(source: Path, need: str) -> bool:
    """Whether a Python file has a function as `name(first, arguments)` or `Class.method`, or a word."""
    if not source.is_file():
        return False
    name, bracket, arguments = need.partition("(")
    if not bracket:
        return need in functions(source) or need in source.read_text(encoding="utf8")
    first = [argument.strip() for argument in arguments.rstrip(")").split(",")]
    return functions(source).get(name, [])[: len(first)] == first


def examine_family(folder: Path, support: Support, report: Report, advice: str) -> bool:
    """Whether a WebUI or diffusers has a family's class, and what of it the extension needs."""
    if not (folder / next(iter(support.needs))).is_file():
        return False
    for file, needs in support.needs.items():
        for need in needs:
            report.say(found_in(folder / file, need), f"{file}: {need}", advice)
    report.note(f"models: {support.models}{f' ({support.note})' if support.note else ''}")
    return True


def examine_families(folder: Path, name: str, report: Report, where: str, advice: str) -> None:
    """Which families a WebUI has, or diffusers; `where` is what messages call it."""
    found = [
        family
        for family in families()
        if name in family.support and examine_family(folder, family.support[name], report, advice)
    ]
    if missing := [family.name for family in families() if family not in found]:
        report.note(f"not in {where}: {', '.join(missing)}")
    if not found:
        report.say(False, f"{where} has none of {names_of_all()}", advice)


def examine_forge(host: Path, report: Report) -> None:
    """The hook points of Forge and its forks: the patcher, the attention kernel and the ControlNet panel."""
    patcher: set[str] = set()
    for file in ("base", "unet"):
        patcher |= {name.rpartition(".")[2] for name in functions(host / "backend" / "patcher" / f"{file}.py")}
    for method in ("clone", "set_model_unet_function_wrapper"):
        report.say(method in patcher, f"backend/patcher: {method}", "update the WebUI")
    estimate = "set_memory_peak_estimation_modifier" in patcher
    report.note(f"memory estimate for large pictures: {'ours' if estimate else 'the host decides'}")
    kernel = functions(host / "backend" / "attention.py").get("attention_pytorch", [])
    report.say("skip_reshape" in kernel, "backend/attention.py: attention(..., skip_reshape)", "update the WebUI")
    panel = (host / "extensions-builtin" / "sd_forge_controlnet").is_dir()
    takes = "add_supported_control_model" in functions(host / "modules_forge" / "shared.py")
    report.note(f"ControlNet for these models in the WebUI's panel: {'yes' if panel and takes else 'no'}")
    report.note("not yet: Nunchaku")


def installed(package: str) -> tuple[int, ...] | None:
    """The version of an installed package as numbers, or None."""
    try:
        parts = version(package).split("+")[0].split(".")
    except PackageNotFoundError:
        return None
    return tuple(int(part) for part in parts if part.isdigit())


def examine_environment() -> Report:
    """Python, the packages, and diffusers' hook points in the running environment."""
    report = Report()
    python = sys.version_info[:2]
    report.say(python >= (3, 10), f"Python {python[0]}.{python[1]}", "Python 3.10 or newer is needed")
    for package, least in PACKAGES.items():
        found, wanted = installed(package), ".".join(map(str, least))
        shown = ".".join(map(str, found)) if found else "missing"
        report.say(found is not None and found >= least, f"{package} {shown}", f"install {package}>={wanted}")
    spec = find_spec("diffusers")
    if spec is None:
        report.note("diffusers is not installed: only needed for the Python API and the lab")
        return report
    examine_families(Path(spec.origin).parent, "diffusers", report, "diffusers", "install diffusers>=0.35")
    return report


def examine(host: Path | None) -> Report:
    """Examine a WebUI's folder, or the running environment where none is given."""
    return examine_environment() if host is None else examine_host(host)
