"""What tasks keep when their manager is closed: the values, also large ones, of every task that the user holds."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import vinecore.api.homecoming
from daskvine import FuturesExecutor
from tests.kit.calls import LIMIT_S, eventually
from vinecore import FunctionCall, Manager, PythonTask
from vinecore.api.waiting import FileWaiter
from vinecore.errors import FileLost, LoopDied

LARGE = 3_000_000


@pytest.fixture
def brought(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the calls whose values a close asks for."""
    names: list[str] = []

    class Counted(FileWaiter):
        def ask(self) -> None:
            names.append(self.name)
            super().ask()

    monkeypatch.setattr(vinecore.api.homecoming, "FileWaiter", Counted)
    return names


def collect(m: Manager, *tasks: Any) -> None:
    for task in tasks:
        m.submit(task)
    while not m.empty():
        assert m.wait(LIMIT_S) is not None


def finish(m: Manager, *tasks: Any) -> None:
    """Let tasks finish, without taking them."""
    for task in tasks:
        m.submit(task)
    assert eventually(lambda: m.stats.tasks_with_results == len(tasks))


@pytest.mark.parametrize("by_link", [False, True])
def test_values_outlive_the_manager(by_link: bool, brought: list[str]) -> None:
    with Manager(local_cores=1) as m:
        m.engine.machine.state.never_map = by_link
        m.install_library(m.create_library_from_functions("L", np.ones))
        array, small = FunctionCall("L", "ones", LARGE), FunctionCall("L", "ones", 3)
        task, read = PythonTask(bytes, LARGE), PythonTask(bytes, LARGE)
        collect(m, array, small, task, read, PythonTask(bytes, LARGE))
        assert len(read.output) == LARGE
    assert sorted(brought) == ["bytes", "ones"], "what was read, and what nobody holds, stays"
    assert array.output.sum() == LARGE and array.output is array.output
    assert len(task.output) == LARGE and small.output.sum() == 3
    assert len(read.output) == LARGE


@pytest.mark.parametrize("by_link", [False, True])
def test_values_of_tasks_that_were_not_waited_for_too(by_link: bool, brought: list[str]) -> None:
    """A task is in its user's hands from the moment of submit: its output can be read without wait."""
    with Manager(local_cores=1) as m:
        m.engine.machine.state.never_map = by_link
        m.install_library(m.create_library_from_functions("L", np.ones))
        array, small = FunctionCall("L", "ones", LARGE), FunctionCall("L", "ones", 3)
        task, raised = PythonTask(bytes, LARGE), PythonTask(bytes, "text")
        finish(m, array, small, task, raised, PythonTask(bytes, LARGE))
        late = PythonTask(time.sleep, 1000)
        m.submit(late)
    assert sorted(brought) == ["bytes", "ones"], "what nobody holds stays"
    assert array.output.sum() == LARGE and len(task.output) == LARGE
    assert small.output.sum() == 3 and isinstance(raised.output, TypeError)
    assert late.result == "forsaken" and isinstance(late.output, LoopDied)
    handed_out = [m.wait(0) for _ in range(5)]
    assert set(handed_out) == {array, small, task, raised, late} and m.empty() and m.wait() is None


def test_values_that_are_bytes_as_they_are(brought: list[str]) -> None:
    with Manager(local_cores=1) as m:
        tasks = [PythonTask(bytes, size) for size in (10, LARGE, LARGE)]
        for task in tasks:
            task.disable_output_serialization()
        finish(m, *tasks)
        assert m.wait_for_task_id(tasks[1].id) is tasks[1]
    assert len(brought) == 2
    assert [task.output for task in tasks] == [bytes(10), bytes(LARGE), bytes(LARGE)]


def test_a_value_that_was_not_brought_says_so() -> None:
    with pytest.raises(KeyboardInterrupt), Manager(local_cores=1) as m:
        task = PythonTask(bytes, LARGE)
        finish(m, task)
        raise KeyboardInterrupt
    with pytest.raises(LoopDied, match="the manager has been closed, and the result of bytes stayed on its worker"):
        _ = task.output


def test_futures_of_an_executor_on_the_manager_too(brought: list[str]) -> None:
    with Manager(local_cores=1) as m:
        with FuturesExecutor(manager=m) as ex:
            future = ex.submit(bytes, LARGE)
        assert not brought, "the manager lives"
    assert len(future.result(0)) == LARGE


def test_a_value_without_a_copy_says_so(tmp_path: Path) -> None:
    """It is not made again: closing would take as long as that."""
    log = tmp_path / "log"

    def make(path: str) -> bytes:
        with open(path, "a") as out:
            out.write("x")
        return bytes(LARGE)

    with Manager(local_cores=1) as m:
        task = PythonTask(make, str(log))
        collect(m, task)
        entry = task._entry
        assert entry is not None and entry.output is not None and m.engine.embedded is not None
        os.kill(m.engine.embedded.process.pid, signal.SIGKILL)
        while entry.output.is_available():
            m.wait(0.01)
    with pytest.raises(FileLost, match="no copy of it was left, and a manager that is closed makes nothing again"):
        _ = task.output


def test_a_frozen_worker_does_not_hold_up_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a keepalive it counts as lost; without one nothing else would end the wait."""
    monkeypatch.setattr(vinecore.api.homecoming, "STILL_S", 0.3)
    with Manager(local_cores=1) as m:
        m.engine.machine.state.never_map = True
        m.tune("keepalive-interval", 0)
        tasks = [PythonTask(bytes, LARGE) for _ in range(3)]
        collect(m, *tasks)
        assert m.engine.embedded is not None
        os.kill(m.engine.embedded.process.pid, signal.SIGSTOP)
    for task in tasks:
        with pytest.raises(FileLost, match=r"the result of bytes is lost: no worker that has it sent anything for 0\.3 s"):
            _ = task.output


def test_nothing_is_brought_after_an_interrupt(brought: list[str]) -> None:
    with pytest.raises(KeyboardInterrupt), Manager(local_cores=1) as m:
        task = PythonTask(bytes, LARGE)
        collect(m, task)
        raise KeyboardInterrupt
    assert not brought


@pytest.mark.parametrize("kind", [ValueError, GeneratorExit, SystemExit, asyncio.CancelledError])
def test_only_ctrl_c_leaves_without_values(kind: type[BaseException]) -> None:
    """A loop over a generator that holds a manager may break off, a coroutine be cancelled: what they gave is still read."""
    with pytest.raises(kind), Manager(local_cores=1) as m:
        task = PythonTask(bytes, LARGE)
        collect(m, task)
        raise kind
    assert len(task.output) == LARGE


def test_a_generator_that_holds_a_manager_may_break_off() -> None:
    def results() -> Iterator[PythonTask]:
        with Manager(local_cores=1) as m:
            for _ in range(3):
                m.submit(PythonTask(bytes, LARGE))
            while not m.empty():
                yield m.wait(LIMIT_S)

    kept = []
    for task in results():
        kept.append(task)
        break
    assert len(kept[0].output) == LARGE
