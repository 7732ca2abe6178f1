"""Changes of what this package does not own: of one object where that is enough, of a module where it must be."""

from __future__ import annotations

import functools
import threading
import types
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar

import torch
from torch import Tensor, nn

_ABSENT = object()
AROUND = "_resdit_around"
REPLACED = "_resdit_replaced"


def replacing(ours: object, theirs: object, kind: str) -> object:
    """`ours`, which remembers that it is put where `theirs` was, so that doing it again replaces and never nests.

    Args:
        ours: a function or an object of ours.
        theirs: what it takes the place of; None where there was nothing.
        kind: which of our changes this is.
    """
    setattr(ours, REPLACED, (kind, theirs))
    return ours


def is_ours(found: object, kind: str) -> bool:
    """True for what `replacing` has marked as this kind."""
    return getattr(found, REPLACED, (None, None))[0] == kind


def without_ours(found: object, kind: str) -> object:
    """What stands, or stood before ours, in a place where `found` is now."""
    return getattr(found, REPLACED)[1] if is_ours(found, kind) else found


@functools.cache
def _class_with(cls: type, names: tuple[str, ...]) -> type:
    """The subclass of `cls` whose methods of these names go through functions kept on the instance.

    It has the class's own name, which diffusers writes into files and compares, and is made once: a compiled model
    that finds a known class again is not compiled anew.
    """

    def method(name: str) -> Callable:
        original = getattr(cls, name)

        @functools.wraps(original)  # with its signature, which diffusers reads
        @functools.partial(torch.compiler.disable, recursive=False)
        def through(self: object, *args: object, **kwargs: object) -> object:
            around = vars(self).get(AROUND, {}).get(name)  # none where somebody kept the bound method beyond `let_go`
            call = functools.partial(original, self)
            return call(*args, **kwargs) if around is None else around(call, *args, **kwargs)

        return through

    same = {key: getattr(cls, key) for key in ("__module__", "__qualname__", "__doc__")}
    return type(cls.__name__, (cls,), same | {name: method(name) for name in names})


def intercept(instance: object, name: str, around: Callable) -> None:
    """Have calls of one object's method go to `around(original, *args, **kwargs)` until `let_go`.

    `name` may be `__call__`. The object's class is changed, and nothing else of it: whatever others do to its
    `forward` meanwhile (offloading hooks, compiling it) stays as it is.
    """
    before = vars(instance).get(AROUND, {})
    original = type(instance).__bases__[0] if before else type(instance)
    arounds = before | {name: around}
    cls = _class_with(original, tuple(sorted(arounds)))
    vars(instance)[AROUND] = arounds
    object.__setattr__(instance, "__class__", cls)


def let_go(instance: object) -> None:
    """Give an object its own class back; does nothing where none of its methods is intercepted."""
    if AROUND in vars(instance):
        object.__setattr__(instance, "__class__", type(instance).__bases__[0])
        del vars(instance)[AROUND]


@contextmanager
def intercepted(arounds: Iterable[tuple[object, str, Callable]]) -> Iterator[None]:
    """`intercept` each (object, name, around) for the duration of the block; an object may be named once."""
    with ExitStack() as stack:
        for instance, name, around in arounds:
            stack.callback(let_go, instance)
            intercept(instance, name, around)
        yield


def rebound(function: Callable, **names: object) -> Callable:
    """A copy of a Python function that finds these objects under global names instead of its module's."""
    copy = types.FunctionType(
        function.__code__,
        function.__globals__ | names,
        function.__name__,
        function.__defaults__,
        function.__closure__,
    )
    copy.__kwdefaults__ = function.__kwdefaults__
    return copy


class _Crossroads:
    """A module's function while calls of it are redirected: each thread's, and each task's, go where it said.

    One function object for every model call: a compiled model (torch.compile) breaks its graph here, and finding the
    same object again it is not compiled anew.
    """

    def __init__(self, owner: object, name: str) -> None:
        self.owner, self.name, self.users = owner, name, 0
        self.lock = threading.Lock()
        self.target: ContextVar[Callable | None] = ContextVar(f"resdit {name}", default=None)

        @torch.compiler.disable
        def through(*args: object, **kwargs: object) -> object:
            target = self.target.get()
            return self.original(*args, **kwargs) if target is None else target(self.original, *args, **kwargs)

        self.through = through

    def open(self) -> None:
        with self.lock:
            if not self.users:
                self.original = getattr(self.owner, self.name)
                setattr(self.owner, self.name, self.through)
            self.users += 1

    def close(self) -> None:
        with self.lock:
            self.users -= 1
            if not self.users:
                setattr(self.owner, self.name, self.original)


_crossroads: dict[tuple[int, str], _Crossroads] = {}
_making = threading.Lock()


@contextmanager
def redirected(owner: types.ModuleType, name: str, around: Callable) -> Iterator[None]:
    """Have this thread's calls of a module's function go to `around(original, ...)` for the duration of the block.

    Calls that other threads make meanwhile, of models without ResDiT, go to the function itself. The last to leave
    puts it back.
    """
    with _making:
        crossroads = _crossroads.setdefault((id(owner), name), _Crossroads(owner, name))
    crossroads.open()
    token = crossroads.target.set(around)
    try:
        yield
    finally:
        crossroads.target.reset(token)
        crossroads.close()


@contextmanager
def swapped(owner: object, **attributes: object) -> Iterator[None]:
    """Set attributes of a module or instance for the duration of the block, then put the old state back.

    What the instance did not have of its own (a method of its class, say) is deleted again, not copied onto it.
    """
    before = {name: vars(owner).get(name, _ABSENT) for name in attributes}
    try:
        for name, value in attributes.items():
            setattr(owner, name, value)
        yield
    finally:
        for name, value in before.items():
            if value is not _ABSENT:
                setattr(owner, name, value)
            elif name in vars(owner):
                delattr(owner, name)


@contextmanager
def changed_outputs(changes: Iterable[tuple[nn.Module, Callable[[object], object]]]) -> Iterator[None]:
    """Have each module return `change(its output)` for the duration of the block."""
    with ExitStack() as handles:
        for module, change in changes:
            handles.enter_context(module.register_forward_hook(lambda _, __, out, change=change: change(out)))
        yield


@contextmanager
def scaled_outputs(modules: Iterable[nn.Module], factor: float) -> Iterator[None]:
    """Multiply what the modules return by a factor for the duration of the block."""

    def scale(out: Tensor) -> Tensor:
        return out * factor

    with changed_outputs((module, scale) for module in (modules if factor != 1 else ())):
        yield
