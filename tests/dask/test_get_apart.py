"""``get(task_mode="tasks")``: a process and a private directory for each vertex, and the options that make sense only there.

What both modes promise is tested for both by the other files here; see the fixture ``m``.
"""

from __future__ import annotations

import itertools
import operator
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Hashable, Iterator
from pathlib import Path
from threading import Thread
from typing import Any

import dask
import numpy as np
import pytest

from daskvine import DaskVine
from tests.dask.conftest import InTasks, Runs
from tests.dask.test_get import eventually, inc, mark, stored
from tests.kit.calls import LIMIT_S, block, started
from tests.kit.odd_errors import Fields
from vinecore.errors import SlotLost, TaskFailed, UsageError

ROOT = Path(__file__).parents[2]
Graph = dict[Hashable, Any]


@pytest.fixture(scope="module")
def apart() -> Iterator[DaskVine]:
    with InTasks(local_cores=2) as manager:
        yield manager


def memory_of(m: DaskVine) -> int:
    (worker,) = m.engine.machine.state.workers.values()
    return worker.hello.memory_mb


# ---------------------------------------------------------------- options


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"resources_mode": "max throughput"}, "resources_mode must be 'fixed' or None in this version, not 'max throughput'"),
        ({"resources": {"wall_time": -1}}, "wall_time must be a number of seconds > 0, not -1"),
        ({"resources": {"wall_time": True}}, "wall_time must be a number"),
        ({"resources": {"coers": 1}}, "coers"),
        ({"env_vars": ["A=1"]}, "env_vars must be a dict"),
        ({"env_vars": {"A=": "1"}}, "a name in env_vars must be a str without '=', not 'A='"),
        ({"env_vars": {"A": 1}}, r"env_vars\['A'\] must be a str, None, or a function that returns a str, not 1"),
        ({"env_vars": {"A": lambda m, vertex: 1}}, r"env_vars\['A'\] must be a str, .*, not 1"),
        ({"extra_files": {"path": "name"}}, "extra_files must be a dict of File to name"),
        ({"environment": "env.tar.gz"}, "cannot take environment='env.tar.gz' in this version: install"),
        ({"env_per_task": True}, "cannot take env_per_task=True"),
        ({"checkpoint_fn": print}, "cannot take checkpoint_fn=.*worker_transfers=False"),
        ({"max_pending": 10}, "cannot take max_pending=10"),
        ({"submit_per_cycle": 10}, "cannot take submit_per_cycle=10"),
        ({"verbose": True}, "cannot take verbose=True"),
        ({"task_priority_mode": "FIFO"}, r"cannot take task_priority_mode='FIFO' .*dask.annotate\(priority=\)"),
        ({"scheduling_mode": "rand"}, "cannot take scheduling_mode='rand'"),
        ({"lib_resources": {"cores": 1}}, "cannot take lib_resources="),
        ({"lib_command": "x"}, "cannot take lib_command='x'"),
        ({"lib_extra_functions": [print]}, "cannot take lib_extra_functions="),
        ({"reconstruct": True}, "cannot take reconstruct=True"),
        ({"merge_size": 3}, "cannot take merge_size=3"),
        ({"wrapper": print}, "cannot take wrapper="),
        ({"wrapper_proc": len}, "cannot take wrapper_proc="),
        ({"prune_depth": 2}, "cannot take prune_depth=2"),
    ],
)
def test_bad_options(apart: DaskVine, options: dict[str, Any], text: str) -> None:
    with pytest.raises(UsageError, match=text):
        apart.get({"x": (inc, 1)}, "x", **options)


def test_options_of_later_versions_at_their_defaults_ask_for_nothing(m: DaskVine) -> None:
    idle = {"environment": None, "verbose": False, "merge_size": 2, "wrapper": None, "wrapper_proc": print, "prune_depth": 0}
    more = {"scheduling_mode": "files", "reconstruct": False, "max_pending": None, "lib_resources": None}
    assert m.get({"x": (inc, 1)}, "x", resources_mode="fixed", **idle, **more) == 2


def test_options_of_tasks_are_refused_for_function_calls(calls: DaskVine) -> None:
    file = calls.declare_buffer(b"x")
    for options in ({"env_vars": {"A": "1"}}, {"extra_files": {file: "x"}}):
        with pytest.raises(UsageError, match=r"needs task_mode='tasks'"):
            calls.get({"x": (inc, 1)}, "x", **options)
    with pytest.raises(UsageError, match="resource wall_time needs task_mode='tasks'"):
        calls.get({"x": (inc, 1)}, "x", resources={"cores": 1, "wall_time": 2})
    assert calls.get({"x": (inc, 1)}, "x", resources={"cores": 1, "wall_time": None}) == 2
    assert calls.get({"x": (inc, 1)}, "x", env_vars={}, extra_files=None) == 2


# ---------------------------------------------------------------- a process and a directory each


class Counter:
    value = 0


def change_everything(number: int) -> tuple[int, str, int, str | None]:
    """Leave traces wherever a neighbour in the same process could see them, and say what was seen before."""
    Counter.value += 1
    seen = Counter.value, os.environ.get("TRACE"), len(os.listdir())
    os.environ["TRACE"] = "here"
    Path("trace").touch()
    directory = os.getcwd()
    os.chdir("/")
    return os.getpid(), directory, *seen  # type: ignore[return-value]


def test_vertices_do_not_see_each_other(apart: DaskVine) -> None:
    graph: Graph = {("v", number): (change_everything, number) for number in range(12)}
    seen = apart.get(graph, list(graph))
    assert len({pid for pid, *_ in seen}) == len({directory for _, directory, *_ in seen}) == 12
    assert {rest for _, _, *rest in map(tuple, seen) for rest in [tuple(rest)]} == {(1, None, seen[0][4])}
    assert not any(Path(directory).exists() for _, directory, *_ in seen)


def test_a_fused_chain_is_one_process(apart: DaskVine) -> None:
    """As in the other mode: a linear chain is run, retried and reported as one."""
    graph: Graph = {"a": (pids,), "b": (pids, "a"), "c": (pids, "b")}
    assert len(set(apart.get(graph, "c"))) == 1
    graph["d"] = (pids, "a")
    assert len(set(apart.get(graph, ["c", "d"])[0])) == 2


def pids(before: Any = ()) -> tuple[int, ...]:
    return (*before, os.getpid())


def exit_first_time(flag: str, value: Any) -> Any:
    if not Path(flag).exists():
        Path(flag).touch()
        os._exit(7)
    return value


def test_a_vertex_that_ends_its_process_costs_no_neighbour(apart: DaskVine, runs: Runs, tmp_path: Path) -> None:
    graph: Graph = {("n", number): (mark, str(runs.path), number) for number in range(60)}
    graph["dies"] = (exit_first_time, str(tmp_path / "flag"), 5)
    graph["sum"] = (operator.add, "dies", ("n", 7))
    assert apart.get(graph, ["sum", *[("n", number) for number in range(60)]])[0] == 12
    assert sorted(map(int, runs.lines())) == list(range(60)), "each neighbour ran once"


def deadly() -> None:
    print("last words")
    os._exit(3)


class Bomb:
    """Standard output whose flush ends the process, which happens when the value is written already."""

    def write(self, text: str) -> int:
        return len(text)

    def flush(self) -> None:
        os._exit(9)


def made_then_lost() -> Any:
    sys.stdout = Bomb()  # type: ignore[assignment]
    return np.zeros(100_000)


def test_a_vertex_that_always_ends_its_process_is_given_up(apart: DaskVine) -> None:
    with pytest.raises(SlotLost, match="lost 6 times: its process ended with exit code 3") as caught:
        apart.get({"deadly": (deadly,)}, "deadly")
    assert "it printed:\nlast words" in caught.value.__notes__
    assert apart.get({"x": (inc, 1)}, "x") == 2


def test_values_of_processes_that_could_not_report_do_not_stay(apart: DaskVine) -> None:
    before = stored(apart)
    with pytest.raises(SlotLost, match="exit code 9"):
        apart.get({"x": (made_then_lost,)}, "x")
    assert eventually(lambda: stored(apart) == before)


def printed_then_raised(text: str) -> None:
    print(text)
    raise KeyError(text)


def test_what_a_vertex_printed_is_told_with_its_error(apart: DaskVine) -> None:
    with pytest.raises(KeyError) as caught:
        apart.get({"bad": (printed_then_raised, "some words")}, "bad")
    assert caught.value.__notes__ == ["it printed:\nsome words", "while computing the key 'bad' of the graph"]


def printed_then_odd() -> None:
    print("some words")
    raise Fields(code=3)


def test_an_error_that_knows_no_notes_is_told_too(apart: DaskVine) -> None:
    """Its ``__getattr__`` raises KeyError for them."""
    with pytest.raises(Fields, match="real reason") as caught:
        apart.get({"bad": (printed_then_odd,)}, "bad")
    assert caught.value.code == 3
    assert caught.value.__notes__ == ["it printed:\nsome words", "while computing the key 'bad' of the graph"]


def imported(name: str) -> bool:
    return name in sys.modules


def test_modules_are_imported_before_the_processes_are_forked(apart: DaskVine) -> None:
    assert apart.get({"x": (imported, "wave")}, "x") is False
    assert apart.get({"y": (imported, "wave")}, "y", lib_modules=["wave"]) is True


# ---------------------------------------------------------------- resources and limits


def spans(runs: Runs) -> list[tuple[float, float]]:
    return sorted((float(line.split(":")[0]), float(line.split(":")[1])) for line in runs.lines())


def timed(path: str, number: int) -> None:
    start = time.monotonic()
    while time.monotonic() < start + 0.02:
        pass
    mark(path, f"{start}:{time.monotonic()}")


def test_vertices_that_ask_for_nothing_get_a_core_each(apart: DaskVine, tmp_path: Path) -> None:
    """Two run at once, and each waits for the other: with a whole worker for each this would not end."""
    graph: Graph = {("b", number): (meet, str(tmp_path), number) for number in range(2)}
    assert apart.get(graph, list(graph)) == ("1", "1")


def meet(directory: str, number: int) -> str:
    Path(directory, str(number)).touch()
    until = time.monotonic() + LIMIT_S
    while len(os.listdir(directory)) < 2:
        if time.monotonic() > until:
            raise TimeoutError("nobody came")
        time.sleep(0.002)
    return os.environ["CORES"]


@pytest.mark.parametrize("how", ["option", "annotation"])
def test_never_more_at_once_than_their_memory_allows(apart: DaskVine, runs: Runs, how: str) -> None:
    request = {"memory": memory_of(apart) * 2 // 3, "cores": 1}
    if how == "option":
        graph: Graph = {("t", number): (timed, str(runs.path), number) for number in range(8)}
        apart.get(graph, list(graph), resources=request)
    else:
        with dask.annotate(resources=request):
            alone = [dask.delayed(timed)(str(runs.path), number) for number in range(8)]
        dask.compute(*alone, scheduler=apart.get, optimize_graph=False)
    taken = spans(runs)
    assert len(taken) == 8
    assert all(end <= start for (_, end), (start, _) in itertools.pairwise(taken)), taken


def allocation() -> list[str | None]:
    return [os.environ.get(name) for name in ("CORES", "MEMORY", "DISK", "GPUS", "OMP_NUM_THREADS")]


def test_a_vertex_is_told_what_it_got(apart: DaskVine) -> None:
    given = apart.get({"x": (allocation,)}, "x", resources={"cores": 2, "memory": 100, "disk": 50})
    assert given == ["2", "100", "50", None, "2"]
    with dask.annotate(resources={"memory": 70, "disk": 30, "cores": 1}):
        value = dask.delayed(allocation)()
    assert value.compute(scheduler=apart.get, optimize_graph=False) == ["1", "70", "30", None, "1"]


def sleep_first_times(path: str, times: int, seconds: float) -> int:
    mark(path, "run")
    if len(Path(path).read_text().split()) <= times:
        print("sleeping")
        time.sleep(seconds)
    return 5


@pytest.mark.parametrize("how", ["option", "annotation"])
def test_a_vertex_that_runs_too_long_is_ended(apart: DaskVine, runs: Runs, how: str) -> None:
    began = time.monotonic()
    with pytest.raises(TaskFailed, match="was ended: max wall time") as caught:
        if how == "option":
            apart.get({"slow": (sleep_first_times, str(runs.path), 9, LIMIT_S)}, "slow", resources={"wall_time": 0.1})
        else:
            with dask.annotate(resources={"wall_time": 0.1}):
                slow = dask.delayed(sleep_first_times)(str(runs.path), 9, LIMIT_S)
            slow.compute(scheduler=apart.get, optimize_graph=False)
    assert time.monotonic() - began < LIMIT_S
    assert caught.value.__notes__[-1].startswith("while computing the key")
    assert len(runs) == 1


def test_limits_use_retries(apart: DaskVine, runs: Runs) -> None:
    graph: Graph = {"slow": (sleep_first_times, str(runs.path), 2, LIMIT_S), "end": (inc, "slow"), "also": (inc, "slow")}
    assert apart.get(graph, ["end", "also"], resources={"wall_time": 0.5}, retries=2) == (6, 6)
    assert len(runs) == 3


def write_and_wait(megabytes: int) -> None:
    Path("large").write_bytes(bytes(megabytes << 20))
    time.sleep(LIMIT_S)


def test_a_vertex_that_fills_its_directory_is_ended(apart: DaskVine) -> None:
    with pytest.raises(TaskFailed, match="was ended: sandbox exhaustion"):
        apart.get({"x": (write_and_wait, 5)}, "x", resources={"disk": 2, "cores": 1})


# ---------------------------------------------------------------- environment and files


def variables(*names: str) -> list[str | None]:
    return [os.environ.get(name) for name in names]


def test_variables(apart: DaskVine, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[Any] = []

    def ask(manager: Any, vertex: Any) -> str:
        told.append((manager, vertex.key, vertex.category))
        return f"of {vertex.key}"

    graph: Graph = {("v", number): (variables, "PLAIN", "PATH", "ASKED") for number in range(2)}
    values = apart.get(graph, list(graph), env_vars={"PLAIN": "text", "PATH": None, "ASKED": ask})
    assert values == tuple(["text", None, f"of {key}"] for key in graph)
    assert sorted(told, key=repr) == [(apart, key, "v") for key in graph]


@pytest.mark.parametrize("error", [LookupError("no model of that name"), UnicodeDecodeError("utf-8", b"\xff", 0, 1, "bad")])
def test_a_variable_whose_function_raises(apart: DaskVine, error: Exception) -> None:
    """Nothing else says that it came from there: the function runs here, while the graph is handed over."""

    def ask(manager: Any, vertex: Any) -> str:
        raise error

    with pytest.raises(UsageError) as caught:
        apart.get({("v", 7): (variables, "A")}, ("v", 7), env_vars={"B": "1", "A": ask})
    said = f"{type(error).__name__}: {error}"
    assert str(caught.value) == f"the function env_vars['A'] raised {said}, when it was asked for the key ('v', 7)"
    assert caught.value.__cause__ is error
    assert apart.get({"x": (inc, 1)}, "x") == 2


def test_values_made_under_other_variables_are_not_reused(apart: DaskVine, runs: Runs) -> None:
    def get(value: Any) -> Any:
        return apart.get({"x": (mark_variable, str(runs.path), "SETTING")}, "x", env_vars={"SETTING": value})

    assert [get("one"), get("two"), get("one"), get("two")] == ["one", "two", "one", "two"]
    assert sorted(runs.lines()) == ["one", "two"]
    assert [get(lambda m, vertex: "one"), get(lambda m, vertex: "one")] == ["one", "one"]
    assert len(runs) == 4


def mark_variable(path: str, name: str) -> Any:
    return mark(path, os.environ[name])


def read_and_overwrite(path: str, number: int) -> int:
    """The sum of the file's bytes, into which every vertex writes then."""
    data = Path(path).read_bytes()
    os.chmod(path, 0o600)
    Path(path).write_bytes(b"\xff" * len(data))
    return sum(data)


@pytest.mark.parametrize("size", [10, 100_000, 3_000_000], ids=["inline", "copied", "linked"])
def test_extra_files(apart: DaskVine, tmp_path: Path, size: int) -> None:
    """One at a time: vertices that run at once may see each other's changes of a linked file."""
    (tmp_path / "data").write_bytes(bytes([1]) * size)
    local, buffer = apart.declare_file(tmp_path / "data"), apart.declare_buffer(bytes([2]) * size)
    files = {local: "in/data", buffer: "buffer"}
    graph: Graph = {("l", number): (read_and_overwrite, "in/data", number) for number in range(8)}
    graph.update({("b", number): (read_and_overwrite, "buffer", number) for number in range(8)})
    values = apart.get(graph, list(graph), extra_files=files, resources={"cores": 2})
    assert values == (size,) * 8 + (2 * size,) * 8
    assert (tmp_path / "data").read_bytes() == bytes([1]) * size


def read(path: str) -> str:
    return Path(path).read_text()


def test_a_changed_extra_file_is_not_reused(apart: DaskVine, tmp_path: Path) -> None:
    path = tmp_path / "setting"
    path.write_text("one")
    file = apart.declare_file(path)
    assert apart.get({"x": (read, "s")}, "x", extra_files={file: "s"}) == "one"
    path.write_text("second")
    assert apart.get({"x": (read, "s")}, "x", extra_files={file: "s"}) == "second"


def test_bad_extra_files(apart: DaskVine, calls: DaskVine, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="leads out of the task's directory"):
        apart.get({"x": (inc, 1)}, "x", extra_files={apart.declare_buffer(b"x"): "../x"})
    with pytest.raises(UsageError, match="cannot be read"):
        apart.get({"x": (inc, 1)}, "x", extra_files={apart.declare_file(tmp_path / "none"): "x"})
    with pytest.raises(UsageError, match="belongs to another manager"):
        apart.get({"x": (inc, 1)}, "x", extra_files={calls.declare_buffer(b"x"): "x"})


# ---------------------------------------------------------------- cancellation, and workers that are lost


def test_an_error_ends_what_runs(apart: DaskVine, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    graph: Graph = {"waits": (block, str(gate)), "fails": (fail_when, str(gate)), "both": (operator.add, "waits", "fails")}
    with pytest.raises(ValueError, match="of the vertex"):
        apart.get(graph, "both")
    (pid,) = [int(path.name.partition("-")[2]) for path in tmp_path.glob("gate-*")]
    assert eventually(lambda: not Path(f"/proc/{pid}").exists()), "the neighbour that ran is ended"


def fail_when(path: str) -> None:
    if not started(Path(path), 1):
        raise TimeoutError("the other vertex never ran")
    raise ValueError("of the vertex")


@pytest.fixture
def worker_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[int], subprocess.Popen[bytes]]]:
    """Start workers of one core."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.delenv("VINE_PORT", raising=False)
    running: list[subprocess.Popen[bytes]] = []

    def start(port: int) -> subprocess.Popen[bytes]:
        words = [sys.executable, "-m", "vinecore.cli.worker", "127.0.0.1", str(port), "--cores", "1"]
        running.append(subprocess.Popen(words, stdout=subprocess.DEVNULL, env={**os.environ, "PYTHONPATH": str(ROOT)}))
        return running[-1]

    yield start
    for worker in running:
        worker.terminate()
    for worker in running:
        worker.wait(LIMIT_S)


def fill(path: str, number: int) -> Any:
    mark(path, number)
    return np.full(100_000, float(number))


def add_when(gate: str, *arrays: Any) -> float:
    block(gate)
    return float(sum(array.sum() for array in arrays))


@pytest.mark.timeout(120)
def test_values_of_a_lost_worker_are_made_again(
    worker_of: Callable[[int], subprocess.Popen[bytes]], runs: Runs, tmp_path: Path
) -> None:
    """The worker that reads eight large values, and made most of them, is killed while it does."""
    gate = tmp_path / "gate"
    with InTasks(port=0) as m:
        state = m.engine.machine.state

        def kill_the_reader() -> None:
            if started(gate, 1):
                (reader,) = [worker for worker in list(state.workers.values()) if worker.placed_count()]
                os.kill(reader.hello.pid, signal.SIGKILL)
                eventually(lambda: len(state.workers) == 1)
            gate.touch()

        worker_of(m.port), worker_of(m.port)
        assert eventually(lambda: len(state.workers) == 2)
        graph: Graph = {("v", number): (fill, str(runs.path), number) for number in range(8)}
        graph["end"] = (add_when, str(gate), *graph)
        killer = Thread(target=kill_the_reader)
        killer.start()
        assert m.get(graph, "end") == 100_000.0 * sum(range(8))
        killer.join(LIMIT_S)
        assert set(map(int, runs.lines())) == set(range(8))
        assert len(runs) == 8 + m.stats.tasks_recovery > 8
        m.engine.call_in_loop(m.engine.machine.check)
