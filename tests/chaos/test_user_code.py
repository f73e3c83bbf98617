"""User code that ends its process or never ends, amid busy neighbours: a clear error after the retries, and nobody else notices.

The fault comes when a drawn number of neighbours has run; they go on being submitted around it.
"""

from __future__ import annotations

import ctypes
import os
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from daskvine import DaskVine
from tests.chaos.conftest import Moment
from tests.kit.calls import LIMIT_S
from tests.kit.counted import Log, leaf
from tests.kit.fleet import check_idle, executor
from tests.kit.proc import command_of
from vinecore import FunctionCall, Manager, PythonTask, Task
from vinecore.errors import SlotLost

CPU_S = 0.001
NEIGHBOURS = 200
# The first try and the losses that are allowed.
TRIES = 6


def leave(path: str, key: str) -> None:
    Log(path).append("start", key)
    os._exit(3)


def crash(path: str, key: str) -> None:
    Log(path).append("start", key)
    ctypes.string_at(0)


def spin(path: str, key: str) -> None:
    """Never ends, holds the interpreter, and cannot be interrupted by an exception."""
    Log(path).append("start", key)
    while True:
        try:
            sum(range(1000))
        except BaseException:
            continue


FAULTS = [pytest.param(leave, "ended with exit code 3", id="exit"), pytest.param(crash, "was killed by SIGSEGV", id="segfault")]


def neighbour(path: str, number: int) -> int:
    """Its value tells one execution from another."""
    leaf(path, f"n{number}", CPU_S, 10, number)
    return number


def check_neighbours(log: Log, most_again: int) -> None:
    """Each neighbour ran, and few more than once: those that were finished in a slot's hands when it died."""
    starts = log.starts_by_key()
    ran = {key: count for key, count in starts.items() if key != "bad"}
    assert len(ran) == NEIGHBOURS
    again = sum(ran.values()) - NEIGHBOURS
    assert again <= most_again, f"{again} neighbours ran again: {Counter(ran.values())}"


@pytest.mark.parametrize(("fault", "how"), FAULTS)
def test_futures(tmp_path: Path, moment: Moment, fault: Callable[[str, str], None], how: str) -> None:
    log = Log(tmp_path / "log")
    at = moment.between(1, NEIGHBOURS - 20)
    with executor(max_workers=2) as ex:
        before = [ex.submit(neighbour, log.path, number) for number in range(at)]
        log.wait_for(moment.draw("wait").randint(1, at))
        bad = ex.submit(fault, log.path, "bad")
        after = [ex.submit(neighbour, log.path, number) for number in range(at, NEIGHBOURS)]
        assert [future.result(LIMIT_S) for future in before + after] == list(range(NEIGHBOURS))
        with pytest.raises(SlotLost, match=rf"{fault.__name__}.*lost {TRIES} times: its process {how}.*not tried again"):
            bad.result(LIMIT_S)
        assert ex.submit(neighbour, log.path, 0).result(LIMIT_S) == 0
        check_idle(ex.engine)
    assert log.starts_by_key()["bad"] == TRIES
    check_neighbours(log, TRIES * 4 + 1)


@pytest.mark.parametrize(("fault", "how"), FAULTS)
def test_graph(tmp_path: Path, moment: Moment, fault: Callable[[str, str], None], how: str) -> None:
    """The vertex fails its own graph; another graph that runs at the same time ends well."""
    log = Log(tmp_path / "log")
    deadly: dict[Any, Any] = {("n", number): (neighbour, log.path, number) for number in range(NEIGHBOURS)}
    place = moment.between(0, NEIGHBOURS - 1)
    deadly["bad"] = (lambda path, key, _: fault(path, key), log.path, "fault", ("n", place))
    deadly["end"] = (lambda values, _: sum(values), [("n", number) for number in range(NEIGHBOURS)], "bad")
    other = Log(tmp_path / "other")
    values: list[Any] = []
    with DaskVine(local_cores=2) as m:
        graph: dict[Any, Any] = {("o", number): (neighbour, other.path, number) for number in range(NEIGHBOURS)}
        thread = threading.Thread(target=lambda: values.append(m.get(graph, list(graph))))
        thread.start()
        with pytest.raises(SlotLost, match=rf"lost {TRIES} times: its process {how}") as caught:
            m.get(deadly, "end")
        assert any("key 'bad'" in note or "key 'end'" in note for note in caught.value.__notes__)
        thread.join(LIMIT_S)
        assert values == [tuple(range(NEIGHBOURS))]
        check_idle(m.engine)
    assert log.starts_by_key()["fault"] == TRIES
    check_neighbours(other, TRIES * 32)


@pytest.mark.parametrize(("fault", "how"), FAULTS)
def test_forked_calls(tmp_path: Path, moment: Moment, fault: Callable[[str, str], None], how: str) -> None:
    """Each call in a process of its own: no neighbour can be touched at all."""
    log = Log(tmp_path / "log")
    at = moment.between(1, NEIGHBOURS - 20)
    with Manager(local_cores=2) as m:
        library = m.create_library_from_functions("lib", neighbour, fault, exec_mode="fork")
        library.set_function_slots(2)
        m.install_library(library)
        calls = [FunctionCall("lib", "neighbour", log.path, number) for number in range(NEIGHBOURS)]
        bad = FunctionCall("lib", fault.__name__, log.path, "bad")
        for call in [*calls[:at], bad, *calls[at:]]:
            m.submit(call)
        told = Counter(id(m.wait(LIMIT_S)) for _ in range(NEIGHBOURS + 1))
        assert told == Counter(map(id, [*calls, bad])) and m.empty()
        assert [call.output for call in calls] == list(range(NEIGHBOURS))
        assert isinstance(bad.output, SlotLost) and f"lost {TRIES} times: " in str(bad.output) and how in str(bad.output)
        check_idle(m.engine)
    assert log.starts_by_key()["bad"] == TRIES
    check_neighbours(log, 0)


@pytest.mark.parametrize(("fault", "how"), FAULTS)
def test_python_tasks(tmp_path: Path, moment: Moment, fault: Callable[[str, str], None], how: str) -> None:
    log = Log(tmp_path / "log")
    at = moment.between(1, 20)
    with Manager(local_cores=2) as m:
        tasks = [PythonTask(neighbour, log.path, number) for number in range(40)]
        bad = PythonTask(fault, log.path, "bad")
        for task in [*tasks[:at], bad, *tasks[at:]]:
            task.set_cores(1)
            m.submit(task)
        told = Counter(id(m.wait(LIMIT_S)) for _ in range(41))
        assert told == Counter(map(id, [*tasks, bad])) and m.empty()
        assert [task.output for task in tasks] == list(range(40))
        assert bad.result == "forsaken" and isinstance(bad.output, SlotLost) and how in str(bad.output)
    starts = log.starts_by_key()
    assert starts.pop("bad") == TRIES and set(starts.values()) == {1} and len(starts) == 40


def test_endless_loops_end_at_their_limit(tmp_path: Path, moment: Moment, started_by_test: Callable[[], list[int]]) -> None:
    """A Python function and a program that never end, each with a limit of a second; neighbours share the worker meanwhile."""
    log = Log(tmp_path / "log")
    at = moment.between(1, 35)
    with Manager(local_cores=2) as m:
        tasks = [PythonTask(neighbour, log.path, number) for number in range(40)]
        endless = [PythonTask(spin, log.path, "spin"), Task("trap '' TERM INT; while :; do :; done & while :; do :; done")]
        for task in endless:
            task.set_time_max(1)
        for task in [*tasks[:at], endless[0], *tasks[at:], endless[1]]:
            task.set_cores(1)
            m.submit(task)
        told = Counter(id(m.wait(LIMIT_S)) for _ in range(42))
        assert told == Counter(map(id, [*tasks, *endless])) and m.empty()
        assert [task.output for task in tasks] == list(range(40))
        for task in endless:
            assert (task.result, task.exit_code) == ("max wall time", 9)
        shells = [pid for pid in started_by_test() if "while :;" in command_of(pid)]
        assert shells == [], "what a task leaves behind ends with it"
        # A limit is the outcome, no loss: nothing is tried again.
        starts = log.starts_by_key()
        assert set(starts.values()) == {1} and len(starts) == 41
        check_idle(m.engine)
