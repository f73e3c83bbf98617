"""A worker that is killed with SIGKILL cannot clean up: its guard ends what its calls had started, and removes its directory."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.kit.calls import LIMIT_S, eventually, finish
from tests.kit.proc import command_of
from tests.kit.processes import Worker
from vinecore import FunctionCall, Manager, PythonTask, Task


@pytest.fixture
def started(tmp_path: Path) -> Iterator[Callable[[], list[int]]]:
    """The pids that calls have noted; after the test they are ended."""
    directory = tmp_path / "started"
    directory.mkdir()

    def listed() -> list[int]:
        return [int(path.name) for path in directory.iterdir()]

    yield listed
    for pid in listed():
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def is_gone(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return True
    return state == "Z"  # nobody has asked for its end yet


def environment_of(pid: int) -> dict[str, str]:
    entries = Path(f"/proc/{pid}/environ").read_text().split("\0")
    return dict(entry.split("=", 1) for entry in entries if "=" in entry)


def directories_of_objects(workspace: Path) -> int:
    # Unlike a glob it does not mind what vanishes meanwhile.
    return sum("objects" in names for _, names, _ in os.walk(workspace))


def note(directory: str, *words: str, **options: Any) -> None:
    Path(directory, str(subprocess.Popen(words, **options).pid)).touch()


def start_programs(directory: str) -> None:
    """One in the slot's group, a daemon without a parent in a session of its own; then wait to be killed."""
    seconds = str(10 * LIMIT_S)
    note(directory, "sleep", seconds)
    between = os.fork()
    if between == 0:
        note(directory, "sleep", seconds, start_new_session=True)
        os._exit(0)
    os.waitpid(between, 0)
    time.sleep(10 * LIMIT_S)


def mark() -> str | None:
    return os.environ.get("VINE_WORKER_MARK")


def submit(manager: Manager, kind: str, directory: Path) -> None:
    if kind == "task":
        start = f"sleep {10 * LIMIT_S} & touch {directory}/$!"
        manager.submit(Task(f"{start}; setsid {start}; wait"))
        return
    if kind == "python task":
        manager.submit(PythonTask(start_programs, str(directory)))
        return
    library = manager.create_library_from_functions("starts", start_programs, exec_mode=kind)
    manager.install_library(library)
    manager.submit(FunctionCall("starts", "start_programs", str(directory)))


@pytest.mark.parametrize("kind", ["direct", "fork", "python task", "task"])
def test_nothing_outlives_a_killed_worker(
    start: Callable[..., Worker], started: Callable[[], list[int]], tmp_path: Path, kind: str
) -> None:
    with Manager(port=0) as manager:
        worker = start("127.0.0.1", manager.port, "--cores", "1")
        submit(manager, kind, tmp_path / "started")
        assert eventually(lambda: len(started()) == 2)
        assert not any(map(is_gone, started())) and list(worker.tmp.iterdir())
        worker.kill()
        assert eventually(lambda: all(map(is_gone, started())))
        assert eventually(lambda: not list(worker.tmp.iterdir())), "its directory"


def test_an_embedded_worker_that_is_killed(started: Callable[[], list[int]], tmp_path: Path) -> None:
    with Manager(local_cores=1) as manager:
        submit(manager, "direct", tmp_path / "started")
        assert eventually(lambda: len(started()) == 2)
        state = manager.engine.machine.state
        ((pid, store),) = manager.engine.call_in_loop(lambda: [(w.hello.pid, w.hello.store) for w in state.workers.values()])
        # The worker in its place runs the call again.
        before = started()
        os.kill(pid, signal.SIGKILL)
        assert eventually(lambda: all(map(is_gone, before)) and not Path(store).parent.exists())


def call_of_a_call(directory: str) -> None:
    with Manager(local_cores=1) as manager:
        finish(manager, PythonTask(start_programs, directory))


def test_what_calls_of_a_manager_inside_a_call_have_started(
    start: Callable[..., Worker], started: Callable[[], list[int]], tmp_path: Path
) -> None:
    """Two workers and their guards, one inside the other: the inner guard is ended together with the inner worker."""
    with Manager(port=0) as manager:
        worker = start("127.0.0.1", manager.port, "--cores", "1")
        manager.submit(PythonTask(call_of_a_call, str(tmp_path / "started")))
        assert eventually(lambda: len(started()) == 2)
        # In the middle of an exec a process has no environment.
        assert eventually(lambda: all("VINE_WORKER_MARK" in environment_of(pid) for pid in started()))
        marks = [environment_of(pid)["VINE_WORKER_MARK"].split(":") for pid in started()]
        assert marks[0] == marks[1] and len(marks[0]) == 2
        worker.kill()
        assert eventually(lambda: all(map(is_gone, started()))), list(map(is_gone, started()))
        assert eventually(lambda: not list(worker.tmp.iterdir()))


def socket_path() -> str:
    from multiprocessing.connection import arbitrary_address  # type: ignore[attr-defined]

    return str(arbitrary_address("AF_UNIX"))


@pytest.mark.parametrize("named", [True, False])
def test_sockets_of_tasks_have_paths_that_are_short_enough(start: Callable[..., Worker], tmp_path: Path, named: bool) -> None:
    """A path has at most 107 characters; about 70 of them are needed below a workspace that a worker has made."""
    workspace = tmp_path / "made"
    with Manager(port=0) as manager:
        worker = start("127.0.0.1", manager.port, "--cores", "1", *(("--workspace", workspace) if named else ()))
        (path,) = finish(manager, PythonTask(socket_path))
        above = workspace if named else next(worker.tmp.iterdir())
        assert path.startswith(f"{above}/") and len(path) - len(str(above)) < 75, path


def test_the_guard_of_one_worker_leaves_others_in_the_same_workspace_alone(
    start: Callable[..., Worker], started: Callable[[], list[int]], tmp_path: Path
) -> None:
    workspace = tmp_path / "shared"
    workspace.mkdir()
    with Manager(port=0) as manager:
        pair = [start("127.0.0.1", manager.port, "--cores", "1", "--workspace", workspace) for _ in range(2)]
        library = manager.create_library_from_functions("starts", start_programs, exec_mode="direct")
        manager.install_library(library)
        for _ in range(2):
            manager.submit(FunctionCall("starts", "start_programs", str(tmp_path / "started")))
        assert eventually(lambda: len(started()) == 4)
        pair[0].kill()
        # The call that was lost runs again behind the other, which never ends.
        assert eventually(lambda: sum(map(is_gone, started())) == 2)
        assert eventually(lambda: directories_of_objects(workspace) == 1) and pair[1].process.poll() is None
        pair[1].kill()
        assert eventually(lambda: all(map(is_gone, started())) and not list(workspace.iterdir()))


@pytest.mark.parametrize("end", [signal.SIGTERM, signal.SIGKILL])
def test_who_made_a_workspace_leaves_it_to_the_others(start: Callable[..., Worker], tmp_path: Path, end: int) -> None:
    workspace = tmp_path / "shared"
    with Manager(port=0) as manager:
        words = ("127.0.0.1", manager.port, "--cores", "1", "--workspace", workspace)
        first = start(*words)
        assert eventually(lambda: manager.stats.workers_connected == 1)
        second = start(*words)
        assert eventually(lambda: manager.stats.workers_connected == 2)
        first.process.send_signal(end)
        first.process.wait(LIMIT_S)
        assert eventually(lambda: directories_of_objects(workspace) == 1)
        assert finish(manager, PythonTask(os.urandom, 3_000_000))[0] and (workspace / ".lock").exists()
        second.process.send_signal(end)
        second.process.wait(LIMIT_S)
        assert eventually(lambda: not workspace.exists())


@pytest.mark.parametrize("end", [signal.SIGTERM, signal.SIGKILL])
def test_the_files_of_libraries_leave_no_trace_in_a_workspace_that_was_there(
    start: Callable[..., Worker], tmp_path: Path, end: int
) -> None:
    workspace = tmp_path / "mine"
    workspace.mkdir()
    with Manager(port=0) as manager:
        worker = start("127.0.0.1", manager.port, "--cores", "1", "--workspace", workspace)
        library = manager.create_library_from_functions("files", os.getcwd, exec_mode="direct")
        library.add_input(manager.declare_buffer("some text"), "text.txt")
        manager.install_library(library)
        (place,) = finish(manager, FunctionCall("files", "getcwd"))
        assert Path(place).is_relative_to(workspace) and Path(place, "text.txt").exists()
        worker.process.send_signal(end)
        worker.process.wait(LIMIT_S)
        assert eventually(lambda: not list(workspace.iterdir()))


def print_all() -> list[str]:
    """To the descriptors themselves, and by a program that has them from us; what they are."""
    for number in (1, 2):
        os.write(number, b"\0" * 16)
    subprocess.run(["sh", "-c", "echo; echo >&2; cat"], check=True, timeout=LIMIT_S)
    return [os.readlink(f"/proc/self/fd/{number}") for number in (0, 1, 2)]


@pytest.mark.parametrize("closed", ["0", "1", "2", "01", "02", "12", "012"])
def test_a_worker_that_was_started_with_closed_streams(
    start: Callable[..., Worker], started: Callable[[], list[int]], tmp_path: Path, closed: str
) -> None:
    streams = " ".join(f"{number}>&-" for number in closed)
    with Manager(port=0) as manager:
        worker = start("127.0.0.1", manager.port, "--cores", "1", prefix=["sh", "-c", f'exec "$@" {streams}', "sh"])
        for mode in ("direct", "fork"):
            manager.install_library(manager.create_library_from_functions(mode, print_all, exec_mode=mode))
        calls = [FunctionCall("direct", "print_all"), FunctionCall("fork", "print_all"), PythonTask(print_all)]
        direct, fork, task = finish(manager, *calls)  # type: ignore[arg-type]
        for number in map(int, closed):
            assert direct[number] == fork[number] == os.devnull
        assert task[0] == os.devnull and Path(task[1]).is_relative_to(worker.tmp), "its output is kept in a file"
        submit(manager, "python task", tmp_path / "started")
        assert eventually(lambda: len(started()) == 2)
        worker.kill()
        assert eventually(lambda: all(map(is_gone, started())) and not list(worker.tmp.iterdir()))


def test_a_worker_that_leaves_by_itself_takes_its_guard_along(start: Callable[..., Worker], tmp_path: Path) -> None:
    def guards(worker: Worker) -> list[str]:
        # A fork of the worker has its command line, and its directory for temporary files in the environment.
        mark = f"TMPDIR={worker.tmp}".encode()
        found = []
        for entry in Path("/proc").iterdir():
            with contextlib.suppress(OSError):
                if entry.name.isdigit() and mark in (entry / "environ").read_bytes().split(b"\0"):
                    found.append(command_of(int(entry.name)))
        return [command for command in found if "vinecore.cli.worker" in command]

    with Manager(port=0) as manager:
        worker = start("127.0.0.1", manager.port, "--cores", "1")
        assert finish(manager, PythonTask(abs, -3)) == [3]
        assert len(guards(worker)) == 2, "the worker and its guard"
        worker.process.terminate()
        assert worker.ended() == 0
        assert not guards(worker), "it had ended before its worker did"
        assert not list(worker.tmp.iterdir())


def test_a_guard_that_is_killed_costs_nothing(start: Callable[..., Worker]) -> None:
    with Manager(port=0) as manager:
        worker = start("127.0.0.1", manager.port, "--cores", "1")
        assert finish(manager, PythonTask(abs, -3)) == [3]
        (guard,) = [
            int(entry.name)
            for entry in Path("/proc").iterdir()
            if entry.name.isdigit()
            and int(entry.name) != worker.process.pid
            and command_of(int(entry.name)) == command_of(worker.process.pid)
        ]
        os.kill(guard, signal.SIGKILL)
        assert finish(manager, PythonTask(abs, -4)) == [4]
        worker.process.terminate()
        assert worker.ended() == 0 and not list(worker.tmp.iterdir())


def worker_with(hook: str) -> tuple[str, str]:
    """How to start a worker that does something else first."""
    lines = ("import os, signal, sys", "from vinecore.cli.worker import main", hook, "sys.exit(main())")
    return "-c", "\n".join(lines)


@pytest.mark.parametrize("when", ["before", "after_in_parent"])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_that_comes_while_the_guard_is_forked(start: Callable[..., Worker], when: str, number: int) -> None:
    """Python ignores exceptions in what libraries do at a fork."""
    hook = f"os.register_at_fork({when}=lambda: os.kill(os.getpid(), {int(number)}))"
    with Manager(port=0) as manager:
        worker = start("127.0.0.1", manager.port, "--cores", "1", code=worker_with(hook))
        assert worker.ended() == 0 and worker.err == ""
        assert not list(worker.tmp.iterdir())


@pytest.mark.parametrize(
    "hook",
    [
        "os.register_at_fork(after_in_child=lambda: os.kill(os.getpid(), signal.SIGTERM))",
        "pid, real = os.getpid(), os.fork\nos.fork = lambda: real() if os.getpid() == pid else 1 // 0",
        "os.setsid = lambda: 1 // 0",
    ],
)
def test_what_goes_wrong_where_the_guard_is_made_leaves_the_worker_alone(start: Callable[..., Worker], hook: str) -> None:
    with Manager(port=0) as manager:
        worker = start("127.0.0.1", manager.port, "--cores", "1", code=worker_with(hook))
        assert len(finish(manager, PythonTask(os.urandom, 3_000_000))[0]) == 3_000_000
        assert worker.out.count("workspace") == 1 and worker.err == ""
        worker.process.terminate()
        assert worker.ended() == 0 and not list(worker.tmp.iterdir())


def test_what_runs_on_behalf_of_a_worker_can_be_told_by_its_environment(start: Callable[..., Worker]) -> None:
    with Manager(port=0) as manager:
        start("127.0.0.1", manager.port, "--cores", "1")
        (value,) = finish(manager, PythonTask(mark))
        assert value and finish(manager, PythonTask(mark)) == [value]
        command = Task("echo $VINE_WORKER_MARK")
        finish(manager, command)  # type: ignore[arg-type]
        assert command.std_output.strip() == value
    assert mark() is None
