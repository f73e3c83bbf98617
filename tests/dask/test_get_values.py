"""Values of graphs: when they are remembered and used again, where they are, and what is left of them.

Executions are counted through files, because vertices run in other processes.
"""

from __future__ import annotations

import operator
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from daskvine import DaskVine
from tests.dask.conftest import Runs
from tests.dask.test_get import LIMIT_S, Graph, eventually, inc, mark, stored, total, wait_for
from tests.kit.calls import codes_told

# ---------------------------------------------------------------- reuse


def test_same_graph_again_executes_nothing(m: DaskVine, runs: Runs) -> None:
    def graph(literal: Any = 3) -> Graph:
        return {"a": (mark, str(runs.path), literal), "b": (operator.mul, "a", 2), "c": (inc, "b")}

    assert m.get(graph(), ["b", "c"]) == (6, 7)
    assert m.get(graph(), ["b", "c"]) == (6, 7)
    assert len(runs) == 1
    assert m.get(graph(4), ["b", "c"]) == (8, 9)
    assert len(runs) == 2
    assert m.get(graph(), ["b", "c"], reuse=False) == (6, 7)
    assert len(runs) == 3
    assert m.get(graph(), "c") == 7  # other keys: another question
    assert len(runs) == 4


def summed(path: str, array: Any) -> Any:
    mark(path, 1)
    return array.sum()


def test_literal_that_was_changed_in_place_executes_again(m: DaskVine, runs: Runs) -> None:
    array = np.ones(1000)
    graph: Graph = {"x": (summed, str(runs.path), array)}
    assert m.get(graph, "x") == m.get(graph, "x") == 1000
    assert len(runs) == 1
    array[0] = 5
    assert m.get(graph, "x") == 1004
    assert len(runs) == 2


def test_closure_that_was_changed_executes_again(m: DaskVine, runs: Runs) -> None:
    box = [1]
    path = str(runs.path)

    def read() -> int:
        mark(path, box[0])
        return box[0]

    assert m.get({"x": (read,)}, "x") == 1
    box[0] = 2
    assert m.get({"x": (read,)}, "x") == 2
    assert runs.lines() == ["1", "2"]


def test_changed_wiring_of_inputs_executes_again(m: DaskVine) -> None:
    def graph(left: str, right: str) -> Graph:
        return {"a": (os.urandom, 4), "b": (os.urandom, 5), "c": (total, left, right), "d": (total, "a", "b", "c")}

    assert m.get(graph("a", "b"), ["c", "d"]) != m.get(graph("b", "a"), ["c", "d"])


def test_none_is_never_reused(m: DaskVine, runs: Runs) -> None:
    graph: Graph = {"x": (mark, str(runs.path), None), "y": (inc, 1)}
    for _ in range(2):
        assert m.get(graph, ["x", "y"]) == (None, 2)
    assert len(runs) == 2


@pytest.mark.parametrize("shape", [(10,), (400, 400)], ids=["inline", "stored"])
def test_results_are_fresh_objects(m: DaskVine, shape: tuple[int, ...]) -> None:
    graph: Graph = {"x": (np.zeros, shape)}
    first = m.get(graph, "x")
    first += 1
    second = m.get(graph, "x")
    assert second.sum() == 0 and first.all()


def test_values_that_were_carried_here_are_fresh_objects() -> None:
    """From a worker on another machine: what the manager has of such a value answers the next get too."""
    graph: Graph = {"x": (np.full, 200_000, 4.0)}
    with DaskVine(local_cores=1) as own:
        own.engine.machine.state.never_map = True
        for _ in range(3):
            value = own.get(graph, "x")
            assert (value == 4).all()
            value[:] = 9


def test_failed_graphs_are_not_remembered(m: DaskVine, tmp_path: Path) -> None:
    flag = tmp_path / "flag"
    graph: Graph = {"x": (mark, str(flag / "inner"), 5)}
    with pytest.raises(NotADirectoryError if flag.exists() else FileNotFoundError):
        m.get(graph, "x")
    flag.mkdir()
    assert m.get(graph, "x") == 5


# ---------------------------------------------------------------- where values are


def large_graph() -> Graph:
    graph: Graph = {("x", number): (np.full, (512, 512), float(number)) for number in range(8)}
    graph.update({("y", number): (np.add, ("x", number), ("x", (number + 1) % 8)) for number in range(8)})
    graph["sum"] = (sum, [("y", number) for number in range(8)])
    graph["mean"] = (np.mean, "sum")
    return graph


@pytest.fixture
def arrivals(m: DaskVine, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the events that the manager's machine sees."""
    seen: list[str] = []
    machine = m.engine.machine
    handle = machine.handle

    def watched(event: Any) -> Any:
        seen.append(type(event).__name__)
        return handle(event)

    monkeypatch.setattr(machine, "handle", watched, raising=True)
    return seen


def test_large_values_between_vertices_never_come_here(m: DaskVine, arrivals: list[str]) -> None:
    assert m.get(large_graph(), "mean", reuse=False) == 56.0
    assert "WorkerSaid" in arrivals and "UploadArrived" not in arrivals


def test_large_requested_value_travels_once(m: DaskVine, arrivals: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(m.engine.machine.state, "never_map", True)
    first, second, mean = m.get(large_graph(), ["sum", "sum", "mean"], reuse=False)
    assert first.sum() == second.sum() == 56.0 * 512 * 512 and mean == 56.0
    assert arrivals.count("UploadArrived") == 1


@pytest.mark.parametrize("option", ["worker_transfers", "lazy_transfers"])
def test_values_come_home_when_asked(m: DaskVine, arrivals: list[str], tmp_path: Path, option: str) -> None:
    """Both readers keep the value needed until it has been seen here; three vertices on two slots never share a bundle."""
    seen = tmp_path / "seen"
    graph: Graph = {"x": (np.ones, (512, 512)), **{name: (sum_when, str(seen), "x") for name in "ab"}}
    with ThreadPoolExecutor(1) as pool:
        sums = pool.submit(m.get, graph, ["a", "b"], reuse=False, **{option: False})
        came_home = eventually(lambda: "UploadArrived" in arrivals)
        seen.touch()
        assert sums.result(LIMIT_S) == (512 * 512, 512 * 512)
    assert came_home
    assert eventually(lambda: not m.engine.loop.objects), "the manager keeps no value of a graph that is over"


def sum_when(path: str, array: Any) -> int:
    wait_for(path)
    return int(array.sum())


def test_nothing_is_left_in_the_store(runs: Runs) -> None:
    with DaskVine(local_cores=2) as m:
        graph = large_graph()
        assert m.get(graph, "mean", reuse=False) == 56.0
        assert m.get(graph, ["sum", ("y", 3)], reuse=False)[1][0, 0] == 7.0
        assert eventually(lambda: stored(m) == [])
        graph["bad"] = (mark, "/nowhere/at/all", 1, "sum")
        with pytest.raises(FileNotFoundError):
            m.get(graph, ["bad", "sum"])
        assert eventually(lambda: stored(m) == [])
        m.get(large_graph(), ["sum", "mean"])
        assert eventually(lambda: len(stored(m)) == 1), "what reuse keeps: the one large requested value"
        m.get(large_graph(), ["sum", "mean"])
        assert len(stored(m)) == 1


def test_large_literals_leave_nothing_behind(m: DaskVine) -> None:
    """Neither here, nor in the store, nor in the memory of slots: code of a graph that is over is forgotten."""
    # What earlier tests let go of is unlinked a little later.
    assert eventually(lambda: stored(m) == m.engine.call_in_loop(lambda: sorted(m.engine.machine.state.held)))
    before = stored(m)
    for number in range(6):
        array = np.full(500_000, float(number))
        graph: Graph = {("s", n): (np.sum, array + n) for n in range(3)}
        assert m.get(graph, list(graph)) == tuple(500_000.0 * (number + n) for n in range(3))
    assert eventually(lambda: stored(m) == before and not m.engine.loop.objects)
    known = codes_told(m.engine)
    for number in range(200):
        m.get({"x": (operator.add, number, 1)}, "x")
    assert 0 < len(known) < 150


def test_kept_result_that_vanished_is_computed_again(runs: Runs) -> None:
    with DaskVine(local_cores=1) as m:
        graph: Graph = {"x": (mark_and_fill, str(runs.path), 400_000)}
        assert m.get(graph, "x").sum() == m.get(graph, "x").sum() == 400_000
        assert len(runs) == 1
        (name,) = stored(m)
        (worker,) = m.engine.machine.state.workers.values()
        (Path(worker.hello.store) / name).unlink()
        assert m.get(graph, "x").sum() == m.get(graph, "x").sum() == 400_000
        assert len(runs) == 2


def mark_and_fill(path: str, size: int) -> Any:
    mark(path, size)
    return np.ones(size)


def test_what_is_remembered_is_bounded(m: DaskVine) -> None:
    from daskvine.reuse import KEEP_COUNT

    for number in range(KEEP_COUNT + 20):
        m.get({("k", number): (np.full, 10_000, number)}, ("k", number))
    assert eventually(lambda: len(stored(m)) <= KEEP_COUNT)
    m.engine.call_in_loop(m.engine.machine.check)
