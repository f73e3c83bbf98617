"""Workers that leave on purpose hand over what only they hold; hosts can be drained and blocked; work moves off a busy worker."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from daskvine import DaskVine, FuturesExecutor

ROOT = Path(__file__).parents[2]
LIMIT_S = 30.0


def made(number: int) -> np.ndarray[Any, Any]:
    return np.full(200_000, float(number))


def total(*arrays: np.ndarray[Any, Any]) -> float:
    return float(sum(array.sum() for array in arrays))


def waited(flag: str, seconds: float) -> int:
    """Run until a file exists; returns the pid of the worker's slot's parent's parent: one number for each worker."""
    until = time.monotonic() + seconds
    while not Path(flag).exists() and time.monotonic() < until:
        time.sleep(0.01)
    return os.getpid()


def eventually(condition: Callable[[], Any]) -> bool:
    until = time.monotonic() + LIMIT_S
    while not condition():
        if time.monotonic() > until:
            return False
        time.sleep(0.02)
    return True


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.delenv("VINE_PORT", raising=False)
    return tmp_path


@pytest.fixture
def workers(home: Path) -> Iterator[Callable[[int], subprocess.Popen[bytes]]]:
    """Start workers of one core; what they say goes into the file ``said``."""
    started: list[subprocess.Popen[bytes]] = []

    def start(port: int) -> subprocess.Popen[bytes]:
        words = [sys.executable, "-m", "vinecore.cli.worker", "127.0.0.1", str(port), "--cores", "1"]
        with open(home / "said", "ab") as said:
            worker = subprocess.Popen(words, stdout=said, env={**os.environ, "PYTHONPATH": str(ROOT)})
        started.append(worker)
        return worker

    yield start
    for worker in started:
        worker.terminate()
    for worker in started:
        try:
            worker.wait(LIMIT_S)
        except subprocess.TimeoutExpired:
            worker.kill()
            worker.wait()


def connected(engine: Any) -> int:
    return int(engine.call_in_loop(lambda: len(engine.machine.state.workers)))


def holders(engine: Any) -> list[set[int]]:
    def look() -> list[set[int]]:
        return [set(file.on_workers) for file in engine.machine.state.held.values()]

    return list(engine.call_in_loop(look))


@pytest.mark.parametrize("how", ["SIGTERM", "SIGHUP", "drain"])
def test_a_worker_that_leaves_hands_over_what_only_it_holds(workers: Callable[[int], Any], home: Path, how: str) -> None:
    with DaskVine(port=0) as m, FuturesExecutor(manager=m) as ex:
        first = workers(m.port)
        assert eventually(lambda: connected(m.engine) == 1)
        futures = [ex.submit(made, number) for number in range(6)]
        assert eventually(lambda: all(future.done() for future in futures))
        workers(m.port)
        assert eventually(lambda: connected(m.engine) == 2)
        if how != "drain":
            first.send_signal(signal.Signals[how])
        else:
            leaving = min(m.engine.call_in_loop(lambda: set(m.engine.machine.state.workers)))
            from vinecore.manager.events import WorkerDrained

            m.engine.post(WorkerDrained(0.0, leaving))
        assert first.wait(LIMIT_S) == 0
        assert eventually(lambda: connected(m.engine) == 1)
        reruns = m.stats.tasks_recovery
        assert ex.submit(total, *futures).result(LIMIT_S) == 200_000.0 * sum(range(6))
        assert reruns == m.stats.tasks_recovery == 0, "nothing had to be made again"


def test_calls_of_a_leaving_worker_run_elsewhere(workers: Callable[[int], Any], home: Path) -> None:
    with FuturesExecutor(port=0) as ex:
        first = workers(ex.port)
        assert eventually(lambda: connected(ex.engine) == 1)
        flag = home / "go"
        futures = [ex.submit(waited, str(flag), LIMIT_S) for _ in range(3)]
        assert eventually(lambda: any(future.running() for future in futures))
        workers(ex.port)
        assert eventually(lambda: connected(ex.engine) == 2)
        first.send_signal(signal.SIGTERM)
        assert first.wait(LIMIT_S) == 0
        flag.touch()
        assert len({future.result(LIMIT_S) for future in futures}) == 1, "all of them ran in the one slot that was left"


def test_a_call_behind_a_long_one_moves_to_an_idle_worker(workers: Callable[[int], Any], home: Path) -> None:
    with FuturesExecutor(port=0) as ex:
        flag = home / "go"
        futures = [ex.submit(waited, str(flag), LIMIT_S), ex.submit(total, made(1))]
        workers(ex.port)
        assert eventually(futures[0].running)
        workers(ex.port)
        # The second call was placed behind the first; only the other worker can run it while the flag is not there.
        assert futures[1].result(LIMIT_S) == 200_000.0
        assert not futures[0].done()
        flag.touch()


def test_a_blocked_host_gets_no_work_until_it_is_unblocked(workers: Callable[[int], Any], home: Path) -> None:
    with DaskVine(port=0) as m, FuturesExecutor(manager=m) as ex:
        workers(m.port)
        assert eventually(lambda: connected(m.engine) == 1)
        m.block_host(socket.gethostname())
        future = ex.submit(total, made(2))
        with pytest.raises(TimeoutError):
            future.result(0.3)
        m.unblock_host()
        assert future.result(LIMIT_S) == 400_000.0


def test_idle_workers_can_be_told_to_end(workers: Callable[[int], Any], home: Path) -> None:
    with DaskVine(port=0) as m:
        worker = workers(m.port)
        assert eventually(lambda: connected(m.engine) == 1)
        assert m.workers_shutdown() == 1
        assert worker.wait(LIMIT_S) == 0
        assert "left the manager: the manager shut it down\n" in (home / "said").read_text()


def test_draining_by_hostname_ends_the_worker_when_it_is_empty(workers: Callable[[int], Any], home: Path) -> None:
    with DaskVine(port=0) as m, FuturesExecutor(manager=m) as ex:
        worker = workers(m.port)
        flag = home / "go"
        future = ex.submit(waited, str(flag), LIMIT_S)
        assert eventually(future.running)
        assert m.set_draining_by_hostname("no-such-host") == 0
        assert m.set_draining_by_hostname(socket.gethostname()) == 1
        assert worker.poll() is None
        flag.touch()
        assert future.result(LIMIT_S)
        assert worker.wait(LIMIT_S) == 0


def test_task_ids_can_begin_higher() -> None:
    with DaskVine(local_cores=1) as m, FuturesExecutor(manager=m) as ex:
        assert m.set_min_task_id(1000) == 1000
        assert ex.submit(total, made(1)).entry.task_id >= 1000
        assert m.set_min_task_id(5) > 1000


def test_a_password_set_later_is_asked_of_new_workers(
    workers: Callable[[int], Any], home: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with DaskVine(port=0) as m:
        m.set_password("another one")
        worker = workers(m.port)
        assert worker.wait(LIMIT_S) != 0, "it has the old secret"
        password = home / "password"
        password.write_text("another one\n")
        capfd.readouterr()
        assert m.set_password_file(str(home / "missing")) is False
        assert f"vine: set_password_file: there is no password file {home}/missing: create it" in capfd.readouterr().err
        assert m.set_password_file(str(password)) is True
