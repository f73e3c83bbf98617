"""A worker that may choose among managers: those that do not answer or refuse it do not keep it from the others."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.kit.calls import eventually
from tests.kit.processes import LIMIT_S, Worker
from vinecore import Manager

# This process and its workers look for secrets and settings below the test's directory only.
pytestmark = pytest.mark.usefixtures("home")


@contextlib.contextmanager
def silent() -> Iterator[socket.socket]:
    """It takes connections and says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(LIMIT_S)
        yield listener


@contextlib.contextmanager
def dropping() -> Iterator[socket.socket]:
    """Its queue is full: it answers no packet of those that come."""
    with contextlib.ExitStack() as stack, socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        for _ in range(4):
            early = stack.enter_context(socket.socket())
            early.setblocking(False)
            early.connect_ex(listener.getsockname())
        yield listener


def place(listener: socket.socket) -> str:
    return f"127.0.0.1:{listener.getsockname()[1]}"


@pytest.mark.parametrize("kind", [silent, dropping])
def test_one_that_does_not_answer_is_passed_over(
    start: Callable[..., Worker], kind: Callable[[], contextlib.AbstractContextManager[socket.socket]]
) -> None:
    with Manager(port=0) as manager, kind() as listener:
        worker = start(f"{place(listener)};127.0.0.1:{manager.port}", "--connect-timeout", 2, "--cores", 1, "--single-shot")
        assert eventually(lambda: manager.stats.workers_connected == 1), worker.out
        assert f"vine_worker: no manager answers at {place(listener)} (no answer came); trying the next one\n" in worker.out
        if kind is silent:
            # It is told so: a manager would count this one as a worker that says nothing.
            with listener.accept()[0] as connection:
                connection.settimeout(LIMIT_S)
                while connection.recv(4096):
                    pass
    assert worker.ended() == 0 and worker.err == ""


def test_each_is_asked_before_the_worker_gives_up(start: Callable[..., Worker]) -> None:
    with silent() as one, silent() as two, silent() as three:
        listeners = [one, two, three]
        worker = start(";".join(map(place, listeners)), "--no-authentication", "--connect-timeout", 0.5)
        assert worker.ended() == 1
        for listener in listeners:
            listener.accept()[0].close()
        told = ", ".join(f"{place(listener)} (no answer came)" for listener in listeners)
        assert worker.err == f"vine_worker: no manager answered within 0.5 s at {told}\n"


def test_one_that_refuses_is_left_out(start: Callable[..., Worker], tmp_path: Path) -> None:
    for name in ("ours", "theirs"):
        (tmp_path / name).write_text(name)
    with Manager(port=0, password_file=str(tmp_path / "theirs")) as theirs:
        with Manager(port=0, password_file=str(tmp_path / "ours")) as ours:
            words = f"127.0.0.1:{theirs.port};127.0.0.1:{ours.port}", "--password", tmp_path / "ours", "--cores", 1
            worker = start(*words, "--single-shot")
            assert eventually(lambda: ours.stats.workers_connected == 1), worker.err
        assert worker.ended() == 0
        assert worker.err.startswith(f"vine_worker: 127.0.0.1:{theirs.port}: the manager's secret is another one than this ")
        assert worker.err.count("\n") == 1
        # Nobody is left to try.
        with Manager(port=0, password_file=str(tmp_path / "theirs")) as other:
            worker = start(f"127.0.0.1:{theirs.port};127.0.0.1:{other.port}", "--password", tmp_path / "ours")
            assert worker.ended() == 1
            assert [line.split(": ")[1] for line in worker.err.splitlines()] == [
                f"127.0.0.1:{theirs.port}",
                f"127.0.0.1:{other.port}",
            ]
    assert list(worker.tmp.iterdir()) == []
