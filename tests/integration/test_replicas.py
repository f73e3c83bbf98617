"""Copies of temps on several real workers: with ``temp-replica-count`` 2 the loss of a worker loses no value."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import vinecore.api.homecoming
from daskvine import FuturesExecutor
from tests.kit.calls import LIMIT_S, eventually
from tests.kit.counted import Log, leaf
from tests.kit.fleet import check_idle, fleet
from tests.kit.processes import Worker
from vinecore import Manager, PythonTask
from vinecore.manager.entries import FileEntry

# This process and its workers look for secrets and settings below the test's directory only.
pytestmark = pytest.mark.usefixtures("home")

SIZE = 50_000


def copies(manager: Manager) -> list[int]:
    """Copies of each object that some worker holds."""

    def count() -> list[int]:
        files: list[FileEntry] = [f for f in manager.engine.machine.state.held.values() if f.producer is not None]
        return [len(file.on_workers) for file in files]

    found: list[int] = manager.engine.call_in_loop(count)
    return found


@pytest.mark.parametrize("wanted", [1, 2, 3])
def test_so_many_workers_hold_each_value(start: Callable[..., Worker], tmp_path: Path, wanted: int) -> None:
    log = Log(tmp_path / "log")
    with Manager(port=0) as manager:
        manager.tune("temp-replica-count", wanted)
        fleet(manager.engine, start, 3)
        with FuturesExecutor(manager=manager) as executor:
            futures = [executor.submit(leaf, log.path, f"k{i}", 0.0, SIZE, i) for i in range(12)]
            assert all(future.exception(LIMIT_S) is None for future in futures)
            assert eventually(lambda: copies(manager) == [wanted] * 12), copies(manager)
            del futures
        assert eventually(lambda: not copies(manager))
        check_idle(manager.engine)


def test_a_frozen_worker_costs_no_value_at_the_end(
    start: Callable[..., Worker], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """The manager asks one of the workers that have a value: when that one sends nothing, it asks the other one."""
    monkeypatch.setattr(vinecore.api.homecoming, "STILL_S", 3.0)
    monkeypatch.setattr(vinecore.api.homecoming, "TELL_S", 0.0)
    frozen = 0
    try:
        with Manager(port=0) as manager:
            manager.engine.machine.state.never_map = True
            manager.tune("keepalive-interval", 0)
            manager.tune("temp-replica-count", 2)
            fleet(manager.engine, start, 2)
            tasks = [PythonTask(bytes, 8 * SIZE) for _ in range(40)]
            for task in tasks:
                manager.submit(task)
            assert eventually(lambda: copies(manager) == [2] * 40), copies(manager)
            # The one that is asked.
            frozen = manager.engine.call_in_loop(lambda: min(manager.engine.machine.state.workers.items())[1].hello.pid)
            os.kill(frozen, signal.SIGSTOP)
    finally:
        if frozen:
            os.kill(frozen, signal.SIGCONT)
    assert [len(task.output) for task in tasks] == [8 * SIZE] * 40
    assert capfd.readouterr().err.count("vine: the end waits for large results that are still held, now for that of bytes") == 1


def test_a_lost_worker_costs_no_value(start: Callable[..., Worker], tmp_path: Path) -> None:
    log = Log(tmp_path / "log")
    with Manager(port=0) as manager:
        manager.tune("temp-replica-count", 2)
        workers = fleet(manager.engine, start, 3)
        with FuturesExecutor(manager=manager) as executor:
            futures = [executor.submit(leaf, log.path, f"k{i}", 0.0, SIZE, i) for i in range(12)]
            assert all(future.exception(LIMIT_S) is None for future in futures)
            assert eventually(lambda: copies(manager) == [2] * 12)
            for worker in workers[:2]:
                worker.process.kill()
                worker.process.wait()
                # What is left is copied again, as long as there are two workers.
                left = 2 if worker is workers[0] else 1
                assert eventually(lambda left=left: manager.stats.workers_connected == (2 if left == 2 else 1))  # type: ignore[misc]
                assert eventually(lambda left=left: copies(manager) == [left] * 12)  # type: ignore[misc]
            for number, future in enumerate(futures):
                assert np.all(future.result(LIMIT_S) == float(number))
        assert log.starts_by_key() == {f"k{i}": 1 for i in range(12)}
        assert manager.stats.tasks_recovery == 0
