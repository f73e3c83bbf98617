"""Errors are bounded on their way, whatever their texts are, and say what was left out."""

from __future__ import annotations

import pickle
import threading
from collections.abc import Callable
from typing import Any

import pytest

from tests.kit.odd_errors import Fields
from vinecore.api.outcome import remote_text_of
from vinecore.errors import RemoteError
from vinecore.runtime import error_texts, raised
from vinecore.runtime.error_texts import describe, line_of
from vinecore.runtime.raised import decode_error, encode_error
from vinecore.runtime.slot import Broken


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
        assert len(data) <= raised.ENCODED_ERROR_LIMIT_BYTES
        found = decode_error(data)
        assert letter in str(found) and found.__notes__[0].startswith(letter)


def test_what_is_left_out_of_a_text_is_counted_once() -> None:
    error = RuntimeError("x" * 2_000_000)
    found = decode_error(encode_error(error, "a note below"))
    left_out = 2_000_000 - error_texts.TEXT_LIMIT_CHARACTERS
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


class NotesRaise(Exception):
    @property
    def __notes__(self) -> list[str]:
        raise SystemExit(2)


class ReadOnly(ImportError):
    """Has properties where the interpreter has fields."""

    @property
    def __cause__(self) -> Any:  # type: ignore[override]
        raise SystemExit(1)

    __context__ = __traceback__ = name = path = __cause__  # type: ignore[assignment]

    def __init__(self, text: str, *, hint: str = "none") -> None:
        super().__init__(text, name=hint)


class EverythingRaises(Exception):
    def __getattribute__(self, name: str) -> Any:
        raise RuntimeError(name)


class ClassRaises(Exception):
    @property  # type: ignore[misc]
    def __class__(self) -> Any:
        raise SystemExit(3)


class NamesRaise(type):
    def __getattribute__(cls, name: str) -> Any:
        if name in ("__name__", "__qualname__", "__module__"):
            raise SystemExit(4)
        return super().__getattribute__(name)


class Nameless(Exception, metaclass=NamesRaise):
    pass


class Unshown(Exception):
    def __str__(self) -> str:
        raise SystemExit(5)

    __repr__ = __str__


class UnshownNameless(Exception):
    def __str__(self) -> str:
        raise Nameless

    __repr__ = __str__


class OddNames(Exception):
    def __init__(self, text: str) -> None:
        super().__init__(text, lambda: self)
        self.__dict__[5] = threading.Lock()  # type: ignore[index]


Homeless = type("Homeless", (Exception,), {"__module__": 5})


class Unlisted(list[Any]):
    def __iter__(self) -> Any:
        raise RuntimeError("no")

    __len__ = __getitem__ = __iter__


def with_notes(notes: object) -> Exception:
    error = ValueError("real reason")
    error.__notes__ = notes  # type: ignore[assignment]
    return error


def carried(make: Callable[[], BaseException]) -> tuple[bool, BaseException, str, str]:
    """Of an error whether it takes a note, what comes of it elsewhere, and its two lines."""
    try:
        raise make()
    except BaseException as caught:
        try:
            return raised.add_note(caught, "below"), decode_error(encode_error(caught)), describe(caught), line_of(caught)
        except BaseException as failure:
            broken = type(failure).__name__
    # Here, and never with such an error as an argument: pytest has no answer to them either.
    pytest.fail(f"it raised {broken}")


@pytest.mark.parametrize(
    ("make", "kind", "notes"),
    [
        (lambda: Fields(code=3), Fields, ["below"]),
        (lambda: NotesRaise("real reason"), NotesRaise, None),
        (lambda: ReadOnly("real reason", hint="a hint"), ReadOnly, ["below"]),
        (lambda: EverythingRaises("real reason"), RemoteError, ["below"]),
        (lambda: ClassRaises("real reason"), RemoteError, ["below"]),
        (lambda: Nameless("real reason"), RemoteError, ["below"]),
        (lambda: Homeless("real reason"), Homeless, ["below"]),
        (lambda: OddNames("real reason"), RemoteError, ["below"]),
        (lambda: with_notes(Unlisted(["a note"])), ValueError, ["a note", "below"]),
        (lambda: with_notes(("a note",)), ValueError, None),
        (lambda: Unshown("real reason"), Unshown, ["below"]),
    ],
)
def test_errors_that_raise_when_they_are_asked(make: Callable[[], BaseException], kind: type, notes: list[str] | None) -> None:
    """One that did so here ended its slot, which looked like a crash, and was called six times."""
    takes_notes, found, *lines = carried(make)
    assert takes_notes == (notes is not None)
    assert type(found) is kind
    shown = repr(BaseException.__dict__["args"].__get__(found))
    if kind is not Unshown:
        assert "real reason" in shown and all("real reason" in line for line in lines)
        assert "real reason" in remote_text_of(found)
    assert "in carried" in remote_text_of(found)
    if notes is not None:
        assert BaseException.__getattribute__(found, "__notes__") == notes


class Rigid(Exception):
    @property
    def __traceback__(self) -> Any:
        raise SystemExit(6)

    def with_traceback(self, frames: Any) -> Any:
        raise SystemExit(7)


def test_code_whose_unpickling_raised_such_an_error_raises_it_at_each_call() -> None:
    code = Broken(Rigid("real reason"))
    for _ in range(2):
        try:
            code()
        except BaseException as error:
            assert type(error) is Rigid


class Posing:
    """Says that it is an exception, and is none."""

    @property
    def __class__(self) -> Any:  # type: ignore[override]
        return ValueError


class Posed(Exception):
    def __reduce__(self) -> Any:
        return Posing, ()


def test_what_only_says_that_it_is_an_error_is_none() -> None:
    # By reference, whatever other tests have said of this module: its class does not travel by value.
    found = decode_error(raised._dumps((pickle.dumps(Posed()), "text", "Posed", "real reason", "", [], "")))
    assert type(found) is RemoteError and "Posed: real reason" in str(found) and "it unpickles as" in str(found)


def test_lines_for_messages_are_bounded_and_utf8() -> None:
    line = line_of(ValueError("\udcff" + "x" * 20_000_000))
    assert line.startswith("ValueError: \\udcff") and "characters left out" in line
    assert len(line.encode()) < 2 * error_texts.TEXT_LIMIT_CHARACTERS
    odd = type("T" * 20_000_000, (Exception,), {})("x")
    assert len(line_of(odd)) < 2 * error_texts.TEXT_LIMIT_CHARACTERS and line_of(odd).endswith("x")
    assert len(line_of(UnshownNameless())) < 2 * error_texts.TEXT_LIMIT_CHARACTERS


def test_notes_that_make_its_pickle_too_large_do_not_make_a_text_of_an_error() -> None:
    found = decode_error(encode_error(with_notes(["\U0001f600" * 1_000_000])))
    assert type(found) is ValueError and "characters left out" in found.__notes__[0]


class Counted(str):
    """Is told when it is looked at as a whole."""

    pickled = 0

    def __reduce__(self) -> Any:
        Counted.pickled += 1
        return str, ("",)


@pytest.mark.parametrize("notes", [[Counted("\udc80" * 200_000)] * 9 + [Counted("y" * 900_000)], [Counted()] * 600_000])
def test_notes_that_cannot_all_travel_are_not_looked_through(notes: list[str]) -> None:
    """Millions were pickled several times, and made part of a traceback of which they were cut."""
    error = with_notes(notes)
    Counted.pickled = 0
    found = decode_error(encode_error(error))
    assert not Counted.pickled and error.__notes__ is notes
    assert type(found) is ValueError and found.args == ("real reason",)
    assert sum(map(len, found.__notes__)) <= error_texts.TEXT_LIMIT_CHARACTERS * 2
    taken = len(found.__notes__) - 1
    assert found.__notes__[-1] == f"... {len(notes) - taken} notes left out ..."
    assert found.__notes__[-1] in str(found.__cause__)
    assert all(type(note) is str for note in found.__notes__)
    assert pickle.loads(pickle.dumps(found)).__notes__ == found.__notes__
