"""The import rules: nothing imports from a floor above its own, nothing goes in a circle, the method stands alone.

Read from the source, so that imports inside functions and for types alone count as well.
"""

import ast
import sys
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

#: What lies directly in the package, lowest floor first; a module may import from its own floor and from those below.
FLOORS = (
    ("errors", "version"),
    ("method",),
    ("monkeypatch", "positions_metadata", "watch"),
    ("control",),
    ("seams",),
    ("families",),
    ("hosts",),
    ("webui",),
    ("doctor", "supported", "readme", "lab", "training", "generate", "field", "__main__"),
)
PACKAGE = "resdit_ext"
ROOT = Path(__file__).parents[1] / PACKAGE
METHOD_MAY_IMPORT = {"torch", "einops", *sys.stdlib_module_names}


def name_of(path: Path) -> str:
    parts = (PACKAGE, *path.relative_to(ROOT).with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


FILES = {name_of(path): path for path in sorted(ROOT.rglob("*.py"))}


def imported(source: str, package: str) -> Iterator[str]:
    """The full name of everything that a module of `package` imports: `a.b.c` of `from a.b import c`."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: package.count(".") + 2 - node.level] if node.level else []
            origin = ".".join((*above, node.module) if node.module else above)
            yield from (f"{origin}.{alias.name}" for alias in node.names)


def module_in(name: str) -> str | None:
    """The module of ours that a full name is, or is a name in; None for others' modules."""
    while name and name not in FILES:
        name = name.rpartition(".")[0]
    return name or None


def imports_of(module: str) -> list[str]:
    """The full names that a module of ours imports."""
    path = FILES[module]
    package = module if path.stem == "__init__" else module.rpartition(".")[0]
    return sorted(set(imported(path.read_text(encoding="utf8"), package)))


GRAPH = {module: {ours for name in imports_of(module) if (ours := module_in(name))} for module in FILES}


def floor(module: str) -> int:
    """The number of a module's floor; the package's own `__init__` stands on the highest that it imports from."""
    if module == PACKAGE:
        return max(floor(other) for other in GRAPH[PACKAGE])
    room = module.split(".")[1]
    found = [number for number, rooms in enumerate(FLOORS) if room in rooms]
    assert found, f"{module} has no floor: enter {room!r} in FLOORS"
    return found[0]


@pytest.mark.parametrize(
    ("source", "package", "names"),
    [
        ("import a.b, c", "p.q", ["a.b", "c"]),
        ("from a.b import c, d as e", "p.q", ["a.b.c", "a.b.d"]),
        ("from . import a", "p.q", ["p.q.a"]),
        ("from .a import b", "p.q", ["p.q.a.b"]),
        ("from .. import a", "p.q", ["p.a"]),
        ("from ...a import b", "p.q.r", ["p.a.b"]),
        ("def f():\n    from ..a import b\n    import c", "p.q", ["p.a.b", "c"]),
        ("if TYPE_CHECKING:\n    from ..a import b", "p.q", ["p.a.b"]),
    ],
)
def test_every_import_is_seen(source, package, names):
    assert list(imported(source, package)) == names


def test_a_name_belongs_to_the_module_that_defines_it():
    assert module_in("resdit_ext.method.layout.Grid") == "resdit_ext.method.layout"
    assert module_in("resdit_ext.method.layout") == "resdit_ext.method.layout"
    assert module_in("resdit_ext.__version__") == "resdit_ext"
    assert module_in("torch.nn.functional") is None


@pytest.mark.parametrize("module", [name for name in FILES if name != PACKAGE])
def test_nothing_is_imported_from_a_higher_floor(module):
    higher = sorted(other for other in GRAPH[module] if floor(other) > floor(module))
    assert not higher, f"{module} imports from above: {', '.join(higher)}"


def test_imports_make_no_circle():
    try:
        TopologicalSorter(GRAPH).prepare()
    except CycleError as error:
        pytest.fail("a circle: " + " <- ".join(error.args[1]))


@pytest.mark.parametrize("module", [name for name in FILES if name.startswith(f"{PACKAGE}.method")])
def test_the_method_knows_torch_and_einops_alone(module):
    for name in imports_of(module):
        ours = module_in(name)
        allowed = name.partition(".")[0] in METHOD_MAY_IMPORT if ours is None else is_method_or_errors(ours)
        assert allowed, f"{module} imports {name}"


def is_method_or_errors(module: str) -> bool:
    return module.split(".")[1:2] in (["method"], ["errors"])
