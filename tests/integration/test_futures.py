"""``FuturesExecutor`` on real processes: outcomes, callbacks, cancelling, timeouts, futures as arguments, large values.

Losses, forks, signals and the interpreter's end are in ``test_futures_faults.py``; CPython's own suite in ``tests/conformance``.
Waits are bounded; no test depends on how long anything takes, except where it says that one thing must not wait for another.
"""

from __future__ import annotations

import gc
import itertools
import logging
import operator
import os
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, FIRST_EXCEPTION, CancelledError, as_completed, wait
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from daskvine import FuturesExecutor
from vinecore.errors import RemoteError, UnpicklableError, UsageError

LIMIT_S = 30.0


@pytest.fixture(scope="module")
def ex() -> Iterator[FuturesExecutor]:
    with FuturesExecutor(max_workers=2) as executor:
        executor.submit(abs, -1).result(LIMIT_S)
        yield executor


def eventually(condition: Callable[[], bool], limit_s: float = LIMIT_S) -> bool:
    """Look until it holds; False when it does not in time."""
    until = time.monotonic() + limit_s
    while not condition():
        if time.monotonic() > until:
            return False
        time.sleep(0.005)
    return True


def wait_for_file(path: str, started: str = "") -> int:
    """Block a slot until a file is there, for a bounded time; returns the slot's pid."""
    if started:
        Path(started).touch()
    until = time.monotonic() + LIMIT_S
    while not Path(path).exists():
        if time.monotonic() > until:
            raise RuntimeError(f"{path} never came")
        time.sleep(0.002)
    return os.getpid()


_numbers = itertools.count()


class Gate:
    """Blocks slots until it is opened."""

    def __init__(self, directory: Path) -> None:
        self.path = directory / f"gate-{next(_numbers)}"

    def block(self, executor: FuturesExecutor, count: int = 2) -> list[Any]:
        """Fill this many slots; returns when a call has started in each of them."""
        started = [Path(f"{self.path}-{number}") for number in range(count)]
        futures = [executor.submit(wait_for_file, str(self.path), str(path)) for path in started]
        assert eventually(lambda: all(path.exists() for path in started))
        return futures

    def open(self) -> None:
        self.path.touch()


@pytest.fixture
def gate(tmp_path: Path) -> Iterator[Gate]:
    made = Gate(tmp_path)
    yield made
    made.open()


def add(x: Any, y: Any = 1) -> Any:
    return x + y


def fail(text: str) -> None:
    raise ValueError(text)


# ---------------------------------------------------------------- outcomes


def test_results_and_arguments(ex: FuturesExecutor) -> None:
    future = ex.submit(add, 1)
    assert future.result(LIMIT_S) == 2
    assert future.done() and not future.running() and not future.cancelled()
    assert future.exception(0) is None
    assert ex.submit(add, "a", y="b").result(LIMIT_S) == "ab"
    assert ex.submit(lambda *a, **k: (a, k), 1, fn=2, self=3).result(LIMIT_S) == ((1,), {"fn": 2, "self": 3})
    assert ex.submit(os.getpid).result(LIMIT_S) != os.getpid()


def test_result_is_decoded_once(ex: FuturesExecutor) -> None:
    future = ex.submit(list, (1, 2))
    assert future.result(LIMIT_S) is future.result(LIMIT_S)


def test_exception_comes_back_as_itself_with_its_remote_traceback(ex: FuturesExecutor) -> None:
    future = ex.submit(fail, "no luck")
    with pytest.raises(ValueError, match="no luck") as caught:
        future.result(LIMIT_S)
    assert type(caught.value) is ValueError
    assert future.exception(0) is caught.value
    text = str(caught.value.__cause__)
    assert "in fail" in text and "raise ValueError(text)" in text
    assert "in fail" in "".join(traceback.format_exception(caught.value))


class Custom(Exception):
    def __init__(self, number: int, text: str) -> None:
        super().__init__(text)
        self.number = number

    def __reduce__(self) -> tuple[Any, ...]:
        return Custom, (self.number, str(self))


class Lopsided(Exception):
    """Its initialiser wants more than its pickle gives, and its argument cannot be pickled."""

    def __init__(self, one: int, two: int) -> None:
        super().__init__("lopsided", threading.Lock())


def raise_custom() -> None:
    raise Custom(7, "seven")


def raise_lopsided() -> None:
    raise Lopsided(1, 2)


def raise_with_lock() -> None:
    raise RuntimeError("holds a lock", threading.Lock())


def test_custom_exception_keeps_its_attributes(ex: FuturesExecutor) -> None:
    error = ex.submit(raise_custom).exception(LIMIT_S)
    assert isinstance(error, Custom) and error.number == 7


@pytest.mark.parametrize(("function", "name"), [(raise_lopsided, "Lopsided"), (raise_with_lock, "RuntimeError")])
def test_exception_that_cannot_travel_is_told_in_words(ex: FuturesExecutor, function: Callable[[], None], name: str) -> None:
    error = ex.submit(function).exception(LIMIT_S)
    assert isinstance(error, RemoteError)
    assert name in str(error) and function.__name__ in str(error) + str(error.__cause__)


def exit_with(code: int) -> None:
    raise SystemExit(code)


def test_sys_exit_is_an_exception_and_ends_no_process(ex: FuturesExecutor) -> None:
    pids = {ex.submit(os.getpid).result(LIMIT_S) for _ in range(10)}
    with pytest.raises(SystemExit) as caught:
        ex.submit(exit_with, 3).result(LIMIT_S)
    assert caught.value.code == 3
    assert pids & {ex.submit(os.getpid).result(LIMIT_S) for _ in range(10)}


# ---------------------------------------------------------------- what cannot be sent


def test_unpicklable_argument_names_it(ex: FuturesExecutor) -> None:
    with pytest.raises(UnpicklableError, match="argument 2 of add"):
        ex.submit(add, 1, threading.Lock())
    assert ex.submit(add, 1).result(LIMIT_S) == 2


def test_unpicklable_function_names_what_it_captures(ex: FuturesExecutor) -> None:
    lock = threading.Lock()
    with pytest.raises(UnpicklableError, match="lock"):
        ex.submit(lambda: lock)


def make_lock() -> Any:
    return threading.Lock()


def test_unpicklable_result_names_function_and_type(ex: FuturesExecutor) -> None:
    with pytest.raises(UnpicklableError, match=r"make_lock.*lock"):
        ex.submit(make_lock).result(LIMIT_S)


def import_what_is_not_there() -> None:
    import a_module_that_is_nowhere  # noqa: F401


def test_missing_module_is_named(ex: FuturesExecutor) -> None:
    with pytest.raises(ModuleNotFoundError, match="a_module_that_is_nowhere"):
        ex.submit(import_what_is_not_there).result(LIMIT_S)


class RaisesWhenUnpickled:
    def __reduce__(self) -> tuple[Any, ...]:
        return fail, ("raised while unpickling",)


def test_argument_that_fails_to_unpickle_there(ex: FuturesExecutor) -> None:
    with pytest.raises(ValueError, match="raised while unpickling"):
        ex.submit(id, RaisesWhenUnpickled()).result(LIMIT_S)


def test_result_that_fails_to_unpickle_here(ex: FuturesExecutor) -> None:
    future = ex.submit(RaisesWhenUnpickled)
    with pytest.raises(ValueError, match="raised while unpickling"):
        future.result(LIMIT_S)
    assert ex.submit(add, 1).result(LIMIT_S) == 2


# ---------------------------------------------------------------- callbacks


def test_callbacks_run_in_order_and_a_failing_one_is_logged(
    ex: FuturesExecutor, gate: Gate, caplog: pytest.LogCaptureFixture
) -> None:
    blocked = gate.block(ex)
    future = ex.submit(add, 4)
    seen: list[Any] = []
    ended = threading.Event()

    def exit_loop(_: Any) -> None:
        raise SystemExit("callbacks must not end the manager")

    future.add_done_callback(lambda f: seen.append(("first", f.result())))
    future.add_done_callback(lambda f: fail("callback failed"))
    future.add_done_callback(exit_loop)
    future.add_done_callback(lambda f: seen.append(("last", f is future)))
    future.add_done_callback(lambda f: ended.set())
    with caplog.at_level(logging.ERROR, "concurrent.futures"):
        gate.open()
        assert ended.wait(LIMIT_S)
    assert seen == [("first", 5), ("last", True)]
    assert "callback failed" in caplog.text and "callbacks must not end" in caplog.text
    future.add_done_callback(lambda f: seen.append(threading.current_thread()))
    assert seen[-1] is threading.current_thread()
    wait(blocked, LIMIT_S)
    assert ex.submit(add, 1).result(LIMIT_S) == 2


def test_blocking_call_in_a_callback_is_refused_at_once(ex: FuturesExecutor, gate: Gate, tmp_path: Path) -> None:
    short = Gate(tmp_path)
    (first,) = short.block(ex, 1)
    (other,) = gate.block(ex, 1)
    caught: list[BaseException] = []
    ended = threading.Event()

    def ask(_: Any) -> None:
        for blocking in (other.result, other.exception, ex.shutdown):
            try:
                blocking()
            except UsageError as error:
                caught.append(error)
        ended.set()

    first.add_done_callback(ask)
    short.open()
    assert ended.wait(LIMIT_S)
    assert len(caught) == 3 and all("done-callback" in str(error) for error in caught)
    assert not other.done()
    gate.open()
    assert isinstance(other.result(LIMIT_S), int)
    # Refused as a whole: the executor still takes calls.
    assert ex.submit(add, 1).result(LIMIT_S) == 2


def test_large_result_can_be_read_in_a_callback(ex: FuturesExecutor) -> None:
    box: list[Any] = []
    ended = threading.Event()

    def read(future: Any) -> None:
        try:
            box.append(int(future.result().sum()))
        finally:
            ended.set()

    ex.submit(np.ones, 200_000).add_done_callback(read)
    assert ended.wait(LIMIT_S)
    assert box == [200_000]


# ---------------------------------------------------------------- cancelling


def test_waiting_call_is_cancelled_and_never_runs(ex: FuturesExecutor, gate: Gate, tmp_path: Path) -> None:
    blocked = gate.block(ex)
    # As many as a worker may hold beside what it runs.
    held = [ex.submit(wait_for_file, str(gate.path)) for _ in range(2)]
    trace = tmp_path / "ran"
    future = ex.submit(Path.touch, trace)
    called: list[Any] = []
    future.add_done_callback(called.append)
    dependent = ex.submit(add, future)
    assert future.cancel() and future.cancelled() and future.done()
    assert future.cancel()
    assert called == [future]
    with pytest.raises(CancelledError):
        future.result(0)
    with pytest.raises(CancelledError):
        future.exception(0)
    with pytest.raises(CancelledError):
        dependent.result(LIMIT_S)
    assert not blocked[0].cancel()
    gate.open()
    assert all(isinstance(f.result(LIMIT_S), int) for f in blocked + held)
    assert not blocked[0].cancel()
    assert ex.submit(add, 1).result(LIMIT_S) == 2
    assert not trace.exists()


def test_shutdown_cancels_what_waits(tmp_path: Path) -> None:
    gate = Gate(tmp_path)
    executor = FuturesExecutor(max_workers=1)
    blocked = gate.block(executor, 1)
    waiting = [executor.submit(add, i) for i in range(20)]
    executor.shutdown(wait=False, cancel_futures=True)
    with pytest.raises(RuntimeError, match="after shutdown"):
        executor.submit(add, 1)
    done, _ = wait(waiting, LIMIT_S, FIRST_COMPLETED)
    assert done
    gate.open()
    executor.shutdown(wait=True)
    assert isinstance(blocked[0].result(0), int)
    assert all(future.done() for future in waiting)
    # One or two of them may have been sent to the worker already.
    assert sum(future.cancelled() for future in waiting) >= 18


def test_shutdown_waits_for_everything() -> None:
    executor = FuturesExecutor(max_workers=2)
    futures = [executor.submit(add, i) for i in range(500)]
    executor.shutdown()
    assert [future.result(0) for future in futures] == list(range(1, 501))
    with pytest.raises(RuntimeError, match="cannot schedule new futures after shutdown"):
        executor.submit(add, 1)
    executor.shutdown()
    executor.shutdown(wait=False, cancel_futures=True)


# ---------------------------------------------------------------- timeouts, wait, as_completed, map


def test_timeouts(ex: FuturesExecutor, gate: Gate) -> None:
    blocked = gate.block(ex)
    future = ex.submit(add, 1)
    with pytest.raises(TimeoutError):
        future.result(0.01)
    with pytest.raises(TimeoutError):
        future.exception(0)
    done, waiting = wait([future, *blocked], 0.01)
    assert not done and waiting == {future, *blocked}
    with pytest.raises(TimeoutError):
        list(as_completed([future], 0.01))
    with pytest.raises(TimeoutError):
        list(ex.map(add, [1, 2], timeout=0.01))
    gate.open()
    assert future.result(LIMIT_S) == 2


def test_wait_and_as_completed(ex: FuturesExecutor) -> None:
    futures = [ex.submit(add, i) for i in range(50)]
    assert {future.result(0) for future in as_completed(futures, LIMIT_S)} == set(range(1, 51))
    bad = ex.submit(fail, "first")
    done, _ = wait([bad], LIMIT_S, FIRST_EXCEPTION)
    assert done == {bad}


def test_map(ex: FuturesExecutor) -> None:
    assert list(ex.map(add, range(5), range(5))) == [0, 2, 4, 6, 8]
    assert list(ex.map(add, range(10), chunksize=3)) == list(range(1, 11))
    assert list(ex.map(add, [], chunksize=4)) == []
    with pytest.raises(ValueError, match="chunksize"):
        ex.map(add, [1], chunksize=0)
    results = ex.map(operator.truediv, [1, 1, 1], [1, 0, 1])
    assert next(results) == 1
    with pytest.raises(ZeroDivisionError):
        next(results)


@pytest.mark.parametrize("chunksize", [1, 3])
def test_map_with_a_bound(ex: FuturesExecutor, chunksize: int) -> None:
    taken: list[int] = []
    source = (taken.append(number) or number for number in range(30))
    results = ex.map(add, source, itertools.repeat(1), chunksize=chunksize, buffersize=np.int64(2))
    assert len(taken) == 2 * chunksize
    assert next(results) == 1 and len(taken) == 3 * chunksize
    assert list(results) == list(range(2, 31))
    assert list(ex.map(add, [], chunksize=chunksize, buffersize=5)) == []
    assert list(ex.map(add, [1], chunksize=chunksize, buffersize=5, timeout=LIMIT_S)) == [2]


def test_map_with_a_bound_ends_in_time(ex: FuturesExecutor, gate: Gate) -> None:
    gate.block(ex)
    results = ex.map(add, itertools.count(), buffersize=3, timeout=0)
    with pytest.raises(TimeoutError):
        next(results)
    assert list(results) == []


@pytest.mark.parametrize("chunksize", [1, 3])
@pytest.mark.parametrize(
    ("options", "kind"),
    [
        ({"foo": 1}, TypeError),
        ({"buffersize": "x"}, TypeError),
        ({"buffersize": 1.5}, TypeError),
        ({"buffersize": 0}, ValueError),
        ({"timeout": "x"}, TypeError),
    ],
)
def test_map_refuses(ex: FuturesExecutor, chunksize: int, options: dict[str, Any], kind: type[Exception]) -> None:
    (name,) = options
    with pytest.raises(kind, match=name):
        ex.map(add, [1], chunksize=chunksize, **options)


@pytest.mark.parametrize(
    ("chunksize", "kind"),
    [(2.5, TypeError), ("2", TypeError), (float("nan"), TypeError), (None, TypeError), (10**30, ValueError), (-1, ValueError)],
)
def test_map_refuses_chunks(ex: FuturesExecutor, chunksize: Any, kind: type[Exception]) -> None:
    with pytest.raises(kind, match="chunksize must be"):
        ex.map(add, [1], chunksize=chunksize)


@pytest.mark.parametrize("timeout", ["x", [], float("nan")])
def test_timeouts_that_are_none(ex: FuturesExecutor, timeout: Any) -> None:
    future = ex.submit(add, 1)
    for ask in (future.result, future.exception):
        with pytest.raises(TypeError, match="a timeout is a number of seconds or None, not"):
            ask(timeout)
    assert future.result(float("inf")) == 2 and future.exception(10**400) is None


@pytest.mark.parametrize("count", [0, -1])
def test_constructor_refuses(count: int) -> None:
    with pytest.raises(ValueError, match="max_workers must be greater than 0"):
        FuturesExecutor(max_workers=count)
    with pytest.raises(UsageError, match="number"):
        FuturesExecutor(max_workers="two")  # type: ignore[arg-type]


# ---------------------------------------------------------------- futures as arguments


def flatten(tree: Any, *, more: Any = ()) -> Any:
    return tree, more


def test_futures_at_any_depth(ex: FuturesExecutor, gate: Gate) -> None:
    done = ex.submit(add, 1)
    assert done.result(LIMIT_S) == 2
    gate.block(ex)
    later = ex.submit(add, 10)
    future = ex.submit(flatten, [done, {"k": (later, done)}], more={"x": [later]})
    direct = ex.submit(add, later, y=later)
    gate.open()
    assert future.result(LIMIT_S) == ([2, {"k": (11, 2)}], {"x": [11]})
    assert direct.result(LIMIT_S) == 22


def test_chain_of_futures(ex: FuturesExecutor) -> None:
    future = ex.submit(add, 0)
    for _ in range(300):
        future = ex.submit(add, future)
    assert future.result(LIMIT_S) == 301


def test_future_of_a_failed_call_fails_with_the_same_error(ex: FuturesExecutor) -> None:
    bad = ex.submit(fail, "root cause")
    early = ex.submit(add, bad)
    assert isinstance(bad.exception(LIMIT_S), ValueError)
    for dependent in (early, ex.submit(add, 1, bad), ex.submit(flatten, [early])):
        with pytest.raises(ValueError, match="root cause"):
            dependent.result(LIMIT_S)


def test_future_of_another_executor_is_refused(ex: FuturesExecutor) -> None:
    with FuturesExecutor(max_workers=1) as other:
        foreign = other.submit(add, 1)
        with pytest.raises(UsageError, match=r"another executor.*result\(\)"):
            ex.submit(add, [foreign])
        assert ex.submit(add, foreign.result(LIMIT_S)).result(LIMIT_S) == 3


def test_future_cannot_be_captured_by_a_function(ex: FuturesExecutor) -> None:
    future = ex.submit(add, 1)
    with pytest.raises(UnpicklableError, match="VineFuture"):
        ex.submit(lambda: future)


def objects_of(executor: FuturesExecutor) -> list[str]:
    """Names of the objects in the store of the embedded worker."""
    (worker,) = executor.engine.call_in_loop(lambda: list(executor.engine.machine.state.workers.values()))
    return [path.name for path in Path(worker.hello.store).iterdir() if not path.name.startswith(".")]


def test_large_value_stays_on_the_worker_and_goes_with_its_future(ex: FuturesExecutor) -> None:
    assert eventually(lambda: not objects_of(ex))
    array = ex.submit(np.arange, 500_000)
    total = ex.submit(np.sum, array)
    assert total.result(LIMIT_S) == 500_000 * 499_999 // 2
    assert array._decoded is not array.entry and array.entry.value is None
    assert not ex.engine.loop.objects
    assert len(objects_of(ex)) == 1
    # Asked for, it comes; the value outlives the future that brought it.
    value = array.result(LIMIT_S)
    del array
    gc.collect()
    assert eventually(lambda: not objects_of(ex))
    assert value[-1] == 499_999
    value[0] = 5


def test_dropped_future_frees_its_value_when_it_ends_later(ex: FuturesExecutor, gate: Gate) -> None:
    assert eventually(lambda: not objects_of(ex))
    blocked = gate.block(ex)
    dropped = ex.submit(np.ones, 100_000)
    total = ex.submit(np.sum, dropped)
    del dropped
    gate.open()
    assert total.result(LIMIT_S) == 100_000
    wait(blocked, LIMIT_S)
    assert eventually(lambda: not objects_of(ex))


# ---------------------------------------------------------------- large and mutable values


def digest(data: Any) -> tuple[int, Any]:
    return len(data), data[0] + data[-1]


def test_large_arguments_are_sent_as_they_were(ex: FuturesExecutor, gate: Gate) -> None:
    gate.block(ex)
    text = bytearray(b"x" * 100_000)
    array = np.ones(625_000)
    small = np.ones(10)
    items = [1, 2]
    futures = [ex.submit(digest, data) for data in (text, array, small, items)]
    text[0] = 0
    array[:] = 7
    small[:] = 7
    items[0] = 9
    gate.open()
    assert [future.result(LIMIT_S) for future in futures] == [(100_000, 240), (625_000, 2.0), (10, 2.0), (2, 3)]
    del futures
    # The copies that were kept for sending are dropped.
    assert eventually(lambda: not ex.engine.loop.objects)


def test_large_results(ex: FuturesExecutor) -> None:
    value = ex.submit(np.full, 1_250_000, 3.0).result(LIMIT_S)
    assert value.shape == (1_250_000,) and value.sum() == 3_750_000
    value[:] = 0
    assert ex.submit(bytes, 300_000).result(LIMIT_S) == bytes(300_000)
    assert len(ex.submit(list, range(50_000)).result(LIMIT_S)) == 50_000


def test_large_function(ex: FuturesExecutor) -> None:
    table = bytes(range(256)) * 1000
    assert ex.submit(lambda i: table[i], 255).result(LIMIT_S) == 255


def double_in_place(data: Any) -> Any:
    data *= 2
    return data.sum()


@pytest.mark.parametrize("size", [10, 200_000])
def test_changing_an_argument_changes_no_other_call(ex: FuturesExecutor, size: int) -> None:
    shared = ex.submit(np.ones, size)
    totals = [ex.submit(double_in_place, shared) for _ in range(6)]
    assert [total.result(LIMIT_S) for total in totals] == [2 * size] * 6
    value = shared.result(LIMIT_S)
    value[:] = 9
    assert ex.submit(np.sum, shared).result(LIMIT_S) == size


# ---------------------------------------------------------------- concurrency


def meet(directory: str, name: str, count: int) -> int:
    """Return when ``count`` calls are in here at the same time."""
    Path(directory, name).touch()
    until = time.monotonic() + LIMIT_S
    while len(list(Path(directory).iterdir())) < count:
        if time.monotonic() > until:
            raise RuntimeError("the others never came")
        time.sleep(0.002)
    return os.getpid()


def test_two_long_calls_run_at_the_same_time(ex: FuturesExecutor, tmp_path: Path) -> None:
    pids = {ex.submit(meet, str(tmp_path), str(i), 2) for i in range(2)}
    assert len({future.result(LIMIT_S) for future in pids}) == 2


def test_fast_calls_do_not_wait_for_a_slow_one(ex: FuturesExecutor, gate: Gate) -> None:
    # Teaches that these are fast, so that many of them travel together.
    assert sum(ex.map(add, range(2000))) == 2_001_000
    before = [ex.submit(add, i) for i in range(500)]
    slow = ex.submit(wait_for_file, str(gate.path))
    after = [ex.submit(add, i) for i in range(500)]
    # The gate opens only when all of these are here: a result held up by the slow call would end the test.
    _, waiting = wait(before + after, LIMIT_S / 2)
    assert not waiting and not slow.done()
    gate.open()
    assert slow.result(LIMIT_S)


def test_submit_from_several_threads(ex: FuturesExecutor) -> None:
    totals: list[int] = []

    def work() -> None:
        totals.append(sum(future.result(LIMIT_S) for future in [ex.submit(add, i) for i in range(1000)]))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(LIMIT_S)
    assert totals == [500_500] * 4


def test_several_threads_ask_for_one_result(ex: FuturesExecutor) -> None:
    for size in (10, 100_000):
        future = ex.submit(np.ones, size)
        found: list[Any] = []
        threads = [threading.Thread(target=lambda: found.append(future.result(LIMIT_S))) for _ in range(4)]  # noqa: B023
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(LIMIT_S)
        assert [value.sum() for value in found] == [size] * 4


def test_engine_runs_two_executors_of_one_process() -> None:
    with FuturesExecutor(max_workers=1) as one, FuturesExecutor(max_workers=1) as two:
        assert one.submit(add, 1).result(LIMIT_S) + two.submit(add, 2).result(LIMIT_S) == 5


def test_future_cannot_be_finished_from_outside(ex: FuturesExecutor) -> None:
    future = ex.submit(add, 1)
    for attempt in (lambda: future.set_result(1), lambda: future.set_exception(None), future.set_running_or_notify_cancel):
        with pytest.raises(UsageError, match="belongs to the engine"):
            attempt()
    assert future.result(LIMIT_S) == 2
    assert "VineFuture add finished" in repr(future)
