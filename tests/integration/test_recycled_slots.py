"""Slots that are replaced: after so many calls, or when they have grown."""

from __future__ import annotations

import os
import time

import pytest

from daskvine import FuturesExecutor
from tests.kit.calls import LIMIT_S, eventually, finish
from vinecore import FunctionCall, LibraryTask, Manager
from vinecore.errors import UsageError

_grown: list[bytes] = []


def grow(megabytes: int) -> int:
    _grown.append(os.urandom(1) * (megabytes << 20))
    return os.getpid()


def pid_after(pause_s: float) -> int:
    time.sleep(pause_s)
    return os.getpid()


def grow_slowly(megabytes: int) -> int:
    time.sleep(0.1)
    return grow(megabytes)


def test_a_slot_that_grows_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEMORY", "200")  # of the worker: half of it is the one slot's
    with FuturesExecutor(1) as executor:
        pids: list[int] = []
        assert eventually(lambda: pids.append(executor.submit(grow_slowly, 20).result(LIMIT_S)) or len(set(pids)) > 1)
        assert pids.count(pids[0]) > 4


def test_a_slot_that_may_hold_state_is_not_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEMORY", "200")
    with Manager(local_cores=1) as manager:
        task = manager.create_library_from_functions("state", grow_slowly, exec_mode="direct")
        manager.install_library(task)
        assert len(set(finish(manager, *[FunctionCall(task, "grow_slowly", 20) for _ in range(12)]))) == 1


def test_max_tasks_per_child() -> None:
    with FuturesExecutor(2, max_tasks_per_child=3) as executor:
        pids = [f.result(LIMIT_S) for f in [executor.submit(pid_after, 0.001) for _ in range(30)]]
    counts = [pids.count(pid) for pid in set(pids)]
    assert max(counts) <= 3 and len(counts) >= 10


@pytest.mark.parametrize("count", [0, -1])
def test_bad_max_tasks_per_child(count: int, m: Manager) -> None:
    with pytest.raises(ValueError, match="max_tasks_per_child must be >= 1"):
        FuturesExecutor(1, max_tasks_per_child=count)
    with pytest.raises(TypeError, match="max_tasks_per_child must be an integer"):
        FuturesExecutor(1, max_tasks_per_child="3")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="not for one on a manager"):
        FuturesExecutor(manager=m, max_tasks_per_child=3)


def test_calls_per_slot_of_a_library(m: Manager) -> None:
    task: LibraryTask = m.create_library_from_functions("renewed", pid_after, exec_mode="direct")
    with pytest.raises(UsageError, match="calls per slot must be a whole number >= 1"):
        task.set_max_calls_per_slot(0)
    task.set_max_calls_per_slot(1)
    m.install_library(task)
    pids = finish(m, *[FunctionCall(task, "pid_after", 0.0) for _ in range(6)])
    assert len(set(pids)) == 6
    with pytest.raises(UsageError, match="is installed: set this before"):
        task.set_max_calls_per_slot(2)
    m.remove_library("renewed")
