"""What user code leaves behind when it ends or is ended: processes that live on, sockets that they hold, pipes nobody reads."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.kit.calls import LIMIT_S, add, eventually, finish
from vinecore import FunctionCall, Manager, PythonTask, Task, load_variable_from_library
from vinecore.errors import LibraryFailed, SlotLost, TaskFailed

PROGRAM = Path(__file__).parents[1] / "kit" / "library_program.py"


def fork_sleeper(directory: str, own_session: bool) -> None:
    """Fork a process that has all that this one has and does nothing; a file there has its pid as its name then."""
    pid = os.fork()
    if pid == 0:
        try:
            if own_session:
                os.setsid()
            Path(directory, str(os.getpid())).touch()
            time.sleep(10 * LIMIT_S)
        finally:
            os._exit(0)
    while not Path(directory, str(pid)).exists():
        time.sleep(0.002)


def fork_and_die(directory: str, own_session: bool) -> None:
    fork_sleeper(directory, own_session)
    os._exit(3)


def daemon_and_die() -> None:
    multiprocessing.get_context("fork").Process(target=time.sleep, args=(10 * LIMIT_S,), daemon=True).start()
    os.kill(os.getpid(), signal.SIGKILL)


def is_gone(pid: int) -> bool:
    return not Path(f"/proc/{pid}").exists()


@pytest.fixture
def sleepers(tmp_path: Path) -> Iterator[Callable[[], list[int]]]:
    """The pids of what ``fork_sleeper`` made in ``tmp_path``; after the test they are ended."""

    def listed() -> list[int]:
        return [int(path.name) for path in tmp_path.iterdir()]

    yield listed
    for pid in listed():
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


# ---------------------------------------------------------------- sockets that somebody else holds


@pytest.mark.parametrize("own_session", [False, True])
def test_a_slot_that_dies_while_its_child_holds_the_socket(
    m: Manager, install: Callable[..., str], tmp_path: Path, sleepers: Callable[[], list[int]], own_session: bool
) -> None:
    library = install(fork_and_die, add)
    calls = [
        FunctionCall(library, "fork_and_die", str(tmp_path), own_session),
        *[FunctionCall(library, "add", i) for i in range(4)],
    ]
    bad, *good = finish(m, *calls)
    assert isinstance(bad, SlotLost) and "ended with exit code 3" in str(bad)
    assert good == [1, 2, 3, 4]
    # What stayed in the slot's group goes with it.
    assert own_session or eventually(lambda: all(map(is_gone, sleepers())))


def test_a_slot_that_is_killed_with_a_daemon_of_its_own(m: Manager, install: Callable[..., str]) -> None:
    library = install(daemon_and_die, add)
    bad, good = finish(m, FunctionCall(library, "daemon_and_die"), FunctionCall(library, "add", 1))
    assert isinstance(bad, SlotLost) and "was killed by SIGKILL" in str(bad) and good == 2


def context_with_sleeper(directory: str) -> dict[str, int]:
    fork_sleeper(directory, True)
    return {"parent": os.getpid()}


def made_by() -> int:
    parent: int = load_variable_from_library("parent")
    return parent


def test_a_parent_that_dies_while_a_child_of_its_context_holds_the_socket(
    m: Manager, install: Callable[..., str], tmp_path: Path, sleepers: Callable[[], list[int]]
) -> None:
    library = install(made_by, library_context_info=[context_with_sleeper, [str(tmp_path)], {}])
    (parent,) = finish(m, FunctionCall(library, "made_by"))
    os.kill(parent, signal.SIGKILL)
    assert eventually(lambda: is_gone(parent))
    (again,) = finish(m, FunctionCall(library, "made_by"))
    assert again != parent and len(sleepers()) == 2


# ---------------------------------------------------------------- pipes where files are expected


def leave_pipe() -> str:
    os.unlink(".vine.stdout")
    os.mkfifo(".vine.stdout")
    return "done"


def test_a_task_whose_standard_output_became_a_pipe(m: Manager) -> None:
    command, function = Task("rm .vine.stdout; mkfifo .vine.stdout"), PythonTask(leave_pipe)
    finish(m, command, function)  # type: ignore[arg-type]
    assert (command.result, command.std_output) == ("success", "")
    assert (function.result, function.output) == ("success", "done")


def test_a_program_that_leaves_pipes(m: Manager) -> None:
    task = m.create_library_from_command(PROGRAM, "pipes")
    task.add_input(m.declare_buffer("pipes"), "name.txt")
    m.install_library(task)
    failure, good = finish(m, FunctionCall(task, "leave_pipes"), FunctionCall(task, "double", 2))
    assert isinstance(failure, TaskFailed) and "left no result" in str(failure) and good == 4
    m.remove_library("pipes")


# ---------------------------------------------------------------- processes that live on


def sleeper(directory: str, own_session: bool) -> int:
    """Start a program that nobody waits for; returns its pid, which is the name of a file there, too."""
    process = subprocess.Popen(["sleep", str(10 * LIMIT_S)], start_new_session=own_session)
    Path(directory, str(process.pid)).touch()
    return process.pid


def orphan(directory: str) -> int:
    """The same, as a grandchild without a parent in a session of its own."""
    between = os.fork()
    if between == 0:
        sleeper(directory, True)
        os._exit(0)
    os.waitpid(between, 0)
    return between


def context_that_starts(directory: str) -> dict[str, int]:
    return {"pid": sleeper(directory, False)}


def test_a_slot_that_is_replaced_takes_along_what_its_calls_left(
    m: Manager, tmp_path: Path, sleepers: Callable[[], list[int]]
) -> None:
    task = m.create_library_from_functions("replaced", sleeper, exec_mode="direct")
    task.set_max_calls_per_slot(1)
    m.install_library(task)
    pids = finish(m, *[FunctionCall(task, "sleeper", str(tmp_path), False) for _ in range(3)])
    assert sorted(pids) == sorted(sleepers())
    assert eventually(lambda: all(map(is_gone, pids)))
    m.remove_library("replaced")


def test_a_removed_library_takes_along_what_its_context_started(
    m: Manager, install: Callable[..., str], tmp_path: Path, sleepers: Callable[[], list[int]]
) -> None:
    library = install(add, library_context_info=[context_that_starts, [str(tmp_path)], {}])
    assert finish(m, FunctionCall(library, "add", 1)) == [2]
    (pid,) = sleepers()
    assert not is_gone(pid)
    m.remove_library(library)
    assert eventually(lambda: is_gone(pid))


def test_a_removed_library_takes_along_its_init_command(m: Manager, tmp_path: Path, sleepers: Callable[[], list[int]]) -> None:
    command = f"sleep {10 * LIMIT_S} & touch {tmp_path}/$!; wait;"
    m.install_library(m.create_library_from_functions("waits", add, init_command=command))
    call = FunctionCall("waits", "add", 1)
    m.submit(call)
    assert eventually(sleepers)
    m.remove_library("waits")
    assert m.wait(LIMIT_S) is call and call.result == "missing library"
    assert eventually(lambda: all(map(is_gone, sleepers())))


@pytest.mark.parametrize("mode", ["direct", "fork"])
def test_nothing_outlives_the_worker(tmp_path: Path, sleepers: Callable[[], list[int]], mode: str) -> None:
    with Manager(local_cores=1) as manager:
        task = manager.create_library_from_functions("leaves", orphan, exec_mode=mode)
        task.set_max_calls_per_slot(1)
        manager.install_library(task)
        finish(manager, *[FunctionCall(task, "orphan", str(tmp_path)) for _ in range(3)])
        manager.remove_library("leaves")
        assert len(sleepers()) == 3
    assert eventually(lambda: all(map(is_gone, sleepers())))


def fork_briefly() -> int:
    """A grandchild that ends when nobody but the worker can take note of it."""
    receive, send = os.pipe()
    between = os.fork()
    if between == 0:
        pid = os.fork()
        if pid == 0:
            time.sleep(0.05)
            os._exit(0)
        os.write(send, str(pid).encode())
        os._exit(0)
    os.waitpid(between, 0)
    return int(os.read(receive, 20))


def test_ends_of_orphans_are_noted(m: Manager, install: Callable[..., str]) -> None:
    (pid,) = finish(m, FunctionCall(install(fork_briefly), "fork_briefly"))
    assert eventually(lambda: is_gone(pid))


# ---------------------------------------------------------------- files


def where() -> tuple[int, str]:
    return os.getppid(), os.getcwd()


def test_the_files_of_a_library_go_with_its_parent(m: Manager) -> None:
    task = m.create_library_from_functions("files", where, exec_mode="direct")
    task.add_input(m.declare_buffer("some text"), "text.txt")
    m.install_library(task)
    ((parent, directory),) = finish(m, FunctionCall(task, "where"))
    assert Path(directory, "text.txt").exists()
    os.kill(parent, signal.SIGKILL)
    assert eventually(lambda: not Path(directory).exists())
    ((_, again),) = finish(m, FunctionCall(task, "where"))
    assert again != directory and Path(again, "text.txt").exists()
    m.remove_library("files")
    assert eventually(lambda: not Path(again).exists())


def test_the_files_of_a_library_go_when_its_init_command_fails(m: Manager, tmp_path: Path) -> None:
    place = tmp_path / "place"
    task = m.create_library_from_functions("fails", add, init_command=f"pwd > {place}; false &&")
    task.add_input(m.declare_buffer("some text"), "text.txt")
    m.install_library(task)
    (failure,) = finish(m, FunctionCall(task, "add", 1))
    assert isinstance(failure, LibraryFailed)
    directory = Path(place.read_text().strip())
    assert directory.parent.name == "libraries" and eventually(lambda: not directory.exists())
    m.remove_library("fails")


def test_only_the_end_of_what_an_init_command_says_is_kept(capfd: pytest.CaptureFixture[str]) -> None:
    with Manager(local_cores=1) as manager:
        command = "head -c 500000 /dev/zero | tr '\\0' x >&2; echo the end >&2; false &&"
        manager.install_library(manager.create_library_from_functions("loud", add, init_command=command))
        (failure,) = finish(manager, FunctionCall("loud", "add", 1))
        assert isinstance(failure, LibraryFailed) and "xxxxxxxxthe end" in str(failure)
    assert 1000 < capfd.readouterr().err.count("x") < 100_000
