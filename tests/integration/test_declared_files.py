"""Files as users declare them: twice, under odd names, undeclared while in use, gone before they were sent, never undeclared."""

from __future__ import annotations

import gc
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.kit.calls import eventually
from vinecore import Manager, PythonTask, Task
from vinecore.errors import UsageError
from vinecore.manager.entries import FileEntry

LIMIT_S = 30.0
SIZES = (10, 300_000)


@pytest.fixture(scope="module")
def m() -> Iterator[Manager]:
    with Manager(local_cores=2) as manager:
        yield manager
        manager.engine.call_in_loop(manager.engine.machine.check)


@pytest.fixture
def held(m: Manager) -> Iterator[Callable[[Path], Task]]:
    """Make something occupy the whole worker until a path exists; what is submitted meanwhile has to wait."""

    def occupy(gate: Path) -> Task:
        task = Task(f"while ! test -e {gate}; do sleep 0.02; done", cores=2)
        m.submit(task)
        assert eventually(lambda: task.state == "RUNNING")
        return task

    yield occupy


def finish(m: Manager, task: Task) -> Task:
    m.submit(task)
    assert m.wait_for_task_id(task.id or 0, LIMIT_S) is task
    return task


@pytest.mark.parametrize("size", SIZES)
def test_a_path_that_is_declared_twice(m: Manager, tmp_path: Path, size: int) -> None:
    """Both used to be objects of their own under one name: without the one, the other was gone."""
    path = tmp_path / "data"
    path.write_bytes(b"x" * size)
    first, second = m.declare_file(path), m.declare_file(path)
    assert finish(m, Task("cat a b | wc -c", inputs={first: "a", second: "b"}, cores=1)).output.strip() == str(2 * size)
    m.undeclare_file(first)
    m.undeclare_file(first)
    assert finish(m, Task("wc -c < b", inputs={second: "b"}, cores=1)).output.strip() == str(size)
    m.prune_file(second)
    assert finish(m, Task("wc -c < b", inputs={second: "b"}, cores=1)).output.strip() == str(size)
    m.undeclare_file(second)
    assert eventually(lambda: not any(str(path) == getattr(parts, "path", "") for parts in list(m.engine.loop.objects.values())))
    # What is used once more is declared once more.
    assert finish(m, Task("wc -c < a", inputs={first: "a"}, cores=1)).output.strip() == str(size)


def test_a_file_that_is_undeclared_and_declared_again_while_it_is_read(
    m: Manager, held: Callable[[Path], Task], tmp_path: Path
) -> None:
    path = tmp_path / "data"
    path.write_bytes(b"x" * 300_000)
    before = held(tmp_path / "gate")
    waiting = Task("wc -c < a", inputs={(file := m.declare_file(path)): "a"}, cores=1)
    m.submit(waiting)
    m.undeclare_file(file)
    again = Task("wc -c < a", inputs={m.declare_file(path): "a"}, cores=1)
    m.submit(again)
    (tmp_path / "gate").touch()
    assert m.wait_for_task_id(before.id or 0, LIMIT_S) is before
    for task in (waiting, again):
        assert m.wait_for_task_id(task.id or 0, LIMIT_S) is task and task.output.strip() == "300000", task.reason


@pytest.mark.parametrize("size", SIZES)
def test_an_output_that_is_undeclared_before_it_was_made_comes_all_the_same(m: Manager, tmp_path: Path, size: int) -> None:
    """The task was a success, and its output nowhere."""
    file, buffer = m.declare_file(tmp_path / "out"), m.declare_buffer()
    task = Task(f"head -c {size} /dev/zero > a; cp a b", outputs={file: "a", buffer: "b"}, cores=1)
    m.submit(task)
    m.undeclare_file(file)
    m.undeclare_file(buffer)
    assert m.wait_for_task_id(task.id or 0, LIMIT_S) is task and task.successful(), task.reason
    assert (tmp_path / "out").stat().st_size == size and buffer.contents() == bytes(size)
    del task
    gc.collect()
    assert eventually(lambda: not m.engine.machine.state.tasks)


def test_an_output_that_is_added_while_the_task_runs_is_for_its_next_run(m: Manager, tmp_path: Path) -> None:
    """It used to end the manager: outputs and products did not match any more."""
    first, second = m.declare_file(tmp_path / "first"), m.declare_file(tmp_path / "second")
    gate = tmp_path / "gate"
    task = Task(f"while ! test -e {gate}; do sleep 0.02; done; echo 1 | tee a > b", outputs={first: "a"}, cores=1)
    m.submit(task)
    task.add_output(second, "b")
    gate.touch()
    assert m.wait_for_task_id(task.id or 0, LIMIT_S) is task and task.successful()
    assert (tmp_path / "first").exists() and not (tmp_path / "second").exists()
    assert finish(m, task).successful() and (tmp_path / "second").read_text() == "1\n"


@pytest.mark.parametrize("size", SIZES)
def test_an_input_that_is_gone_when_it_is_to_be_sent_is_named_by_its_path(
    m: Manager, held: Callable[[Path], Task], tmp_path: Path, size: int
) -> None:
    path = tmp_path / "data"
    path.write_bytes(b"x" * size)
    before = held(tmp_path / "gate")
    task = Task("cat a", inputs={(file := m.declare_file(path)): "a"}, cores=1)
    m.submit(task)
    path.rename(tmp_path / "elsewhere")
    (tmp_path / "gate").touch()
    assert m.wait_for_task_id(before.id or 0, LIMIT_S) is before
    assert m.wait_for_task_id(task.id or 0, LIMIT_S) is task and task.result == "input missing"
    assert f"{path} cannot be read: No such file or directory" in task.reason
    (tmp_path / "elsewhere").rename(path)
    assert finish(m, Task("wc -c < a", inputs={file: "a"}, cores=1)).output.strip() == str(size)


def test_a_path_that_is_no_text(m: Manager, tmp_path: Path) -> None:
    path = os.fsdecode(bytes(tmp_path) + b"/\xff\xfe")
    Path(path).write_text("odd")
    assert finish(m, Task("cat a", inputs={m.declare_file(path): "a"}, cores=1)).output == "odd"


def test_files_that_cannot_be(m: Manager) -> None:
    """A task waited for its own output for ever, one whose output cannot be written for an odd reason never came back."""
    with pytest.raises(UsageError, match="null character"):
        m.declare_file("a\0b")
    temp = m.declare_temp()
    with pytest.raises(UsageError, match="the temp for 'b' is an input of the task that is to make it"):
        m.submit(Task("cat a > b", inputs={temp: "a"}, outputs={temp: "b"}))
    odd = m.declare_file("odd")
    odd._path = "a\0b"
    task = finish(m, Task("echo 1 > a", outputs={odd: "a"}, cores=1))
    assert task.result == "output transfer error" and "ValueError" in task.reason


def test_a_temp_that_was_undeclared_is_not_waited_for(m: Manager) -> None:
    temp = m.declare_temp()
    assert finish(m, Task("echo 1 > a", outputs={temp: "a"}, cores=1)).successful()
    m.undeclare_file(temp)
    late = finish(m, Task("cat a", inputs={temp: "a"}, cores=1))
    assert late.result == "input missing" and "is gone" in late.reason
    assert finish(m, Task("echo 2 > a", outputs={temp: "a"}, cores=1)).successful()
    assert finish(m, Task("cat a", inputs={temp: "a"}, cores=1)).output == "2\n"


def files_alive() -> int:
    gc.collect()
    return sum(type(thing) is FileEntry for thing in gc.get_objects())


def large(number: int, before: bytes = b"") -> bytes:
    return bytes([number]) * 100_000


def test_files_that_nobody_can_name_any_more_are_let_go_of(m: Manager) -> None:
    """A program that declares a buffer, or a temp, for each task grew with each, here and on the disks of workers."""
    last: PythonTask | None = None
    before = files_alive(), len(m.engine.machine.state.held), len(m.engine.loop.objects)
    for number in range(20):
        data, temp, out = m.declare_buffer(os.urandom(100_000)), m.declare_temp(), m.declare_buffer()
        task = Task("cp a b; wc -c < a > c", inputs={data: "a"}, outputs={temp: "b", out: "c"}, cores=1)
        m.submit(task)
        reader = Task("wc -c < a", inputs={temp: "a"}, cores=1)
        m.submit(reader)
        chained = PythonTask(large, number, *([] if last is None else [last.output_file]))
        chained.set_cores(1)
        chained.enable_temp_output()
        m.submit(chained)
        last = chained
        while not m.empty():
            done = m.wait(LIMIT_S)
            assert done is not None and done.successful(), done and done.reason
        assert reader.output == "100000\n" and out.contents() == b"100000\n"
    assert last is not None and m.fetch_file(last.output_file) is not None
    del data, temp, out, task, reader, chained, done, last
    gc.collect()
    assert eventually(lambda: len(m.engine.machine.state.held) <= before[1])
    assert eventually(lambda: files_alive() < before[0] + 10) and len(m.engine.loop.objects) <= before[2] + 2
