"""Libraries whose slots load them by themselves: slots that hang or fail at their start, or that end while they idle."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import itertools
import os
import resource
import signal
import subprocess
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.kit.calls import LIMIT_S, add, block, eventually, finish, started
from tests.kit.processes import Worker
from vinecore import FunctionCall, Manager
from vinecore.errors import LibraryFailed

PROGRAM = Path(__file__).parents[1] / "kit" / "library_program.py"
# What makes the program start in some other manner.
MANNER = "TEST_PROGRAM_START"


@pytest.fixture
def with_program(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Iterator[Manager]]:
    """A manager with a library ``lib`` of the program, which starts in this manner."""

    @contextmanager
    def make(manner: str, slots: int = 1, calls: int = 0, **tunables: float) -> Iterator[Manager]:
        monkeypatch.setenv(MANNER, manner)
        with Manager(local_cores=2) as manager:
            for name, value in tunables.items():
                manager.tune(name.replace("_", "-"), value)
            task = manager.create_library_from_command(PROGRAM, "lib")
            task.add_input(manager.declare_buffer("lib"), "name.txt")
            task.set_function_slots(slots)
            if calls:
                task.set_max_calls_per_slot(calls)
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


# ---------------------------------------------------------------- what the kernel refuses


def refuse_forks(after: int) -> dict[str, object]:
    """From here on the machine has room for so many more processes."""
    fork, count = os.fork, itertools.count()

    def limited() -> int:
        if next(count) >= after:
            raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
        return fork()

    os.fork = limited
    return {}


def test_a_slot_that_cannot_be_forked_takes_no_other_along(capfd: pytest.CaptureFixture[str]) -> None:
    """The parent ended, and with it the slots that it had."""
    with Manager(local_cores=2) as manager:
        task = manager.create_library_from_functions(
            "lib", add, os.getppid, exec_mode="direct", library_context_info=[refuse_forks, [1], {}]
        )
        task.set_function_slots(2)
        manager.install_library(task)
        assert finish(manager, *(FunctionCall("lib", "add", number) for number in range(4))) == [1, 2, 3, 4]
        told = "vine: library 'lib' goes on with 1 slot on worker "
        assert eventually(lambda: told in capfd.readouterr().err)
        assert len(set(finish(manager, *(FunctionCall("lib", "getppid") for _ in range(4))))) == 1


def take_descriptors(left: int) -> dict[str, object]:
    """Leave so many free."""
    resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
    files = []
    with contextlib.suppress(OSError):
        while True:
            files.append(os.open(os.devnull, os.O_RDONLY))
    for fd in files[:left]:
        os.close(fd)
    return {}


@pytest.mark.parametrize("left", [0, 1])
def test_a_context_that_leaves_no_descriptors_is_named_or_what_it_lacks(left: int) -> None:
    """It said that a process had ended with exit code 1."""
    with Manager(local_cores=1) as manager:
        task = manager.create_library_from_functions(
            "lib", add, exec_mode="direct", library_context_info=[take_descriptors, [left], {}]
        )
        manager.install_library(task)
        call = FunctionCall("lib", "add", 1)
        (failure,) = finish(manager, call)
    if left:
        assert "its process could not be started on" in str(failure) and "ulimit -Hn" in str(failure), failure
    else:
        assert "Too many open files" in str(failure) and "running its context function take_descriptors" in call.reason


# ---------------------------------------------------------------- what contexts do to their process


def close_streams(has_thread: bool) -> dict[str, object]:
    """As daemons do."""
    for fd in range(3):
        os.close(fd)
    return start_thread() if has_thread else {}


def prints(value: int) -> int:
    print("printing", flush=True)
    os.write(2, b"writing\n")
    return value


@pytest.mark.parametrize("mode", ["direct", "fork"])
@pytest.mark.parametrize("has_thread", [False, True])
def test_a_context_that_closes_the_standard_streams(mode: str, has_thread: bool) -> None:
    """What was printed went into the socket of the slot, which had one of their numbers."""
    with Manager(local_cores=1) as manager:
        task = manager.create_library_from_functions(
            "lib", prints, exec_mode=mode, library_context_info=[close_streams, [has_thread], {}]
        )
        manager.install_library(task)
        assert finish(manager, *(FunctionCall("lib", "prints", number) for number in range(3))) == [0, 1, 2]


def leave_directory(has_thread: bool) -> dict[str, object]:
    with tempfile.TemporaryDirectory() as directory:
        os.chdir(directory)
    return start_thread() if has_thread else {}


@pytest.mark.parametrize("has_thread", [False, True])
def test_a_context_whose_directory_is_gone(has_thread: bool) -> None:
    with Manager(local_cores=1) as manager:
        task = manager.create_library_from_functions(
            "lib", add, exec_mode="fork", library_context_info=[leave_directory, [has_thread], {}]
        )
        manager.install_library(task)
        assert finish(manager, FunctionCall("lib", "add", 1)) == [2]


def be_hung_up_on(directory: str) -> dict[str, object]:
    """Only what loads this first gets its connection."""
    start_thread()
    try:
        os.close(os.open(f"{directory}/first", os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        raise ConnectionResetError("the database hung up") from None
    return {}


def test_a_context_that_is_hung_up_on_in_a_slot_says_so(tmp_path: Path) -> None:
    """That was taken for the end of the worker: all that was said of it was exit code 0."""
    with Manager(local_cores=1) as manager:
        task = manager.create_library_from_functions(
            "lib", add, exec_mode="direct", library_context_info=[be_hung_up_on, [str(tmp_path)], {}]
        )
        manager.install_library(task)
        (failure,) = finish(manager, FunctionCall("lib", "add", 1))
    assert isinstance(failure, LibraryFailed) and "ConnectionResetError: the database hung up" in str(failure)


# ---------------------------------------------------------------- slots that are replaced


def test_a_slot_in_the_place_of_one_that_has_what_it_needs_waits_for_that(
    with_program: Callable[..., Manager], tmp_path: Path
) -> None:
    """There is one licence. Three programs failed while the one before them worked, and with them its call and the library."""
    with with_program(f"try {tmp_path}/lock", calls=1) as manager:
        gate = tmp_path / "gate"
        manager.submit(FunctionCall("lib", "wait_for", str(gate)))
        assert started(gate, 1)
        tries = [tmp_path / f"lock-{number}" for number in range(3)]
        assert eventually(lambda: all(path.exists() for path in tries))
        gate.touch()
        task = manager.wait(LIMIT_S)
        assert task is not None and task.output is True
        assert finish(manager, *doubles(3)) == [0, 2, 4]


FEW_FILES = """import resource, sys
resource.setrlimit(resource.RLIMIT_NOFILE, (50, 50))
from vinecore.cli.worker import main
sys.exit(main())"""


def test_a_worker_with_few_descriptors_keeps_what_it_has(start: Callable[..., Worker], tmp_path: Path) -> None:
    """It left, and the call that it ran was lost, when there was no descriptor for one more slot or library."""
    with Manager(port=0) as manager:
        manager.tune("max-losses", 0)
        start("127.0.0.1", manager.port, "--cores", 2, code=("-c", FEW_FILES))
        task = manager.create_library_from_functions("first", block, exec_mode="direct")
        task.set_function_slots(1)
        manager.install_library(task)
        first = FunctionCall("first", "block", str(tmp_path / "gate"))
        manager.submit(first)
        assert started(tmp_path / "gate", 1)
        calls = []
        for number in range(16):
            task = manager.create_library_from_functions(f"lib-{number}", add, exec_mode="direct")
            task.set_function_slots(2)
            manager.install_library(task)
            calls.append(FunctionCall(f"lib-{number}", "add", number))
        outputs = finish(manager, *calls)
        failed = [output for number, output in enumerate(outputs) if output != number + 1]
        assert failed and all("process could not be started on " in str(output) for output in failed), failed
        texts = " ".join(map(str, failed))
        assert "Too many open files (raise the limit of open files there (ulimit -Hn)" in texts
        assert "times before they were ready: its process could" in texts and "times in 60 s: its process could" in texts
        (tmp_path / "gate").touch()
        assert manager.wait(LIMIT_S) is first and first.successful(), first.output


IMPATIENT = """import sys
from vinecore.worker import on_libraries
on_libraries.SLOW_START_S = 0.2
from vinecore.cli.worker import main
sys.exit(main())"""


def hang_at_the_third_start() -> dict[str, object]:
    """The first one on each worker is the parent's, the second one of the slot, the third one of that in its place."""
    start_thread()
    for number in range(2):
        with contextlib.suppress(FileExistsError):
            os.close(os.open(f"{os.environ['TMPDIR']}/start-{number}", os.O_CREAT | os.O_EXCL))
            return {}
    threading.Event().wait()
    return {}


def test_calls_leave_a_worker_where_the_slot_in_the_place_of_theirs_hangs(start: Callable[..., Worker], tmp_path: Path) -> None:
    """They waited there for ever, as many as it has slots, whatever other workers had to do."""
    gate = tmp_path / "gate"
    with Manager(port=0) as manager:
        for _ in range(2):
            start("127.0.0.1", manager.port, "--cores", 1, code=("-c", IMPATIENT))
        task = manager.create_library_from_functions(
            "lib", block, exec_mode="direct", library_context_info=[hang_at_the_third_start, [], {}]
        )
        manager.install_library(task)
        calls = [FunctionCall("lib", "block", str(gate)) for _ in range(4)]
        for call in calls:
            manager.submit(call)
        assert started(gate, 2)
        killed = next(tmp_path.glob("gate-*"))
        os.kill(int(killed.name.removeprefix("gate-")), signal.SIGKILL)
        gate.touch()
        assert all(manager.wait(LIMIT_S) is not None for _ in calls)
        assert all(call.successful() for call in calls)
