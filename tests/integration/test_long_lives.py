"""What a long-lived executor must stand: functions without end, calls that fork, functions that fail to load, closed streams."""

from __future__ import annotations

import gc
import math
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from daskvine import DaskVine, FuturesExecutor
from tests.kit.calls import codes_told, eventually
from vinecore import Manager, PythonTask, Task
from vinecore.api.engine import CODES_LIMIT_COUNT
from vinecore.manager.entries import NO_REQUEST, TaskEntry
from vinecore.manager.events import FilePruned

ROOT = Path(__file__).parents[2]
LIMIT_S = 30.0


class NotThere:
    """Pickles well, and cannot be unpickled anywhere."""

    def __reduce__(self) -> Any:
        return __import__, ("a_module_that_is_not_there",)


def test_the_error_of_a_function_that_cannot_be_loaded_does_not_grow() -> None:
    """Each call used to add its frames to the traceback of one exception object: quadratic time, and text up to its limit."""
    thing = NotThere()
    with FuturesExecutor(max_workers=1) as ex:
        failures = [ex.submit(lambda x: (thing, x), i).exception(LIMIT_S) for i in range(40)]
    texts = {len(str(failure.__cause__)) for failure in failures if failure is not None}
    assert all(isinstance(failure, ModuleNotFoundError) for failure in failures)
    assert len(texts) == 1


def test_functions_that_are_gone_are_forgotten() -> None:
    with FuturesExecutor(max_workers=1) as ex:
        known = codes_told(ex.engine)
        for number in range(3 * CODES_LIMIT_COUNT):
            ex.submit(lambda n=number: n).result(LIMIT_S)
        assert len(ex.engine.codes) <= CODES_LIMIT_COUNT + 1
        assert 0 < len(known) <= 2 * CODES_LIMIT_COUNT


def entries_alive() -> int:
    gc.collect()
    return sum(type(thing) is TaskEntry for thing in gc.get_objects())


def test_what_has_read_a_value_that_stays_is_forgotten() -> None:
    """It used to stay with its result as long as what it had read: a program without end grew without end."""
    with Manager(local_cores=1) as m:
        data = m.declare_buffer(b"for all")
        before = entries_alive()
        for _ in range(60):
            task = Task("cat data")
            task.add_input(data, "data")
            m.submit(task)
        while not m.empty():
            done = m.wait(LIMIT_S)
            assert done is not None and done.output == "for all"
        del task, done
        assert entries_alive() - before < 10
    with FuturesExecutor(max_workers=1) as ex:
        value = ex.submit(bytes, 300_000)
        before = entries_alive()
        assert [ex.submit(len, value).result(LIMIT_S) for _ in range(60)] == [300_000] * 60
        assert entries_alive() - before < 10


def test_large_functions_of_processes_are_forgotten() -> None:
    """By count, however few functions of calls there are: tables, objects of the manager, and what workers hold."""

    def one(number: int) -> Any:
        data = os.urandom(100_000)
        return lambda: (number, len(data))

    with Manager(local_cores=1) as m:
        known = codes_told(m.engine)
        for number in range(3 * CODES_LIMIT_COUNT):
            task = PythonTask(one(number))
            task.set_cores(1)
            m.submit(task)
            assert m.wait(LIMIT_S) is task and task.output == (number, 100_000)
        assert len(m.engine._process_codes) <= CODES_LIMIT_COUNT + 1
        assert len(m.engine.loop.objects) <= CODES_LIMIT_COUNT + 1
        assert 0 < len(known) <= 2 * CODES_LIMIT_COUNT


def test_kinds_of_tasks_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    from vinecore.api import code

    monkeypatch.setattr(code, "KINDS_LIMIT_COUNT", 50)
    with DaskVine(local_cores=1, reuse=False) as m:
        for name in ("early", "late"):
            dsk = {f"{name} {number:03d}x": (abs, -number) for number in range(100)}
            assert m.get(dsk, list(dsk)) == tuple(range(100))
        assert len(m.engine.kinds) == 50 and ("dask:late 099x", m.engine.default_shape) in m.engine.kinds


def test_kinds_that_are_used_again_and_again_are_not_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    from vinecore.api import code

    monkeypatch.setattr(code, "KINDS_LIMIT_COUNT", 20)
    with DaskVine(local_cores=1, reuse=False) as m:
        m.get({"mine": (abs, -1)}, "mine")
        mine = m.engine.kind_for("dask:mine", m.engine.default_shape)
        for number in range(20):
            dsk = {f"other {number} {letter}": (abs, -1) for letter in "abcde"}
            m.get({**dsk, "mine": (abs, -number)}, [*dsk, "mine"])
            assert m.engine.kind_for("dask:mine", m.engine.default_shape) is mine and len(m.engine.kinds) <= 20


@pytest.mark.parametrize("mode", ["function-calls", "tasks"])
def test_large_functions_are_forgotten_by_their_bytes(mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from vinecore.api import code, engine

    limit = 1_000_000
    monkeypatch.setattr(code, "CODES_LIMIT_BYTES", limit)
    monkeypatch.setattr(engine, "CODES_LIMIT_BYTES", limit)

    def one() -> Any:
        data = os.urandom(100_000)
        return lambda x: (x, len(data))

    with DaskVine(local_cores=1, reuse=False) as m:
        for number in range(40):
            assert m.get({"x": (one(), number)}, "x", task_mode=mode) == (number, 100_000)
        # A graph that has just ended may hold its function.
        assert len(m.engine.codes) + len(m.engine._process_codes) <= limit // 100_000 + 3
        assert len(m.engine.loop.objects) <= limit // 100_000 + 3
        assert m.engine._codes_bytes <= limit + 300_000


@pytest.mark.parametrize("size", [10, 100_000])
def test_a_function_that_took_the_place_of_an_equal_one_is_not_forgotten_before_its_call(size: int) -> None:
    data = b"x" * size

    def one() -> Any:
        return lambda x: (x, len(data))

    with Manager(local_cores=1) as m:
        first = one()
        m.engine.process_code(first, NO_REQUEST)
        second = one()
        pickled = m.engine.functions.get(second)
        assert pickled is m.engine.functions.get(first)
        del first
        # The next function that becomes known makes the manager look, and that is this one.
        m.engine._process_codes.clear()
        m.engine._codes_limit = 0
        assert pickled.is_orphan
        task = PythonTask(second, 1)
        task.set_cores(1)
        m.submit(task)
        assert m.wait(LIMIT_S) is task and task.output == (1, size)


def test_a_dropped_function_that_is_still_called_runs() -> None:
    with FuturesExecutor(max_workers=1) as ex:
        slow = [ex.submit(lambda n=number: (time.sleep(0.01), n)[1]) for number in range(3 * CODES_LIMIT_COUNT)]
        assert [future.result(LIMIT_S) for future in slow] == list(range(3 * CODES_LIMIT_COUNT))


@pytest.mark.parametrize("size", [10, 100_000])
def test_a_value_is_made_again_by_a_function_that_is_gone(size: int) -> None:
    """A large one used to be dropped with its last caller, though its value was still held and might be lost."""

    def one() -> Any:
        data = os.urandom(size)
        return lambda: data + bytes(100_000)

    with Manager(local_cores=1) as m:
        ex = FuturesExecutor(manager=m)
        future, task = ex.submit(one()), PythonTask(one())
        task.enable_temp_output()
        m.submit(task)
        assert m.wait(LIMIT_S) is task and future.exception(LIMIT_S) is None
        task.function = abs
        gc.collect()
        m.engine._codes_limit = 0
        ex.submit(lambda: 1).result(LIMIT_S)
        assert len(m.engine.codes) == 1 and len(m.engine._process_codes) == 0
        m.prune_file(task.output_file)
        m.engine.post(FilePruned(0.0, future.entry.output))
        assert len(future.result(LIMIT_S)) == size + 100_000
        assert m.fetch_file(task.output_file, LIMIT_S) is not None
        # With the last that could need them, the functions go too, but for the latest one of each library.
        del future, task
        assert ex.submit(abs, -1).result(LIMIT_S) == 1
        m.submit(PythonTask(abs, -1))
        assert m.wait(LIMIT_S).successful()
        assert eventually(lambda: gc.collect() >= 0 and not m.engine.loop.objects)


def forks() -> bool:
    return os.fork() == 0


def test_a_child_that_returns_from_a_call_does_not_answer_for_the_slot() -> None:
    with FuturesExecutor(max_workers=2) as ex:
        assert ex.submit(forks).result(LIMIT_S) is False
        assert [future.result(LIMIT_S) for future in [ex.submit(lambda x: x + 1, i) for i in range(200)]] == list(range(1, 201))


@pytest.mark.parametrize("closed", ["2>&-", ">&-", "<&-", "<&- >&- 2>&-"])
def test_a_program_with_closed_streams_works(closed: str, tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(
        "import sys\nfrom daskvine import FuturesExecutor\nif __name__ == '__main__':\n"
        "    with FuturesExecutor(1) as ex:\n        open(sys.argv[1], 'w').write(str(ex.submit(abs, -7).result(20)))\n"
    )
    out = tmp_path / "out"
    command = f"{sys.executable} {program} {out} {closed}"
    subprocess.run(["/bin/sh", "-c", command], env={**os.environ, "PYTHONPATH": str(ROOT)}, timeout=LIMIT_S, check=False)
    assert out.read_text() == "7"


def test_waiting_for_infinity_on_an_empty_manager_returns() -> None:
    with Manager(local_cores=1) as m:
        assert m.wait(math.inf) is None
        with pytest.raises(ValueError, match="nan"):
            m.wait(math.nan)


def long_or_short(number: int, directory: str) -> int:
    """Long ones end when both have begun: in one bundle they would wait for each other for ever."""
    if number < 2:
        Path(directory, str(number)).touch()
        until = time.monotonic() + LIMIT_S
        while len(list(Path(directory).iterdir())) < 2:
            if time.monotonic() > until:
                raise RuntimeError("the other one never began")
            time.sleep(0.005)
    return number


def test_independent_vertices_of_unknown_length_are_not_queued_behind_each_other(tmp_path: Path) -> None:
    with DaskVine(local_cores=2) as m:
        graph = {("unknown", i): (long_or_short, i, str(tmp_path)) for i in range(40)}
        assert m.get(graph, list(graph)) == tuple(range(40))
