"""The modules that a callable will need: those worth importing in the parent of slots, before it forks them.

Owns ``modules_of``. It goes over a callable and what it captures (see ``captures``), and reads import statements and attributes
from bytecode. It must never import a module to find out.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import sys
from types import CodeType, FunctionType, ModuleType
from typing import Any, TypeAlias

from vinecore.runtime import captures
from vinecore.runtime import payload as payloads

# How far into a captured container, and how deep, the search for modules looks.
SEARCH_LIMIT_COUNT = 64
SEARCH_DEPTH = 6
# No file has such a name, and a message has no room for many of 20 MB: what needs that module fails in its call.
NAME_LIMIT_CHARACTERS = 1024

_MISSING = object()

_Import: TypeAlias = tuple[int, str, tuple[str, ...]]  # level, module, attributes taken of it
_Chain: TypeAlias = tuple[str, tuple[str, ...]]  # variable, attributes taken of it


@functools.lru_cache(maxsize=1024)
def _imports_and_chains(code: CodeType) -> tuple[frozenset[_Import], frozenset[_Chain]]:
    reading = _Reading()
    reading.read(code, {})
    return frozenset(reading.imports), frozenset(reading.chains)


class _Reading:
    """Import statements, and attributes taken of variables, in a code object and the code nested in it."""

    def __init__(self) -> None:
        self.imports: set[_Import] = set()
        self.chains: set[_Chain] = set()

    def read(self, code: CodeType, outer: dict[str, _Import]) -> None:
        import dis

        bound = dict(outer)
        loaded: list[Any] = [None, None]
        pending: _Import | None = None
        names: tuple[str, ...] | None = None
        root, path = "", []
        for step in dis.get_instructions(code):
            operation, argument = step.opname, step.argval
            if operation in ("LOAD_ATTR", "LOAD_METHOD"):
                path.append(argument)
            if operation in ("LOAD_ATTR", "LOAD_METHOD", "EXTENDED_ARG", "CACHE"):
                continue
            self._end_chain(root, path, bound)
            root, path = "", []
            if operation == "IMPORT_NAME":
                (level, names), pending = loaded, (loaded[0], argument, ())
                self.imports.update((level, argument, (name,)) for name in names or ("",))
                # ``import a.b`` binds a.
                bound_by_store: _Import = (level, argument.partition(".")[0], ())
            elif operation == "IMPORT_FROM" and pending is not None:
                bound_by_store = (*pending[:2], (argument,)) if names else pending
            elif operation == "POP_TOP" and names:
                pending = None
            elif operation.startswith("STORE_") and pending is not None:
                bound[argument[0] if isinstance(argument, tuple) else argument] = bound_by_store
                pending = pending if names else None
            if "LOAD_" in operation and operation != "LOAD_CONST":
                last = argument[-1] if isinstance(argument, tuple) and argument else argument
                root = last if isinstance(last, str) else ""
            loaded = [loaded[1], argument]
        self._end_chain(root, path, bound)
        for constant in code.co_consts:
            if isinstance(constant, CodeType):
                self.read(constant, bound)

    def _end_chain(self, root: str, path: list[str], bound: dict[str, _Import]) -> None:
        if root in bound:
            level, base, inner = bound[root]
            self.imports.add((level, base, (*inner, *path)))
        elif root and path:
            self.chains.add((root, tuple(path)))


def modules_of(function: object) -> tuple[str, ...]:
    """Return the names of installed modules that the callable, or what is sent with it, uses: worth importing before a fork.

    Counted are imports in bodies, modules (and homes of objects) that are captured, and submodules taken as attributes. Nothing
    is imported to find out; the standard library and modules that are sent by value are left out. Importing a name may fail.
    """
    found = _Modules()
    with contextlib.suppress(RecursionError):  # what was found so far is worth importing
        found.visit(function, 0)
    return tuple(sorted(found.names))


class _Modules:
    """Collects module names from a callable and what it captures."""

    def __init__(self) -> None:
        self.names: set[str] = set()
        self._seen: dict[int, object] = {}
        self._by_value = captures.by_value_modules()

    def add(self, name: str) -> bool:
        """Count a module, unless it is one of those that are left out."""
        top = name.partition(".")[0]
        is_everywhere = top in ("", "vinecore") or top in sys.stdlib_module_names or name in captures.MAIN_NAMES
        if is_everywhere or captures.is_within(name, self._by_value):
            return False
        if len(name) > NAME_LIMIT_CHARACTERS or name.encode(errors="replace").decode() != name:
            return False
        self.names.add(name)
        return True

    def visit(self, value: Any, depth: int) -> None:
        kind = type(value)
        if kind in payloads.ATOMIC or id(value) in self._seen or depth > SEARCH_DEPTH:
            return
        self._seen[id(value)] = value
        children: list[object] = []
        if isinstance(value, ModuleType):
            self.add(value.__name__)
            children = list(vars(value).values()) if captures.is_within(value.__name__, self._by_value) else []
        elif kind is FunctionType:
            children = self._function(value)
        elif isinstance(value, type):
            self._home(value)
            is_by_name = captures.is_by_reference(value, self._by_value)
            children = [] if is_by_name else [*value.__bases__, *(child for _, child in captures.own_attributes(value))]
        elif kind is functools.partial:
            children = [value.func, *value.args, *value.keywords.values()]
        elif kind in captures.COMPOUNDS:
            self._home(value)
            children = list(captures.COMPOUNDS[kind](value))
        elif kind in (list, tuple, set, frozenset, dict):
            children = list(itertools.islice(value.values() if kind is dict else value, SEARCH_LIMIT_COUNT))
        else:
            self._home(value)
            attributes = {} if captures.goes_by_name(value, self._by_value) else getattr(value, "__dict__", None)
            children = [kind, *(attributes.values() if isinstance(attributes, dict) else ())]
        for child in children:
            # Functions sent along are followed however deep the call graph is; data only so far.
            self.visit(child, depth if isinstance(child, FunctionType | type) else depth + 1)

    def _home(self, value: object) -> None:
        name = getattr(value, "__module__", None)
        if isinstance(name, str) and name in sys.modules:
            self.add(name)

    def _function(self, function: FunctionType) -> list[object]:
        variables: dict[str, object] = {name: value for name, _, value in captures.cells_of(function)}
        for name in captures.global_names(function.__code__):
            if name in function.__globals__:
                variables[name] = function.__globals__[name]
        imports, chains = _imports_and_chains(function.__code__)
        for level, base, path in imports:
            self._follow(_absolute(level, base, str(function.__globals__.get("__package__") or "")), path)
        for root, path in chains:
            module = variables.get(root)
            if isinstance(module, ModuleType):
                self._follow(module.__name__, path)
        self._home(function)
        if captures.is_by_reference(function, self._by_value):
            return []
        keywords = function.__kwdefaults__ or {}
        return [*variables.values(), *(function.__defaults__ or ()), *keywords.values(), *vars(function).values()]

    def _follow(self, name: str, path: tuple[str, ...]) -> None:
        """Count a module and those of its submodules that the path goes through."""
        if not self.add(name) and not captures.is_within(name, self._by_value):
            return
        for part in path:
            found = getattr(sys.modules.get(name), "__dict__", {}).get(part, _MISSING)
            if isinstance(found, ModuleType):
                name = found.__name__
            elif found is _MISSING and part and _is_module(f"{name}.{part}"):
                name = f"{name}.{part}"
            else:
                return
            self.add(name)


def _absolute(level: int, base: str, package: str) -> str:
    """The absolute name of an import, or nothing for a relative one outside of a package."""
    if not level:
        return base
    above = package.split(".")[: package.count(".") + 2 - level] if package else []
    return ".".join([*above, base] if base else above) if above else ""


@functools.lru_cache(maxsize=4096)
def _is_module(name: str) -> bool:
    """Whether there is such a module, as far as the path tells; packages above it are not imported to find out."""
    from importlib.machinery import PathFinder

    so_far, locations = "", None
    for part in name.split("."):
        if so_far and locations is None:
            return False
        so_far = f"{so_far}.{part}" if so_far else part
        module = sys.modules.get(so_far)
        if module is not None:
            locations = getattr(module, "__dict__", {}).get("__path__")
            continue
        spec = PathFinder.find_spec(so_far, locations)
        if spec is None:
            return False
        locations = spec.submodule_search_locations
    return True
