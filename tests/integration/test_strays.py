"""Children that user code forks and that come back out of it, and slots that say what nobody can read."""

from __future__ import annotations

import os
import stat
import sys
import time
from collections.abc import Callable
from typing import Any

import pytest

from tests.kit.calls import add, finish
from vinecore import FunctionCall, Manager
from vinecore.errors import SlotLost

LARGE = 65_000


def end_of_child(how: str) -> int:
    """The exit code of a child that leaves this function in that way."""
    pid = os.fork()
    if pid == 0:
        if how == "return":
            return 0
        if how == "raise":
            raise ValueError("in the child")
        sys.exit(eval(how))
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


ENDS = {"return": 0, "raise": 1, "0": 0, "None": 0, "5": 5, "-1": 255, "True": 1, "'in words'": 1}


@pytest.mark.parametrize("exec_mode", ["direct", "fork"])
def test_a_child_ends_as_it_would_in_a_program(m: Manager, install: Callable[..., str], exec_mode: str) -> None:
    library = install(end_of_child, exec_mode=exec_mode)
    assert finish(m, *(FunctionCall(library, "end_of_child", how) for how in ENDS)) == list(ENDS.values())


class Forking:
    """Forks when it is pickled; both processes go on with that, the child when other calls run."""

    def __reduce__(self) -> Any:
        is_child = os.fork() == 0
        time.sleep(0.2 * is_child)
        return str, ("child" if is_child else "parent",)


def add_slowly(number: int) -> int:
    time.sleep(0.1)
    return number + 1


def fork_when_pickled() -> list[object]:
    return [Forking()]


@pytest.mark.parametrize("exec_mode", ["direct", "fork"])
def test_a_child_that_comes_back_while_the_result_is_pickled(m: Manager, install: Callable[..., str], exec_mode: str) -> None:
    library = install(fork_when_pickled, add_slowly, exec_mode=exec_mode, slots=1)
    calls = [FunctionCall(library, "add_slowly", number) for number in range(6)]
    first, *others = finish(m, FunctionCall(library, "fork_when_pickled"), *calls)
    assert first == ["parent"] and others == list(range(1, 7))


def write_into_sockets(data: bytes) -> None:
    for name in os.listdir("/proc/self/fd"):
        try:
            if stat.S_ISSOCK(os.fstat(int(name)).st_mode):
                os.write(int(name), data)
        except OSError:
            continue
    time.sleep(30)


@pytest.mark.parametrize(
    "data",
    [b"\xff" * 100, b"\x03\x00\x00\x00abc"],
    ids=["a frame above the limit", "no message"],
)
def test_a_slot_that_sends_what_cannot_be_read_is_ended(m: Manager, install: Callable[..., str], data: bytes) -> None:
    library = install(write_into_sockets, add, exec_mode="direct", slots=1)
    m.tune("max-losses", 0)
    error, value = finish(m, FunctionCall(library, "write_into_sockets", data), FunctionCall(library, "add", 1))
    assert isinstance(error, SlotLost) and "was killed by SIGKILL" in str(error) and value == 2


def raise_long(notes: int, size: int, letter: str) -> None:
    error = ValueError(letter * size)
    for _ in range(notes):
        error.add_note(letter * size)
    raise error


@pytest.mark.parametrize("exec_mode", ["direct", "fork"])
@pytest.mark.parametrize(("notes", "size", "letter"), [(300, LARGE, "x"), (0, 4 * LARGE, "\U0001f600"), (40, LARGE, "\u4e2d")])
def test_errors_of_any_length_come_back(
    m: Manager, install: Callable[..., str], exec_mode: str, notes: int, size: int, letter: str
) -> None:
    """Those too long for their pickle come as text. Many of them together do not fit into one frame."""
    library = install(raise_long, exec_mode=exec_mode, slots=1)
    m.tune("max-losses", 0)
    for error in finish(m, *(FunctionCall(library, "raise_long", notes, size, letter) for _ in range(12))):
        assert type(error).__name__ in ("ValueError", "RemoteError") and letter * 1000 in str(error)
