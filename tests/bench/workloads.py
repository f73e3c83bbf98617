"""The workloads: each runs once in a process of its own, checks every result, and returns its figures by name.

A workload is ``function(system, size) -> {metric: figure}``. ``cold_*`` counts from the creation of the system to the end of the
first batch or graph; the plain figure is warm: one call, or one graph of the same kind under other keys, was done before.
"""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Hashable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

from tests.bench import calls, measure
from tests.bench.systems import (
    DISTRIBUTED,
    OURS,
    OURS_TWO_WORKERS,
    PPE,
    SLOTS,
    SUBPROCESS,
    Graphs,
    open_graphs,
    open_pool,
    two_workers,
)

Figures = dict[str, float]
Graph = dict[Hashable, Any]

CHAIN_ARRAY_BYTES = 20_000_000
SHARED_VALUE_BYTES = 100_000_000
PHYSICS_EVENTS = 200_000
BLOCKERS_START_LIMIT_S = 20.0
TASK_WAIT_S = 30


def expect(found: Any, expected: Any, what: str) -> None:
    """A wrong answer is an error, however fast it came."""
    if found != expected:
        raise AssertionError(f"{what}: expected {str(expected)[:200]}, found {str(found)[:200]}")


# Calls


def noop_calls(system: str, size: int) -> Figures:
    """``size`` independent calls, a future each, every result checked."""
    values = list(range(size))
    expected = [value + 1 for value in values]
    with open_pool(system) as pool:
        expect(pool.run_all(calls.inc, [1]), [2], "first call")
        first_s = time.perf_counter() - pool.started_s
        begin_s = time.perf_counter()
        results = pool.run_all(calls.inc, values)
        warm_s = time.perf_counter() - begin_s
        expect(results, expected, "no-op calls")
    return {"calls_per_s": size / warm_s, "cold_calls_per_s": size / (first_s + warm_s)}


def latency(system: str, size: int) -> Figures:
    """One call at a time: submit, wait, submit the next."""
    durations_us = []
    with open_pool(system) as pool:
        expect(pool.submit(calls.inc, 1).result(), 2, "first call")
        first_s = time.perf_counter() - pool.started_s
        for value in range(size):
            begin_s = time.perf_counter()
            result = pool.submit(calls.inc, value).result()
            durations_us.append((time.perf_counter() - begin_s) * 1e6)
            expect(result, value + 1, "call")
    durations_us.sort()
    return {
        "p50_us": median(durations_us),
        "p99_us": durations_us[min(size - 1, int(size * 0.99))],
        "cold_us": first_s * 1e6,
    }


STARTUP_PROGRAMS = {
    OURS: "from daskvine import FuturesExecutor\nwith FuturesExecutor(max_workers=2) as pool:",
    PPE: "from concurrent.futures import ProcessPoolExecutor\nwith ProcessPoolExecutor(2) as pool:",
    DISTRIBUTED: (
        "from distributed import Client, LocalCluster\n"
        "with LocalCluster(n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None, silence_logs=50,"
        " host='127.0.0.1') as cluster, Client(cluster) as pool:"
    ),
}


def startup(system: str, size: int) -> Figures:
    """From the start of an interpreter to the first result printed, imports included."""
    last_line = f"    print(pool.submit(inc, {size}).result(), flush=True)"
    program = f"def inc(value):\n    return value + 1\n{STARTUP_PROGRAMS[system]}\n{last_line}"
    begin_s = time.perf_counter()
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        first_s = time.perf_counter() - begin_s
        process.stdout.read()
    end_s = time.perf_counter() - begin_s
    expect((line.strip(), process.returncode), (str(size + 1), 0), "first result and exit code")
    return {"startup_s": first_s, "startup_to_exit_s": end_s}


def memory(system: str, size: int) -> Figures:
    """Memory of the submitting process for each waiting call of one int, while both slots are taken."""
    values = list(range(size))
    futures: list[Any] = [None] * size
    with TemporaryDirectory() as folder, open_pool(system) as pool:
        release = Path(folder, "release")
        started = [Path(folder, f"started-{slot}") for slot in range(SLOTS)]
        expect(pool.submit(calls.inc, 1).result(), 2, "first call")
        blockers = [pool.submit(calls.block_until, str(release), str(path)) for path in started]
        deadline_s = time.monotonic() + BLOCKERS_START_LIMIT_S
        while not all(path.exists() for path in started):
            if time.monotonic() > deadline_s:
                raise TimeoutError(f"the {SLOTS} blocking calls did not start in {BLOCKERS_START_LIMIT_S} s")
            time.sleep(0.01)
        gc.collect()
        before_bytes = measure.settled_rss_bytes()
        for index in range(size):
            futures[index] = pool.submit(calls.inc, values[index])
        after_bytes = measure.settled_rss_bytes()
        release.touch()
        expect([blocker.result(30) for blocker in blockers], [True] * SLOTS, "blocking calls")
        expect(futures[0].result(30), 1, "first waiting call")
        pool.shutdown()
    return {"bytes_per_call": (after_bytes - before_bytes) / size}


def imports(system: str, size: int) -> Figures:
    """Calls that need pandas and scipy.stats: the pool has done one no-op call, nobody has imported them yet."""
    if "pandas" in sys.modules or "scipy" in sys.modules:
        raise RuntimeError("pandas or scipy was imported in the submitting process: the imports would not be cold")
    before_cpu_s = measure.tree_cpu_s()
    with open_pool(system) as pool:
        expect(pool.submit(calls.inc, 1).result(), 2, "first call")
        ready_cpu_s = measure.tree_cpu_s()
        begin_s = time.perf_counter()
        results = pool.run_all(calls.needs_pandas_and_scipy, list(range(size)))
        end_s = time.perf_counter()
        done_cpu_s = measure.tree_cpu_s()
        expect(results, [0.5] * size, "calls that import")
    return {
        "wall_s": end_s - begin_s,
        "cpu_s": done_cpu_s - ready_cpu_s,
        "cold_wall_s": end_s - pool.started_s,
        "cold_cpu_s": done_cpu_s - before_cpu_s,
    }


# Graphs. Every graph gets keys of its own, so that no system can answer from an earlier one.


def tree_keys(name: str, leaves: int) -> tuple[list[Hashable], list[tuple[Hashable, Hashable, Hashable]]]:
    """The keys of a pairwise tree: its leaves, and (key, left, right) for each inner vertex, the root last.

    Each level has a name of its own, as in the graphs of Dask's collections: distributed schedules by these names.
    """
    bottom: list[Hashable] = [(f"{name}-0", index) for index in range(leaves)]
    inner: list[tuple[Hashable, Hashable, Hashable]] = []
    layer, level = bottom, 0
    while len(layer) > 1:
        level += 1
        above: list[Hashable] = []
        for index in range(0, len(layer) - 1, 2):
            key = (f"{name}-{level}", index // 2)
            inner.append((key, layer[index], layer[index + 1]))
            above.append(key)
        if len(layer) % 2:
            above.append(layer[-1])
        layer = above
    return bottom, inner


def fresh_name(kind: str) -> str:
    return f"{kind}-{uuid.uuid4().hex}"


def tree_graph(size: int, slow: bool) -> tuple[Graph, Hashable, int]:
    """About ``size`` additions in a pairwise tree; with ``slow`` one leaf in the middle sleeps 50 ms."""
    leaves, inner = tree_keys(fresh_name("tree"), size // 2)
    graph: Graph = {key: (calls.add, index, 1) for index, key in enumerate(leaves)}
    if slow:
        middle = len(leaves) // 2
        graph[leaves[middle]] = (calls.slow_add, middle, 1)
    for key, left, right in inner:
        graph[key] = (calls.add, left, right)
    return graph, inner[-1][0], sum(range(len(leaves) + 1))


def wide_graph(size: int, slow: bool) -> tuple[Graph, Hashable, int]:
    """``size`` independent vertices and one sum of them all; with ``slow`` one in the middle sleeps 50 ms."""
    name = fresh_name("wide")
    graph: Graph = {(f"leaf-{name}", index): (calls.inc, index) for index in range(size)}
    keys = list(graph)
    if slow:
        middle = size // 2
        graph[keys[middle]] = (calls.slow_add, middle, 1)
    graph[name] = (calls.sum_all, keys)
    return graph, name, sum(range(size + 1))


def tree_count_graph(size: int, slow: bool) -> tuple[Graph, Hashable, int]:
    """``tree_graph`` whose vertices count where they ran."""
    leaves, inner = tree_keys(fresh_name("tree-count"), size // 2)
    graph: Graph = dict.fromkeys(leaves, (calls.count_here,))
    if slow:
        graph[leaves[len(leaves) // 2]] = (calls.slow_count_here,)
    for key, left, right in inner:
        graph[key] = (calls.count_here, left, right)
    return graph, inner[-1][0], len(graph)


def wide_count_graph(size: int, slow: bool) -> tuple[Graph, Hashable, int]:
    """``wide_graph`` whose vertices count where they ran."""
    name = fresh_name("wide-count")
    graph: Graph = {(f"leaf-{name}", index): (calls.count_here,) for index in range(size)}
    keys = list(graph)
    if slow:
        graph[keys[size // 2]] = (calls.slow_count_here,)
    graph[name] = (calls.count_all, keys)
    return graph, name, size + 1


GraphMaker = Callable[[int, bool], tuple[Graph, Hashable, int]]


def trivial_graph(make: GraphMaker, system: str, size: int) -> Figures:
    """One graph cold, one warm, one warm with a 50 ms vertex in it.

    The last is not done on distributed: it takes seconds there, and its plain rate is the stricter one to compare with.
    """

    def timed(slow: bool) -> tuple[float, int]:
        graph, key, expected = make(size, slow)
        begin_s = time.perf_counter()
        result = graphs.get(graph, key)
        taken_s = time.perf_counter() - begin_s
        expect(result, expected, "graph")
        return taken_s, len(graph)

    with open_graphs(system) as graphs:
        ready_s = time.perf_counter() - graphs.started_s
        cold_s, vertices = timed(slow=False)
        warm_s, vertices = timed(slow=False)
        figures = {"tasks_per_s": vertices / warm_s, "cold_tasks_per_s": vertices / (ready_s + cold_s)}
        if system != DISTRIBUTED:
            mixed_s, vertices = timed(slow=True)
            figures["mixed_tasks_per_s"] = vertices / mixed_s
    return figures


def vertex_shares(make: GraphMaker, system: str, size: int) -> Figures:
    """Untimed: where the vertices of a warm graph ran, without and with the 50 ms vertex; the worse of the two."""
    second_shares, in_manager = [], 0
    with open_graphs(system) as graphs:
        for slow in (False, False, True):
            graph, key, vertices = make(size, slow)
            counts: dict[int, int] = graphs.get(graph, key)
            expect(sum(counts.values()), vertices, "vertices that ran")
            in_manager += counts.get(os.getpid(), 0)
            ordered = sorted(counts.values(), reverse=True)
            second_shares.append(100.0 * ordered[1] / vertices if len(ordered) > 1 else 0.0)
    return {"second_slot_percent": min(second_shares[1:]), "vertices_in_manager": float(in_manager)}


def chain_graph(arrays: int) -> tuple[Graph, Hashable, float]:
    """Arrays made, transformed, tree-summed, and the sum of the last one."""
    elements = CHAIN_ARRAY_BYTES // 8
    name = fresh_name("chain")
    leaves, inner = tree_keys(name, arrays)
    graph: Graph = {}
    for index, key in enumerate(leaves):
        made = (f"made-{name}", index)
        graph[made] = (calls.make_array, float(index), elements)
        graph[key] = (calls.transform_array, made)
    for key, left, right in inner:
        graph[key] = (calls.add_arrays, left, right)
    graph[name] = (calls.sum_array, inner[-1][0])
    return graph, name, float(sum(2 * index + 1 for index in range(arrays)) * elements)


def shared_graph(readers: int) -> tuple[Graph, Hashable, float]:
    """One large value that every other vertex reads the whole of."""
    elements = SHARED_VALUE_BYTES // 8
    name = fresh_name("shared")
    value = f"value-{name}"
    graph: Graph = {value: (calls.make_array, 1.0, elements)}
    keys: list[Hashable] = [(name, index) for index in range(readers)]
    for index, key in enumerate(keys):
        graph[key] = (calls.sum_and_add, value, index)
    graph[name] = (calls.sum_floats, keys)
    return graph, name, float(elements * readers + sum(range(readers)))


def physics_graph(partitions: int) -> tuple[Graph, Hashable, None]:
    """Partitions of jagged events made and histogrammed, histograms tree-summed."""
    name = fresh_name("physics")
    leaves, inner = tree_keys(name, partitions)
    graph: Graph = {key: (calls.fill_histogram, index, PHYSICS_EVENTS) for index, key in enumerate(leaves)}
    for key, left, right in inner:
        graph[key] = (calls.add_arrays, left, right)
    graph[name] = (calls.sum_bins, inner[-1][0])
    return graph, name, None


def timed_twice(system: str, run: Callable[[Graphs], Any]) -> tuple[Figures, list[Any]]:
    """Run the same kind of work twice: cold with the creation of the system, then warm."""
    with open_graphs(system) as graphs:
        first = run(graphs)
        cold_s = time.perf_counter() - graphs.started_s
        begin_s = time.perf_counter()
        second = run(graphs)
        warm_s = time.perf_counter() - begin_s
    return {"wall_s": warm_s, "cold_wall_s": cold_s}, [first, second]


def large_graph(make: Callable[[int], tuple[Graph, Hashable, Any]], system: str, size: int) -> Figures:
    """Two raw graphs of the same kind; building them is a matter of microseconds and counts for everybody."""
    expected: list[Any] = []

    def run(graphs: Graphs) -> Any:
        graph, key, value = make(size)
        expected.append(value)
        return graphs.get(graph, key)

    figures, results = timed_twice(system, run)
    if expected[0] is None:
        expect(results[1], results[0], "second graph against the first")
    else:
        expect(results, expected, "graphs")
    return figures


def manager_bytes(system: str, size: int) -> Figures:
    """Untimed: an upper bound of what a warm data chain moves through the sockets of the manager's process."""
    if system == OURS_TWO_WORKERS:
        return _manager_bytes_apart(size)
    alone = measure.enter_own_network()
    with open_graphs(system) as graphs:
        for _ in range(2):
            graph, key, expected = chain_graph(size)
            before = measure.loopback_bytes()
            expect(graphs.get(graph, key), expected, "data chain")
            moved = measure.loopback_bytes() - before
    if moved == 0:
        raise AssertionError("not one byte crossed the loopback device: the manager talks to its worker over something uncounted")
    return {"manager_mb": moved / 1e6, "counted_alone": float(alone)}


def _manager_bytes_apart(size: int) -> Figures:
    """The same with two workers in a network of their own: what they send to each other is not counted."""
    apart = measure.network_for_workers()
    with two_workers(apart.manager, apart.enter) as (manager, _):
        for _ in range(2):
            graph, key, expected = chain_graph(size)
            before = apart.cable_bytes()
            expect(manager.get(graph, key), expected, "data chain")
            moved = apart.cable_bytes() - before
    if moved == 0:
        raise AssertionError("not one byte crossed the cable: the manager talks to its workers over something uncounted")
    return {"manager_mb": moved / 1e6, "counted_alone": 1.0}


def dask_array(system: str, size: int) -> Figures:
    """A transpose makes blocks meet, then a reduction over one axis."""
    import dask.array

    def run(graphs: Graphs) -> Any:
        x = dask.array.random.random((size, size), chunks=(1000, 1000))
        return graphs.compute((x + x.T).mean(axis=0))

    figures, results = timed_twice(system, run)
    for result in results:
        expect((result.shape, round(float(result.mean()), 1)), ((size,), 1.0), "shape and mean")
    return figures


def dataframe(system: str, size: int) -> Figures:
    """A groupby over a generated time series of ``size`` days, one partition a day."""
    import dask.datasets
    import pandas

    seeds = iter((1, 2))

    def run(graphs: Graphs) -> Any:
        end = pandas.Timestamp("2000-01-01") + pandas.Timedelta(days=size)
        frame = dask.datasets.timeseries(start="2000-01-01", end=str(end.date()), freq="1s", seed=next(seeds))
        return graphs.compute(frame.groupby("name").x.count())

    figures, results = timed_twice(system, run)
    for result in results:
        expect(int(result.sum()), size * 86_400, "rows counted by group")
    return figures


def _of(function: Callable[[Any, str, int], Figures], make: Any) -> Callable[[str, int], Figures]:
    return lambda system, size: function(make, system, size)


# Processes: function calls in fork mode, Python tasks, shell tasks.


def _run_tasks(manager: Any, tasks: list[Any]) -> list[Any]:
    """Outputs in order of submission."""
    for task in tasks:
        manager.submit(task)
    while not manager.empty():
        if manager.wait(TASK_WAIT_S) is None:
            raise TimeoutError(f"no task ended within {TASK_WAIT_S} s")
    return [task.output for task in tasks]


def fork_calls(system: str, size: int) -> Figures:
    """No-op calls of a library in fork mode; or the bare forks of its slots, both at once, for ``size`` seconds."""
    from vinecore import FunctionCall, Manager

    with Manager(local_cores=SLOTS) as manager:
        mode = "fork" if system == OURS else "direct"
        library = manager.create_library_from_functions("calls", calls.inc, calls.fork_until, exec_mode=mode)
        library.set_function_slots(SLOTS)
        manager.install_library(library)
        expect(_run_tasks(manager, [FunctionCall("calls", "inc", n) for n in range(20)]), list(range(1, 21)), "first calls")
        if system != OURS:
            rates = _run_tasks(manager, [FunctionCall("calls", "fork_until", float(size)) for _ in range(SLOTS)])
            return {"calls_per_s": float(sum(rates))}
        begin_s = time.perf_counter()
        results = _run_tasks(manager, [FunctionCall("calls", "inc", n) for n in range(size)])
        wall_s = time.perf_counter() - begin_s
        expect(results, list(range(1, size + 1)), "calls in fork mode")
    return {"calls_per_s": size / wall_s}


def python_tasks(system: str, size: int) -> Figures:
    """No-op functions, each in a process and a directory of its own."""
    from vinecore import Manager, PythonTask

    def make(number: int) -> PythonTask:
        task = PythonTask(calls.inc, number)
        task.set_cores(1)
        return task

    with Manager(local_cores=SLOTS) as manager:
        expect(_run_tasks(manager, [make(number) for number in range(20)]), list(range(1, 21)), "first tasks")
        begin_s = time.perf_counter()
        results = _run_tasks(manager, [make(number) for number in range(size)])
        wall_s = time.perf_counter() - begin_s
        expect(results, list(range(1, size + 1)), "Python tasks")
    return {"tasks_per_s": size / wall_s}


def shell_tasks(system: str, size: int) -> Figures:
    """The command ``true``: as tasks, or through ``subprocess`` from two threads."""
    if system == SUBPROCESS:
        with ThreadPoolExecutor(SLOTS) as pool:
            begin_s = time.perf_counter()
            codes = list(pool.map(lambda _: subprocess.run(["sh", "-c", "true"], check=False).returncode, range(size)))
            wall_s = time.perf_counter() - begin_s
        expect(codes, [0] * size, "exit codes")
        return {"tasks_per_s": size / wall_s}
    from vinecore import Manager, Task

    with Manager(local_cores=SLOTS) as manager:
        _run_tasks(manager, [Task("true", cores=1) for _ in range(20)])
        tasks = [Task("true", cores=1) for _ in range(size)]
        begin_s = time.perf_counter()
        _run_tasks(manager, tasks)
        wall_s = time.perf_counter() - begin_s
        expect({(task.result, task.exit_code) for task in tasks}, {("success", 0)}, "results")
    return {"tasks_per_s": size / wall_s}


WORKLOADS: dict[str, Callable[[str, int], Figures]] = {
    "noop-calls": noop_calls,
    "fork-calls": fork_calls,
    "python-tasks": python_tasks,
    "shell-tasks": shell_tasks,
    "latency": latency,
    "startup": startup,
    "memory": memory,
    "imports": imports,
    "dask-tree": _of(trivial_graph, tree_graph),
    "dask-wide": _of(trivial_graph, wide_graph),
    "dask-tree-shares": _of(vertex_shares, tree_count_graph),
    "dask-wide-shares": _of(vertex_shares, wide_count_graph),
    "data-chain": _of(large_graph, chain_graph),
    "data-chain-bytes": manager_bytes,
    "dask-array": dask_array,
    "shared-graph": _of(large_graph, shared_graph),
    "physics": _of(large_graph, physics_graph),
    "dataframe": dataframe,
}
