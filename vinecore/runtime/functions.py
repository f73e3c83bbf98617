"""Functions as they travel: pickled once, revalidated cheaply, with the modules they need and a digest of what they do.

Owns ``FunctionCache`` (is this still the function that was pickled?) and ``digest_of`` (the same function in another process has
the same 16 bytes).

Two walks go over a callable and what it captures (defaults, closure, referenced globals, functions and classes that are
themselves sent by value): one collects identities, one content; the one that collects modules is in ``module_search``. Data
enters as callables in the user's threads and leaves as ``FunctionPickle``. This module must never import a module on behalf of a
function, and never answer for a function from the entry of a dead one that had the same id.
"""

from __future__ import annotations

import enum
import functools
import sys
import threading
import weakref
from collections import deque
from collections.abc import Callable
from types import CellType, CodeType, FunctionType, ModuleType
from typing import Any

from vinecore.errors import UnpicklableError
from vinecore.runtime import captures
from vinecore.runtime import payload as payloads
from vinecore.runtime.module_search import modules_of

# Functions remembered by identity; beyond it the longest unused is pickled again at its next use.
CACHE_LIMIT_COUNT = 4096
_MISSING = object()
# Stands in an entry for the function itself, which the entry must not keep alive.
_SELF = object()
# Types, by name because they must not be imported here, whose values never change and whose repr says all of them.
_PLAIN_TEXT = """builtins.range builtins.ellipsis builtins.NotImplementedType datetime.date datetime.datetime datetime.time
    dataclasses._HAS_DEFAULT_FACTORY_CLASS
    datetime.timedelta datetime.timezone decimal.Decimal fractions.Fraction pathlib.PosixPath pathlib.PurePosixPath
    pathlib._local.PosixPath pathlib._local.PurePosixPath uuid.UUID"""
_PLAIN_VALUES = frozenset(_PLAIN_TEXT.split())
# Those, and what never changes or pickles by name but does not show all of itself.
_STABLE_VALUES = _PLAIN_VALUES | {"builtins.object", "logging.Logger", "logging.RootLogger", "re.Pattern", "typing.TypeVar"}


class FunctionPickle:
    """A pickled callable. Equal content has one live object in a cache, so its identity may serve as a key."""

    __slots__ = ("__weakref__", "_digest", "_reference", "modules", "name", "payload")

    def __init__(self, payload: bytes, modules: tuple[str, ...], name: str, reference: Callable[[], object]) -> None:
        self.payload = payload
        self.modules = modules
        self.name = name
        self._reference = reference
        self._digest: object = _MISSING

    @property
    def is_orphan(self) -> bool:
        return self._reference() is None  # an equal function may live

    @property
    def digest(self) -> bytes | None:
        """The function's digest, computed at first use; None when it has none, or has changed or gone since it was pickled."""
        if self._digest is _MISSING:
            function = self._reference()
            try:
                is_unchanged = function is not None and payloads.dump(function) == self.payload
            except Exception:
                is_unchanged = False
            self._digest = digest_of(function) if is_unchanged else None
        return self._digest  # type: ignore[return-value]


class _Entry:
    """What must still be the same objects for a pickled function to be up to date."""

    __slots__ = (
        *("attribute_count", "bindings", "cells", "code", "defaults", "functions", "is_recent", "keywords", "pickled"),
        *("reference", "sizes"),
    )

    def __init__(self, reference: Callable[[], object], identities: _Identities, pickled: FunctionPickle) -> None:
        function: Any = reference()
        is_by_value = identities.is_by_value
        self.reference = reference
        self.pickled = pickled
        self.is_recent = False
        # Of the function itself; None for one that is sent by name, whose code is none of our business.
        self.code: CodeType | None = function.__code__ if is_by_value else None
        self.defaults: object = function.__defaults__ if is_by_value else None
        self.keywords: object = function.__kwdefaults__ if is_by_value else None
        self.attribute_count = len(function.__dict__) if is_by_value else 0
        self.functions = tuple(identities.functions)
        self.bindings = tuple(identities.bindings)
        self.cells = tuple(identities.cells)
        self.sizes = tuple(identities.sizes)

    def is_current(self, function: Any) -> bool:
        code = self.code
        if code is not None:
            if function.__code__ is not code or function.__defaults__ is not self.defaults:
                return False
            if function.__kwdefaults__ is not self.keywords or len(function.__dict__) != self.attribute_count:
                return False
        for get, name, value in self.bindings:
            found = get(name, _MISSING)
            if found is not value and not (value is _SELF and found is function):
                return False
        if self.cells or self.functions or self.sizes:
            return self._is_rest_current()
        return True

    def _is_rest_current(self) -> bool:
        try:
            for cell, value in self.cells:
                if cell.cell_contents is not value:
                    return False
        except ValueError:
            return False
        for function, code, defaults, keywords in self.functions:
            if function.__code__ is not code or function.__defaults__ is not defaults or function.__kwdefaults__ is not keywords:
                return False
        return all(len(space) == count for space, count in self.sizes)


class FunctionCache:
    """Pickles callables, each once for as long as nothing that it captures is another object; for any threads."""

    def __init__(self, limit_count: int = CACHE_LIMIT_COUNT) -> None:
        self._limit_count = limit_count
        self._entries: dict[int, _Entry] = {}
        # Keys of dead functions: a finaliser may run anywhere, so it only appends.
        self._dead: deque[int] = deque()
        self._by_payload: weakref.WeakValueDictionary[bytes, FunctionPickle] = weakref.WeakValueDictionary()
        self._lock = threading.Lock()

    def get(self, function: object) -> FunctionPickle:
        """Return the callable's pickle: the same object as before while the callable and what it captures are unchanged.

        A callable that captures something mutable is pickled at every call, and answered with the same object if the bytes agree.

        Raises:
            UnpicklableError: it cannot be pickled; the text names it and the captured object at fault.
        """
        entry = self._entries.get(id(function))
        if entry is not None and entry.reference() is function and entry.is_current(function):
            entry.is_recent = True
            return entry.pickled
        return self._renew(function)

    def _renew(self, function: object) -> FunctionPickle:
        captures.register_local_modules()
        try:
            # Before the pickle: a change in between then makes the entry stale instead of wrong.
            identities = _Identities(function)
            payload = payloads.dump(function)
        except Exception as error:
            where, text = payloads.find_culprit(function, error)
            raise UnpicklableError(f"function {name_of(function)} cannot be pickled{where}: {text}") from error
        key = id(function)
        reference = _reference_to(function, lambda _: self._dead.append(key))
        pickled = self._by_payload.get(payload)
        fresh = pickled or FunctionPickle(payload, modules_of(function), name_of(function), reference)
        with self._lock:
            pickled = self._by_payload.setdefault(payload, fresh)
            self._forget_dead()
            self._entries.pop(key, None)
            if identities.is_stable:
                self._entries[key] = _Entry(reference, identities, pickled)
                self._evict()
        return pickled

    def _forget_dead(self) -> None:
        while self._dead:
            key = self._dead.popleft()
            entry = self._entries.get(key)
            if entry is not None and entry.reference() is None:
                del self._entries[key]

    def _evict(self) -> None:
        """Second chance: what was used since it last came up goes to the end once more."""
        while len(self._entries) > self._limit_count:
            key = next(iter(self._entries))
            entry = self._entries.pop(key)
            if entry.is_recent:
                entry.is_recent = False
                self._entries[key] = entry


def _reference_to(function: object, callback: Callable[[object], object]) -> Callable[[], object]:
    try:
        return weakref.ref(function, callback)
    except TypeError:
        # Such types (ufuncs) live as long as their modules; the cache is bounded.
        return lambda: function


def name_of(function: Any) -> str:
    """Return how messages name a callable; never raises for odd ones."""
    while isinstance(function, functools.partial):
        function = function.func
    try:
        name = getattr(function, "__qualname__", None) or getattr(function, "__name__", None)
    except Exception:
        name = None  # its ``__getattr__`` raises
    return name if isinstance(name, str) else type(function).__qualname__


# ---------------------------------------------------------------- what a callable captures


def _kind_name(value: object) -> str:
    return f"{type(value).__module__}.{type(value).__qualname__}"


def _is_descriptor(value: object) -> bool:
    """Whether this is one of the interpreter's own descriptors, whose types agree in the end of their names."""
    return type(value).__module__ == "builtins" and type(value).__name__.endswith("_descriptor")


def _is_numpy(value: object, *names: str) -> bool:
    """Whether this is a numpy object of such a type, or with no names a scalar, dtype or ufunc; numpy is never imported."""
    numpy: Any = sys.modules.get("numpy")
    if numpy is None or not hasattr(numpy, "generic"):
        return False
    kinds = tuple(getattr(numpy, name) for name in names) or (numpy.generic, numpy.dtype, numpy.ufunc)
    return isinstance(value, kinds) and type(value).__module__ not in captures.MAIN_NAMES


class _Identities:
    """The identities that a callable's pickle depends on; ``is_stable`` is False once something mutable is among them."""

    def __init__(self, function: object) -> None:
        self.functions: list[tuple[FunctionType, CodeType, object, object]] = []
        self.bindings: list[tuple[Callable[[str, object], object], str, object]] = []
        self.cells: list[tuple[CellType, object]] = []
        self.sizes: list[tuple[Any, int]] = []
        self.is_stable = True
        self._root: Any = function
        self._by_value = captures.by_value_modules()
        # Holds the objects, so that no id comes twice.
        self._seen: dict[int, object] = {}
        self.is_by_value = type(function) is FunctionType and not captures.is_by_reference(function, self._by_value)
        try:
            self.visit(function)
        except RecursionError:
            self.is_stable = False

    def visit(self, value: Any) -> None:
        kind = type(value)
        if kind in payloads.ATOMIC or value is _MISSING or id(value) in self._seen or not self.is_stable:
            return
        self._seen[id(value)] = value
        if kind is tuple or kind is frozenset:
            for item in value:
                self.visit(item)
        elif kind is FunctionType:
            self._visit_function(value)
        elif isinstance(value, type):
            self._visit_class(value)
        elif kind is functools.partial:
            self.visit(value.func)
            self.visit(value.args)
            self._visit_space(value.keywords)
            self._visit_space(vars(value))
        else:
            self._visit_other(value, kind)

    def _visit_other(self, value: Any, kind: type) -> None:
        if isinstance(value, ModuleType):
            self.is_stable = not captures.is_within(value.__name__, self._by_value)
        elif kind in captures.COMPOUNDS:
            self.visit(captures.COMPOUNDS[kind](value))
        elif isinstance(value, enum.Enum):
            self.is_stable = captures.is_by_reference(kind, self._by_value)
        elif not _is_descriptor(value) and _kind_name(value) not in _STABLE_VALUES and not _is_numpy(value):
            self.is_stable = captures.goes_by_name(value, self._by_value)
            if self.is_stable:
                self._watch_name(value)

    def _visit_space(self, space: Any, is_counted: bool = True) -> None:
        """A mapping of which every item matters, and whether there are more."""
        if is_counted:
            self.sizes.append((space, len(space)))
        for name, value in space.items():
            self._bind(space.get, name, value)

    def _bind(self, get: Callable[[str, object], object], name: str, value: object) -> None:
        self.bindings.append((get, name, _SELF if value is self._root else value))
        self.visit(value)

    def _visit_function(self, function: FunctionType) -> None:
        if captures.is_by_reference(function, self._by_value):
            self._watch_name(function)
            return
        if function is not self._root:
            self.functions.append((function, function.__code__, function.__defaults__, function.__kwdefaults__))
        self.visit(function.__defaults__)
        if function.__kwdefaults__:
            self._visit_space(function.__kwdefaults__)
        cells = list(captures.cells_of(function))
        if len(cells) < len(function.__closure__ or ()):
            # An empty cell will be filled; there is nothing to compare it with.
            self.is_stable = False
        for _, cell, value in cells:
            self.cells.append((cell, value))
            self.visit(value)
        for name in captures.global_names(function.__code__):
            self._bind(function.__globals__.get, name, function.__globals__.get(name, _MISSING))
        self._visit_space(vars(function), is_counted=function is not self._root)

    def _visit_class(self, cls: type) -> None:
        if captures.is_by_reference(cls, self._by_value):
            self._watch_name(cls)
            return
        self.sizes.append((vars(cls), len(vars(cls))))
        for base in cls.__bases__:
            self.visit(base)
        for name, value in captures.own_attributes(cls):
            self._bind(vars(cls).get, name, value)

    def _watch_name(self, value: Any) -> None:
        """Of a callable that goes by name, see that the name still means it; what it uses itself would fail to pickle then."""
        if value is self._root:
            top = value.__qualname__.partition(".")[0]
            space = vars(sys.modules[value.__module__])
            self.bindings.append((space.get, top, _SELF if space[top] is value else space[top]))


# ---------------------------------------------------------------- digest


class _NoDigest(Exception):
    """Something was met that has no normal form."""


def digest_of(function: object) -> bytes | None:
    """Return 16 bytes that are equal for callables that do the same, in any process of this Python; None where none can be given.

    Counted are code (without names of files and line numbers), constants, defaults, closure, referenced globals and attributes;
    callables that go by name count with their name and own code.
    """
    from hashlib import blake2b

    try:
        digest = _Digest(blake2b)
        digest.visit(function)
    except (_NoDigest, RecursionError):
        return None
    return bytes(digest.hash.digest())


class _Digest:
    """Feeds a hash with the normal form of a callable and of what it captures."""

    def __init__(self, make: Any) -> None:
        self._make = make
        self.hash = make(digest_size=16)
        self._by_value = captures.by_value_modules()
        # Functions and classes met, by id, with their number.
        self._seen: dict[int, tuple[int, object]] = {}
        # Containers being fed (whether equal ones are one object differs between processes, so only cycles count).
        self._open: set[int] = set()

    def put(self, tag: str, data: bytes | str = b"") -> None:
        raw = data.encode("utf-8", "surrogatepass") if isinstance(data, str) else data
        self.hash.update(b"%s:%d:" % (tag.encode(), len(raw)))
        self.hash.update(raw)

    def visit(self, value: Any) -> None:
        kind = type(value)
        if kind in payloads.ATOMIC:
            # repr tells all values of these types apart (-0.0 too), and the only NaN that differs is of no consequence.
            self.put(kind.__name__, value if kind in (str, bytes) else hex(value) if kind is int else repr(value))
        elif kind in (tuple, list, dict, set, frozenset):
            self._container(value, kind)
        elif kind is CodeType:
            self._code(value)
        elif kind is FunctionType or isinstance(value, type):
            self._definition(value)
        elif kind is functools.partial:
            self.put("partial")
            self.visit((value.func, value.args, sorted(value.keywords.items())))
        elif kind in captures.COMPOUNDS:
            self.put(kind.__name__)
            self.visit(captures.COMPOUNDS[kind](value))
        else:
            self._other(value, kind)

    def _container(self, value: Any, kind: type) -> None:
        if id(value) in self._open:
            raise _NoDigest
        self._open.add(id(value))
        self.put(kind.__name__, str(len(value)))
        if kind is set or kind is frozenset:
            for part in sorted(map(self._apart, value)):
                self.put("element", part)
        else:
            for item in value.items() if kind is dict else value:
                self.visit(item)
        self._open.discard(id(value))

    def _apart(self, value: object) -> bytes:
        inner = _Digest(self._make)
        inner._open = set(self._open)
        inner.visit(value)
        return bytes(inner.hash.digest())

    def _code(self, code: CodeType) -> None:
        shape = (code.co_argcount, code.co_posonlyargcount, code.co_kwonlyargcount, code.co_flags)
        self.put("code", repr((shape, code.co_names, code.co_varnames, code.co_freevars, code.co_cellvars)))
        self.put("instructions", code.co_code)
        self.put("handlers", code.co_exceptiontable)
        for constant in code.co_consts:
            self.visit(constant)

    def _definition(self, value: Any) -> None:
        """A function or class; the number stands for it when it comes again, in a cycle or not."""
        number, _ = self._seen.get(id(value), (-1, None))
        self.put("definition", str(number))
        if number >= 0:
            return
        if id(value) in self._open:
            # Seen outside of the set whose element is being fed: there is no number that does not depend on the set's order.
            raise _NoDigest
        self._seen[id(value)] = (len(self._seen), value)
        self._open.add(id(value))
        if captures.is_by_reference(value, self._by_value):
            self.put("name", f"{value.__module__}.{value.__qualname__}")
            if type(value) is FunctionType:
                self._code(value.__code__)
        elif type(value) is FunctionType:
            self._function(value)
        elif type(value).__module__ in ("builtins", "abc"):
            self.put("class", value.__name__)
            self.visit(value.__bases__)
            self.visit(dict(sorted(captures.own_attributes(value))))
        else:
            raise _NoDigest  # what a metaclass of somebody else's keeps is not known

    def _function(self, function: FunctionType) -> None:
        self._code(function.__code__)
        self.visit((function.__defaults__, sorted((function.__kwdefaults__ or {}).items()), sorted(vars(function).items())))
        found = {name: value for name, _, value in captures.cells_of(function)}
        found |= {f"global {name}": function.__globals__.get(name, _MISSING) for name in captures.global_names(function.__code__)}
        for name, value in sorted(found.items(), key=lambda item: item[0]):
            self.put("variable", name)
            if value is not _MISSING:
                self.visit(value)

    def _other(self, value: Any, kind: type) -> None:
        name = _kind_name(value)
        self.put("value", name)
        if name in _PLAIN_VALUES and " at 0x" not in repr(value):
            self.put("repr", repr(value))
        elif name == "re.Pattern":
            self.visit((value.pattern, value.flags))
        elif isinstance(value, ModuleType) and not captures.is_within(value.__name__, self._by_value):
            self.put("module", value.__name__)
        elif _is_descriptor(value):
            self.put("descriptor", value.__qualname__)
        elif isinstance(value, enum.Enum):
            self.put("member", value.name)
            self.visit(kind)
        elif _is_numpy(value, "ufunc", "dtype"):
            self.put("numpy", repr(value))
        elif _is_numpy(value, "ndarray", "generic") and not value.dtype.hasobject and kind.__module__ == "numpy":
            self.put("array", repr((value.dtype, value.shape)))
            self.put("items", value.tobytes())
        elif captures.goes_by_name(value, self._by_value):
            self.put("name", f"{value.__module__}.{value.__qualname__}")
        else:
            raise _NoDigest
