"""Function calls with files, limits and variables of their own: each in a private directory, in a library in fork mode."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from tests.kit.calls import LIMIT_S, add, finish
from vinecore import FunctionCall, Manager, PythonTask, Task, load_variable_from_library
from vinecore.errors import FileLost, SlotLost, TaskFailed, UsageError

LONG_S = 10 * LIMIT_S


def make_factor() -> dict[str, int]:
    return {"factor": 3}


def repeat(name: str, out: str) -> tuple[str, str | None]:
    """Write what is in a file, as often as the context says; where, and the variable WHO."""
    factor: int = load_variable_from_library("factor")
    Path(out).write_text(Path(name).read_text() * factor)
    print("said", factor)
    return os.getcwd(), os.environ.get("WHO")


def sleep_long() -> None:
    time.sleep(LONG_S)


def exit_at_once() -> None:
    os._exit(3)


def fill(megabytes: int) -> int:
    with open("large", "wb") as file:
        for _ in range(megabytes):
            file.write(bytes(1 << 20))
            file.flush()
            time.sleep(0.05)
    return megabytes


def write(path: str, text: str) -> str:
    Path(path).write_text(text)
    return text


@pytest.fixture(scope="module")
def m() -> Iterator[Manager]:
    with Manager(local_cores=2) as manager:
        task = manager.create_library_from_functions(
            "forks",
            *(repeat, sleep_long, exit_at_once, fill, write, add),
            exec_mode="fork",
            library_context_info=[make_factor, [], {}],
        )
        task.set_function_slots(2)
        manager.install_library(task)
        yield manager


def go_elsewhere() -> dict[str, Any]:
    os.chdir("/")
    return {}


def go_elsewhere_with_a_thread() -> dict[str, Any]:
    """Slots of its library are not forked from its parent, but interpreters of their own."""
    threading.Thread(target=threading.Event().wait, daemon=True).start()
    return go_elsewhere()


def read_all(*names: str) -> dict[str, str]:
    """What is in these files."""
    return {name: Path(name).read_text() for name in names}


def test_inputs_of_the_library_are_found_in_the_directory_of_a_call(m: Manager, tmp_path: Path) -> None:
    """Unless the call has something of that name; its outputs are its own, and the files are there for the next one."""
    task = m.create_library_from_functions("with-files", read_all, write, exec_mode="fork")
    for name in ("table", "deep/table", "mine", "deeper/mine", "made"):
        task.add_input(m.declare_buffer(f"library's {name}"), name)
    m.install_library(task)
    own = m.declare_buffer("call's")
    for _ in range(2):
        plain = FunctionCall("with-files", "read_all", "table", "deep/table", "made")
        boxed = FunctionCall("with-files", "read_all", "table", "deep/table", "mine", "deeper")
        boxed.add_input(own, "mine")
        boxed.add_input(own, "deeper")
        limited = FunctionCall("with-files", "read_all", "deeper/mine")
        limited.set_time_max(LIMIT_S)
        writer = FunctionCall("with-files", "write", "made", "by the call")
        writer.add_output(m.declare_file(tmp_path / "made"), "made")
        lazy = FunctionCall("with-files", "read_all", "table")
        lazy.add_output(m.declare_file(tmp_path / "lazy"), "made")
        outputs = finish(m, plain, boxed, limited, writer, lazy)
        assert outputs[0] == {name: f"library's {name}" for name in ("table", "deep/table", "made")}
        theirs = {name: f"library's {name}" for name in ("table", "deep/table")}
        assert outputs[1] == {**theirs, "mine": "call's", "deeper": "call's"}
        assert outputs[2] == {"deeper/mine": "library's deeper/mine"}
        assert (tmp_path / "made").read_text() == "by the call"
        assert lazy.result == "output missing", "what the library has there is not what the call made"
    m.remove_library("with-files")


@pytest.mark.parametrize("make_context", [go_elsewhere, go_elsewhere_with_a_thread])
def test_inputs_of_a_library_whose_context_goes_elsewhere(m: Manager, make_context: Any) -> None:
    task = m.create_library_from_functions(make_context.__name__, read_all, exec_mode="fork", library_context_info=[make_context])
    task.add_input(m.declare_buffer("library's table"), "deep/table")
    m.install_library(task)
    boxed = FunctionCall(make_context.__name__, "read_all", "deep/table")
    boxed.set_time_max(LIMIT_S)
    assert finish(m, boxed) == [{"deep/table": "library's table"}]
    m.remove_library(make_context.__name__)


def test_files_variables_and_output(m: Manager, tmp_path: Path) -> None:
    call = FunctionCall("forks", "repeat", "in.txt", "sub/out.txt")
    home = tmp_path / "out.txt"
    call.add_input(m.declare_buffer("ab"), "in.txt")
    call.add_input(m.declare_buffer(""), "sub/there")
    call.add_output(m.declare_file(home), "sub/out.txt")
    call.set_env_var("WHO", "me")
    ((place, who),) = finish(m, call)
    assert (call.result, call.exit_code, call.successful(), call.std_output) == ("success", 0, True, "said 3\n")
    assert who == "me" and home.read_text() == "ababab" and not Path(place).exists()
    plain = FunctionCall("forks", "add", 1)
    assert finish(m, plain) == [2] and plain.std_output == "" and plain.resources_measured.wall_time == -1


def test_temps_travel_between_calls_and_other_tasks(m: Manager) -> None:
    first, second = m.declare_temp(), m.declare_temp()
    maker = FunctionCall("forks", "write", "a", "x")
    maker.add_output(first, "a")
    middle = Task("cat a a > b")
    middle.add_input(first, "a")
    middle.add_output(second, "b")
    reader = FunctionCall("forks", "repeat", "b", "c")
    reader.add_input(second, "b")
    result = m.declare_buffer()
    reader.add_output(result, "c")
    finish(m, maker, middle, reader)  # type: ignore[arg-type]
    assert result.contents() == b"xxxxxx"


def test_the_value_may_stay_in_the_cluster(m: Manager) -> None:
    call = FunctionCall("forks", "write", "a", "kept")
    call.add_output(m.declare_temp(), "a")
    call.enable_temp_output()
    m.submit(call)
    reader = FunctionCall("forks", "add", call.output_file, "!")
    m.submit(reader)
    done = [m.wait(LIMIT_S), m.wait(LIMIT_S)]
    assert done == [call, reader] and reader.output == "kept!"
    with pytest.raises(UsageError, match="left in the cluster"):
        _ = call.output


@pytest.mark.parametrize("limit", ["set_time_max", "set_time_end"])
def test_a_call_that_runs_too_long_is_ended_and_its_neighbours_live(m: Manager, limit: str) -> None:
    call = FunctionCall("forks", "sleep_long")
    getattr(call, limit)(1 if limit == "set_time_max" else (time.time() + 1) * 1e6)
    others = [FunctionCall("forks", "add", n) for n in range(20)]
    failure, *values = finish(m, call, *others)
    outcome = "max wall time" if limit == "set_time_max" else "max end time"
    assert call.result == outcome and isinstance(failure, TaskFailed) and outcome in str(failure) and outcome in call.reason
    assert values == list(range(1, 21)) and not call.successful() and call.exit_code == 9


def test_a_call_that_fills_the_disk_is_ended(m: Manager) -> None:
    call = FunctionCall("forks", "fill", 1000)
    call.set_disk(20)
    (failure,) = finish(m, call)
    assert call.result == "sandbox exhaustion" and isinstance(failure, TaskFailed)


def test_a_call_that_ends_its_process(m: Manager) -> None:
    call = FunctionCall("forks", "exit_at_once")
    call.set_time_max(20)
    (failure,) = finish(m, call)
    assert isinstance(failure, SlotLost) and "lost 6 times" in str(failure) and call.result == "forsaken"


def test_outputs_and_inputs_that_are_not_there(m: Manager, tmp_path: Path) -> None:
    call = FunctionCall("forks", "add", 1)
    call.add_output(m.declare_temp(), "nothing")
    (failure,) = finish(m, call)
    assert call.result == "output missing" and isinstance(failure, TaskFailed) and "nothing" in str(failure)
    call = FunctionCall("forks", "add", 1)
    call.add_input(m.declare_file(tmp_path / "absent"), "a")
    (failure,) = finish(m, call)
    assert call.result == "input missing" and "absent" in str(failure) and not isinstance(failure, FileLost)


def test_an_exception_comes_back_with_what_was_printed(m: Manager) -> None:
    call = FunctionCall("forks", "repeat", "absent", "out")
    call.set_time_max(20)
    (failure,) = finish(m, call)
    assert isinstance(failure, FileNotFoundError) and call.result == "success" and call.exit_code == 1
    assert "FileNotFoundError" in str(call.std_output)


def test_a_call_is_submitted_again_with_and_without_a_directory(m: Manager) -> None:
    call = FunctionCall("forks", "add", 1)
    assert finish(m, call) == [2]
    call.set_env_var("WHO", "me")
    assert finish(m, call) == [2] and call.resources_measured.wall_time >= 0
    call.set_fn_args([5])
    assert finish(m, call) == [6] and call.successful()


def test_what_a_call_asks_for_is_kept_free(m: Manager) -> None:
    """Two calls that want both cores never run beside each other, nor beside a task with a core."""

    def span() -> tuple[float, float]:
        begun = time.time()
        time.sleep(0.2)
        return begun, time.time()

    for mode in ("fork", "direct"):
        library = install_in(m, f"spans-{mode}", span, mode)
        calls = [FunctionCall(library, "span") for _ in range(3)]
        for call in calls:
            call.set_cores(2)
        task = PythonTask(span)
        task.set_cores(1)
        spans = sorted(finish(m, *calls, task))  # type: ignore[arg-type]
        assert all(before[1] <= after[0] for before, after in pairwise(spans)), mode
        m.remove_library(library)


def install_in(m: Manager, name: str, function: Callable[[], object], mode: str) -> str:
    task = m.create_library_from_functions(name, function, exec_mode=mode)
    task.set_function_slots(2)
    m.install_library(task)
    return name


def test_what_a_library_cannot_do_is_refused(m: Manager) -> None:
    name = install_in(m, "in-slots", sleep_long, "direct")
    call = FunctionCall(name, "sleep_long")
    call.set_time_max(5)
    with pytest.raises(UsageError, match=r"of its own, and library 'in-slots' runs calls in its slots.*exec_mode='fork'"):
        m.submit(call)
    program = m.create_library_from_command(Path(__file__).parents[1] / "kit" / "library_program.py", "program")
    m.install_library(program)
    call = FunctionCall("program", "double", 2)
    call.set_env_var("A", "b")
    with pytest.raises(UsageError, match="library 'program' is a program"):
        m.submit(call)
    m.remove_library("program")
    m.remove_library(name)


def test_exec_method(m: Manager) -> None:
    call = FunctionCall("forks", "add", 1)
    with pytest.raises(UsageError, match="'fork' or 'direct', not 'thread'"):
        call.set_exec_method("thread")
    call.set_exec_method("direct")
    with pytest.raises(UsageError, match="has to run in 'direct' mode, and library 'forks' runs calls in 'fork' mode"):
        m.submit(call)
    call.set_exec_method("fork")
    assert finish(m, call) == [2]
