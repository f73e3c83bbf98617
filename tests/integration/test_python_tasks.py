"""Python functions in processes and directories of their own, and function calls in fork mode."""

from __future__ import annotations

import ctypes
import os
import pickle
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.kit.calls import LIMIT_S, add, block, eventually, finish, note, started
from vinecore import FunctionCall, Manager, PythonTask, Task
from vinecore.errors import SlotLost, TaskFailed, UnpicklableError, UsageError

BIG_BYTES = 2_000_000


@pytest.fixture(autouse=True)
def leaves_nothing_waiting(m: Manager) -> Iterator[None]:
    """Whatever a test did not wait for is cancelled: the manager is shared by the module."""
    yield
    m.cancel_all()
    while not m.empty() and m.wait(LIMIT_S) is not None:
        pass
    assert m.empty()


def small(function: Callable[..., Any], *args: Any, **kwargs: Any) -> PythonTask:
    """A task that leaves room for another one beside it."""
    task = PythonTask(function, *args, **kwargs)
    task.set_cores(1)
    task.set_memory(10)
    task.set_disk(100)
    return task


def run(m: Manager, *tasks: Any) -> list[Any]:
    """Submit and wait for all of them; in order of submission."""
    for task in tasks:
        m.submit(task)
    for _ in tasks:
        assert m.wait(LIMIT_S) is not None, "a task never came back"
    return list(tasks)


def raises(directory: str = "") -> None:
    print("said before")
    if directory:
        note(directory)
    raise KeyError("which")


def crash(directory: str, how: str) -> None:
    note(directory)
    if how == "exit":
        os._exit(3)
    ctypes.string_at(0)


def write(name: str, text: str) -> str:
    Path(name).write_text(text)
    return text


def sandbox_of() -> tuple[int, str, str]:
    return os.getpid(), os.getcwd(), os.environ["VINE_SANDBOX"]


class Stateful:
    count = 0


def count_up() -> int:
    Stateful.count += 1
    return Stateful.count


# ------------------------------------------------------------ values


def test_values_keywords_and_a_process_and_directory_each(m: Manager) -> None:
    one, two, three, four = run(m, small(add, 1, y=2), small(sandbox_of), small(sandbox_of), small(count_up))
    assert (one.output, one.result, one.exit_code, one.std_output) == (3, "success", 0, "")
    assert two.output[0] != three.output[0] and two.output[1] != three.output[1]
    for task in (two, three):
        assert task.output[1] == task.output[2]
        assert not Path(task.output[1]).exists()
    assert four.output == run(m, small(count_up))[0].output == 1


def test_closures_lambdas_and_local_functions(m: Manager) -> None:
    base = 40

    def local(x: int) -> int:
        return base + x

    tasks = run(m, small(local, 2), small(lambda: sys.platform), small(lambda *a, **k: (a, k), 1, b=2))
    assert [task.output for task in tasks] == [42, sys.platform, ((1,), {"b": 2})]


@pytest.mark.parametrize("size", [0, 1000, 200_000, 5_000_000])
def test_values_of_any_size(m: Manager, size: int) -> None:
    content = os.urandom(size)
    plain, raw = small(add, content, b"!"), small(add, content, b"?")
    raw.disable_output_serialization()
    run(m, plain, raw)
    assert plain.output == content + b"!" and raw.output == content + b"?"


def test_a_large_array(m: Manager) -> None:
    numpy = pytest.importorskip("numpy")
    task = run(m, small(lambda: numpy.arange(1_000_000.0)))[0]
    assert task.output.sum() == 499_999_500_000.0
    again = small(lambda a: float(a.sum()), task.output)
    assert run(m, again)[0].output == 499_999_500_000.0


def test_without_serialization_only_bytes_are_taken(m: Manager) -> None:
    task = small(add, 1)
    task.disable_output_serialization()
    run(m, task)
    assert isinstance(task.output, TypeError) and "bytes" in str(task.output)


def test_the_exception_itself_with_its_traceback(m: Manager) -> None:
    task = run(m, small(raises))[0]
    assert (task.result, task.exit_code, task.successful()) == ("success", 1, False)
    assert isinstance(task.output, KeyError) and task.output.args == ("which",)
    assert "in raises" in str(task.output.__cause__)
    assert task.std_output.startswith("said before\n") and "KeyError: 'which'" in task.std_output


def test_printed_output_of_every_kind(m: Manager) -> None:
    def speak() -> int:
        print("from print")
        sys.stdout.flush()
        os.write(2, b"from a descriptor\n")
        os.system("echo from a child")
        print("at the end, never flushed", end="")
        return 1

    task = run(m, small(speak))[0]
    assert task.output == 1
    assert task.std_output == "from print\nfrom a descriptor\nfrom a child\nat the end, never flushed"


def test_retries_after_exceptions(m: Manager, tmp_path: Path) -> None:
    task = small(raises, str(tmp_path))
    task.set_retries(2)
    run(m, task)
    assert len(list(tmp_path.iterdir())) == 3
    assert isinstance(task.output, KeyError)


# ------------------------------------------------------------ files


def test_outputs_written_into_the_working_directory(m: Manager, tmp_path: Path) -> None:
    target, temp = m.declare_file(tmp_path / "new" / "out.txt"), m.declare_temp()
    task = small(write, "out.txt", "content")
    task.add_output(target, "out.txt")
    task.add_output(temp, "out.txt")
    reader = small(lambda: Path("in").read_text())
    reader.add_input(temp, "in")
    run(m, task, reader)
    assert task.output == reader.output == "content"
    assert (tmp_path / "new" / "out.txt").read_text() == "content"


def test_outputs_of_a_function_that_raises(m: Manager) -> None:
    def write_and_raise() -> None:
        Path("out").write_text("made")
        raise ValueError("after that")

    buffer = m.declare_buffer()
    task = small(write_and_raise)
    task.add_output(buffer, "out")
    run(m, task)
    assert isinstance(task.output, ValueError) and task.exit_code == 1
    assert buffer.contents() == b"made"


def test_a_missing_output(m: Manager) -> None:
    task = small(add, 1)
    task.add_output(m.declare_buffer(), "never")
    run(m, task)
    assert (task.result, task.exit_code, task.successful()) == ("output missing", 0, False)
    assert isinstance(task.output, TaskFailed) and "output missing" in str(task.output)


@pytest.mark.parametrize("size", [1, BIG_BYTES])
def test_temp_outputs_are_read_as_files_as_arguments_and_here(m: Manager, size: int) -> None:
    maker = small(lambda n: "x" * n, size)
    maker.enable_temp_output()
    m.submit(maker)
    as_file = small(lambda: len(pickle.loads(Path("value").read_bytes())))
    as_file.add_input(maker.output_file, "value")
    as_argument = small(len, maker.output_file)
    shell = Task("wc -c < value", cores=1, memory=10, disk=100, inputs={maker.output_file: "value"})
    for task in (as_file, as_argument, shell):
        m.submit(task)
    for _ in range(4):
        assert m.wait(LIMIT_S) is not None
    assert as_file.output == as_argument.output == size
    assert int(shell.output) > size
    with pytest.raises(UsageError, match="fetch_file"):
        _ = maker.output
    assert m.fetch_file(maker.output_file, LIMIT_S) is not None
    assert len(maker.output_file.contents(pickle.load)) == size


def test_buffers_as_arguments(m: Manager) -> None:
    assert run(m, small(add, m.declare_buffer(b"con"), b"tent"))[0].output == b"content"


# ------------------------------------------------------------ faults


def test_what_cannot_be_pickled(m: Manager) -> None:
    with pytest.raises(UnpicklableError):
        m.submit(small(add, threading.Lock()))
    task = run(m, small(lambda: threading.Lock()))[0]
    assert isinstance(task.output, TypeError) and task.exit_code == 1
    assert run(m, small(add, 1))[0].output == 2


@pytest.mark.parametrize("how", ["exit", "segfault"])
def test_a_process_that_dies_is_tried_again_and_then_said_in_words(m: Manager, tmp_path: Path, how: str) -> None:
    task, other = small(crash, str(tmp_path), how), small(add, 1)
    run(m, task, other)
    assert other.output == 2
    assert len(list(tmp_path.iterdir())) == m.engine.tunables.max_losses + 1
    assert (task.result, task.exit_code, task.successful()) == ("forsaken", -1, False)
    assert isinstance(task.output, SlotLost)
    assert ("exit code 3" if how == "exit" else "SIGSEGV") in str(task.output)


def test_a_time_limit(m: Manager) -> None:
    task = small(time.sleep, 100)
    task.set_time_max(1)
    run(m, task)
    assert (task.result, task.exit_code) == ("max wall time", 9)
    assert isinstance(task.output, TaskFailed)


def test_the_end_time_has_passed_before_the_process_is_ready(m: Manager) -> None:
    tasks = [small(time.sleep, 100) for _ in range(10)]
    for task in tasks:
        task.set_time_end((time.time() - 1) * 1e6)
    assert {task.result for task in run(m, *tasks)} == {"max end time"}


def test_cancelling_a_running_function_and_what_it_started(m: Manager, tmp_path: Path) -> None:
    def start(directory: str) -> None:
        import subprocess

        child = subprocess.Popen(["sleep", "300"])
        Path(directory, "pids.part").write_text(f"{child.pid} {os.getpid()}")
        Path(directory, "pids.part").rename(Path(directory, "pids"))
        child.wait()

    task = small(start, str(tmp_path))
    m.submit(task)
    assert eventually((tmp_path / "pids").exists)
    pids = (tmp_path / "pids").read_text().split()
    m.cancel_by_task_id(task.id or 0)
    assert m.wait(LIMIT_S).result == "cancelled"
    assert eventually(lambda: not any(Path("/proc", pid).exists() for pid in pids))


def test_a_daemon_that_a_function_leaves_does_not_hold_its_result(m: Manager, tmp_path: Path) -> None:
    """A child that keeps every inherited descriptor open: the result is there when the function has returned."""

    def leave(directory: str) -> int:
        pid = os.fork()
        if pid == 0:
            time.sleep(LIMIT_S * 3)
            os._exit(0)
        return pid

    task = run(m, small(leave, str(tmp_path)))[0]
    assert eventually(lambda: not Path("/proc", str(task.output)).exists())


# ------------------------------------------------------------ function calls in fork mode


def test_fork_mode_keeps_nothing_between_calls(m: Manager, install: Callable[..., str]) -> None:
    library = install(count_up, add, exec_mode="fork")
    assert finish(m, *[FunctionCall(library, "count_up") for _ in range(20)]) == [1] * 20


def test_fork_mode_large_values_errors_and_death(m: Manager, install: Callable[..., str], tmp_path: Path) -> None:
    library = install(add, raises, crash, exec_mode="fork")
    content = os.urandom(BIG_BYTES)
    values = finish(
        m,
        FunctionCall(library, "add", content, b"!"),
        FunctionCall(library, "raises"),
        FunctionCall(library, "crash", str(tmp_path), "exit"),
        FunctionCall(library, "add", 1),
    )
    assert values[0] == content + b"!" and values[3] == 2
    assert isinstance(values[1], KeyError) and isinstance(values[2], SlotLost)


def test_fork_mode_an_error_larger_than_a_page(m: Manager, install: Callable[..., str]) -> None:
    def raise_much() -> None:
        raise ValueError("x" * 500_000)

    library = install(raise_much, add, exec_mode="fork")
    error, value = finish(m, FunctionCall(library, "raise_much"), FunctionCall(library, "add", 1))
    assert isinstance(error, ValueError) and len(str(error)) == 500_000 and value == 2


def test_fork_mode_results_are_not_held_up_by_a_long_call(m: Manager, install: Callable[..., str], tmp_path: Path) -> None:
    library = install(add, block, exec_mode="fork")
    finish(m, *[FunctionCall(library, "add", n) for n in range(200)])
    calls = [FunctionCall(library, "add", n) for n in range(20)]
    blockers = [FunctionCall(library, "block", str(tmp_path / "go")) for _ in range(2)]
    for call in (*calls[:10], *blockers, *calls[10:]):
        m.submit(call)
    assert started(tmp_path / "go", 2)
    for _ in range(10):
        assert m.wait(LIMIT_S) is not None
    (tmp_path / "go").touch()
    for _ in range(12):
        assert m.wait(LIMIT_S) is not None


def _wait_long(path: str) -> None:
    Path(path).with_suffix(".part").write_text(str(os.getpid()))
    Path(path).with_suffix(".part").rename(path)
    time.sleep(LIMIT_S * 10)


@pytest.mark.parametrize("boxed", [True, False])
def test_a_killed_worker_takes_running_functions_along(leaves_no_process: str, tmp_path: Path, boxed: bool) -> None:
    with Manager(local_cores=1) as manager:
        if boxed:
            manager.submit(small(_wait_long, str(tmp_path / "pid")))
        else:
            manager.install_library(manager.create_library_from_functions("forks", _wait_long, exec_mode="fork"))
            manager.submit(FunctionCall("forks", "_wait_long", str(tmp_path / "pid")))
        assert eventually((tmp_path / "pid").exists)
        pid = (tmp_path / "pid").read_text()
        assert manager.engine.embedded is not None
        os.kill(manager.engine.embedded.process.pid, signal.SIGKILL)
        assert eventually(lambda: not Path("/proc", pid).exists())
        manager.cancel_all()
        assert manager.wait(LIMIT_S) is not None


def test_every_failure_has_a_reason_in_words(m: Manager, tmp_path: Path) -> None:
    missing = Task("cat f")
    missing.add_input(m.declare_file(tmp_path / "nofile"), "f")
    forgets = Task("true")
    forgets.add_output(m.declare_file(tmp_path / "out"), "made.txt")
    unstored = Task("echo x > made.txt")
    unstored.add_output(m.declare_file("/proc/nope/x"), "made.txt")
    slow = Task("sleep 30", time_max=1)
    fine, exits = Task("true"), Task("exit 3")
    raises, wordless = PythonTask(int, "x"), PythonTask(next, iter(()))
    never = Task("true")
    tasks: list[Any] = [missing, forgets, unstored, slow, fine, exits, raises, wordless]
    assert never.reason == ""
    for task in tasks:
        m.submit(task)
    while not m.empty():
        assert m.wait(LIMIT_S) is not None
    assert f"{tmp_path}/nofile cannot be read: No such file or directory" in missing.reason
    assert forgets.reason == "it did not make its output made.txt"
    assert unstored.reason.startswith("an output could not be stored: ") and "/proc/nope" in unstored.reason
    assert slow.reason == "it was ended by its limit 'max wall time' of 1 s"
    assert (fine.reason, exits.reason) == ("", "it ended with exit code 3")
    assert raises.reason == "it raised ValueError: invalid literal for int() with base 10: 'x'"
    assert wordless.reason == "it raised StopIteration"
