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


FULL = "this manager has as many workers as it may"


def full_manager() -> Manager:
    manager = Manager(port=0)
    manager.tune("max-workers", 0)
    return manager


def address(manager: Manager) -> str:
    return f"127.0.0.1:{manager.port}"


def test_one_that_is_full_is_passed_over(start: Callable[..., Worker]) -> None:
    """It was asked again and again, and the others never; it had answered, and was said not to."""
    with full_manager() as full, Manager(port=0) as free:
        places = f"{address(full)};{address(free)}"
        # Without a pause: that would be longer than this test waits.
        worker = start(places, "--cores", 1, "--single-shot", "--min-backoff", 10 * LIMIT_S, "--max-backoff", 10 * LIMIT_S)
        assert eventually(lambda: free.stats.workers_connected == 1), worker.out
        assert worker.out.count(f"vine_worker: left the manager: {FULL}\n") == 1
        assert "no manager" not in worker.out and "trying" not in worker.out
    assert worker.ended() == 0 and worker.err == ""


def test_when_all_are_full_each_is_asked_again_after_a_pause(start: Callable[..., Worker]) -> None:
    with full_manager() as one, full_manager() as two, socket.create_server(("127.0.0.1", 0)) as closed:
        gone = place(closed)
        closed.close()
        places = f"{address(one)};{gone};{address(two)}"
        worker = start(places, "--cores", 1, "--min-backoff", 0.3, "--max-backoff", 0.3, "--connect-timeout", 0.1)
        said = ", ".join((f"{address(one)} ({FULL})", f"{gone} (Connection refused)", f"{address(two)} ({FULL})"))
        assert eventually(lambda: f"no manager lets this worker in: {said}; trying again\n" in worker.out), worker.out
        # That is the end of the first round; the second one asks both.
        assert worker.out.partition("trying again")[0].count("left the manager") == 2
        assert eventually(lambda: worker.out.count("left the manager") >= 4), worker.out
        two.tune("max-workers", -1)
        assert eventually(lambda: two.stats.workers_connected == 1), worker.out
        assert worker.out.count("trying again") == 1 and "no manager answers" not in worker.out
        # It serves that one, then begins at the top of its list.
        one.tune("max-workers", -1)
        two.close()
        assert eventually(lambda: one.stats.workers_connected == 1), worker.out
        worker.process.terminate()
        assert worker.ended() == 0 and worker.err == ""


def test_a_single_shot_ends_when_all_are_full(start: Callable[..., Worker]) -> None:
    with full_manager() as one, full_manager() as two:
        worker = start(f"{address(one)};{address(two)}", "--cores", 1, "--single-shot")
        assert worker.ended() == 0 and worker.err == ""
        assert worker.out.count(f"left the manager: {FULL}\n") == 2
