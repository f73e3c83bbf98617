"""Signals that end a worker: whichever it is and whenever it comes, it leaves in good order and says why."""

from __future__ import annotations

import os
import select
import signal
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.kit.calls import add, eventually, finish
from tests.kit.processes import LIMIT_S, Worker
from vinecore import FunctionCall, Manager

# This process and its workers look for secrets and settings below the test's directory only.
pytestmark = pytest.mark.usefixtures("home")

ENDS = [signal.SIGTERM, signal.SIGINT, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2, signal.SIGHUP]


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def signalled_at_import_of(module: str, number: int) -> tuple[str, str]:
    """How to start a worker that gets a signal when it begins to import this."""
    lines = (
        "import os, sys",
        "class Finder:",
        "    def find_spec(self, name, *others):",
        f"        if name == {module!r}:",
        f"            os.kill(os.getpid(), {int(number)})",
        "sys.meta_path.insert(0, Finder())",
        "from vinecore.cli.worker import main",
        "sys.exit(main())",
    )
    return "-c", "\n".join(lines)


@pytest.mark.parametrize("number", ENDS)
def test_a_served_worker_says_which_signal_it_got(start: Callable[..., Worker], number: signal.Signals) -> None:
    with Manager(port=0) as manager:
        worker = start("127.0.0.1", manager.port, "--cores", 1)
        assert eventually(lambda: manager.stats.workers_connected == 1)
        worker.process.send_signal(number)
        assert worker.ended() == 0 and worker.err == ""
        assert worker.out.endswith(f"vine_worker: left the manager: got {number.name}\n"), worker.out
    assert list(worker.tmp.iterdir()) == []


@pytest.mark.parametrize("number", ENDS)
def test_a_signal_while_the_worker_is_still_imported(start: Callable[..., Worker], number: signal.Signals) -> None:
    code = signalled_at_import_of("vinecore.shell.worker_loop", number)
    worker = start("127.0.0.1", free_port(), "--no-authentication", code=code)
    assert worker.ended() == 0 and worker.err == ""
    assert worker.out == f"vine_worker: got {number.name} before a manager answered\n"
    assert list(worker.tmp.iterdir()) == []


@pytest.mark.parametrize("number", ENDS)
def test_a_signal_while_nobody_answers(start: Callable[..., Worker], number: signal.Signals) -> None:
    """Whatever listens there says nothing at all: a signal must not wait for the handshake's limit."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(LIMIT_S)
        worker = start("127.0.0.1", listener.getsockname()[1], "--no-authentication")
        connection, _ = listener.accept()
        worker.process.send_signal(number)
        assert worker.ended(5.0) == 0 and worker.err == ""
        connection.close()
    assert worker.out.endswith(f"vine_worker: got {number.name} before a manager answered\n"), worker.out
    assert list(worker.tmp.iterdir()) == []


def test_a_signal_ends_the_wait_for_a_secret(start: Callable[..., Worker]) -> None:
    worker = start("127.0.0.1", free_port())
    assert eventually(lambda: "there is no secret at" in worker.out)
    worker.process.terminate()
    assert worker.ended(10.0) == 0 and worker.err == ""
    assert worker.out.endswith("vine_worker: got SIGTERM before a manager answered\n"), worker.out
    assert list(worker.tmp.iterdir()) == []


def test_a_signal_while_the_next_manager_is_waited_for(start: Callable[..., Worker]) -> None:
    with Manager(port=0) as manager:
        worker = start("127.0.0.1", manager.port, "--min-backoff", 0.05)
        assert eventually(lambda: manager.stats.workers_connected == 1)
    assert eventually(lambda: "no manager answers at" in worker.out)
    worker.process.terminate()
    assert worker.ended() == 0 and worker.err == ""
    assert worker.out.count("left the manager: ") == 1
    assert worker.out.endswith("vine_worker: got SIGTERM before another manager answered\n"), worker.out


def test_an_embedded_worker_says_nothing_of_an_early_signal(start: Callable[..., Worker]) -> None:
    """Its lines would stand among those of the program that it belongs to."""
    code = signalled_at_import_of("vinecore.shell.worker_loop", signal.SIGTERM)
    worker = start("127.0.0.1", free_port(), "--no-authentication", "--lifeline-fd", 0, code=code)
    assert worker.ended() == 0 and worker.out == worker.err == ""


def test_a_worker_below_nohup_outlives_its_terminal(start: Callable[..., Worker]) -> None:
    with Manager(port=0) as manager:
        worker = start("127.0.0.1", manager.port, "--cores", 1, prefix=("nohup",))
        assert eventually(lambda: manager.stats.workers_connected == 1)
        status = Path(f"/proc/{worker.process.pid}/status").read_text()
        (ignored,) = [int(line.split()[1], 16) for line in status.splitlines() if line.startswith("SigIgn:")]
        assert ignored & 1 << signal.SIGHUP - 1
        worker.process.send_signal(signal.SIGHUP)
        manager.install_library(manager.create_library_from_functions("lib", add, exec_mode="direct"))
        assert finish(manager, FunctionCall("lib", "add", 1)) == [2]
        worker.process.terminate()
        assert worker.ended() == 0


def test_a_signal_while_the_gpus_are_counted(start: Callable[..., Worker], tmp_path: Path) -> None:
    """The tool that lists them hangs, with a child that has its pipe too."""
    tool = tmp_path / "bin" / "nvidia-smi"
    tool.parent.mkdir()
    os.mkfifo(tmp_path / "gate")
    tool.write_text(f"#!/bin/sh\n(read line < {tmp_path}/gate)\n")
    tool.chmod(0o755)
    worker = start("127.0.0.1", free_port(), "--no-authentication", PATH=f"{tool.parent}{os.pathsep}{os.environ['PATH']}")
    # Opened: it waits there.
    gate = os.open(tmp_path / "gate", os.O_WRONLY)
    try:
        worker.process.terminate()
        assert worker.ended(5.0) == 0 and worker.err == ""
        assert worker.out == "vine_worker: got SIGTERM before a manager answered\n"
        nobody = select.poll()
        nobody.register(gate, 0)
        assert nobody.poll(5000) == [(gate, select.POLLERR)], "the child still waits"
    finally:
        os.close(gate)
    assert list(worker.tmp.iterdir()) == []
