"""Bundles of vertices that turn out long: what waits behind the long one runs elsewhere, in the same worker and in another."""

from __future__ import annotations

import operator
import os
import time
from collections.abc import Callable, Hashable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from daskvine import DaskVine
from tests.dask.conftest import Runs
from tests.kit.fleet import fleet
from tests.kit.processes import Worker
from vinecore.wire import messages

LIMIT_S = 30.0
Graph = dict[Hashable, Any]


def mark(path: str, value: Any, *inputs: Any) -> Any:
    with open(path, "a") as file:
        file.write(f"{value}\n")
    return value


@pytest.fixture(params=[1, 2], ids=["one worker", "two workers"])
def cluster(request: pytest.FixtureRequest, start: Callable[..., Worker]) -> Iterator[DaskVine]:
    """Two slots, of one worker or of two."""
    if request.param == 1:
        with DaskVine(local_cores=2) as manager:
            yield manager
        return
    with DaskVine(port=0) as manager:
        fleet(manager.engine, start)
        yield manager


def wait_for_others(path: str, value: Any, count: int, *inputs: Any) -> Any:
    """Return when so many other vertices have left their mark."""
    until = time.monotonic() + LIMIT_S
    while not Path(path).exists() or Path(path).read_text().count("\n") < count:
        if time.monotonic() > until:
            raise TimeoutError("the other vertices never ran")
        time.sleep(0.002)
    return value


@pytest.mark.parametrize("place", [3, 60, 150, 299])
def test_one_long_vertex_holds_up_nobody_else(cluster: DaskVine, runs: Runs, place: int) -> None:
    """It waits for all others, those that went to the same process in the same bundle included: also where only another worker
    has time for them.
    """
    warm: Graph = {("leaf", number): (mark, os.devnull, number) for number in range(300)}
    cluster.get(warm, list(warm))
    graph: Graph = {("leaf", number): (mark, str(runs.path), number) for number in range(300)}
    graph["leaf", place] = (wait_for_others, str(runs.path), place, 299)
    assert cluster.get(graph, list(graph)) == tuple(range(300))
    assert sorted(map(int, runs.lines())) == [number for number in range(300) if number != place]


def tell(path: str, tag: str, value: Any) -> Any:
    mark(path, tag)
    return value


@pytest.mark.parametrize("size", [3, 20_000], ids=["inline", "stored"])
def test_a_bundle_that_is_cut_runs_nothing_twice(
    cluster: DaskVine, runs: Runs, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    """A vertex that waits for all that can run without it; what reads values in its process gets them when it has ended."""
    machine = cluster.engine.machine
    handle, later = machine.handle, []

    def watched(event: Any) -> Any:
        if isinstance(getattr(event, "message", None), messages.Done):
            later.extend(result for result in event.message.results if result.status == messages.WRITTEN_LATER)
        return handle(event)

    def graph(path: str) -> Graph:
        out: Graph = {}
        for n in range(40):
            out["made", n] = (tell, path, f"made{n}", np.full(size, float(n)))
            out["other", n] = (tell, path, f"other{n}", ("made", n))
            out["sum", n] = (tell, path, f"sum{n}", (operator.add, ("made", n), ("other", n)))
        for n in range(39):
            out["chain", n] = (tell, path, f"chain{n}", (operator.add, ("sum", n), ("sum", n + 1)))
        return out

    wanted = [("chain", n) for n in range(39)]
    for _ in range(2):  # durations and sizes are known then
        cluster.get(graph(os.devnull), wanted, reuse=False)
    monkeypatch.setattr(machine, "handle", watched)
    uneven = graph(str(runs.path))
    tags = [task[2] for key, task in uneven.items() if key != ("other", 2)]
    uneven["other", 2] = (wait_for_others, str(runs.path), 0.0, 155, ("made", 2))
    values = cluster.get(uneven, wanted, reuse=False)
    for n, value in enumerate(values):
        right = 4.0 * n + 2.0 - 2.0 * (n == 2) - 2.0 * (n == 1)
        np.testing.assert_array_equal(value, np.full(size, right))
    assert sorted(runs.lines()) == sorted(tags), "each ran once"
    assert later and cluster.stats.tasks_recovery == 0
    cluster.engine.call_in_loop(cluster.engine.machine.check)
