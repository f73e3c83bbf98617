"""Any value through either form, any file and any set of dependencies comes back equal; damage never passes as a value."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from vinecore.errors import ProtocolError
from vinecore.runtime.payload import (
    ALIGNMENT_BYTES,
    Dependency,
    Encoded,
    decode,
    decode_arguments,
    decode_file,
    encode,
    encode_arguments,
    write_file,
)
from vinecore.runtime.raised import decode_error, encode_error

ATOMS = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False), st.text(max_size=20), st.binary(max_size=20)
)
# Sizes on both sides of the limit for buffers out of band, and of the limit for mapping files.
ARRAYS = st.builds(
    lambda count, kind: np.arange(count).astype(kind), st.sampled_from([0, 1, 127, 128, 129, 1000, 9000]), st.sampled_from("ifbc")
)
VALUES = st.recursive(
    st.one_of(ATOMS, ARRAYS),
    lambda inner: st.one_of(
        st.lists(inner, max_size=5), st.dictionaries(st.text(max_size=5), inner, max_size=4), st.tuples(inner, inner)
    ),
    max_leaves=8,
)

bounded = settings(max_examples=60, deadline=None, database=None)


class Input(Dependency):
    """Stands for the input with this number."""

    __slots__ = ("number",)

    def __init__(self, number: int) -> None:
        self.number = number


def same(first: Any, second: Any) -> bool:
    if type(first) is not type(second):
        return False
    if isinstance(first, np.ndarray):
        return first.dtype == second.dtype and np.array_equal(first, second) and bool(second.flags.writeable)
    if isinstance(first, list | tuple):
        return len(first) == len(second) and all(map(same, first, second))
    if isinstance(first, dict):
        return list(first) == list(second) and all(map(same, first.values(), second.values()))
    return bool(first == second)


@bounded
@given(value=VALUES)
def test_values_come_back_from_bytes_and_from_files(value: Any) -> None:
    payload = encode(value)
    data = payload.join() if isinstance(payload, Encoded) else payload
    if isinstance(payload, Encoded):
        assert len(data) == payload.size_bytes
    assert same(value, decode(data))
    assert same(value, decode(memoryview(data)))
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "object"
        assert write_file(path, payload) == len(data)
        assert path.read_bytes() == data
        assert same(value, decode_file(path))


@bounded
@given(arrays=st.lists(ARRAYS, min_size=1, max_size=6))
def test_every_buffer_begins_at_a_multiple_of_the_alignment(arrays: list[Any]) -> None:
    payload = encode(arrays)
    if not isinstance(payload, Encoded):
        return
    position = 0
    for part in payload.parts():
        if isinstance(part, memoryview):
            assert position % ALIGNMENT_BYTES == 0
        position += len(part)


@bounded
@given(arrays=st.lists(ARRAYS.filter(lambda array: array.nbytes >= 1024), min_size=1, max_size=3), cut=st.integers(0, 10**6))
def test_a_container_cut_anywhere_is_refused(arrays: list[Any], cut: int) -> None:
    payload = encode(arrays)
    assert isinstance(payload, Encoded)
    data = payload.join()
    try:
        decode(data[: cut % len(data)])
    except ProtocolError:
        return
    raise AssertionError("a part of a container passed as a value")


@bounded
@given(data=st.data(), shape=st.recursive(st.integers(0, 5), lambda inner: st.lists(inner, max_size=4), max_leaves=15))
def test_dependencies_are_replaced_wherever_they_stand(data: st.DataObject, shape: Any) -> None:
    inputs = [Input(number) for number in range(6)]
    values = data.draw(st.lists(ATOMS, min_size=6, max_size=6))

    def filled(node: Any, leaves: list[Any]) -> Any:
        return [filled(child, leaves) for child in node] if isinstance(node, list) else leaves[node]

    payload, found = encode_arguments((filled(shape, inputs), 1), {"name": filled(shape, inputs)})
    assert isinstance(payload, bytes)
    assert len(set(map(id, found))) == len(found)
    args, kwargs = decode_arguments(payload, [values[one.number] for one in found if isinstance(one, Input)])
    expected = filled(shape, values)
    assert same(args, (expected, 1)) and same(kwargs, {"name": expected})


@bounded
@given(
    kind=st.sampled_from([ValueError, KeyError, OSError, RuntimeError]),
    args=st.lists(ATOMS, max_size=3),
    note=st.text(max_size=9),
)
def test_exceptions_come_back_equal(kind: type[Exception], args: list[Any], note: str) -> None:
    error = kind(*args)
    found = decode_error(encode_error(error, note))
    assert type(found) is type(error) and found.args == error.args
    assert str(found) == str(error)
    assert note in str(found.__cause__)


@bounded
@given(data=st.binary(max_size=200))
def test_no_bytes_make_decoding_an_error_raise(data: bytes) -> None:
    assert isinstance(decode_error(data), BaseException)
