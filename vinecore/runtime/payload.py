"""Values, arguments and results as bytes, and back.

Owns the two forms of a value: a plain pickle (protocol 5, first byte 0x80), or, where the pickle has out-of-band buffers, a
container that a reader maps privately, so that arrays come out writable without a copy::

    magic 4s | buffers u32 | pickle bytes u64 | bytes of each buffer u64 ... | pickle | pad | buffer | pad | buffer ...

Every buffer starts at a multiple of 64 bytes from the start of the container; numbers are little-endian.

Data enters as objects in the process that owns them and leaves as bytes or ``Encoded``; both directions run in the user's
threads and in slots. The manager's loop must never call this module: it passes payloads on unopened. Cloudpickle is imported at
the first value that needs it, because import time is part of the time to a first result. What travels by name or by value is told
in ``captures``; errors have a form of their own, in ``raised``.
"""

from __future__ import annotations

import errno
import functools
import io
import itertools
import mmap
import os
import pickle
import struct
from _thread import _local as _ThreadLocal
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import BuiltinFunctionType, FunctionType, MethodType, ModuleType
from typing import Any, TypeAlias

from vinecore.errors import ProtocolError, UnpicklableError
from vinecore.runtime.captures import by_value_modules, cells_of, global_names, is_by_reference
from vinecore.runtime.error_texts import describe, safe_text, type_name_of
from vinecore.runtime.reducers import REDUCERS, Reducers

# Exact types whose values the plain pickler treats as cloudpickle would, at an eighth of the cost.
ATOMIC: frozenset[type] = frozenset({int, float, complex, bool, str, bytes, type(None)})

MAGIC = b"\xb5VP\x01"
ALIGNMENT_BYTES = 64
# Smaller buffers stay inside the pickle: for them a length, padding and a slice cost more than the copy that they save.
OUT_OF_BAND_MIN_BYTES = 1024
MAP_MIN_BYTES = 64 * 1024  # smaller files are read: a mapping costs several system calls and whole pages
# Containers longer than this are not looked through for atomic content; moving it moves time between the two picklers only.
PLAIN_LIMIT_COUNT = 64
IOV_LIMIT_COUNT = 1024  # buffers that one writev may carry on Linux and macOS
# How deep, and among how many siblings, an error message looks for the object at fault.
BLAME_DEPTH = 8
BLAME_WIDTH = 1000

# The usual reason, for users.
_PLAIN_FILE = "; if it is a file that a task wrote, give it to the call with add_input(file, name) instead of as an argument"

_HEAD = struct.Struct("<4sIQ")
_PROTOCOL = 5
_PADDING = bytes(ALIGNMENT_BYTES)

_is_atomic = ATOMIC.issuperset
_dumps = pickle.dumps
_loads = pickle.loads


class _Local(_ThreadLocal):
    """What this thread encodes or decodes at the moment."""

    # The dependencies met by encode_arguments, by id, with their number.
    collected: dict[int, tuple[int, object]] | None = None
    values: Sequence[object] | None = None


_local = _Local()


class Dependency:
    """Base of objects that stand for a value made elsewhere; as arguments they travel as a number instead of themselves."""

    __slots__ = ()

    def __reduce_ex__(self, protocol: Any) -> tuple[Callable[[int], object], tuple[int]]:
        collected = _local.collected
        if collected is None:
            raise UnpicklableError(
                f"a {type(self).__name__} can only be pickled as an argument of submit, at any depth; elsewhere pass its result()"
            )
        number, _ = collected.setdefault(id(self), (len(collected), self))
        return _value_of_dependency, (number,)


def _value_of_dependency(position: int) -> object:
    """Stand where a Dependency was: its value, while ``decode_arguments`` runs in this thread."""
    values = _local.values
    if values is None or position >= len(values):
        raise ProtocolError(f"the arguments refer to input {position}, which was not handed in with them")
    return values[position]


class Encoded:
    """A value with out-of-band buffers, as a container that is not yet joined.

    The buffers are views of the value's own memory: write or join it before anybody may change the value.
    """

    __slots__ = ("_parts", "size_bytes")

    def __init__(self, pickled: bytes, buffers: Sequence[memoryview]) -> None:
        lengths = [buffer.nbytes for buffer in buffers]
        head = _HEAD.pack(MAGIC, len(buffers), len(pickled)) + struct.pack(f"<{len(lengths)}Q", *lengths)
        parts: list[bytes | memoryview] = [head, pickled]
        size_bytes = len(head) + len(pickled)
        for buffer in buffers:
            pad_bytes = -size_bytes % ALIGNMENT_BYTES
            if pad_bytes:
                parts.append(_PADDING[:pad_bytes])
            parts.append(buffer)
            size_bytes += pad_bytes + buffer.nbytes
        self._parts = parts
        self.size_bytes = size_bytes

    def parts(self) -> list[bytes | memoryview]:
        """Return the container's pieces in order, for ``os.writev`` or a transport; together they are ``size_bytes`` long."""
        return self._parts

    def join(self) -> bytes:
        """Return the container as one object."""
        return b"".join(self._parts)

    def __repr__(self) -> str:
        return f"Encoded({self.size_bytes} bytes in {len(self._parts)} parts)"


Payload: TypeAlias = bytes | Encoded


# ---------------------------------------------------------------- values


def encode(value: object) -> Payload:
    """Return the value as a plain pickle, or as a container when it has buffers worth keeping apart.

    Raises:
        Exception: whatever pickling raises (PicklingError, TypeError, errors of the user's own methods).
    """
    kind = type(value)
    if kind in ATOMIC or _is_plain_container(value, kind):
        return _dumps(value, _PROTOCOL)
    return _encode_any(value)


def _is_plain_container(value: Any, kind: type) -> bool:
    """Whether this is a small exact container of nothing but atomic values."""
    if kind is tuple or kind is list or kind is set or kind is frozenset:
        return len(value) <= PLAIN_LIMIT_COUNT and _is_atomic(map(type, value))
    if kind is dict:
        return len(value) <= PLAIN_LIMIT_COUNT and _is_atomic(map(type, value)) and _is_atomic(map(type, value.values()))
    return False


def _encode_any(value: object) -> Payload:
    buffers: list[memoryview] = []

    def keep_in_band(buffer: pickle.PickleBuffer) -> bool:
        raw = buffer.raw()
        if raw.nbytes < OUT_OF_BAND_MIN_BYTES:
            return True
        buffers.append(raw)
        return False

    pickled = dump(value, keep_in_band)
    return Encoded(pickled, buffers) if buffers else pickled


def dump(value: object, keep_in_band: Callable[[pickle.PickleBuffer], bool] | None = None) -> bytes:
    """Return one plain pickle, also of functions and classes that nobody can import; raises whatever pickling raises."""
    file = io.BytesIO()
    (_pickler or make_pickler())(file, _PROTOCOL, keep_in_band).dump(value)
    return file.getvalue()


_pickler: Callable[..., Any] | None = None


def make_pickler() -> Callable[..., Any]:
    """Import cloudpickle and return the class that pickles what plain pickle does not; once, before forks that share it."""
    global _pickler
    import cloudpickle

    # Without the last map, which is copyreg's.
    theirs = cloudpickle.Pickler.dispatch_table.maps[0]
    reducers = Reducers({**theirs, **REDUCERS, functools._lru_cache_wrapper: _reduce_cached_function})
    _pickler = type("Pickler", (cloudpickle.Pickler,), {"dispatch_table": reducers})
    return _pickler


def _reduce_cached_function(function: Any) -> Any:
    """Send a function under ``functools.lru_cache`` whole: its own reducer names it, also where no other process can find it."""
    if is_by_reference(function, by_value_modules()):
        return function.__qualname__
    parameters = function.cache_parameters()
    return _rebuild_cached_function, (function.__wrapped__, parameters["maxsize"], parameters["typed"])


def _rebuild_cached_function(function: Callable[..., object], maxsize: int | None, typed: bool) -> object:
    return functools.lru_cache(maxsize, typed)(function)


def decode(data: bytes | bytearray | memoryview | mmap.mmap) -> object:
    """Return the value of either form.

    Immutable data is copied once, buffer by buffer, because arrays must come out writable. Writable data (a private mapping, a
    bytearray) is used in place: the value keeps it alive, and the caller must not touch it again.

    Raises:
        ProtocolError: this is neither form, or it is cut short.
        Exception: whatever unpickling raises (ImportError, errors of the user's own methods).
    """
    if len(data) == 0:
        raise ProtocolError(f"an object of no bytes is no value{_PLAIN_FILE}")
    if data[0] == 0x80:
        return _loads(data)
    return _decode_container(memoryview(data))


def _decode_container(view: memoryview) -> object:
    if view.nbytes < _HEAD.size or view[:4] != MAGIC:
        raise ProtocolError(f"an object that begins with {bytes(view[:8])!r} is no value{_PLAIN_FILE}")
    _, buffer_count, pickle_bytes = _HEAD.unpack_from(view)
    start = _HEAD.size + 8 * buffer_count
    if start > view.nbytes:
        raise ProtocolError(f"a container of {buffer_count} buffers is cut short at {view.nbytes} bytes")
    lengths = struct.unpack_from(f"<{buffer_count}Q", view, _HEAD.size)
    end = start + pickle_bytes
    pickled = view[start:end]
    ranges = []
    for length in lengths:
        begin = end + -end % ALIGNMENT_BYTES
        end = begin + length
        ranges.append((begin, end))
    if end != view.nbytes:
        raise ProtocolError(f"a container of {end} bytes has {view.nbytes}")
    # One bytearray for each buffer, so that a small array that is kept does not keep its large neighbours.
    buffers = [bytearray(view[a:b]) if view.readonly else view[a:b] for a, b in ranges]
    return _loads(pickled, buffers=buffers)


def decode_file(path: str | os.PathLike[str]) -> object:
    """Return the value in a file.

    Raises:
        OSError: the file cannot be opened, read or mapped.
        ProtocolError: it holds no value, or is cut short.
        Exception: whatever unpickling raises.
    """
    return decode(load_file(path))


def load_file(path: str | os.PathLike[str], map_min_bytes: int = MAP_MIN_BYTES) -> memoryview | bytearray:
    """Return a file's bytes; many are mapped privately, so the file never changes and arrays are writable.

    The mapping lives as long as what is returned, or arrays in the value do; no descriptor stays open.

    Raises:
        OSError: the file cannot be opened, read or mapped.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        size_bytes = os.fstat(descriptor).st_size
        if size_bytes >= map_min_bytes:
            # Imported at the first large file: it loads the C library.
            from vinecore.runtime.mapping import map_privately

            return map_privately(descriptor, size_bytes, path)
        data = bytearray(size_bytes)
        del data[os.readv(descriptor, [data]) if size_bytes else 0 :]
        return data
    finally:
        os.close(descriptor)


def write_file(path: str | os.PathLike[str], encoded: Payload) -> int:
    """Write a payload to a new file that only its owner may read, and return its size; a failed write leaves no file.

    Raises:
        OSError: the file exists or cannot be written (disk full and the like).
    """
    parts = [encoded] if isinstance(encoded, bytes) else encoded.parts()
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    is_whole = False
    try:
        size_bytes = _write_parts(descriptor, parts)
        is_whole = True
    finally:
        os.close(descriptor)
        if not is_whole:
            os.unlink(path)
    return size_bytes


def _write_parts(descriptor: int, parts: Sequence[bytes | memoryview]) -> int:
    views = [memoryview(part) for part in parts if len(part)]
    written_total_bytes = 0
    first = 0
    while first < len(views):
        written = os.writev(descriptor, views[first : first + IOV_LIMIT_COUNT])
        if written == 0:
            raise OSError(errno.EIO, "the file takes no more bytes")
        written_total_bytes += written
        while first < len(views) and written >= views[first].nbytes:
            written -= views[first].nbytes
            first += 1
        if written:
            views[first] = views[first][written:]
    return written_total_bytes


# ---------------------------------------------------------------- arguments and results


def encode_arguments(args: tuple[Any, ...], kwargs: Mapping[str, Any], function_name: str = "") -> tuple[Payload, list[object]]:
    """Return ``(args, kwargs)`` as a payload, and the Dependency objects in it, in the order of the numbers that stand for them.

    Raises:
        UnpicklableError: an argument cannot be pickled; the text names its place and the object at fault.
    """
    if _is_atomic(map(type, args)) and (not kwargs or _is_atomic(map(type, kwargs.values()))):
        return _dumps((args, kwargs), _PROTOCOL), []
    if all(type(value) in ATOMIC or _is_plain_container(value, type(value)) for value in (*args, *kwargs.values())):
        return _dumps((args, kwargs), _PROTOCOL), []
    outer = _local.collected
    collected = _local.collected = {}
    try:
        return _encode_any((args, kwargs)), [dependency for _, dependency in collected.values()]
    except Exception as error:
        # A fresh collector: the search pickles again, and numbers must not leak into what was collected so far.
        _local.collected = {}
        raise UnpicklableError(_blame_argument(args, kwargs, function_name or "the function", error)) from error
    finally:
        _local.collected = outer


def decode_arguments(
    data: bytes | bytearray | memoryview | mmap.mmap, dependencies: Sequence[object]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return ``(args, kwargs)`` with the values of the dependencies in their places.

    Raises:
        ProtocolError: not a payload, or it refers to more dependencies than were handed in.
        Exception: whatever unpickling raises.
    """
    if not dependencies:
        return decode(data)  # type: ignore[return-value]
    outer = _local.values
    _local.values = dependencies
    try:
        return decode(data)  # type: ignore[return-value]
    finally:
        _local.values = outer


def result_error(value: object, function_name: str, error: Exception) -> UnpicklableError:
    """Return what to raise when what a function gave back could not be pickled: function, type and the object at fault."""
    where, text = find_culprit(value, error)
    return UnpicklableError(
        f"the result of {function_name or 'the function'}, {_article(value)}{where}, cannot be sent back: {text}; "
        "return plain data instead"
    )


def _blame_argument(args: tuple[Any, ...], kwargs: Mapping[str, Any], function_name: str, error: Exception) -> str:
    named = [(f"argument {number}", value) for number, value in enumerate(args, 1)]
    named += [(f"argument {number} ({name}=...)", value) for number, (name, value) in enumerate(kwargs.items(), len(args) + 1)]
    for label, value in named:
        failure = failure_of(value)
        if failure is not None:
            where, text = find_culprit(value, failure)
            return f"{label} of {function_name}{where}: {text}; pass what it is made from and open it inside the function"
    return f"the arguments of {function_name}: {describe(error)}"


def failure_of(value: object) -> Exception | None:
    """Return the error that pickling this value raises, if any; its large buffers are not copied."""
    try:
        _encode_any(value)
    except Exception as error:
        return error
    return None


def find_culprit(value: object, error: Exception) -> tuple[str, str]:
    """Return where inside ``value`` the object is that cannot be pickled (" at [3].handle", or nothing) and why it cannot."""
    trail = ""
    for _ in range(BLAME_DEPTH):
        for label, child in _children(value):
            failure = failure_of(child)
            if failure is not None:
                trail, value, error = trail + label, child, failure
                break
        else:
            break
    return (f" at {trail.strip()} ({_article(value)})" if trail else ""), describe(error)


def _children(value: Any) -> Iterator[tuple[str, object]]:
    """The objects that pickling this one reaches directly, each with how a person would point at it."""
    found: Iterator[tuple[str, object]] = iter(())
    if isinstance(value, dict):
        found = ((f"[{safe_text(repr, key)}]", child) for key, child in value.items())
    elif isinstance(value, list | tuple | set | frozenset):
        found = ((f"[{index}]", child) for index, child in enumerate(value))
    elif isinstance(value, FunctionType):
        found = _captured_by(value)
    elif isinstance(value, functools.partial):
        found = iter([(".func", value.func), (".args", value.args), (".keywords", value.keywords)])
    elif isinstance(value, MethodType | BuiltinFunctionType):
        found = iter([(".__self__", value.__self__)])
    elif not isinstance(value, type | ModuleType):
        attributes = getattr(value, "__dict__", None)
        if isinstance(attributes, dict):
            found = ((f".{name}", child) for name, child in attributes.items())
    return itertools.islice(found, BLAME_WIDTH)


def _captured_by(function: FunctionType) -> Iterator[tuple[str, object]]:
    for name, _, value in cells_of(function):
        yield f" closure variable {name!r}", value
    for value in (*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values()):
        yield " a default", value
    for name in global_names(function.__code__):
        yield f" global variable {name!r}", function.__globals__.get(name)


def _article(value: object) -> str:
    return f"a {type_name_of(type(value))}"
