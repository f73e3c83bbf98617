"""What functions capture, and which functions, classes and modules travel by value instead of by name.

**What is sent by value.** Functions and classes of ``__main__``, those that cannot be found under their own name, and those of
*local* modules: source files that no installation knows, which a worker on another machine could not import. Installed is what
lies below site-packages, dist-packages, the standard library or sys.prefix, in a directory that PYTHONPATH or a .pth file names,
and what an editable installation maps. All else is imported by name. Local modules imported *inside* a body are not sent along.
"""

from __future__ import annotations

import functools
import os
import sys
import types
from _thread import allocate_lock
from collections.abc import Callable, Iterator
from types import BuiltinFunctionType, CellType, CodeType, FunctionType, MethodType, ModuleType
from typing import Any

_OWN_PACKAGES = frozenset({"vinecore", "daskvine"})
MAIN_NAMES = frozenset({"__main__", "__mp_main__"})
CACHED_FUNCTION: type = functools._lru_cache_wrapper
# Immutable values, and how to take them apart into a tuple.
COMPOUNDS: dict[type, Callable[[Any], tuple[object, ...]]] = {
    property: lambda value: (value.fget, value.fset, value.fdel),
    classmethod: lambda value: (value.__func__,),
    staticmethod: lambda value: (value.__func__,),
    slice: lambda value: (value.start, value.stop, value.step),
    types.GenericAlias: lambda value: (value.__origin__, value.__args__),
    types.UnionType: lambda value: value.__args__,
    MethodType: lambda value: (value.__func__, value.__self__),
    BuiltinFunctionType: lambda value: (value.__qualname__, value.__self__),
    CACHED_FUNCTION: lambda value: (value.__wrapped__, *value.cache_parameters().values()),
}
# What a class gets from the interpreter, dataclasses and abc: follows from the rest of it, or is of no effect.
_DERIVED_TEXT = """__abstractmethods__ __annotations__ __dataclass_fields__ __dataclass_params__ __dict__ __doc__ __firstlineno__
    __match_args__ __module__ __orig_bases__ __parameters__ __static_attributes__ __weakref__ _abc_impl"""
DERIVED_ATTRIBUTES = frozenset(_DERIVED_TEXT.split())


@functools.lru_cache(maxsize=1024)
def global_names(code: CodeType) -> tuple[str, ...]:
    """Return the names that the code, with the code nested in it, looks up or sets among its globals."""
    import dis

    names = {step.argval: None for step in dis.get_instructions(code) if step.opname.endswith("_GLOBAL")}
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            names.update(dict.fromkeys(global_names(constant)))
    return tuple(names)


def cells_of(function: FunctionType) -> Iterator[tuple[str, CellType, object]]:
    """Return name, cell and content of each closure variable that has one."""
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        try:
            yield name, cell, cell.cell_contents
        except ValueError:
            continue


def by_value_modules() -> frozenset[str]:
    """Return the names of modules (and packages) that are sent by value, the user's own registrations included."""
    import cloudpickle

    return frozenset(cloudpickle.list_registry_pickle_by_value())


def is_by_reference(value: Any, by_value: frozenset[str]) -> bool:
    """Whether a function or class travels as its name: another process finds the same object by importing its module."""
    module_name = getattr(value, "__module__", None)
    if not isinstance(module_name, str) or module_name in MAIN_NAMES or is_within(module_name, by_value):
        return False
    found: Any = sys.modules.get(module_name)
    if found is None:
        return False
    for part in str(getattr(value, "__qualname__", "")).split("."):
        found = vars(found).get(part, None) if isinstance(found, ModuleType) else getattr(found, part, None)
    return found is value


def is_within(module_name: str, packages: frozenset[str]) -> bool:
    """Whether the module or a package above it is one of these."""
    return any(module_name == package or module_name.startswith(package + ".") for package in packages)


_registration = allocate_lock()
_seen_modules: set[str] = set()
# A look goes over all modules, so there is one only when their number has changed, or which of them came last. Not noticed:
# as many taken out as put in with the same one last as before, or another module put under a name that is there.
_seen_count = -1
_seen_last: object = None


def register_local_modules() -> None:
    """Have the functions and classes of every local module imported so far sent by value (module docstring)."""
    global _seen_count, _seen_last
    try:
        if len(sys.modules) == _seen_count and next(reversed(sys.modules.values())) is _seen_last:
            return
    except RuntimeError:
        # Another thread has just imported something.
        pass
    # Not before: this is called for each function that is pickled.
    import cloudpickle

    with _registration:
        loaded = sys.modules.copy()
        fresh = [name for name in loaded if name not in _seen_modules]
        candidates = [name for name in fresh if _may_be_local(name, loaded[name])]
        roots = _installed_roots() if candidates else set()
        finders = [module for name, module in loaded.items() if name.startswith("__editable__")]
        mapped = frozenset(top for finder in finders for top in vars(finder).get("MAPPING", ()))
        for name in candidates:
            if not is_within(name, mapped) and _root_of(name, str(loaded[name].__file__)) not in roots:
                cloudpickle.register_pickle_by_value(loaded[name])
        _seen_modules.update(fresh)
        _seen_count, _seen_last = len(loaded), next(reversed(loaded.values()))


def _may_be_local(name: str, module: object) -> bool:
    if name in MAIN_NAMES or not isinstance(module, ModuleType) or vars(module).get("__name__") != name:
        return False
    top = name.partition(".")[0]
    file = vars(module).get("__file__")
    if top in _OWN_PACKAGES or top in sys.stdlib_module_names or not isinstance(file, str) or not file.endswith(".py"):
        return False
    file = os.path.normpath(file)
    return not ("/site-packages/" in file or "/dist-packages/" in file or file.startswith(_system_prefixes()))


@functools.cache
def _system_prefixes() -> tuple[str, ...]:
    prefixes = {sys.prefix, sys.base_prefix, sys.exec_prefix, os.__file__.rpartition("/")[0]}
    # A prefix of "/" says nothing about a file.
    return tuple(prefix.rstrip("/") + "/" for prefix in prefixes if prefix.strip("/"))


def _root_of(name: str, file: str) -> str:
    """The directory on the path in which the module's topmost package lies."""
    levels = name.count(".") + (2 if file.endswith("/__init__.py") else 1)
    return os.path.normpath(file).rsplit("/", levels)[0]


def _installed_roots() -> set[str]:
    """Directories outside the usual ones that make their modules importable on a worker as well."""
    roots = {entry for entry in os.environ.get("PYTHONPATH", "").split(":") if entry.startswith("/")}
    for directory in sys.path:
        if directory.endswith(("site-packages", "dist-packages")):
            roots |= _paths_in_pth_files(directory)
    return {os.path.normpath(root) for root in roots}


def _paths_in_pth_files(directory: str) -> set[str]:
    lines: list[str] = []
    try:
        for entry in os.listdir(directory):
            if entry.endswith(".pth"):
                with open(f"{directory}/{entry}", encoding="utf-8", errors="replace") as file:
                    lines += map(str.strip, file)
    except OSError:
        # A directory that cannot be read gives no modules to a worker either.
        return set()
    return {os.path.join(directory, line) for line in lines if line and not line.startswith(("#", "import"))}


def own_attributes(cls: type) -> Iterator[tuple[str, object]]:
    """What a class that is sent by value adds itself, in the order of definition."""
    is_dataclass = "__dataclass_params__" in vars(cls)
    for name, value in vars(cls).items():
        # A generated __repr__ keeps a set of the objects that it is showing.
        if name not in DERIVED_ATTRIBUTES and not (is_dataclass and name == "__repr__"):
            yield name, value


def goes_by_name(value: Any, by_value: frozenset[str]) -> bool:
    """Whether something that is neither function nor class pickles as a name all the same, as callables of extensions do."""
    try:
        return is_by_reference(value, by_value) and isinstance(value.__reduce_ex__(4), str)
    except Exception:
        return False
