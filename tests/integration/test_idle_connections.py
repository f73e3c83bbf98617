"""A thousand connections that say nothing, or stop half way: whoever knows the secret gets in, and memory stays small.

The managers and workers under attack are processes of their own, so that what they hold can be read from ``/proc``. 127.0.0.2 is
another address of this machine; honest workers come from 127.0.0.1.
"""

from __future__ import annotations

import contextlib
import os
import re
import resource
import select
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from daskvine import FuturesExecutor
from tests.kit.rogue import LIMIT_S, dial
from vinecore.shell import tls
from vinecore.wire import hello
from vinecore.wire.framing import FrameWriter
from vinecore.wire.handshake import BEFORE_AUTH_LIMIT_BYTES, HANDSHAKE_TIMEOUT_S, PENDING_PER_ADDRESS

ROOT = Path(__file__).parents[2]
COUNT = 1000
# What a thousand strangers may cost, with the noise of a process that does other things besides.
MOST_MB = 24
# A data link has two while TLS begins.
MOST_DESCRIPTORS = 2 * PENDING_PER_ADDRESS + 30
MOST_THREADS = PENDING_PER_ADDRESS + 10

OPENING = FrameWriter().write(hello.encode(hello.Opening("worker", "", True, b"n" * 32)))
# As much as a stranger can make the other side hold: a frame of the largest size that never ends.
LARGEST = BEFORE_AUTH_LIMIT_BYTES.to_bytes(4, "little") + bytes(BEFORE_AUTH_LIMIT_BYTES - 1)
PLAIN = {"silent": b"", "after the opening": OPENING, "with all it may send": LARGEST}
ENCRYPTED = {"silent": b"", "before TLS": tls.CONTROL_PREAMBLE, "before TLS, data": tls.DATA_PREAMBLE}

MANAGER = """
import sys
from daskvine import FuturesExecutor
with FuturesExecutor(port=0, ssl=sys.argv[1] == "tls") as ex:
    print(ex.port, flush=True)
    for line in sys.stdin:
        # A large argument travels over a data link.
        print(ex.submit(len, b"x" * int(line)).result(60), flush=True)
"""


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.delenv("VINE_PORT", raising=False)


@pytest.fixture(scope="module", autouse=True)
def descriptors() -> Iterator[None]:
    """This process holds the other ends."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = COUNT + 500
    if hard != resource.RLIM_INFINITY and hard < needed:
        pytest.skip(f"{needed} descriptors are needed, {hard} are allowed")
    if soft != resource.RLIM_INFINITY and soft < needed:
        resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


class Costs:
    """What a process holds, compared with what it held at first."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.first = self.now()

    def now(self) -> tuple[float, int, int]:
        """MB of memory, descriptors, threads."""
        status = Path(f"/proc/{self.pid}/status").read_text()
        found = [int(match[1]) for name in ("VmRSS", "Threads") if (match := re.search(rf"{name}:\s+(\d+)", status))]
        return found[0] / 1024, len(os.listdir(f"/proc/{self.pid}/fd")), found[1]

    def check(self) -> None:
        """Nothing has grown much."""
        memory, count, threads = (now - then for now, then in zip(self.now(), self.first, strict=True))
        assert memory < MOST_MB, f"{memory:.1f} MB more"
        assert count < MOST_DESCRIPTORS, f"{count} descriptors more"
        assert threads < MOST_THREADS, f"{threads} threads more"


def eventually(condition: Callable[[], Any], what: str, limit_s: float = LIMIT_S) -> None:
    until = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < until, what
        time.sleep(0.02)


@contextlib.contextmanager
def idle(port: int, source: str, data: bytes) -> Iterator[list[socket.socket]]:
    """A thousand connections that have said ``data`` and wait."""
    with contextlib.ExitStack() as stack:
        socks = []
        for _ in range(COUNT):
            sock, _binding = dial(port, source)
            stack.enter_context(contextlib.closing(sock))
            socks.append(sock)
            # It may have been closed already: then it has done its part.
            with contextlib.suppress(OSError):
                sock.sendall(data)
        yield socks


def taken_in(socks: list[socket.socket]) -> bool:
    """Whether the other side has dealt with all of them: it has closed as many as it does not keep."""
    poll = select.poll()
    for sock in socks:
        poll.register(sock, select.POLLIN)
    return len(poll.poll(0)) >= COUNT - PENDING_PER_ADDRESS


@contextlib.contextmanager
def worker(port: int, encrypted: bool) -> Iterator[int]:
    """A worker's process, as its id."""
    command = [sys.executable, "-m", "vinecore.cli.worker", "127.0.0.1", str(port), "--cores", "1"]
    # Its output is not read: nobody must wait for that.
    with open(os.devnull, "w") as nowhere:
        process = subprocess.Popen([*command, *(["--ssl"] if encrypted else [])], stdout=nowhere, stderr=nowhere)
    try:
        yield process.pid
    finally:
        process.terminate()
        process.wait(LIMIT_S)


@contextlib.contextmanager
def manager(encrypted: bool) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """A manager's process, and its port."""
    command = [sys.executable, "-c", MANAGER, "tls" if encrypted else "plain"]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    assert process.stdin is not None and process.stdout is not None
    try:
        yield process, int(process.stdout.readline())
        process.stdin.close()
        assert process.wait(LIMIT_S) == 0
    finally:
        process.kill()
        process.wait(LIMIT_S)
        process.stdin.close()
        process.stdout.close()


def answer(process: subprocess.Popen[str], size: int) -> str:
    """What a call with an argument of this size gives there."""
    assert process.stdin is not None and process.stdout is not None
    process.stdin.write(f"{size}\n")
    process.stdin.flush()
    return process.stdout.readline().strip()


ELSEWHERE, OWN_ADDRESS = "127.0.0.2", "127.0.0.1"
MANAGER_CASES = [
    *((ELSEWHERE, False, name) for name in PLAIN),
    *((ELSEWHERE, True, name) for name in ENCRYPTED),
    (OWN_ADDRESS, False, "silent"),
    (OWN_ADDRESS, True, "before TLS"),
]
WORKER_CASES = [
    (ELSEWHERE, False, "silent"),
    (ELSEWHERE, True, "before TLS, data"),
    (OWN_ADDRESS, False, "after the opening"),
    (OWN_ADDRESS, True, "silent"),
]


@pytest.mark.parametrize(("source", "encrypted", "name"), MANAGER_CASES, ids=str)
def test_a_thousand_idle_connections_to_a_manager(source: str, encrypted: bool, name: str) -> None:
    data = ENCRYPTED[name] if encrypted else PLAIN[name]
    if encrypted:
        pytest.importorskip("cryptography", reason="makes the certificates: pip install 'daskvine[tls]'")
    with manager(encrypted) as (process, port):
        costs = Costs(process.pid)
        begin = time.monotonic()
        with idle(port, source, data) as socks:
            # The last that came are still held: no limit of time has ended them yet.
            if time.monotonic() - begin < HANDSHAKE_TIMEOUT_S / 2:
                assert held(socks[-1]), "the port holds nobody: this proves nothing"
            eventually(lambda: taken_in(socks), "too many are held")
            eventually(lambda: costs.now()[1] - costs.first[1] < MOST_DESCRIPTORS, "too many are held")
            costs.check()
            with worker(port, encrypted):
                assert answer(process, 1_000_000) == "1000000"
                assert answer(process, 10) == "10"
                assert process.poll() is None
        eventually(lambda: costs.now()[1] - costs.first[1] < 8, "descriptors were kept")


def held(sock: socket.socket) -> bool:
    """Whether the other side has not closed it."""
    sock.settimeout(0.2)
    try:
        return sock.recv(1) != b""
    except TimeoutError:
        return True
    except OSError:
        return False


@pytest.mark.parametrize(("source", "encrypted", "name"), WORKER_CASES, ids=str)
def test_a_thousand_idle_connections_to_a_worker(source: str, encrypted: bool, name: str) -> None:
    """Its peers still fetch from it: nothing has to go through the manager."""
    data = ENCRYPTED[name] if encrypted else PLAIN[name]
    if encrypted:
        pytest.importorskip("cryptography", reason="makes the certificates: pip install 'daskvine[tls]'")
    with (
        FuturesExecutor(port=0, ssl=encrypted) as ex,
        worker(ex.port, encrypted) as first,
        worker(ex.port, encrypted) as second,
    ):
        state = ex.engine.machine.state
        eventually(lambda: len(state.workers) == 2, "the workers did not come")
        ports = {entry.hello.pid: entry.hello.peer_port for entry in list(state.workers.values())}
        makers = [ex.submit(os.urandom, 300_000) for _ in range(8)]
        assert all(len(future.result(LIMIT_S)) == 300_000 for future in makers)
        costs = [Costs(pid) for pid in (first, second)]
        with idle(ports[first], source, data) as socks, idle(ports[second], source, data) as more:
            eventually(lambda: taken_in(socks) and taken_in(more), "too many are held")
            eventually(lambda: all(c.now()[1] - c.first[1] < MOST_DESCRIPTORS for c in costs), "too many are held")
            for cost in costs:
                cost.check()
            lengths = [ex.submit(total, *makers) for _ in range(4)]
            assert [future.result(LIMIT_S) for future in lengths] == [8 * 300_000] * 4
        relayed = ex.engine.call_in_loop(lambda: [worker.unreachable for worker in state.workers.values()])
        assert relayed == [{}, {}], "a worker was given up as unreachable"
        eventually(lambda: all(c.now()[1] - c.first[1] < 12 for c in costs), "descriptors were kept")


def total(*values: bytes) -> int:
    return sum(map(len, values))


def test_a_flood_that_goes_on_keeps_nobody_out() -> None:
    """Whoever is closed dials again at once, from another address than the worker's."""
    stop = threading.Event()
    dialled = [0]

    def flood(port: int) -> None:
        socks: list[socket.socket] = []
        while not stop.is_set():
            with contextlib.suppress(OSError):
                socks.append(dial(port, "127.0.0.2", limit_s=5.0)[0])
                dialled[0] += 1
            if len(socks) > 100:
                socks.pop(0).close()
        for sock in socks:
            sock.close()

    with manager(False) as (process, port):
        thread = threading.Thread(target=flood, args=(port,))
        thread.start()
        try:
            eventually(lambda: dialled[0] > 500, "the flood does not flow")
            before = dialled[0]
            with worker(port, False):
                assert answer(process, 1_000_000) == "1000000"
            eventually(lambda: dialled[0] > before, "the flood has ended")
        finally:
            stop.set()
            thread.join(LIMIT_S)
