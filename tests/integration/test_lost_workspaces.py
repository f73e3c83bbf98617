"""A worker whose workspace somebody removes leaves: what it had runs elsewhere, and bears no blame."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.kit.calls import LIMIT_S, eventually
from tests.kit.processes import Worker
from vinecore import FunctionCall, Manager, PythonTask, Task

# This process and its workers look for secrets and settings below the test's directory only.
pytestmark = pytest.mark.usefixtures("home")


def command(number: int) -> Task:
    return Task(f"echo {number}")


def python_task(number: int) -> PythonTask:
    return PythonTask(abs, -number)


def large_call(number: int) -> FunctionCall:
    return FunctionCall("lib", "full", 50_000, float(number))


def finish(manager: Manager, tasks: list[Any]) -> None:
    """All of them end well."""
    for _ in tasks:
        task = manager.wait(LIMIT_S)
        assert task is not None and task.successful(), task and (task.result, task.reason)


@pytest.mark.parametrize("make", [command, python_task, large_call])
def test_a_worker_whose_workspace_is_removed(start: Callable[..., Worker], tmp_path: Path, make: Callable[[int], Any]) -> None:
    with Manager(port=0) as manager:
        # Whatever is charged to a task ends it.
        assert manager.tune("max-losses", 0) == 0
        manager.install_library(manager.create_library_from_functions("lib", np.full, exec_mode="direct"))
        place = tmp_path / "space"
        worker = start("127.0.0.1", manager.port, "--cores", 1, "--workspace", place)
        first = make(0)
        manager.submit(first)
        finish(manager, [first])
        shutil.rmtree(place)
        tasks = [make(number) for number in range(10)]
        for task in tasks:
            manager.submit(task)
        assert worker.ended() == 1
        assert worker.err == f"vine_worker: its workspace {place} is gone\n"
        assert f"left the manager: its workspace {place} is gone" in worker.out
        start("127.0.0.1", manager.port, "--cores", 1)
        finish(manager, tasks)
        assert manager.stats.workers_lost == 0


def test_a_worker_without_work_notices_too(start: Callable[..., Worker], tmp_path: Path) -> None:
    with Manager(port=0) as manager:
        place = tmp_path / "space"
        worker = start("127.0.0.1", manager.port, "--workspace", place)
        assert eventually(lambda: manager.stats.workers_connected == 1)
        shutil.rmtree(place)
        assert worker.ended() == 1 and worker.err.count("\n") == 1 and f"its workspace {place} is gone" in worker.err


def test_an_embedded_worker_is_replaced(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    with Manager(local_cores=1) as manager:
        assert manager.tune("max-losses", 0) == 0
        first = command(0)
        manager.submit(first)
        finish(manager, [first])
        (place,) = tmp_path.glob("vine-worker-*")
        shutil.rmtree(place)
        tasks = [command(number) for number in range(10)]
        for task in tasks:
            manager.submit(task)
        finish(manager, tasks)
        assert manager.stats.workers_joined == 2
    assert f"vine_worker: its workspace {place} is gone" in capfd.readouterr().err


KEPT = ("objects", "libraries", "tmp", "sandboxes-x")


def filled(victim: Path) -> Path:
    """A directory with names in it that a workspace has too."""
    for name in KEPT:
        (victim / name).mkdir(parents=True)
        (victim / name / "precious").touch()
    return victim


def contents(victim: Path) -> list[str]:
    return sorted(str(path.relative_to(victim)) for path in victim.rglob("*"))


def put_link(victim: Path) -> Task:
    """A task that puts a link in the place of its worker's workspace, which it moves aside."""
    return Task(f"cd /; W=$(dirname $(dirname $VINE_SANDBOX)); mv $W $W.aside; ln -s {victim} $W")


@pytest.mark.parametrize("is_killed", [False, True])
def test_a_link_in_the_place_of_the_workspace_is_not_followed(
    start: Callable[..., Worker], tmp_path: Path, is_killed: bool
) -> None:
    victim = filled(tmp_path / "victim")
    before = contents(victim)
    with Manager(port=0) as manager:
        worker = start("127.0.0.1", manager.port, "--cores", 1)
        manager.submit(put_link(victim))
        # A worker that has lost its workspace notices within seconds, one that is killed leaves that to its guard.
        if is_killed:
            assert manager.wait(LIMIT_S) is not None
            worker.kill()
        else:
            assert worker.ended() == 1 and " is gone\n" in worker.err
    assert eventually(lambda: not list(worker.tmp.iterdir())), list(worker.tmp.iterdir())
    assert contents(victim) == before


def test_a_link_in_the_place_of_an_embedded_workers_workspace_is_not_followed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, home: Path
) -> None:
    victim = filled(tmp_path / "victim")
    before = contents(victim)
    (tmp_path / "tmp").mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    with Manager(local_cores=1) as manager:
        task = put_link(victim)
        manager.submit(task)
        assert manager.wait(LIMIT_S) is task
    assert eventually(lambda: not list((tmp_path / "tmp").iterdir())), list((tmp_path / "tmp").iterdir())
    assert contents(victim) == before
