"""Exceptions as bytes: as themselves where their class allows, else as text, with traceback, notes and causes."""

from __future__ import annotations

import dataclasses
import pickle
import re
import sys
import threading
import traceback
from types import ModuleType
from typing import Any

import pytest

from tests.kit.calls import outcome
from vinecore.errors import RemoteError, RemoteTraceback
from vinecore.runtime.raised import decode_error, encode_error


def carried(error: BaseException, note: str = "") -> BaseException:
    return decode_error(encode_error(error, note))


def fail(number: int) -> None:
    try:
        raise KeyError("inner")
    except KeyError as error:
        raise ValueError(f"bad {number}") from error


class Detailed(Exception):
    def __init__(self, first: object, second: str) -> None:
        super().__init__(f"{first} and {second}")
        self.args += (first,)
        self.second = second

    def __str__(self) -> str:
        return str(self.args[0])


class Usual(Exception):
    """As most people write it; pickle calls it with its message alone."""

    def __init__(self, code: int, where: str) -> None:
        super().__init__(f"{code} at {where}")
        self.code, self.where = code, where


class Defaulting(Usual):
    """Pickle can call it, and gives it another message."""

    def __init__(self, code: object, where: str = "home") -> None:
        super().__init__(code, where)  # type: ignore[arg-type]


class Keyed(KeyError):
    def __init__(self, *, name: str) -> None:
        super().__init__(name)


class Numbered(OSError):
    def __init__(self, path: str, *, code: int) -> None:
        super().__init__(code, "no luck", path)


class Missing(ImportError):
    def __init__(self, name: str, hint: str) -> None:
        super().__init__(f"{name}: {hint}", name=name)


class Holding(Usual):
    """Has something that cannot travel."""

    def __init__(self, code: int, where: str) -> None:
        super().__init__(code, where)
        self.lock = threading.Lock()


class Silent(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no text")

    __repr__ = __str__


class Vanishing(Exception):
    def __reduce__(self) -> tuple[type[str], tuple[str]]:
        return str, ("not an exception",)


class Leaving(Exception):
    def __reduce__(self) -> str:
        raise SystemExit(3)


class Frozen(Exception):
    def __setattr__(self, name: str, value: object) -> None:
        raise dataclasses.FrozenInstanceError(name)


def test_an_exception_comes_back_itself_with_the_remote_traceback() -> None:
    error = outcome(lambda: fail(3))
    error.add_note("a note")
    error.extra = [1]  # type: ignore[attr-defined]
    found = carried(error, "on worker 7")
    assert type(found) is ValueError and found.args == ("bad 3",) and found.extra == [1]  # type: ignore[attr-defined]
    assert found.__notes__ == ["a note"]
    text = str(found.__cause__)
    assert isinstance(found.__cause__, RemoteTraceback)
    for part in ("KeyError: 'inner'", "direct cause", "in fail", "ValueError: bad 3", "a note"):
        assert part in text
    assert text.endswith("on worker 7\n")
    assert "in fail" in "".join(traceback.format_exception(found))


def test_groups_and_local_classes_come_back() -> None:
    class Local(Exception):
        pass

    group = carried(ExceptionGroup("many", [Local("a"), OSError(2, "gone", "/x")]))
    assert isinstance(group, ExceptionGroup)
    assert type(group.exceptions[0]) is Local
    assert isinstance(group.exceptions[1], FileNotFoundError) and group.exceptions[1].filename == "/x"
    assert type(carried(KeyboardInterrupt())) is KeyboardInterrupt


def test_our_own_frames_above_the_user_are_left_out() -> None:
    namespace: dict[str, Any] = {"__name__": "vinecore.runtime.slot", "fail": fail}
    exec(compile("def our_frame():\n    fail(1)", "ours.py", "exec"), namespace)

    def carried_text() -> str:
        error = outcome(namespace["our_frame"])
        assert error.__traceback__ is not None
        # Without the frame of ``outcome``, which stands for nobody.
        return str(carried(error.with_traceback(error.__traceback__.tb_next)).__cause__)

    text = carried_text()
    assert "in fail" in text and "ours.py" not in text
    exec(compile("def our_frame():\n    raise ValueError", "ours.py", "exec"), namespace)
    assert "ours.py" in carried_text()


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (Detailed(threading.Lock(), "x"), r"Detailed: <unlocked .* and x \(could not be rebuilt here: cannot pickle"),
        (ValueError(threading.Lock()), r"ValueError: <unlocked .* \(could not be rebuilt here: cannot pickle '_thread.lock'"),
        (Vanishing(sys.stdout), r"could not be rebuilt here: it unpickles as a str\)"),
        (Leaving(sys.stdout), r"could not be rebuilt here: SystemExit: 3\)"),
        (ValueError("x" * 2_000_000), r"could not be rebuilt here: its pickle of 2\d+ bytes is above the limit"),
    ],
    ids=["signature", "unpicklable", "other type", "exit", "large"],
)
def test_what_cannot_be_rebuilt_becomes_text(error: Exception, text: str) -> None:
    found = carried(error)
    assert type(found) is RemoteError
    assert re.search(text, str(found))
    assert isinstance(found.__cause__, RemoteTraceback)
    assert len(str(found)) < 200_000


def test_exceptions_that_pickle_cannot_rebuild_come_back_as_themselves() -> None:
    for error in (Usual(3, "here"), Defaulting(3), Defaulting(3, "away")):
        found = carried(error)
        assert type(found) is type(error) and isinstance(found, Usual)
        assert (str(found), found.args, vars(found)) == (str(error), error.args, vars(error))
    assert carried(Keyed(name="k")).args == ("k",)
    numbered = carried(Numbered("/x", code=2))
    assert isinstance(numbered, Numbered) and (numbered.errno, numbered.filename) == (2, "/x")
    missing = carried(Missing("json5", "not there"))
    assert isinstance(missing, Missing) and (missing.name, missing.msg) == ("json5", "json5: not there")
    assert type(carried(Vanishing("gone"))) is Vanishing and type(carried(Leaving("left"))) is Leaving
    group = carried(ExceptionGroup("many", [Usual(1, "a"), ExceptionGroup("inner", [Usual(2, "b")])]))
    assert isinstance(group, ExceptionGroup)
    assert str(group.exceptions[0]) == "1 at a" and str(group.exceptions[1].exceptions[0]) == "2 at b"  # type: ignore[union-attr]


def test_attributes_that_cannot_travel_are_left_out_and_named() -> None:
    for error in (Holding(5, "there"), ValueError("plain")):
        error.lock = threading.Lock()  # type: ignore[union-attr]
        found = carried(error)
        assert type(found) is type(error) and found.args == error.args
        assert not hasattr(found, "lock") and "attributes left out, because they cannot be sent: lock" in str(found.__cause__)
    assert carried(Holding(5, "there")).code == 5  # type: ignore[attr-defined]


def test_exceptions_without_text_or_that_are_frozen_are_carried() -> None:
    assert type(carried(Silent())) is Silent
    assert "str() of it failed" in str(carried(Silent(threading.Lock())))
    frozen = carried(Frozen(4))
    assert isinstance(frozen, Frozen) and isinstance(frozen.__cause__, RemoteTraceback)


def test_notes_survive_a_reducer_that_forgets_them() -> None:
    class Forgetful(Exception):
        def __reduce__(self) -> tuple[type[Exception], tuple[str]]:
            return Forgetful, ("again",)

    error = Forgetful("once")
    error.add_note("kept")
    error.__notes__.append(5)  # type: ignore[arg-type]
    assert carried(error).__notes__ == ["kept"]


def test_an_exception_whose_module_is_missing_here_is_named() -> None:
    module = ModuleType("vanished_module")
    exec("class Lost(Exception): pass", module.__dict__)
    sys.modules["vanished_module"] = module
    try:
        data = encode_error(module.Lost("where"))
    finally:
        del sys.modules["vanished_module"]
    found = decode_error(data)
    assert type(found) is RemoteError
    assert "vanished_module.Lost: where" in str(found) and "No module named 'vanished_module'" in str(found)


def test_texts_that_are_no_plain_strings_travel_as_such() -> None:
    class Text(str):
        def __reduce__(self) -> str:
            raise ZeroDivisionError

    class Odd(Exception):
        def __str__(self) -> str:
            return Text("odd")

    assert "Odd: odd" in str(carried(Odd(threading.Lock())))


@pytest.mark.parametrize("data", [b"", b"junk", pickle.dumps(3), pickle.dumps((b"x",) * 7)])
def test_bytes_that_are_no_error_become_one(data: bytes) -> None:
    assert isinstance(decode_error(data), RemoteError)


def test_deep_recursion_is_carried() -> None:
    def endless(number: int) -> int:
        return endless(number + 1)

    found = carried(outcome(lambda: endless(0)))
    assert type(found) is RecursionError
    assert len(str(found.__cause__)) < 10_000
