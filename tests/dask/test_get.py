"""``DaskVine.get`` on graphs written by hand: every form, what runs and how often, errors, options, several threads.

Executions are counted through files, because vertices run in other processes. Losses are in ``test_get_faults.py``.
"""

from __future__ import annotations

import itertools
import operator
import os
import pickle
import random
import threading
import time
from collections.abc import Callable, Hashable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from dask import local
from dask._task_spec import Alias, DataNode, Dict, List, Task, TaskRef
from dask.highlevelgraph import HighLevelGraph

from daskvine import DaskVine, scheduler
from tests.dask.conftest import Runs
from vinecore.errors import MissingKeyError, RemoteError, RemoteTraceback, UnpicklableError, UsageError
from vinecore.manager.events import VerticesSubmitted

LIMIT_S = 30.0
Graph = dict[Hashable, Any]


def inc(x: Any) -> Any:
    return x + 1


def total(*args: Any, **kwargs: Any) -> Any:
    return repr((args, sorted(kwargs.items())))


class Nameless:
    """A callable that cannot be shown."""

    def __call__(self, x: int) -> int:
        return x + 1

    def __repr__(self) -> str:
        raise RuntimeError("nobody may see me")


class Unasked:
    """A callable that has no attribute and says so in its own way."""

    def __call__(self, x: int) -> int:
        return x + 1

    def __getattr__(self, name: str) -> Any:
        raise RuntimeError(f"do not ask me for {name}")


def mark(path: str, value: Any, *inputs: Any) -> Any:
    with open(path, "a") as file:
        file.write(f"{value}\n")
    return value


def eventually(condition: Callable[[], bool]) -> bool:
    """Look until it holds; False when it does not in time."""
    until = time.monotonic() + LIMIT_S
    while not condition():
        if time.monotonic() > until:
            return False
        time.sleep(0.005)
    return True


def stored(m: DaskVine) -> list[str]:
    """Names of the objects in the store of the embedded worker."""
    assert eventually(lambda: m.engine.machine.state.workers), "the worker did not come up"
    (worker,) = m.engine.machine.state.workers.values()
    return sorted(path.name for path in Path(worker.hello.store).iterdir())


# ---------------------------------------------------------------- forms

LEGACY: Graph = {
    "one": 1,
    "text": "hello",
    ("t", 0): (inc, "one"),
    ("t", 1): (operator.add, ("t", 0), (inc, (inc, "one"))),
    "list": [("t", 0), [("t", 1), "one"], "nothing"],
    "alias": ("t", 1),
    "keywords": (total, ("t", 0), ["text", {"a": "one"}], slice(0, "one"), None),
    "again": (total, ("t", 0), ("t", 0), ("t", 1)),
    4: (sum, [("t", 0), ("t", 1), "one"]),
    "constant": (dict,),
}


@pytest.mark.parametrize(
    "keys",
    [
        "one",
        ("t", 1),
        4,
        ["one"],
        ["list", "alias", ("t", 0)],
        [["keywords", ["again", 4]], "again", "again", []],
        ["constant", "text", "one", "one"],
    ],
    ids=repr,
)
def test_legacy_graphs_and_shapes_of_keys(m: DaskVine, keys: Any) -> None:
    assert m.get(LEGACY, keys) == local.get_sync(LEGACY, keys)


def test_no_keys_at_all(m: DaskVine) -> None:
    assert m.get(LEGACY, []) == ()
    assert m.get(LEGACY, [[], [[]]]) == ((), ((),))


def test_nodes_of_the_task_spec(m: DaskVine) -> None:
    graph: Graph = {
        "data": DataNode("data", {"a": 1}),
        "task": Task("task", total, TaskRef("data"), 2, key=List(TaskRef("data"), 3)),
        "alias": Alias("alias", "task"),
        "list": List(TaskRef("alias"), TaskRef("data"), Dict({"k": TaskRef("task")})),
        "nested": Task("nested", total, Task("inner", total, TaskRef("data")), [1, 2], Dict({"x": TaskRef("alias")})),
        "fused": Task.fuse(
            Task("first", operator.add, TaskRef("x"), 1), Task("fused", operator.mul, TaskRef("first"), TaskRef("x"))
        ),
        "x": 7,
    }
    keys = ["data", ["task", "alias"], "list", "nested", "fused"]
    assert m.get(graph, keys) == local.get_sync(graph, keys)
    assert m.get(graph, "fused") == 56


def test_high_level_graphs(m: DaskVine) -> None:
    first: Graph = {("a", number): (inc, number) for number in range(4)}
    second: Graph = {("b", number): (operator.add, ("a", number), ("a", 0)) for number in range(4)}
    graph = HighLevelGraph({"a": first, "b": second}, {"a": set(), "b": {"a"}})
    assert m.get(graph, [("b", 0), ("b", 3)]) == (2, 5)


def test_long_chains_and_wide_fans(calls: DaskVine) -> None:
    chain: Graph = {0: (inc, 0.5)}
    chain.update({number: (inc, number - 1) for number in range(1, 3000)})
    assert calls.get(chain, 2999) == 3000.5
    wide: Graph = {("w", number): (inc, number + 0.5) for number in range(5000)}
    wide["sum"] = (sum, list(wide))
    assert calls.get(wide, "sum") == sum(number + 1.5 for number in range(5000))


def kinds(m: DaskVine) -> set[str]:
    return {kind.name for kind in m.engine.kinds.values() if kind.name.startswith("dask:")}


def test_keys_that_are_numbered_by_hand_are_alike(m: DaskVine) -> None:
    """Each was a kind of its own, of which nothing was known before it ran: none left in a bundle."""
    before = kinds(m)
    dsk: Graph = {f"byhand{number}": (inc, number) for number in range(200)}
    dsk |= {f"byhand{number}": (operator.neg, f"byhand{number - 200}") for number in range(200, 300)}
    dsk |= {1000 + number: (operator.add, "byhand0", number + 0.5) for number in range(50)}
    dsk["the end"] = (total, [*(key for key in dsk if key != "byhand0")])
    m.get(dsk, "the end", reuse=False)
    found = kinds(m) - before
    assert found <= {"dask:byhand# inc", "dask:byhand# neg", "dask:# add", "dask:the end"}
    # What was known of these already need not be learned again.
    assert {"dask:byhand# inc", "dask:byhand# neg", "dask:# add"} <= kinds(m)


def test_numbered_keys_of_what_has_no_name(m: DaskVine) -> None:
    assert m.get({"x1": (Nameless(), 4), "y2": 5, ("z3", 0): (list, ["x1", "y2"])}, ("z3", 0)) == [5, 5]


def test_keys_that_all_differ_are_alike_in_the_end(m: DaskVine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each was a kind of its own, also in a graph of 10,000 file names."""
    monkeypatch.setattr(scheduler, "GROUPS_LIMIT_COUNT", 20)
    before = kinds(m)
    dsk: Graph = {f"part{number}.parquet": (inc, number) for number in range(60)}
    dsk |= {f"{number}_left": (operator.neg, f"part{number}.parquet") for number in range(60)}
    assert m.get(dsk, list(dsk), reuse=False) == (*range(1, 61), *range(-1, -61, -1))
    found = kinds(m) - before
    assert "dask:part19.parquet" in found and len(found) <= 22
    assert {"dask:# inc", "dask:# neg"} <= kinds(m)


@pytest.mark.parametrize("key", [(), ((),), b"\xff", (b"\xff", 1), "", b"", None])
def test_keys_that_cannot_be_split(m: DaskVine, key: Any) -> None:
    asked: list[str] = []

    def note(manager: DaskVine, vertex: Any) -> str:
        asked.append(vertex.category)
        return "1"

    assert m.get({key: (inc, 1)}, [key], reuse=False) == (2,)
    m.get({key: (inc, 1)}, [key], task_mode="tasks", env_vars={"NOTED": note})
    assert asked == ["Other"]


def test_a_callable_that_raises_when_it_is_asked_for_its_name(m: DaskVine) -> None:
    assert m.get({"x": (Unasked(), 4), "y1": (Unasked(), "x")}, "y1") == 6


def test_values_of_many_sizes_and_kinds(m: DaskVine) -> None:
    graph: Graph = {
        "small": (np.arange, 10),
        "large": (np.ones, (600, 600)),
        "sum": (np.add, "large", "large"),
        "strided": (operator.getitem, "sum", (slice(None, None, 2), slice(0, 5))),
        "text": (operator.mul, "ab", 200_000),
        "none": (dict.get, {}, "k"),
        "function": (operator.attrgetter, "real"),
    }
    small, summed, strided, text, none, function = m.get(graph, ["small", "sum", "strided", "text", "none", "function"])
    np.testing.assert_array_equal(small, np.arange(10))
    np.testing.assert_array_equal(summed, np.full((600, 600), 2.0))
    np.testing.assert_array_equal(strided, np.full((300, 5), 2.0))
    assert (text, none, function(3 + 1j)) == ("ab" * 200_000, None, 3)
    summed[:] = 5  # results belong to the caller


# ---------------------------------------------------------------- what runs, where and how often


def test_only_what_is_needed_runs_and_once(m: DaskVine, runs: Runs) -> None:
    path = str(runs.path)
    graph: Graph = {
        "k-shared": (mark, path, "shared"),
        "k-left": (mark, path, "left", "k-shared"),
        "k-right": (mark, path, "right", "k-shared"),
        "k-both": (mark, path, "both", "k-left", "k-right", "k-left"),
        "k-unneeded": (mark, path, "unneeded", "k-both"),
        "k-alone": (mark, path, "alone"),
    }
    assert m.get(graph, ["k-both", ["k-left", "k-both"]]) == ("both", ("left", "both"))
    assert sorted(runs.lines()) == ["both", "left", "right", "shared"]


def test_fused_chains_run_each_call_once(m: DaskVine, runs: Runs) -> None:
    graph: Graph = {("c", 0): (mark, str(runs.path), 0)}
    graph.update({("c", number): (mark, str(runs.path), number, ("c", number - 1)) for number in range(1, 200)})
    assert m.get(graph, [("c", 150), ("c", 199)]) == (150, 199)
    assert runs.lines() == [str(number) for number in range(200)]


def pid_of(*inputs: Any) -> set[int]:
    until = time.monotonic() + 0.002
    while time.monotonic() < until:
        pass
    return {os.getpid()}.union(*inputs)


def test_vertices_run_in_both_slots_and_never_here(calls: DaskVine) -> None:
    graph: Graph = {("p", number): (pid_of,) for number in range(200)}
    graph["all"] = (pid_of, *graph)
    pids = calls.get(graph, "all", reuse=False)
    assert len(pids) == 2 and os.getpid() not in pids


def test_a_large_graph_is_converted_no_faster_than_the_core_takes_it(calls: DaskVine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both share an interpreter: slots would wait for the end of the conversion, then get everything at once."""
    seen: list[tuple[str, int]] = []
    pack, handle = scheduler.pack_piece, calls.engine.machine.handle

    def packed(*arguments: Any) -> Any:
        piece = pack(*arguments)
        seen.append(("packed", len(piece.numbers)))
        return piece

    def watched(event: Any) -> Any:
        if isinstance(event, VerticesSubmitted):
            time.sleep(0.01)  # a core that is slow: who does not wait for it is ahead by then
            seen.append(("taken", len(event.entries)))
        return handle(event)

    monkeypatch.setattr(scheduler, "pack_piece", packed)
    monkeypatch.setattr(calls.engine.machine, "handle", watched)
    graph: Graph = {("w", number): (inc, number) for number in range(3000)}
    assert calls.get(graph, list(graph), reuse=False) == tuple(range(1, 3001))
    assert [count for what, count in seen if what == "packed"] == [count for what, count in seen if what == "taken"]
    assert len(seen) > 5 * scheduler.LEAD_PIECES
    leads = itertools.accumulate(1 if what == "packed" else -1 for what, _ in seen)
    assert max(leads) <= scheduler.LEAD_PIECES


def draw_slowly(source: str) -> float:
    pid_of()
    return {"python": random.random, "numpy": np.random.random}[source]()


@pytest.mark.parametrize(
    "task",
    [(random.random,), (np.random.random,), (random.uniform, 0.0, 1.0), (draw_slowly, "python"), (draw_slowly, "numpy")],
    ids=["random.random", "numpy.random.random", "random.uniform", "inside a function", "numpy inside a function"],
)
def test_equal_impure_tasks_stay_distinct(m: DaskVine, task: tuple[Any, ...]) -> None:
    """Also across slots, which are forks of one process that may have imported numpy."""
    values = m.get({name: task for name in "abc"}, ["a", "b", "c"])
    assert len(set(values)) == 3
    many: Graph = {("r", number): task for number in range(200)}
    assert len(set(m.get(many, list(many)))) == 200


def test_reuse_needs_the_same_keys(m: DaskVine) -> None:
    """Inner keys too: an impure task under another key is another value, even when the same key is asked for in the end."""
    again = [m.get({("r", n): (random.random,), "x": (total, ("r", n))}, "x") for n in range(3)]
    assert len(set(again)) == 3


# ---------------------------------------------------------------- errors


class DetectorError(Exception):
    """An exception with attributes and a signature of its own."""

    def __init__(self, run: int, text: str) -> None:
        super().__init__(run, text)
        self.run = run
        self.text = text


def broken(*inputs: Any) -> None:
    raise DetectorError(7, "no beam")


def test_exception_comes_back_as_itself(m: DaskVine) -> None:
    with pytest.raises(DetectorError) as caught:
        m.get({"a": 1, ("b", 3): (broken, "a"), "c": (inc, ("b", 3))}, "c")
    error = caught.value
    assert type(error) is DetectorError and (error.run, error.text) == (7, "no beam")
    assert isinstance(error.__cause__, RemoteTraceback)
    assert "in broken" in str(error.__cause__) and 'raise DetectorError(7, "no beam")' in str(error.__cause__)
    # The chain was fused: the note names the vertex, whose key is its last.
    assert any("key 'c'" in note for note in error.__notes__)
    assert m.get({"x": (inc, 1)}, "x") == 2


def test_note_names_the_key_that_failed(m: DaskVine) -> None:
    graph: Graph = {("ok", n): (inc, n) for n in range(50)}
    graph["bad key"] = (broken, ("ok", 1))
    graph["end"] = (total, *list(graph))
    with pytest.raises(DetectorError) as caught:
        m.get(graph, "end")
    assert any("'bad key'" in note for note in caught.value.__notes__)


def slow_mark(path: str, *inputs: Any) -> None:
    mark(path, os.getpid())
    time.sleep(0.02)


def test_error_cancels_the_rest_of_the_graph(m: DaskVine, runs: Runs) -> None:
    graph: Graph = {"bad": (broken,)}
    graph.update({("s", number): (slow_mark, str(runs.path), number) for number in range(1000)})
    graph["end"] = (total, *list(graph))
    with pytest.raises(DetectorError):
        m.get(graph, "end")
    count = len(runs)
    assert count < 500
    # What runs next runs at once, and nothing of the old graph runs beside it.
    m.get({("t", number): (slow_mark, os.devnull, number) for number in range(10)}, [("t", number) for number in range(10)])
    assert len(runs) <= count + 2


def flaky(path: str, failures: int) -> int:
    mark(path, "x")
    count = len(Path(path).read_text().split())
    if count <= failures:
        raise OSError(f"not yet: {count}")
    return count


def test_retries_option(m: DaskVine, runs: Runs) -> None:
    assert m.get({"x": (flaky, str(runs.path), 3)}, "x", retries=3, reuse=False) == 4
    runs.path.unlink()
    with pytest.raises(OSError, match="not yet: 3"):
        m.get({"x": (flaky, str(runs.path), 3)}, "x", retries=2, reuse=False)
    assert len(runs) == 3


def test_several_bad_vertices_give_one_error(m: DaskVine) -> None:
    graph: Graph = {("b", number): (broken, number) for number in range(100)}
    with pytest.raises(DetectorError):
        m.get(graph, list(graph))


class BadExceptionError(Exception):
    """Its arguments cannot be pickled."""

    def __init__(self, one: int, two: int) -> None:
        super().__init__(f"{one} and {two}", threading.Lock())


def raise_bad() -> None:
    raise BadExceptionError(1, 2)


def test_exception_that_cannot_be_unpickled(m: DaskVine) -> None:
    with pytest.raises(RemoteError, match="1 and 2") as caught:
        m.get({"x": (raise_bad,)}, "x")
    assert "BadExceptionError" in str(caught.value)
    assert any("'x'" in note for note in caught.value.__notes__)


def test_system_exit_in_a_vertex_is_no_exit_of_ours(m: DaskVine) -> None:
    with pytest.raises(SystemExit):
        m.get({"x": (os.sys.exit, 3)}, "x")  # type: ignore[attr-defined]
    assert m.get({"x": (inc, 1)}, "x") == 2


def test_what_cannot_be_pickled_is_named(m: DaskVine) -> None:
    lock = threading.Lock()
    with pytest.raises(UnpicklableError, match=r"'with a lock'.*(?s:.*)lock"):
        m.get({"fine": (inc, 1), "with a lock": (total, "fine", [lock])}, "with a lock")
    with pytest.raises(UnpicklableError, match="lock"):
        m.get({"x": (lambda: lock,)}, "x")
    with pytest.raises(UnpicklableError, match="lock") as caught:
        m.get({"makes a lock": (threading.Lock,), "y": (inc, 1)}, ["makes a lock", "y"])
    assert any("'makes a lock'" in note for note in caught.value.__notes__)
    assert m.get({"x": (inc, 1)}, "x") == 2


def test_unpicklable_function_is_named_with_its_key(m: DaskVine) -> None:
    lock = threading.Lock()

    def guarded() -> object:
        return lock

    with pytest.raises(UnpicklableError, match=r"'the key'"):
        m.get({"the key": (guarded,)}, "the key")


def test_missing_keys(m: DaskVine) -> None:
    graph: Graph = {("x-1", 0): (inc, 1), "total": (inc, ("x-1", 0))}
    with pytest.raises(MissingKeyError, match=r"'totl'.*close matches: 'total'"):
        m.get(graph, "totl")
    with pytest.raises(KeyError):
        m.get(graph, ["total", ["nothing"]])
    with pytest.raises(MissingKeyError, match="'gone'"):
        m.get({"x": Task("x", inc, TaskRef("gone"))}, "x")


def test_cycles(m: DaskVine) -> None:
    with pytest.raises(UsageError, match=r"cycle.*'a' -> 'b' -> 'a'|cycle.*'b' -> 'a' -> 'b'"):
        m.get({"a": (inc, "b"), "b": (inc, "a")}, "a")


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"retrys": 1}, r"no option 'retrys'; did you mean 'retries'\? It takes: env_vars, "),
        ({"zzz": 1}, r"no option 'zzz'\. It takes"),
        ({"num_workers": 3}, r"no option 'num_workers': .* DaskVine\(local_cores=N\) or vine_worker --cores N\. It takes: "),
        ({"zzz": 1}, "hoisting_modules, import_modules, .*lazy_transfers"),
        ({"retries": -1}, "retries must be a whole number >= 0, not -1"),
        ({"retries": 1.5}, "retries must be"),
        ({"task_mode": "task"}, "task_mode must be 'function-calls' or 'tasks', not 'task'"),
        ({"resources": 3}, "resources must be a dict"),
        ({"resources": {"coers": 3}}, "coers"),
        ({"priority": "x"}, "priority must be a number, larger runs earlier, not 'x'"),
        ({"priority": True}, "priority must be a number"),
        ({"priority": float("nan")}, "priority must be a number"),
        ({"reuse": "no"}, "reuse must be True or False, not 'no'"),
        ({"worker_transfers": "x"}, "worker_transfers must be True or False, not 'x'"),
        ({"worker_transfers": False, "lazy_transfers": 0}, "lazy_transfers must be True or False, not 0"),
        ({"progress_disable": 1}, "progress_disable must be True or False, not 1"),
        ({"progress_label": 4}, "progress_label must be a str, the words beside the progress bar, not 4"),
        ({"lib_modules": "json"}, r"lib_modules must be a list .*: write \['json'\], not 'json'"),
        ({"import_modules": 5}, r"import_modules must be a list .*, such as \['numpy'\], not 5"),
        ({"hoisting_modules": ["json", 5]}, "hoisting_modules must be a list .*, and 5 in it is neither"),
    ],
)
def test_bad_options(calls: DaskVine, options: dict[str, Any], text: str) -> None:
    with pytest.raises(UsageError, match=text):
        calls.get({"x": (inc, 1)}, "x", **options)


@pytest.mark.parametrize("option", ["lib_modules", "hoisting_modules", "import_modules"])
@pytest.mark.parametrize("name", ["a_module_that_is_nowhere", "a_module_that_is_nowhere.part", "json.part"])
def test_a_module_that_workers_do_not_have(m: DaskVine, option: str, name: str) -> None:
    said = f"{option} names the module '{name}', which a worker on .* does not have: install .* leave it out of {option}"
    with pytest.raises(ModuleNotFoundError, match=said):
        m.get({"x": (inc, 1)}, "x", **{option: ["json", name]})


def test_a_module_whose_own_imports_are_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is there itself: installing it is not what helps."""
    (tmp_path / "wants_more.py").write_text("import a_module_that_is_nowhere\n")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")]))
    with DaskVine(local_cores=1) as m, pytest.raises(ModuleNotFoundError) as caught:
        m.get({"x": (inc, 1)}, "x", lib_modules=["wants_more"])
    assert str(caught.value) == "No module named 'a_module_that_is_nowhere'"
    assert "raised by importing 'wants_more', which lib_modules names" in caught.value.__notes__


def test_good_options(m: DaskVine) -> None:
    options = {"priority": -2.5, "reuse": False, "lazy_transfers": True, "progress_disable": True, "progress_label": "mine"}
    assert m.get({"x": (inc, 1)}, "x", lib_modules=(operator, "json"), **options) == 2
    assert m.get({"x": (inc, 1)}, "x", lib_modules=None, priority=3) == 2


def test_what_is_no_graph(m: DaskVine) -> None:
    with pytest.raises(UsageError, match="not a Dask graph: a int"):
        m.get(5, "x")


def test_num_workers_and_other_options_of_dask(m: DaskVine) -> None:
    """Dask hands keywords of ``compute`` on to the scheduler; a scheduler must say which it does not know."""
    import dask

    with pytest.raises(UsageError, match="no option 'num_worker'"):
        dask.delayed(inc)(1).compute(scheduler=m.get, num_worker=2)
    assert dask.delayed(inc)(1).compute(scheduler=m.get, retries=1) == 2


# ---------------------------------------------------------------- threads, repetition, the manager's own promises


def test_several_threads_at_once(calls: DaskVine) -> None:
    def work(seed: int) -> bool:
        for turn in range(5):
            graph: Graph = {("l", n): (operator.add, n, seed * 1000 + turn) for n in range(60)}
            graph.update({("m", n): (operator.add, ("l", n), ("l", (n * 7) % 60)) for n in range(60)})
            graph["big"] = (np.full, 30_000, float(seed))
            graph["end"] = (total, *[("m", n) for n in range(60)])
            end, big = calls.get(graph, ["end", "big"])
            expected = [n + (n * 7) % 60 + 2 * (seed * 1000 + turn) for n in range(60)]
            if end != repr((tuple(expected), [])) or big.sum() != 30_000 * seed:
                return False
        return True

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(work, range(8), timeout=LIMIT_S))
    calls.engine.call_in_loop(calls.engine.machine.check)


def test_error_in_one_thread_leaves_the_others_alone(m: DaskVine) -> None:
    def good(seed: int) -> Any:
        graph: Graph = {("g", n): (inc, n + seed) for n in range(200)}
        return m.get(graph, list(graph), reuse=False)

    def bad(seed: int) -> Any:
        with pytest.raises(DetectorError):
            graph: Graph = {("s", n): (slow_mark, os.devnull) for n in range(50)}
            m.get({**graph, "b": (broken, seed)}, [*graph, "b"], reuse=False)

    with ThreadPoolExecutor(6) as pool:
        bads = [pool.submit(bad, seed) for seed in range(3)]
        goods = [pool.submit(good, seed) for seed in range(3)]
        for future in bads:
            future.result(LIMIT_S)
        assert [future.result(LIMIT_S) for future in goods] == [tuple(range(s + 1, s + 201)) for s in range(3)]


def test_repeated_small_graphs(m: DaskVine) -> None:
    for turn in range(300):
        assert m.get({"a": turn, "b": (inc, "a"), "c": (operator.add, "a", "b")}, "c") == 2 * turn + 1
    state = m.engine.machine.state
    assert eventually(lambda: not state.tasks and not state.parked)


def test_wake_up_that_comes_while_the_inbox_is_read_is_not_lost(m: DaskVine) -> None:
    """What one callable posts is taken in the same turn; the next post must still wake the loop."""
    engine = m.engine
    for _ in range(20):
        done = threading.Event()
        engine.post(lambda done=done: engine.post(done.set))
        assert done.wait(LIMIT_S)
        later = threading.Event()
        engine.post(later.set)
        assert later.wait(LIMIT_S)


def test_manager_is_the_scheduler_too(m: DaskVine) -> None:
    import dask

    assert dask.compute(dask.delayed(inc)(1), scheduler=m.get) == (2,)
    assert m({"x": (inc, 1)}, "x") == 2


def test_priority_goes_first(runs: Runs) -> None:
    """On one slot the order of starts is seen: higher priority first, then as numbered."""
    with DaskVine(local_cores=1) as m:
        gate = runs.path.with_suffix(".gate")
        held = threading.Thread(target=m.get, args=({"g": (wait_for, str(gate))}, "g"))
        held.start()
        assert eventually(gate.with_suffix(".started").exists)
        low = threading.Thread(target=m.get, args=({"x": (mark, str(runs.path), "low")}, "x"))
        low.start()
        assert eventually(lambda: m.engine.machine.state.counters.submitted >= 2)
        high = threading.Thread(target=m.get, args=({"x": (mark, str(runs.path), "high")}, "x"), kwargs={"priority": 5})
        high.start()
        assert eventually(lambda: m.engine.machine.state.counters.submitted >= 3)
        gate.touch()
        for thread in (held, low, high):
            thread.join(LIMIT_S)
        assert sorted(runs.lines()) == ["high", "low"]


def wait_for(path: str) -> None:
    Path(path).with_suffix(".started").touch()
    until = time.monotonic() + LIMIT_S
    while not Path(path).exists() and time.monotonic() < until:
        time.sleep(0.002)


def test_result_is_pickled_by_its_own_class(m: DaskVine) -> None:
    value = m.get({"x": (DetectorError, 1, "t")}, "x")
    assert type(value) is DetectorError and pickle.loads(pickle.dumps(value)).run == 1
