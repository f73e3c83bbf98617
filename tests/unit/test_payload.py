"""Values, arguments and results as bytes: both forms, files, dependencies and what messages name."""

from __future__ import annotations

import dataclasses
import errno
import fnmatch
import gc
import os
import pickle
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.kit.calls import outcome
from vinecore.errors import ProtocolError, UnpicklableError
from vinecore.runtime import payload as payloads
from vinecore.runtime.mapping import map_privately
from vinecore.runtime.payload import (
    ALIGNMENT_BYTES,
    MAP_MIN_BYTES,
    OUT_OF_BAND_MIN_BYTES,
    Dependency,
    Encoded,
    decode,
    decode_arguments,
    decode_file,
    encode,
    encode_arguments,
    result_error,
    write_file,
)


class Future(Dependency):
    __slots__ = ("name",)

    def __init__(self, name: str) -> None:
        self.name = name


@dataclasses.dataclass
class Box:
    content: object


class Refuses:
    def __reduce__(self) -> str:
        raise ZeroDivisionError("refused")


def encoded(value: object) -> Encoded:
    result = encode(value)
    assert isinstance(result, Encoded)
    return result


# ---------------------------------------------------------------- values


@pytest.mark.parametrize("value", [0, -1.5, 1j, True, "é\ud800", b"\x80", None, (1, "a"), [None], {"a": 2}, {1, 2}, frozenset()])
def test_small_plain_values_are_plain_pickles_that_any_unpickler_reads(value: object) -> None:
    data = encode(value)
    assert isinstance(data, bytes) and data[0] == 0x80
    assert pickle.loads(data) == value == decode(data)


def test_what_only_cloudpickle_can_send_is_sent() -> None:
    factor = 3
    data = encode([lambda number: number * factor])
    assert isinstance(data, bytes)
    assert decode(data)[0](14) == 42  # type: ignore[index]


def test_plain_values_do_not_load_cloudpickle_and_nothing_loads_numpy() -> None:
    program = (
        "import sys; from vinecore.runtime import payload as p, functions\n"
        "p.encode([1, {}] and [1]); p.encode_arguments((1, [2]), {'a': 'b'}); p.decode(p.encode('x'))\n"
        "print('cloudpickle' in sys.modules, 'numpy' in sys.modules); p.encode(object()); print('numpy' in sys.modules)"
    )
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    assert run.stdout.split() == ["False", "False", "False"]


def test_buffers_lie_aligned_and_parts_join_to_the_announced_size() -> None:
    arrays = [np.arange(500 + index, dtype=np.float64) for index in range(3)]
    container = encoded(arrays)
    joined = container.join()
    assert b"".join(container.parts()) == joined
    assert len(joined) == container.size_bytes
    assert joined[0] != 0x80
    for array in arrays:
        assert joined.index(array.tobytes()) % ALIGNMENT_BYTES == 0


def test_the_container_has_these_bytes() -> None:
    """A change here is a change of the format, which processes of different versions would not understand."""
    joined = encoded(pickle.PickleBuffer(b"x" * OUT_OF_BAND_MIN_BYTES)).join()
    pickled = b"\x80\x05\x97\x98."
    head = b"\xb5VP\x01" + (1).to_bytes(4, "little") + len(pickled).to_bytes(8, "little")
    head += OUT_OF_BAND_MIN_BYTES.to_bytes(8, "little") + pickled
    assert joined == head.ljust(64, b"\0") + b"x" * OUT_OF_BAND_MIN_BYTES


def test_small_buffers_stay_in_band() -> None:
    assert isinstance(encode(np.zeros(OUT_OF_BAND_MIN_BYTES - 1, dtype=np.uint8)), bytes)
    assert isinstance(encode(np.zeros(OUT_OF_BAND_MIN_BYTES, dtype=np.uint8)), Encoded)


def test_buffers_are_not_copied_by_encoding() -> None:
    array = np.zeros(1000)
    container = encoded(array)
    array[0] = 7.0
    assert decode(container.join())[0] == 7.0  # type: ignore[index]


@pytest.mark.parametrize("form", [bytes, memoryview, bytearray])
def test_arrays_come_out_writable_and_apart_from_immutable_data(form: Any) -> None:
    original = encoded([np.arange(1000), np.ones(1000)]).join()
    data = form(original)
    first, second = decode(data)  # type: ignore[misc]
    first[0] = 99
    second += 1
    assert first[0] == 99 and second.sum() == 2000
    assert first.flags.aligned and first.flags.writeable
    if form is not bytearray:
        assert data == original


def test_writable_data_is_used_in_place() -> None:
    data = bytearray(encoded(np.zeros(2000, dtype=np.uint8)).join())
    array = decode(data)
    array[-1] = 5  # type: ignore[index]
    assert data[-1] == 5


def test_read_only_arrays_stay_read_only() -> None:
    array = np.arange(1000)
    array.flags.writeable = False
    assert not decode(encoded(array).join()).flags.writeable  # type: ignore[attr-defined]


def test_a_kept_array_does_not_keep_its_neighbours() -> None:
    small, large = decode(encoded([np.zeros(200), np.zeros(100_000)]).join())  # type: ignore[misc]
    owner: Any = small
    while not isinstance(owner, bytearray):
        owner = owner.obj if isinstance(owner, memoryview) else owner.base
    assert len(owner) == small.nbytes < large.nbytes


@pytest.mark.parametrize("change", [lambda d: d[:-1], lambda d: d + b"\0", lambda d: d[:10], lambda d: b"zz" + d, lambda d: b""])
def test_damaged_containers_are_refused(change: Callable[[bytes], bytes]) -> None:
    with pytest.raises(ProtocolError):
        decode(change(encoded(np.zeros(1000)).join()))


def test_a_container_that_claims_too_many_buffers_is_refused() -> None:
    with pytest.raises(ProtocolError, match="cut short"):
        decode(b"\xb5VP\x01" + b"\xff" * 12)


# ---------------------------------------------------------------- files


@pytest.mark.parametrize("count", [10, 300, 100_000])
def test_a_value_goes_through_a_file(tmp_path: Path, count: int) -> None:
    path = tmp_path / "object"
    value = {"array": np.arange(count), "text": "x"}
    payload = encode(value)
    size_bytes = write_file(path, payload)
    assert size_bytes == path.stat().st_size == (len(payload) if isinstance(payload, bytes) else payload.size_bytes)
    assert path.stat().st_mode & 0o777 == 0o600
    before = path.read_bytes()
    found: Any = decode_file(path)
    found["array"][:] = -1
    assert (found["array"] == -1).all() and found["text"] == "x"
    assert path.read_bytes() == before


def mapped(path: Path) -> int:
    return Path("/proc/self/maps").read_text().count(str(path))


def test_a_mapping_lives_as_long_as_its_arrays_and_holds_no_descriptor(tmp_path: Path) -> None:
    path = tmp_path / "object"
    write_file(path, encode([np.arange(MAP_MIN_BYTES), np.ones(MAP_MIN_BYTES)]))
    descriptors = len(list(Path("/proc/self/fd").iterdir()))
    found: Any = decode_file(str(path))
    kept = found[1][10:20]
    assert mapped(path) > 0
    assert len(list(Path("/proc/self/fd").iterdir())) == descriptors
    path.unlink()
    del found
    gc.collect()
    assert kept.sum() == 10 and mapped(path) > 0
    del kept
    gc.collect()
    assert mapped(path) == 0


def test_a_large_file_without_buffers_leaves_no_mapping(tmp_path: Path) -> None:
    path = tmp_path / "object"
    write_file(path, encode(b"x" * (2 * MAP_MIN_BYTES)))
    assert decode_file(path) == b"x" * (2 * MAP_MIN_BYTES)
    gc.collect()
    assert mapped(path) == 0


def test_files_that_hold_no_value(tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    with pytest.raises(ProtocolError, match="no bytes"):
        decode_file(tmp_path / "empty")
    with pytest.raises(FileNotFoundError):
        decode_file(tmp_path / "missing")
    with pytest.raises(OSError, match="object") as caught:
        map_privately(-1, MAP_MIN_BYTES, "object")
    assert caught.value.errno == errno.EBADF


def test_existing_files_are_not_touched(tmp_path: Path) -> None:
    (tmp_path / "object").write_text("theirs")
    with pytest.raises(FileExistsError):
        write_file(tmp_path / "object", b"ours")
    assert (tmp_path / "object").read_text() == "theirs"


def test_partial_writes_are_continued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = os.writev
    counts = iter([1, 30, 700, 3, 5000] + [977] * 1000)

    def short(descriptor: int, parts: list[memoryview]) -> int:
        assert len(parts) <= payloads.IOV_LIMIT_COUNT
        return whole(descriptor, [memoryview(b"".join(parts))[: next(counts)]])

    monkeypatch.setattr(os, "writev", short)
    container = encoded([np.arange(200 + index) for index in range(30)])
    write_file(tmp_path / "object", container)
    assert (tmp_path / "object").read_bytes() == container.join()


def test_more_buffers_than_one_system_call_takes(tmp_path: Path) -> None:
    container = encoded([np.full(128, index) for index in range(payloads.IOV_LIMIT_COUNT + 10)])
    write_file(tmp_path / "object", container)
    assert (tmp_path / "object").read_bytes() == container.join()


@pytest.mark.parametrize("failure", [OSError(errno.ENOSPC, "No space left on device"), None])
def test_a_failed_write_leaves_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failure: OSError | None) -> None:
    def fails(descriptor: int, parts: object) -> int:
        if failure is not None:
            raise failure
        return 0

    monkeypatch.setattr(os, "writev", fails)
    with pytest.raises(OSError) as caught:
        write_file(tmp_path / "object", b"data")
    assert caught.value.errno == (errno.ENOSPC if failure is not None else errno.EIO)
    assert list(tmp_path.iterdir()) == []


# ---------------------------------------------------------------- arguments and results


@pytest.mark.parametrize("args", [(), (1, "a"), ([1], {"k": 2}), (object, len), (np.arange(3).tolist(),)])
def test_arguments_without_dependencies(args: tuple[Any, ...]) -> None:
    data, dependencies = encode_arguments(args, {"name": None})
    assert isinstance(data, bytes)
    assert dependencies == []
    assert decode_arguments(data, ()) == (args, {"name": None})


def test_dependencies_are_found_at_any_depth_and_once_each() -> None:
    one, two, three = Future("one"), Future("two"), Future("three")
    args = ([one, {"deep": (two, one)}], Box(three))
    data, dependencies = encode_arguments(args, {"again": two, "set": {1, 2}})
    assert isinstance(data, bytes)
    assert dependencies == [one, two, three]
    value = {"shared": []}
    (listed, box), keywords = decode_arguments(data, ["ONE", value, 3])
    assert listed == ["ONE", {"deep": (value, "ONE")}] and box == Box(3)
    assert keywords["again"] is value is listed[1]["deep"][0]


def test_dependencies_captured_by_functions_and_pickled_by_reducers_are_found() -> None:
    future = Future("inner")

    class Nested:
        def __reduce__(self) -> tuple[Callable[[bytes], object], tuple[bytes]]:
            return pickle.loads, (pickle.dumps([future]),)

    data, dependencies = encode_arguments((lambda: future, Nested()), {})
    assert isinstance(data, bytes)
    assert dependencies == [future]
    (function, listed), _ = decode_arguments(data, ["value"])
    assert function() == "value" and listed == ["value"]


def test_large_buffers_in_arguments_make_a_container() -> None:
    future = Future("f")
    container, dependencies = encode_arguments((np.arange(1000), future), {})
    assert isinstance(container, Encoded) and dependencies == [future]
    (array, value), _ = decode_arguments(container.join(), [5])
    assert array.sum() == 499500 and value == 5


def test_a_dependency_anywhere_else_is_refused_and_the_collector_is_gone_after_use() -> None:
    future = Future("f")
    encode_arguments((future,), {})
    for attempt in (lambda: pickle.dumps(future), lambda: encode([future])):
        with pytest.raises(UnpicklableError, match="a Future can only be pickled as an argument of submit"):
            attempt()
    outcome(lambda: encode_arguments((future, Refuses()), {}))
    with pytest.raises(UnpicklableError):
        pickle.dumps(future)


def test_collecting_is_private_to_a_thread() -> None:
    seen: list[BaseException] = []

    class Elsewhere:
        def __reduce__(self) -> tuple[type[int], tuple[int]]:
            thread = threading.Thread(target=lambda: seen.append(outcome(lambda: pickle.dumps(Future("x")))))
            thread.start()
            thread.join(30)
            return int, (1,)

    assert encode_arguments((Elsewhere(),), {})[1] == []
    assert isinstance(seen[0], UnpicklableError)


def test_missing_values_of_dependencies_are_an_error() -> None:
    data, _ = encode_arguments((Future("f"),), {})
    assert isinstance(data, bytes)
    with pytest.raises(ProtocolError, match="input 0"):
        decode_arguments(data, ())
    with pytest.raises(ProtocolError, match="input 0"):
        decode(data)


def test_encoding_and_decoding_nest() -> None:
    inner_data, _ = encode_arguments(([Future("inner")],), {})
    assert isinstance(inner_data, bytes)

    class Nested:
        def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
            assert len(encode_arguments((Future("a"), Future("b")), {})[1]) == 2
            return decode_arguments, (inner_data, ("inner value",))

    outer = Future("outer")
    data, dependencies = encode_arguments((Nested(), outer), {})
    assert isinstance(data, bytes) and dependencies == [outer]
    assert decode_arguments(data, ["outer value"])[0] == ((([["inner value"]][0],), {}), "outer value")


def deep_list() -> list[Any]:
    value: list[Any] = []
    for _ in range(100_000):
        value = [value]
    return value


@pytest.mark.parametrize(
    ("args", "kwargs", "text"),
    [
        ((1,), {"handler": threading.Lock()}, "argument 2 (handler=...) of f: cannot pickle '_thread.lock' object"),
        ((1, threading.Lock()), {}, "argument 2 of f: cannot pickle '_thread.lock' object"),
        (([1, {"k": Box(threading.Lock())}],), {}, "argument 1 of f at [1]['k'].content (a _thread.lock): cannot pickle"),
        ((Refuses(),), {}, "argument 1 of f: ZeroDivisionError: refused"),
        ((Future("fine"), threading.Lock().acquire), {}, "argument 2 of f at .__self__ (a _thread.lock)"),
        ((deep_list(),), {}, "argument 1 of f"),
    ],
    ids=["keyword", "position", "deep", "user error", "method", "recursion"],
)
def test_what_cannot_be_pickled_is_named(args: tuple[Any, ...], kwargs: dict[str, Any], text: str) -> None:
    with pytest.raises(UnpicklableError) as caught:
        encode_arguments(args, kwargs, "f")
    assert text in str(caught.value)
    assert caught.value.__cause__ is not None


def test_variables_captured_by_an_argument_are_named() -> None:
    lock = threading.Lock()
    with pytest.raises(UnpicklableError, match=r"argument 1 of the function at closure variable 'lock' \(a _thread.lock\)"):
        encode_arguments((lambda: lock,), {})


@pytest.mark.parametrize(
    "value, text",
    [
        ((i for i in ()), "the result of f, a generator, cannot be sent back: cannot pickle 'generator'"),
        ([{"lock": threading.Lock()}], "the result of f, a list at [0]['lock'] (a _thread.lock), cannot be sent back"),
    ],
)
def test_what_makes_a_result_unpicklable_is_named(value: object, text: str) -> None:
    with pytest.raises(Exception) as caught:
        encode(value)
    error = result_error(value, "f", caught.value)
    assert isinstance(error, UnpicklableError) and str(error).startswith(text)


# ---------------------------------------------------------------- reducers of our own


def test_cached_functions_of_main_are_sent_whole() -> None:
    program = (
        "import functools, pickle, sys\n"
        "from vinecore.runtime import payload\n"
        "@functools.lru_cache(maxsize=7, typed=True)\n"
        "def double(x): return x * 2\n"
        "sys.stdout.buffer.write(payload.dump(double))"
    )
    data = subprocess.run([sys.executable, "-c", program], capture_output=True, timeout=60, check=True).stdout
    double: Any = decode(data)
    assert double(4) == 8 and double.cache_parameters() == {"maxsize": 7, "typed": True}
    cached = fnmatch._compile_pattern  # type: ignore[attr-defined]
    assert decode(payloads.dump(cached)) is cached
