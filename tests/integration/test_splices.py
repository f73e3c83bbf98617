"""Workers that cannot reach each other: what one has and another needs passes through the manager, and nothing of it stays there.

Their processes are started here with parts replaced: without a port for peers, with one that nobody can reach, or with an upload
that stands still in the middle until the test lets it go on.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import xxhash

from daskvine import DaskVine, FuturesExecutor
from tests.kit.rogue import LIMIT_S, Rogue, rest_of
from vinecore.errors import FileLost, PeerError
from vinecore.manager.entries import FileEntry
from vinecore.manager.state import Splice
from vinecore.shell import transfer
from vinecore.shell.splice import BUFFER_BYTES, Splices
from vinecore.shell.store import Store
from vinecore.shell.transfer import DataLink
from vinecore.shell.transfer_threads import TransferThreads
from vinecore.wire import messages
from vinecore.wire.framing import FrameReader, FrameWriter
from vinecore.wire.handshake import Listener
from vinecore.worker import orders as to_worker

ROOT = Path(__file__).parents[2]
MB = 1 << 20

WORKER = """
import os, socket, ssl, sys, time
from vinecore.shell import peer_server, transfer
from vinecore.cli.worker import main

async def no_port(self, port=0):
    self.port = int(os.environ.get("TEST_PEER_PORT", "0"))

peer_server.PeerServer.start = no_port
place = os.environ.get("TEST_PLACE", "")

def stands_still(name):
    '''Once: says who it is, and waits until the test says go.'''
    try:
        with open(os.path.join(place, name), "x") as file:
            file.write(str(os.getpid()))
    except FileExistsError:
        return
    until = time.monotonic() + 60
    while not os.path.exists(os.path.join(place, "go")) and time.monotonic() < until:
        time.sleep(0.02)

if os.environ.get("TEST_SLOW") == "source":
    def slowed(right):
        def sendfile(self, file):
            half = os.fstat(file.fileno()).st_size // 2
            right(self, file, 0, half)
            stands_still("sender")
            right(self, file, half)
        return sendfile
    ssl.SSLSocket.sendfile = slowed(ssl.SSLSocket.sendfile)
    socket.socket.sendfile = slowed(socket.socket.sendfile)
elif os.environ.get("TEST_SLOW") == "destination":
    right = transfer.DataLink.receive_bytes
    def receive_bytes(self, *args):
        stands_still("reader")
        return right(self, *args)
    transfer.DataLink.receive_bytes = receive_bytes
sys.exit(main())
"""


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.delenv("VINE_PORT", raising=False)


@contextlib.contextmanager
def workers(port: int, encrypted: bool = False, count: int = 2, **more: str) -> Iterator[dict[int, subprocess.Popen[bytes]]]:
    """Workers of one core each that cannot reach each other, by process id."""
    command = [sys.executable, "-c", WORKER, "127.0.0.1", str(port), "--cores", "1", *(["--ssl"] if encrypted else [])]
    started = [
        subprocess.Popen(command, env={**os.environ, **more}, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        for _ in range(count)
    ]
    try:
        yield {process.pid: process for process in started}
    finally:
        for process in started:
            process.terminate()
        for process in started:
            process.wait(LIMIT_S)


def eventually(condition: Callable[[], Any], what: str) -> None:
    until = time.monotonic() + LIMIT_S
    while not condition():
        assert time.monotonic() < until, what
        time.sleep(0.02)


def made(size: int, number: int) -> bytes:
    return bytes([number]) * size


def made_in_a_while(size: int, number: int) -> bytes:
    """Long enough that no worker makes them all."""
    time.sleep(0.05)
    return made(size, number)


def digest(*values: bytes) -> list[str]:
    return [xxhash.xxh3_128(value).hexdigest() for value in values]


def expected(size: int, numbers: range) -> list[str]:
    return digest(*(made(size, number) for number in numbers))


def all_up(ex: FuturesExecutor, count: int) -> None:
    """Wait until every worker has a slot that is ready: else one of them would make everything."""
    state = ex.engine.machine.state
    assert ex.submit(len, b"").result(LIMIT_S) == 0
    eventually(lambda: len(state.workers) == count, "the workers did not come")
    eventually(lambda: max(library.slots_up for library in state.libraries.values()) == count, "a library did not start")


class Run:
    """Two values of a size, each on its own worker, and a task that needs both."""

    def __init__(self, ex: FuturesExecutor, size: int) -> None:
        self.ex, self.size = ex, size
        self.state = ex.engine.machine.state
        all_up(ex, 2)
        # Both are busy with one each.
        self.values = [ex.submit(made, size, number) for number in range(2)]
        for value in self.values:
            assert value.exception(LIMIT_S) is None

    def holders(self) -> list[set[int]]:
        return [set(file.on_workers) for file in list(self.state.held.values()) if file.size_bytes > self.size]

    def check(self, answer: list[str]) -> None:
        """The answer is right, an object has passed through, and nothing of that is left."""
        assert answer == expected(self.size, range(2))
        loop = self.ex.engine.loop
        assert self.ex.engine.call_in_loop(lambda: self.state.next_transfer_id) > 1, "nothing passed through the manager"
        eventually(lambda: not self.state.splices and not len(loop._splices), "a splice is left")
        assert not [name for name in loop.objects if name in self.state.held or "." in name], "an object stays at the manager"
        assert loop.died is None
        self.ex.engine.call_in_loop(self.ex.engine.machine.check)


@pytest.mark.parametrize("encrypted", [False, True], ids=["plain", "tls"])
@pytest.mark.parametrize("peers", ["without a port", "out of reach"])
def test_objects_pass_through(encrypted: bool, peers: str) -> None:
    if encrypted:
        pytest.importorskip("cryptography", reason="makes the certificates: pip install 'daskvine[tls]'")
    with contextlib.ExitStack() as stack:
        nowhere = stack.enter_context(socket.socket())
        # Bound and not listening: whoever dials is refused, and nobody else gets that port.
        nowhere.bind(("127.0.0.1", 0))
        port = nowhere.getsockname()[1] if peers == "out of reach" else 0
        ex = stack.enter_context(FuturesExecutor(port=0, ssl=encrypted))
        stack.enter_context(workers(ex.port, encrypted, TEST_PEER_PORT=str(port)))
        run = Run(ex, 3 * MB)
        assert sorted(map(len, run.holders())) == [1, 1]
        answers = [ex.submit(digest, *run.values) for _ in range(4)]
        for answer in answers:
            run.check(answer.result(LIMIT_S))


def test_many_pass_through_in_all_directions_at_once() -> None:
    """More than the threads of every worker: nobody who should send may be waiting for bytes with all of them."""
    with FuturesExecutor(port=0) as ex, workers(ex.port, count=3):
        state = ex.engine.machine.state
        all_up(ex, 3)
        values = [ex.submit(made_in_a_while, 200_000, number) for number in range(48)]
        for value in values:
            assert value.exception(LIMIT_S) is None
        holders = [min(file.on_workers) for file in list(state.held.values()) if file.on_workers and file.size_bytes > 200_000]
        assert min(holders.count(worker_id) for worker_id in list(state.workers)) > 8, "they are not spread"
        answers = [ex.submit(digest, *values) for _ in range(6)]
        for answer in answers:
            assert answer.result(LIMIT_S) == expected(200_000, range(48))
        assert ex.engine.call_in_loop(lambda: state.next_transfer_id) > 24
        eventually(lambda: not state.splices and not state.crowded and not len(ex.engine.loop._splices), "a splice is left")
        ex.engine.call_in_loop(ex.engine.machine.check)


MEMORY = """
import json, resource, sys, time
from daskvine import FuturesExecutor

def made(size, number):
    return bytes([number]) * size

def lengths(*values):
    return [len(value) for value in values]

with FuturesExecutor(port=0) as ex:
    print(ex.port, flush=True)
    state = ex.engine.machine.state
    ex.submit(len, b"").result(60)
    until = time.monotonic() + 60
    while max(library.slots_up for library in state.libraries.values()) < 2 and time.monotonic() < until:
        time.sleep(0.02)
    small = [ex.submit(made, 200_000, number) for number in range(2)]
    ex.submit(lengths, *small).result(60)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    values = [ex.submit(made, int(sys.argv[1]), number) for number in range(2)]
    found = ex.submit(lengths, *values).result(100)
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak
    copies = sorted(len(file.on_workers) for file in state.held.values() if file.size_bytes > int(sys.argv[1]))
    print(json.dumps([found, grown, copies, len(ex.engine.loop.objects)]), flush=True)
"""


def test_the_managers_memory_does_not_grow_with_the_object() -> None:
    size = 300 * MB
    process = subprocess.Popen([sys.executable, "-c", MEMORY, str(size)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        with workers(int(process.stdout.readline())):
            found, grown_kb, copies, objects = json.loads(process.stdout.readline())
            assert process.wait(LIMIT_S) == 0
    finally:
        process.kill()
        process.wait(LIMIT_S)
        process.stdout.close()
    assert found == [size, size]
    assert copies == [1, 2], "one of the two has passed through"
    assert objects == 0
    assert grown_kb < 20 * 1024, f"the manager's peak grew by {grown_kb / 1024:.1f} MB"


@pytest.mark.parametrize("encrypted", [False, True], ids=["plain", "tls"])
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP], ids=["dies", "freezes"])
@pytest.mark.parametrize("who", ["source", "destination"])
def test_a_side_that_is_lost_midway(who: str, how: signal.Signals, encrypted: bool, tmp_path: Path) -> None:
    """One that freezes says nothing: the manager notices by its keepalive, long before the limit of a transfer."""
    if encrypted:
        pytest.importorskip("cryptography", reason="makes the certificates: pip install 'daskvine[tls]'")
    with (
        FuturesExecutor(port=0, ssl=encrypted) as ex,
        workers(ex.port, encrypted, TEST_SLOW="source", TEST_PLACE=str(tmp_path)) as processes,
    ):
        # More than the buffers of all sockets on the way, so that a side that does not read is waited for.
        run = Run(ex, 40 * MB)
        ex.engine.machine.state.tunables.keepalive_interval = 0.3
        ex.engine.machine.state.tunables.keepalive_timeout = 2.0
        answer = ex.submit(digest, *run.values)
        eventually(lambda: (tmp_path / "sender").exists() and (tmp_path / "sender").read_text(), "nothing was sent")
        sender = int((tmp_path / "sender").read_text())
        victim = sender if who == "source" else next(pid for pid in processes if pid != sender)
        try:
            os.kill(victim, how)
            if who == "destination":
                # The other half is on its way, and nobody takes it.
                (tmp_path / "go").touch()
            eventually(lambda: len(run.state.workers) == 1, "its loss was not noticed")
            eventually(lambda: not len(ex.engine.loop._splices), "the manager waits for it")
            (tmp_path / "go").touch()
            run.check(answer.result(LIMIT_S))
        finally:
            os.kill(victim, signal.SIGKILL)


@pytest.mark.parametrize("slow", ["source", "destination"])
def test_a_side_that_stands_still(slow: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its half is given up in limited time, and the object is sent again."""
    monkeypatch.setattr(transfer, "STALL_S", 0.5)
    with FuturesExecutor(port=0) as ex, workers(ex.port, TEST_SLOW=slow, TEST_PLACE=str(tmp_path)):
        # More than the buffers of all sockets on the way.
        run = Run(ex, 40 * MB)
        answer = ex.submit(digest, *run.values)
        mark = tmp_path / ("sender" if slow == "source" else "reader")
        eventually(mark.exists, "nothing was sent")
        loop = ex.engine.loop
        eventually(lambda: not len(loop._splices), "the manager waits for it")
        (tmp_path / "go").touch()
        run.check(answer.result(LIMIT_S))
        assert run.state.next_transfer_id > 2, "it was not sent again"


def test_links_of_others_to_a_splice_are_refused() -> None:
    """Who knows the secret, and names a splice, an object, a size or a worker that is not his."""
    near, far = socket.socketpair()
    with far, FuturesExecutor(port=0) as ex:
        loop = ex.engine.loop
        splice = Splice(7, FileEntry(1, "name", 5), "name", destination_id=2, source_id=1)
        ex.engine.call_in_loop(lambda: loop.machine.state.splices.update({7: splice}))
        for transfer_id, worker_id, name in ((7, 1, "name"), (7, 2, "other"), (8, 2, "name")):
            with Rogue(ex.port, ex.engine.secret, "data") as rogue:
                rogue.send(messages.Get(worker_id, name, transfer_id=transfer_id))
                assert rogue.receive(messages.decode_on_data_link) == messages.Missing(name)
        loop._splices.park(7, DataLink(near, FrameReader(100), FrameWriter()))
        check = xxhash.xxh3_128(b"hello").digest()
        for transfer_id, worker_id, name, size in ((7, 2, "name", 5), (7, 1, "other", 5), (7, 1, "name", 6), (8, 1, "name", 5)):
            with Rogue(ex.port, ex.engine.secret, "data") as rogue:
                rogue.send(messages.Put(worker_id, transfer_id, name, size, check))
                assert rest_of(rogue.sock) == b""
            assert len(loop._splices) == 1
        with Rogue(ex.port, ex.engine.secret, "data") as rogue:
            rogue.send(messages.Put(1, 7, "name", 5, check))
            rogue.sock.sendall(b"hello")
            rest_of(rogue.sock)
        assert rest_of(far).endswith(b"hello") and not len(loop._splices)
        ex.engine.call_in_loop(lambda: loop.machine.state.splices.clear())


def test_the_end_of_a_manager_does_not_wait_for_a_splice(tmp_path: Path) -> None:
    with DaskVine(port=0) as m, workers(m.port, TEST_SLOW="source", TEST_PLACE=str(tmp_path)) as processes:
        ex = FuturesExecutor(manager=m)
        run = Run(ex, 8 * MB)
        answer = ex.submit(digest, *run.values)
        eventually((tmp_path / "sender").exists, "nothing was sent")
        assert len(m.engine.loop._splices) == 1
        near, far = socket.socketpair()
        m.engine.loop._splices.park(4711, DataLink(near, FrameReader(100), FrameWriter()))
        m.close()
        assert answer.done()
        eventually(lambda: not len(m.engine.loop._splices), "a link is left")
        with far:
            assert rest_of(far) == b""
        (tmp_path / "go").touch()
        # And the worker that fetched ends when it is told to, without waiting for a byte.
        for process in processes.values():
            process.terminate()
            assert process.wait(LIMIT_S) == 0


def test_a_worker_does_not_wait_for_bytes_when_it_ends(tmp_path: Path) -> None:
    """It has asked a manager that is silent, on a link that nobody closes."""
    store = Store(str(tmp_path / "workspace"))
    reports: queue.Queue[object] = queue.Queue()
    threads = TransferThreads(store, None, None, reports.put)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        threads.address = listener.getsockname()
        threads.fetch(to_worker.FetchObject("name", 5, transfer_id=7), 1)
        sock, _ = listener.accept()
        with sock:
            silent = transfer._shaken(sock, Listener(None, os.urandom(32)))
            assert silent.receive() == messages.Get(1, "name", transfer_id=7)
            assert threads._pool is not None
            threads.close()
            eventually(lambda: not any(thread.is_alive() for thread in threads._pool._threads), "it waits")
            assert reports.empty(), "nobody is left to hear of it"
    store.remove()


# ---------------------------------------------------------------- the pairing, with two links in this process


class Ends:
    """A splice's two links, and the far ends of them."""

    def __init__(self) -> None:
        self.source_far, source = socket.socketpair()
        self.destination_far, destination = socket.socketpair()
        self.source, self.destination = (DataLink(sock, FrameReader(1 << 20), FrameWriter()) for sock in (source, destination))
        self.reading = DataLink(self.destination_far, FrameReader(1 << 20), FrameWriter())
        self.splices = Splices()
        self.error: Exception | None = None

    def start(self, size: int, data: bytes, check: bytes = b"") -> threading.Thread:
        request = messages.Put(1, 7, "name", size, check or xxhash.xxh3_128(data).digest())

        def run() -> None:
            try:
                self.splices.pass_on(self.source, request)
            except (PeerError, OSError) as error:
                self.error = error

        thread = threading.Thread(target=run)
        thread.start()
        return thread

    def __enter__(self) -> Ends:
        return self

    def __exit__(self, *error: object) -> None:
        for link in (self.source, self.destination):
            link.close()
        self.source_far.close()
        self.destination_far.close()


def test_bytes_come_out_as_they_went_in() -> None:
    data = os.urandom(3 * BUFFER_BYTES + 17)
    with Ends() as ends:
        ends.splices.park(7, ends.destination)
        thread = ends.start(len(data), data)
        sending = threading.Thread(target=ends.source_far.sendall, args=(data,))
        sending.start()
        header = ends.reading.receive()
        assert isinstance(header, messages.Object)
        got = bytearray()
        ends.reading.receive_bytes(header.size_bytes, header.digest, got.extend)
        thread.join(LIMIT_S)
        sending.join(LIMIT_S)
        assert got == data and ends.error is None and len(ends.splices) == 0
        assert ends.destination_far.recv(1) == b"", "the destination's link was kept"


def test_a_destination_that_does_not_read_stops_the_source() -> None:
    """Only what sockets and one buffer hold is taken in."""
    size = 64 * MB
    with Ends() as ends:
        ends.splices.park(7, ends.destination)
        thread = ends.start(size, b"x", b"d" * 16)
        ends.source_far.settimeout(0.5)
        taken = 0
        with contextlib.suppress(TimeoutError):
            while taken < size:
                taken += ends.source_far.send(bytes(65536))
        assert taken < 8 * BUFFER_BYTES + 4 * MB
        ends.splices.end(7)
        thread.join(LIMIT_S)
        assert ends.error is not None and len(ends.splices) == 0


def test_changed_bytes_are_noticed_by_the_destination() -> None:
    with Ends() as ends:
        ends.splices.park(7, ends.destination)
        thread = ends.start(5, b"hello")
        ends.source_far.sendall(b"hallo")
        header = ends.reading.receive()
        assert isinstance(header, messages.Object)
        with pytest.raises(FileLost, match="checksum"):
            ends.reading.receive_bytes(header.size_bytes, header.digest, lambda piece: None)
        thread.join(LIMIT_S)


def test_a_source_that_closes_early_ends_both() -> None:
    with Ends() as ends:
        ends.splices.park(7, ends.destination)
        thread = ends.start(1000, b"")
        ends.source_far.sendall(bytes(400))
        ends.source_far.close()
        header = ends.reading.receive()
        assert isinstance(header, messages.Object)
        with pytest.raises(PeerError, match="600 bytes too early"):
            ends.reading.receive_bytes(header.size_bytes, header.digest, lambda piece: None)
        thread.join(LIMIT_S)
        assert "600 bytes too early" in str(ends.error)


def test_who_waits_for_nothing_is_closed() -> None:
    with Ends() as ends:
        ends.start(5, b"hello").join(LIMIT_S)
        assert "nobody waits" in str(ends.error)
        ends.splices.park(7, ends.destination)
        ends.splices.end(7, is_source_gone=True)
        assert len(ends.splices) == 1, "its destination waits for another source"
        ends.splices.end(7)
        assert len(ends.splices) == 0 and ends.destination_far.recv(1) == b""
    with Ends() as first, Ends() as second:
        first.splices.park(7, first.destination)
        first.splices.park(7, second.destination)
        assert first.destination_far.recv(1) == b"", "who asks again does not read the old link"
        first.splices.end_all()
        assert second.destination_far.recv(1) == b""
    with Ends() as ends:
        ends.splices.end_all()
        ends.splices.park(7, ends.destination)
        assert len(ends.splices) == 0 and ends.destination_far.recv(1) == b""
