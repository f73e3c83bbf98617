"""kill -9 of a slot, or of the parent of all slots, under a graph and under futures: only what was there is done again."""

from __future__ import annotations

import os
import signal
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from daskvine import DaskVine
from tests.chaos.conftest import Moment
from tests.kit.calls import LIMIT_S
from tests.kit.counted import Log, leaf, plus, tree
from tests.kit.fleet import check_idle, count_deliveries, executor
from tests.kit.proc import command_of, parent_of

CPU_S = 0.002
SIZE = 12_500
# Of calls that leave one by one: what runs, and what is on its way from a slot.
MOST_AGAIN = 0.05
# Of vertices: what is on its way from each slot, beside the bundle that it has begun and whose values only it has.
ON_ITS_WAY_S = 0.03


@pytest.fixture
def strike(moment: Moment) -> Iterator[Callable[[Log, int, str], threading.Thread]]:
    """A thread that waits for its moment among so many executions, then kills the process where the latest one began."""
    threads: list[threading.Thread] = []

    def begin(log: Log, count: int, whom: str) -> threading.Thread:
        at = moment.between(count // 20, count * 19 // 20)

        def run() -> None:
            log.wait_for(at)
            pid = log.records()[-1][1]
            if whom == "parent":
                pid = parent_of(pid)
                assert "library_host" in command_of(pid)
            os.kill(pid, signal.SIGKILL)
            killed.append(pid)

        killed: list[int] = []
        thread = threading.Thread(target=run)
        thread.killed = killed  # type: ignore[attr-defined]
        threads.append(thread)
        thread.start()
        return thread

    yield begin
    for thread in threads:
        thread.join(LIMIT_S)
        assert thread.killed, "the moment never came"  # type: ignore[attr-defined]


@pytest.mark.parametrize("whom", ["slot", "parent"])
def test_graph(
    strike: Callable[[Log, int, str], threading.Thread],
    tmp_path: Path,
    moment: Moment,
    figure: Callable[[str, float], None],
    whom: str,
) -> None:
    log = Log(tmp_path / "log")
    graph, end, element = tree(log, 200, SIZE, CPU_S)
    wanted = [end, *moment.draw("wanted").sample([key for key in graph if key.startswith("sum-")], 4)]
    with DaskVine(local_cores=2) as m:
        told = count_deliveries(m.engine)
        strike(log, len(graph), whom)
        result = m.get(graph, wanted)[0]
        check_idle(m.engine)
        assert m.stats.workers_joined == 1, "the worker lived"
        bundle_s = m.engine.tunables.bundle_large_ms / 1000
    assert np.all(result == element)
    assert len(log.starts_by_key()) == len(graph)
    assert len(told) == len(set(wanted)) and set(told.values()) == {1}
    figure(f"killed {whom} under a graph: recomputed share", log.recomputed_share())
    slots = 2 if whom == "parent" else 1
    assert log.recomputed_cpu_s() <= slots * (bundle_s + ON_ITS_WAY_S)


@pytest.mark.parametrize("whom", ["slot", "parent"])
def test_futures(
    strike: Callable[[Log, int, str], threading.Thread],
    tmp_path: Path,
    figure: Callable[[str, float], None],
    whom: str,
) -> None:
    log = Log(tmp_path / "log")
    ends: Counter[int] = Counter()
    with executor(max_workers=2) as ex:
        strike(log, 600, whom)
        leaves: list[Future[Any]] = [ex.submit(leaf, log.path, f"l{i}", CPU_S, SIZE, i) for i in range(300)]
        sums = [ex.submit(plus, log.path, f"s{i}", CPU_S, leaves[i], leaves[-i]) for i in range(300)]
        for number, future in enumerate([*leaves, *sums]):
            future.add_done_callback(lambda _, number=number: ends.update([number]))  # type: ignore[misc]
        assert [float(future.result(LIMIT_S)[-1]) for future in sums] == [0.0] + [300.0] * 299
        check_idle(ex.engine)
    assert set(log.starts_by_key()) == {f"{kind}{i}" for kind in "ls" for i in range(300)}
    assert len(ends) == 600 and set(ends.values()) == {1}
    figure(f"killed {whom} under futures: recomputed share", log.recomputed_share())
    assert log.recomputed_share() <= MOST_AGAIN
