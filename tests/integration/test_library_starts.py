"""Libraries whose slots load them by themselves: slots that hang or fail at their start, or that end while they idle."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.kit.calls import add, eventually, finish
from vinecore import FunctionCall, Manager
from vinecore.errors import LibraryFailed

PROGRAM = Path(__file__).parents[1] / "kit" / "library_program.py"
# What makes the program start in some other manner.
MANNER = "TEST_PROGRAM_START"


@pytest.fixture
def with_program(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Iterator[Manager]]:
    """A manager with a library ``lib`` of the program, which starts in this manner."""

    @contextmanager
    def make(manner: str, slots: int = 1, **tunables: float) -> Iterator[Manager]:
        monkeypatch.setenv(MANNER, manner)
        with Manager(local_cores=2) as manager:
            for name, value in tunables.items():
                manager.tune(name.replace("_", "-"), value)
            task = manager.create_library_from_command(PROGRAM, "lib")
            task.add_input(manager.declare_buffer("lib"), "name.txt")
            task.set_function_slots(slots)
            manager.install_library(task)
            yield manager

    return make


def doubles(count: int) -> list[FunctionCall]:
    return [FunctionCall("lib", "double", number) for number in range(count)]


def test_a_slot_whose_program_hangs_at_its_start_holds_no_call(with_program: Callable[..., Manager], tmp_path: Path) -> None:
    """It waits for a lock that the other program has. It had the first call, which nobody took back."""
    with with_program(f"lock {tmp_path}/lock", slots=2) as manager:
        assert finish(manager, *doubles(10)) == [2 * number for number in range(10)]


def test_programs_that_are_killed_while_they_idle_cost_nothing(with_program: Callable[..., Manager], tmp_path: Path) -> None:
    """All at once, before most of them had a call. They counted as starts that had failed."""

    def started_programs() -> list[str]:
        return [path.name for path in tmp_path.iterdir()]

    with with_program(f"mark {tmp_path}", slots=4, max_losses=0) as manager:
        assert finish(manager, *doubles(1)) == [0]
        assert eventually(lambda: len(started_programs()) == 4)
        pids = started_programs()
        for pid in pids:
            os.kill(int(pid), signal.SIGKILL)
        # Whoever looks at them by then knows.
        assert eventually(lambda: all("State:\tZ" in Path(f"/proc/{pid}/status").read_text() for pid in pids))
        assert finish(manager, *doubles(8)) == [2 * number for number in range(8)]


def test_a_program_that_ends_before_it_reads_a_call_does_not_lose_it(with_program: Callable[..., Manager]) -> None:
    """One that answers a single call, say: the next one may be on its way already."""
    with with_program("once", max_losses=0) as manager:
        assert finish(manager, *doubles(6)) == [0, 2, 4, 6, 8, 10]


def test_a_program_that_never_reads_a_call_fails_its_library(with_program: Callable[..., Manager]) -> None:
    with with_program("never") as manager:
        (failure,) = finish(manager, *doubles(1))
    assert isinstance(failure, LibraryFailed) and "ended 4 times without answering a call" in str(failure), failure
    assert "the program ended with exit code 5" in str(failure)


def test_a_program_that_takes_longer_than_the_window_to_fail(with_program: Callable[..., Manager], tmp_path: Path) -> None:
    """No three starts were within the window: it was started for ever, and its calls never came back."""
    with with_program("exit", library_restart_window=0.001) as manager:
        (failure,) = finish(manager, *doubles(1))
    assert isinstance(failure, LibraryFailed) and "ended 3 times before they were ready" in str(failure)
    assert "no licence: ask your administrator" in str(failure)


def end_process() -> dict[str, object]:
    os._exit(9)


def test_a_context_that_takes_longer_than_the_window_to_end_its_process() -> None:
    with Manager(local_cores=1) as manager:
        manager.tune("library-restart-window", 0.001)
        task = manager.create_library_from_functions("lib", add, exec_mode="direct", library_context_info=[end_process, [], {}])
        manager.install_library(task)
        (failure,) = finish(manager, FunctionCall("lib", "add", 1))
    assert isinstance(failure, LibraryFailed) and "ended 3 times before it was ready" in str(failure)


def test_a_slot_whose_program_cannot_start_takes_no_other_along(
    with_program: Callable[..., Manager], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """There is one licence, and one program has it."""
    with with_program(f"try {tmp_path}/lock", slots=2) as manager:
        assert finish(manager, *doubles(10)) == [2 * number for number in range(10)]
        told = "library 'lib' goes on with 1 slot on worker "
        assert eventually(lambda: told in capfd.readouterr().err)
        assert finish(manager, *doubles(10)) == [2 * number for number in range(10)]


def sockets_of_child() -> list[str]:
    """Those that a process has which a call has started, without ends to what it inherits."""
    look = ["/bin/sh", "-c", "ls -l /proc/$$/fd"]
    listed = subprocess.run(look, close_fds=False, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=True)
    return [line for line in listed.stdout.splitlines() if "socket:" in line]


def start_thread() -> dict[str, object]:
    threading.Thread(target=threading.Event().wait, daemon=True).start()
    return {}


@pytest.mark.parametrize("mode", ["direct", "fork"])
@pytest.mark.parametrize("context", [None, [start_thread, [], {}]])
def test_what_calls_start_has_no_socket_of_the_library(mode: str, context: list[object] | None) -> None:
    """It kept the worker from seeing a slot's end, and could write where answers are expected."""
    with Manager(local_cores=1) as manager:
        task = manager.create_library_from_functions("lib", sockets_of_child, exec_mode=mode, library_context_info=context)
        manager.install_library(task)
        assert finish(manager, FunctionCall("lib", "sockets_of_child")) == [[]]


def test_a_program_has_no_socket_of_its_slot(with_program: Callable[..., Manager]) -> None:
    with with_program("") as manager:
        assert finish(manager, FunctionCall("lib", "sockets")) == [[]]


def lock_in_slots(directory: str) -> dict[str, object]:
    """A context with a thread, which only one slot can make: the parent, which loads it first, does not take the lock."""
    threading.Thread(target=threading.Event().wait, daemon=True).start()
    try:
        os.close(os.open(f"{directory}/first", os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        fcntl.flock(os.open(f"{directory}/lock", os.O_CREAT | os.O_RDWR), fcntl.LOCK_EX)
    return {}


def test_a_slot_whose_context_hangs_holds_no_call(tmp_path: Path) -> None:
    with Manager(local_cores=2) as manager:
        task = manager.create_library_from_functions(
            "lib", add, exec_mode="direct", library_context_info=[lock_in_slots, [str(tmp_path)], {}]
        )
        task.set_function_slots(2)
        manager.install_library(task)
        calls = [FunctionCall("lib", "add", number) for number in range(10)]
        assert finish(manager, *calls) == list(range(1, 11))
