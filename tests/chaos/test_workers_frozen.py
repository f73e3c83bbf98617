"""SIGSTOP of a worker beyond the keepalive, then SIGCONT: its work runs elsewhere, its late answers are dropped, it comes back.

Either the worker alone is frozen while its slots work on, whose answers are then late, or the whole machine is (its tree).
"""

from __future__ import annotations

import contextlib
import os
import signal
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from daskvine import DaskVine
from tests.chaos.conftest import Moment
from tests.kit.calls import LIMIT_S, eventually
from tests.kit.counted import Log, leaf, plus
from tests.kit.fleet import check_idle, count_deliveries, executor, fleet
from tests.kit.proc import descendants_of
from vinecore import Manager

CPU_S = 0.004
CALLS = 300
# Small, so that a test need not wait for the defaults.
INTERVAL_S, TIMEOUT_S = 0.3, 1.0


def freeze(pid: int, whole: bool) -> list[int]:
    """Stop a worker, or the worker with all that it started; returns who was stopped."""
    pids = [pid, *(descendants_of(pid) if whole else [])]
    for one in pids:
        os.kill(one, signal.SIGSTOP)
    return pids


def thaw(pids: list[int]) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)


def hurry(manager: Manager) -> None:
    manager.set_keepalive_interval(INTERVAL_S)
    manager.set_keepalive_timeout(TIMEOUT_S)


def stamped(path: str, key: str, number: int) -> tuple[int, int, int]:
    """Which execution a value comes from can be seen."""
    value = leaf(path, key, CPU_S, 10, number)
    return int(value[0]), os.getpid(), Log(path).count("end")


@pytest.mark.parametrize("whole", [False, True], ids=["worker", "tree"])
def test_frozen_worker(start: Callable[..., Any], tmp_path: Path, moment: Moment, whole: bool) -> None:
    log = Log(tmp_path / "log")
    ends: Counter[int] = Counter()
    with DaskVine(port=0) as m, executor(m) as ex:
        workers = fleet(m.engine, start)
        hurry(m)
        told = count_deliveries(m.engine)
        victim = workers[moment.draw("who").randrange(2)]
        futures = [ex.submit(stamped, log.path, f"c{number}", number) for number in range(CALLS)]
        for number, future in enumerate(futures):
            future.add_done_callback(lambda _, number=number: ends.update([number]))  # type: ignore[misc]
        log.wait_for(moment.between(10, CALLS * 2 // 3))
        stopped = freeze(victim.process.pid, whole)
        try:
            first = [future.result(LIMIT_S) for future in futures]
            assert [value[0] for value in first] == list(range(CALLS))
            assert eventually(lambda: m.stats.workers_lost + m.stats.workers_removed >= 1)
        finally:
            thaw(stopped)
        # It finds its link closed, and joins again as a new worker; nothing that it did meanwhile is told.
        assert eventually(lambda: m.stats.workers_connected == 2 and m.stats.workers_joined == 3)
        after = [ex.submit(stamped, log.path, f"d{number}", number) for number in range(CALLS)]
        assert [future.result(LIMIT_S)[0] for future in after] == list(range(CALLS))
        assert [future.result(0) for future in futures] == first
        check_idle(m.engine)
    assert len(ends) == CALLS and set(ends.values()) == {1}
    assert set(told.values()) == {1}
    starts = log.starts_by_key()
    # What the frozen one had been given is run again, nothing else.
    assert len(starts) == 2 * CALLS and max(starts.values()) <= 2
    assert {worker for key, _, worker, _ in log.records() if key.startswith("d")} == {"0", "1"}, "it works again"


def test_worker_that_is_frozen_for_less_than_the_keepalive_is_kept(
    start: Callable[..., Any], tmp_path: Path, moment: Moment
) -> None:
    log = Log(tmp_path / "log")
    with DaskVine(port=0) as m, executor(m) as ex:
        workers = fleet(m.engine, start)
        m.set_keepalive_interval(INTERVAL_S)
        m.set_keepalive_timeout(60.0)
        victim = workers[moment.draw("who").randrange(2)]
        futures = [ex.submit(stamped, log.path, f"c{number}", number) for number in range(CALLS)]
        log.wait_for(moment.between(10, CALLS // 2))
        stopped = freeze(victim.process.pid, True)
        try:
            # The other one goes on, until it has no more that is not stuck.
            before = log.count()
            assert eventually(lambda: log.count() > before + 5)
        finally:
            thaw(stopped)
        assert [future.result(LIMIT_S)[0] for future in futures] == list(range(CALLS))
        assert m.stats.workers_joined == 2 and m.stats.workers_removed == 0
    assert set(log.starts_by_key().values()) == {1}, "nothing ran twice"


def test_frozen_worker_that_holds_values(start: Callable[..., Any], tmp_path: Path, moment: Moment) -> None:
    """Temps of 100 kB are lost with it, and made again; what it still has from before is not used."""
    log = Log(tmp_path / "log")
    with DaskVine(port=0) as m, executor(m) as ex:
        workers = fleet(m.engine, start)
        hurry(m)
        victim = workers[moment.draw("who").randrange(2)]
        made = [ex.submit(leaf, log.path, f"l{number}", CPU_S, 12_500, number) for number in range(100)]
        sums = [ex.submit(plus, log.path, f"s{number}", CPU_S, made[number], made[-number]) for number in range(100)]
        log.wait_for(moment.between(20, 180))
        stopped = freeze(victim.process.pid, moment.draw("whole").random() < 0.5)
        try:
            assert [float(future.result(LIMIT_S)[-1]) for future in sums] == [0.0] + [100.0] * 99
        finally:
            thaw(stopped)
        assert eventually(lambda: m.stats.workers_connected == 2)
        again = [ex.submit(plus, log.path, f"t{number}", CPU_S, made[number], made[-number]) for number in range(100)]
        assert [float(future.result(LIMIT_S)[-1]) for future in again] == [0.0] + [100.0] * 99
        check_idle(m.engine)


def test_frozen_embedded_worker(tmp_path: Path, moment: Moment) -> None:
    """Another one takes its place, also when it stays frozen for ever."""
    log = Log(tmp_path / "log")
    with DaskVine(local_cores=2) as m, executor(m) as ex:
        hurry(m)
        futures = [ex.submit(stamped, log.path, f"c{number}", number) for number in range(CALLS)]
        log.wait_for(moment.between(10, CALLS * 2 // 3))
        assert m.engine.embedded is not None
        stopped = freeze(m.engine.embedded.process.pid, True)
        if moment.seed % 2 == 0:
            assert eventually(lambda: m.stats.workers_removed == 1)
            thaw(stopped)
        assert [future.result(LIMIT_S)[0] for future in futures] == list(range(CALLS))
        assert m.stats.workers_joined == 2
        check_idle(m.engine)
    assert max(log.starts_by_key().values()) <= 2
