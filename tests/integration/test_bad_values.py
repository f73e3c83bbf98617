"""Values that cannot mean anything: refused in words where they are given, and the manager goes on."""

from __future__ import annotations

import dataclasses
import itertools
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dask
import pytest

from daskvine import DaskVine
from tests.kit.calls import LIMIT_S
from vinecore import FunctionCall, Manager, PythonTask, Resources, Task
from vinecore.errors import UsageError
from vinecore.model.config import RANGES, Tunables

_numbers = itertools.count()


def add(x: Any, y: Any = 1) -> Any:
    return x + y


def run(manager: Manager) -> None:
    """It has a worker, which runs tasks."""
    task = Task("echo fine", cores=1)
    manager.submit(task)
    assert manager.wait(LIMIT_S) is task and task.output == "fine\n"


@pytest.fixture(scope="module")
def m() -> Iterator[Manager]:
    """A manager with one worker, which nothing here may harm."""
    with Manager(local_cores=1) as manager:
        manager.install_library(manager.create_library_from_functions("lib", add))
        run(manager)
        yield manager


@pytest.fixture(scope="module")
def other() -> Iterator[Manager]:
    """A second manager, with one worker too."""
    with Manager(local_cores=1) as manager:
        yield manager


@pytest.fixture(scope="module")
def dask_manager() -> Iterator[DaskVine]:
    """A manager of graphs, with one worker."""
    with DaskVine(local_cores=1, reuse=False) as manager:
        yield manager


@pytest.fixture(autouse=True)
def still_works(request: pytest.FixtureRequest) -> Iterator[None]:
    """Whatever was refused: managers have nothing under way, and run the next task."""
    yield
    for name in ("m", "other"):
        if name in request.fixturenames:
            manager = request.getfixturevalue(name)
            assert manager.engine.loop.died is None
            assert manager.empty()
            run(manager)


# ---------------------------------------------------------------- files of another manager


@pytest.mark.parametrize("kind", ["file", "buffer", "temp"])
@pytest.mark.parametrize("make", [lambda: Task("true"), lambda: PythonTask(add, 1), lambda: FunctionCall("lib", "add", 1)])
def test_files_of_another_manager(m: Manager, other: Manager, tmp_path: Path, kind: str, make: Any) -> None:
    (tmp_path / "in").write_text("x")
    file = {"file": lambda: other.declare_file(tmp_path / "in"), "buffer": lambda: other.declare_buffer(b"x")}.get(
        kind, other.declare_temp
    )()
    for way in ("add_input", "add_output"):
        task = make()
        getattr(task, way)(file, "name")
        with pytest.raises(UsageError, match=r"<File .* belongs to another manager"):
            m.submit(task)
        assert task.id is None and task.state == "INITIAL"


def test_result_in_a_temp_of_another_manager(m: Manager, other: Manager) -> None:
    call = FunctionCall("lib", "add", 1)
    call.set_output(other.declare_temp())
    with pytest.raises(UsageError, match="belongs to another manager"):
        m.submit(call)


def test_library_with_a_file_of_another_manager(m: Manager, other: Manager) -> None:
    library = m.create_library_from_functions(f"lib-{next(_numbers)}", add)
    library.add_input(other.declare_buffer(b"x"), "name")
    with pytest.raises(UsageError, match="belongs to another manager"):
        m.install_library(library)
    assert not m.check_library_exists(library.name)


# ---------------------------------------------------------------- amounts

NO_AMOUNTS = [float("nan"), float("inf"), 10**400, 2**63, "2", None, True, [1]]


@pytest.mark.parametrize("value", NO_AMOUNTS, ids=lambda value: str(value)[:5])
@pytest.mark.parametrize("name", ["cores", "memory", "disk", "gpus"])
def test_amounts_that_are_none(name: str, value: Any) -> None:
    wanted = rf"resource {name} must be (a number >= 0|at most \d+), not {re.escape(repr(value)[:5])}"
    with pytest.raises(UsageError, match=wanted):
        Task("true", **{name: value})
    with pytest.raises(UsageError, match=wanted):
        getattr(FunctionCall("lib", "add", 1), f"set_{name}")(value)


def test_a_negative_amount_is_unset() -> None:
    for least in (-1, float("-inf")):
        assert vars(Task("true", cores=3, memory=least).resources_requested) == {"cores": 3, "memory": -1, "disk": -1, "gpus": -1}


@pytest.mark.parametrize("value", NO_AMOUNTS[:4], ids=lambda value: str(value)[:5])
@pytest.mark.parametrize("mode", ["function-calls", "tasks"])
def test_amounts_of_graphs(dask_manager: DaskVine, value: Any, mode: str) -> None:
    for given in ({"cores": value}, Resources(cores=value)):
        with pytest.raises(UsageError, match="resource cores must be"):
            dask_manager.get({"x": (add, 1)}, "x", resources=given, task_mode=mode)
    with pytest.raises(UsageError, match="resource memory must be"), dask.annotate(resources={"memory": value}):
        dask.delayed(add)(1).compute(scheduler=dask_manager.get, task_mode=mode, optimize_graph=False)
    assert dask_manager.get({"x": (add, 1)}, "x", resources={"cores": 1}, task_mode=mode) == 2


@pytest.mark.parametrize("value", [float("nan"), 10**400, "5", None])
def test_priorities_that_are_none(dask_manager: DaskVine, value: Any) -> None:
    with pytest.raises(UsageError, match=r"priority must be .*, not"):
        Task("true", priority=value)
    if isinstance(value, float | int):  # Dask itself refuses the others
        with pytest.raises(UsageError, match="priority must be"), dask.annotate(priority=value):
            dask.delayed(add)(1).compute(scheduler=dask_manager.get, optimize_graph=False)
    assert dask_manager.get({"x": (add, 1)}, "x") == 2


@pytest.mark.parametrize("value", [2**70, -1, 1.5, float("nan"), "7", None, True])
def test_task_ids_that_cannot_be_sent(m: Manager, value: Any) -> None:
    with pytest.raises(UsageError, match="the least task id must be a whole number from 0 to"):
        m.set_min_task_id(value)


@pytest.mark.parametrize("value", [2**70, float("nan"), "two"])
def test_libraries_of_absurd_size(m: Manager, value: Any) -> None:
    library = m.create_library_from_functions(f"lib-{next(_numbers)}", add)
    for method, what in (
        ("set_cores", "the cores of library 'lib-"),
        ("set_function_slots", "function slots"),
        ("set_max_calls_per_slot", "calls per slot"),
    ):
        with pytest.raises(UsageError, match=f"{what}.* must be"):
            getattr(library, method)(value)


# ---------------------------------------------------------------- settings of the manager


@pytest.mark.parametrize("name", sorted(RANGES))
def test_tunables_out_of_their_range(m: Manager, name: str) -> None:
    span, documented, before = RANGES[name], name.replace("_", "-"), dataclasses.astuple(m.engine.tunables)
    values = [float("nan"), float("inf"), float("-inf"), 10**400, span.most * 2, "5", None, True]
    values += [] if span.is_raised else [span.least - 1]
    values += [1.5] if span.is_whole else []
    for value in values:
        wanted = (
            rf"the tunable {documented} takes a (whole )?number from {re.escape(str(span))}, not {re.escape(repr(value)[:9])}"
        )
        with pytest.raises(UsageError, match=wanted):
            m.tune(documented, value)
    assert dataclasses.astuple(m.engine.tunables) == before


def test_tunables_at_the_ends_of_their_range() -> None:
    for name, span in RANGES.items():
        tunables = Tunables()
        for value in (span.least, span.most):
            assert tunables.set(name, value)
            if name != "keepalive_interval":
                assert getattr(tunables, name) == value
        if span.is_raised:
            assert tunables.set(name, span.least - 7) and getattr(tunables, name) == span.least


def test_workers_are_asked_before_they_count_as_lost() -> None:
    tunables = Tunables()
    assert tunables.set("keepalive-timeout", 3) and tunables.keepalive_interval == 1.5
    assert tunables.set("keepalive-interval", 120) and tunables.keepalive_interval == 1.5
    assert tunables.set("keepalive-timeout", 900) and tunables.keepalive_interval == 120
    assert tunables.set("keepalive-interval", 0) and tunables.keepalive_interval == 0


@pytest.mark.parametrize("value", [0, -1, 0.5, float("nan"), "5"])
def test_keepalive_that_would_kill_every_worker(m: Manager, value: Any) -> None:
    with pytest.raises(UsageError, match="the tunable keepalive-timeout takes a number from 1 to"):
        m.set_keepalive_timeout(value)
    if value not in (0, 0.5):
        with pytest.raises(UsageError, match=r"the tunable keepalive-interval takes a number from 0 \(never\) to"):
            m.set_keepalive_interval(value)


def test_tunables_that_do_not_exist(m: Manager, capfd: pytest.CaptureFixture[str]) -> None:
    assert m.tune("max-loses", 3) == m.tune("banana", 3) == -1
    assert capfd.readouterr().err.splitlines() == [
        "vine: tune: there is no tunable 'max-loses'; did you mean 'max-losses'?",
        "vine: tune: there is no tunable 'banana'",
    ]
    with pytest.raises(UsageError, match="the name of a tunable is a str such as 'max-losses', not 3"):
        m.tune(3, 3)  # type: ignore[arg-type]


@pytest.mark.parametrize("count", [-1, 1.5, float("nan"), "2", None, True, 2**70])
def test_numbers_of_workers_to_end(m: Manager, count: Any) -> None:
    with pytest.raises(UsageError, match=r"the number of workers to end must be (a whole number >= 0|at most \d+), not"):
        m.workers_shutdown(count)
    assert m.stats.workers_connected == 1
