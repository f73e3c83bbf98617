"""Errors are bounded on their way, whatever their texts are, and say what was left out."""

from __future__ import annotations

import threading

import pytest

from vinecore.errors import RemoteError
from vinecore.runtime import payload as payloads
from vinecore.runtime.payload import decode_error, encode_error


@pytest.mark.parametrize("letter", ["x", "\u4e2d", "\U0001f600", "\ud800"])
@pytest.mark.parametrize("size", [1, 30, 65_536, 120_000])
def test_errors_of_any_length_have_a_bound(letter: str, size: int) -> None:
    """Also as text only, and with all texts as long as they may be."""

    class Loud(Exception):
        def __repr__(self) -> str:
            return str(self)

    Loud.__qualname__ = "L" * size
    for kind in (ValueError, Loud):
        error = kind(letter * size)
        for _ in range(10_000 if size < 100 else 4):
            error.add_note(letter * size)
        data = encode_error(error, letter * size)
        assert len(data) <= payloads.ENCODED_ERROR_LIMIT_BYTES
        found = decode_error(data)
        assert letter in str(found) and found.__notes__[0].startswith(letter)


def test_what_is_left_out_of_a_text_is_counted_once() -> None:
    error = RuntimeError("x" * 2_000_000)
    found = decode_error(encode_error(error, "a note below"))
    left_out = 2_000_000 - payloads.TEXT_LIMIT_CHARACTERS
    assert isinstance(found, RemoteError) and f"... {left_out} characters left out ..." in str(found)
    trace = str(found.__cause__)
    assert trace.count("characters left out") == 1 and "a note below" in trace


def test_notes_that_travel_with_their_error_are_whole() -> None:
    error = ValueError()
    for number in range(20_000):
        error.add_note(str(number))
    assert decode_error(encode_error(error)).__notes__ == error.__notes__
    error.lock = threading.Lock()  # type: ignore[attr-defined]
    error.args = (lambda: error,)
    notes = decode_error(encode_error(error)).__notes__
    assert notes[:3] == ["0", "1", "2"] and "notes left out" in notes[-1]
