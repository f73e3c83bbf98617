"""What a ``FuturesExecutor`` keeps when it ends: the results, also large ones, of every future that somebody holds."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import wait
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import vinecore.api.homecoming
from daskvine import FuturesExecutor
from tests.kit.calls import LIMIT_S, eventually
from tests.kit.fleet import fleet
from tests.kit.processes import Script, Worker, private_home
from vinecore import Manager
from vinecore.api.waiting import FileWaiter
from vinecore.errors import FileLost, UnpicklableError

LARGE = 3_000_000


@pytest.fixture
def brought(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the calls whose values a shutdown asks for."""
    names: list[str] = []

    class Counted(FileWaiter):
        def ask(self) -> None:
            names.append(self.name)
            super().ask()

    monkeypatch.setattr(vinecore.api.homecoming, "FileWaiter", Counted)
    return names


@pytest.mark.parametrize("by_link", [False, True])
@pytest.mark.parametrize("how", ["block", "wait", "by itself"])
def test_results_outlive_the_executor(how: str, by_link: bool) -> None:
    ex = FuturesExecutor(max_workers=2)
    ex.engine.machine.state.never_map = by_link
    futures = [ex.submit(bytes, size) for size in (10, 100_000, LARGE)]
    array = ex.submit(np.ones, LARGE)
    total = ex.submit(np.sum, array)
    values, chunks = ex.map(bytes, [10, LARGE]), ex.map(bytes, [10, LARGE, 5], chunksize=2)
    if how == "block":
        with ex:
            pass
    else:
        ex.shutdown(wait=how == "wait")
    assert eventually(lambda: ex.engine.closed)
    assert [len(future.result(LIMIT_S)) for future in futures] == [10, 100_000, LARGE]
    assert total.result(0) == LARGE
    assert array.result(0) is array.result(0)
    array.result(0)[0] = 7
    assert [len(value) for value in values] == [10, LARGE]
    assert [len(value) for value in chunks] == [10, LARGE, 5]


def divide(size: int) -> bytes:
    return bytes(size // 0)


def test_only_what_somebody_may_still_ask_for_is_brought(brought: list[str]) -> None:
    with FuturesExecutor(max_workers=2) as ex:
        kept, read, failed = ex.submit(np.zeros, LARGE), ex.submit(np.ones, LARGE), ex.submit(divide, LARGE)
        assert read.result(LIMIT_S)[0] == 1
        total = ex.submit(np.sum, ex.submit(np.arange, LARGE))
        ex.submit(np.empty, LARGE)
    assert brought == ["zeros"]
    assert total.result(0) == LARGE * (LARGE - 1) // 2
    assert isinstance(failed.exception(0), ZeroDivisionError)
    assert not kept.result(0).any()


def test_a_manager_of_the_user_keeps_its_values(brought: list[str]) -> None:
    with Manager(local_cores=1) as m:
        with FuturesExecutor(manager=m) as ex:
            future = ex.submit(bytes, LARGE)
        assert not brought and len(future.result(LIMIT_S)) == LARGE


class RaisesWhenRebuilt:
    def __init__(self) -> None:
        self.data = bytes(LARGE)

    def __reduce__(self) -> tuple[Any, ...]:
        return divide, (self.data,)


def test_a_value_that_cannot_be_rebuilt_is_told_when_it_is_asked_for() -> None:
    with FuturesExecutor(max_workers=1) as ex:
        bad, good = ex.submit(RaisesWhenRebuilt), ex.submit(bytes, LARGE)
    for _ in range(2):
        with pytest.raises(UnpicklableError, match="the result of RaisesWhenRebuilt came back, but could not be rebuilt here"):
            bad.result(0)
    assert bad.exception(0) is None
    assert len(good.result(0)) == LARGE


# ---------------------------------------------------------------- workers that are lost


def noted(path: str, size: int) -> bytes:
    with open(path, "a") as file:
        print(os.getpid(), file=file)
    return bytes(size)


def test_a_value_that_was_lost_with_its_worker_is_made_again(tmp_path: Path) -> None:
    with FuturesExecutor(max_workers=1) as ex:
        future = ex.submit(noted, str(tmp_path / "runs"), LARGE)
        wait([future], LIMIT_S)
        assert ex.engine.embedded is not None
        (number,) = ex.engine.machine.state.workers
        ex.engine.embedded.process.kill()
        # While the manager does not know, the files may still be there to be read.
        assert eventually(lambda: number not in ex.engine.machine.state.workers)
    assert len(future.result(0)) == LARGE
    assert len((tmp_path / "runs").read_text().splitlines()) == 2


@pytest.fixture
def start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Worker]]:
    """Start workers; those that still run at the end are killed."""
    private_home(tmp_path, monkeypatch)
    started: list[Worker] = []

    def one(*words: object, **options: Any) -> Worker:
        started.append(Worker(tmp_path, *words, **options))
        return started[-1]

    yield one
    for worker in started:
        worker.process.kill()
        worker.process.wait()


def test_values_are_given_up_when_no_worker_is_left(start: Callable[..., Worker], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vinecore.api.homecoming, "WORKERLESS_S", 0.1)
    with FuturesExecutor(port=0) as ex:
        (worker,) = fleet(ex.engine, start, 1)
        read = ex.submit(np.ones, LARGE)
        # More than are asked for at once.
        futures = [ex.submit(bytes, LARGE // 10) for _ in range(50)]
        assert read.result(LIMIT_S)[0] == 1
        wait(futures, LIMIT_S)
        worker.process.kill()
        worker.process.wait()
        assert eventually(lambda: not ex.engine.machine.state.workers)
    for future in futures:
        with pytest.raises(FileLost, match="the result of bytes is lost: no worker was there"):
            future.result(0)
    assert read.result(0)[1] == 1


def test_values_are_made_again_by_the_worker_that_is_left(start: Callable[..., Worker]) -> None:
    with FuturesExecutor(port=0) as ex:
        first = fleet(ex.engine, start, 1)[0]
        future = ex.submit(bytes, LARGE)
        wait([future], LIMIT_S)
        start("127.0.0.1", ex.engine.port, "--cores", 1)
        assert eventually(lambda: len(ex.engine.machine.state.workers) == 2)
        first.process.kill()
        assert eventually(lambda: len(ex.engine.machine.state.workers) == 1)
    assert len(future.result(0)) == LARGE


# ---------------------------------------------------------------- Ctrl-C


AGAIN = """
    import os, signal, time
    from daskvine import FuturesExecutor

    def noted(path):
        if os.path.exists(path):
            print("again", flush=True)
            time.sleep(600)
        open(path, "w").close()
        return bytes(1_000_000)

    if __name__ == "__main__":
        executor = FuturesExecutor(max_workers=2)
        good, bad = executor.submit(bytes, 1_000_000), executor.submit(noted, "noted")
        good.exception(), bad.exception()
        workers = executor.engine.machine.state.workers
        (number,) = workers
        executor.engine.embedded.process.kill()
        while number in workers:
            time.sleep(0.01)
        try:
            executor.shutdown()
        except KeyboardInterrupt:
            print("interrupted", executor.engine.closed, flush=True)
            try:
                bad.result()
            except Exception as error:
                print(type(error).__name__, flush=True)
"""


@pytest.fixture
def script(tmp_path: Path) -> Iterator[Callable[[str], Script]]:
    made: list[Script] = []

    def run(text: str) -> Script:
        made.append(Script(tmp_path, text))
        return made[-1]

    yield run
    for one in made:
        one.kill()


def test_interrupt_while_values_are_brought(script: Callable[[str], Script]) -> None:
    run = script(AGAIN)
    assert run.line() == "again"
    os.killpg(run.process.pid, signal.SIGINT)
    assert (run.line(), run.line()) == ("interrupted True", "LoopDied")
    out, err, code = run.end()
    assert (out, err, code) == ("", "", 0)
    assert run.left_after(2.0) == []


AT_EXIT = """
    import sys, threading
    import vinecore.api.homecoming
    from daskvine import FuturesExecutor

    asked = vinecore.api.homecoming.FileWaiter.ask
    vinecore.api.homecoming.FileWaiter.ask = lambda waiter: (print("brought", flush=True), asked(waiter))

    def read(future):
        threading.main_thread().join()
        print(len(future.result(30)), flush=True)

    if __name__ == "__main__":
        executor = FuturesExecutor(max_workers=1)
        future = executor.submit(bytes, 1_000_000)
        future.exception()
        if "{kind}" == "thread":
            threading.Thread(target=read, args=[future]).start()
"""


@pytest.mark.parametrize(("kind", "lines"), [("thread", ["brought", "1000000"]), ("nobody", [])])
def test_at_the_end_of_the_program(script: Callable[[str], Script], kind: str, lines: list[str]) -> None:
    """A thread of the user that goes on gets its value; where there is none, nothing is brought for nobody."""
    run = script(AT_EXIT.format(kind=kind))
    out, err, code = run.end()
    assert (out.split(), err, code) == (lines, "", 0)
    assert run.left_after(2.0) == []
