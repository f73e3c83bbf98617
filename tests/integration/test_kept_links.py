"""Objects of a peer, or of the manager, come over one connection; one that was closed meanwhile costs a try, and no object."""

from __future__ import annotations

import asyncio
import os
import resource
import stat
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from queue import Queue
from typing import Any

import pytest

from tests.kit.calls import LIMIT_S, eventually
from tests.kit.processes import Worker
from vinecore import Manager, Task
from vinecore.errors import PeerError
from vinecore.model.ticket import make_ticket
from vinecore.shell import kept_links, transfer, transfer_threads
from vinecore.shell.manager_loop import ManagerLoop
from vinecore.shell.peer_server import PeerServer
from vinecore.shell.store import Store
from vinecore.shell.tls import Identity, client_context, self_signed
from vinecore.shell.transfer_threads import TransferThreads
from vinecore.worker import events, orders

SECRET, KEY = b"secret of all workers", b"k" * 16
EXPIRES_S = int(time.time()) + 600


class Peers:
    """A worker that serves objects, and the threads of another that fetches them, one at a time."""

    def __init__(self, directory: Path, encrypted: bool, monkeypatch: pytest.MonkeyPatch) -> None:
        self.source, self.store = Store(str(directory / "source")), Store(str(directory / "here"))
        self.links: list[transfer.DataLink] = []
        serve = PeerServer._serve

        def counted(server: PeerServer, link: transfer.DataLink) -> None:
            self.links.append(link)
            serve(server, link)

        monkeypatch.setattr(PeerServer, "_serve", counted)
        monkeypatch.setattr(transfer_threads, "TRANSFER_THREADS", 1)
        self.server = PeerServer(self.source, SECRET, lambda: KEY)
        context = None
        if encrypted:
            self.server.encrypted = True
            self.server.identity = Identity.of_pem(*self_signed(), directory)
            context = client_context()
        self.loop = asyncio.new_event_loop()
        self.thread = threading.Thread(target=self.loop.run_forever)
        self.thread.start()
        asyncio.run_coroutine_threadsafe(self.server.start(), self.loop).result(LIMIT_S)
        self.reports: Queue[events.Event] = Queue()
        self.threads = TransferThreads(self.store, SECRET, context, self.reports.put)

    @property
    def address(self) -> tuple[str, int]:
        return "127.0.0.1", self.server.port

    def ask(self, name: str, ticket: bytes = b"") -> None:
        ticket = ticket or make_ticket(KEY, name, 7, EXPIRES_S)
        self.threads.fetch(orders.FetchObject(name, 0, [self.address], ticket, EXPIRES_S), 7)

    def heard(self) -> Any:
        return self.reports.get(timeout=LIMIT_S)

    def bring(self, name: str, size_bytes: int = 10) -> None:
        content = os.urandom(size_bytes)
        self.source.path(name).write_bytes(content)
        self.ask(name)
        assert isinstance(self.heard(), events.ObjectArrived)
        assert self.store.path(name).read_bytes() == content

    def close(self) -> None:
        self.threads.close()
        self.loop.call_soon_threadsafe(self.server.close)
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join(LIMIT_S)
        self.loop.close()
        self.source.remove()
        self.store.remove()


@pytest.fixture(params=[False, True], ids=["plain", "tls"])
def peers(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Peers]:
    found = Peers(tmp_path, request.param, monkeypatch)
    yield found
    found.close()
    assert eventually(lambda: found.server.requests.idle_count == 0), "who closes is not waited for"


def test_objects_of_one_peer_come_over_one_link(peers: Peers) -> None:
    for number, size in enumerate((10, 0, 3_000_000, 1, 70_000)):
        peers.bring(f"r0-{number}.1", size)
    assert len(peers.links) == 1


def test_an_object_that_is_not_there_leaves_the_link_as_it_is(peers: Peers) -> None:
    peers.bring("r0-1.1")
    peers.ask("r0-2.1")
    event = peers.heard()
    assert isinstance(event, events.ObjectFailed) and (event.absent, event.unreached) == ([0], [])
    peers.bring("r0-3.1")
    assert len(peers.links) == 1


def test_a_ticket_for_something_else_ends_the_link(peers: Peers) -> None:
    """Each request needs its own, also over a link that was good before."""
    peers.bring("r0-1.1")
    peers.source.path("r0-2.1").write_bytes(b"secret")
    peers.ask("r0-2.1", make_ticket(KEY, "r0-1.1", 7, EXPIRES_S))
    event = peers.heard()
    assert isinstance(event, events.ObjectFailed) and (event.absent, event.unreached) == ([], [0])
    assert not peers.store.path("r0-2.1").exists()
    peers.bring("r0-3.1")


def test_links_that_idle_too_long_are_closed_there(peers: Peers, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kept_links, "IDLE_S", 0.01)
    peers.bring("r0-1.1")
    assert eventually(lambda: peers.links[0].sock.fileno() == -1)
    peers.bring("r0-2.1")
    assert len(peers.links) == 2


def test_links_that_idle_too_long_are_closed_here(peers: Peers, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kept_links, "KEEP_S", -1.0)
    peers.bring("r0-1.1")
    peers.bring("r0-2.1")
    assert len(peers.links) == 2 and eventually(lambda: peers.links[0].sock.fileno() == -1)


def test_with_too_many_that_idle_a_link_ends_behind_its_object(peers: Peers, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kept_links, "MOST_IDLE", 0)
    for number in range(3):
        peers.bring(f"r0-{number}.1")
    assert len(peers.links) == 3


def test_only_so_many_links_are_kept(peers: Peers, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kept_links, "MOST_KEPT", 0)
    peers.bring("r0-1.1")
    assert not peers.threads._kept._idle and eventually(lambda: peers.links[0].sock.fileno() == -1)


def fails_at_second(monkeypatch: pytest.MonkeyPatch, end: Callable[[transfer.DataLink], object]) -> list[object]:
    """The peer takes the second request over a link, and does with it what is given here."""
    right, asked = kept_links.Requests.next_of, []

    def wrong(requests: kept_links.Requests, link: transfer.DataLink) -> object:
        asked.append(right(requests, link))
        end(link)
        raise PeerError("it ends here")

    monkeypatch.setattr(kept_links.Requests, "next_of", wrong)
    return asked


def test_a_link_that_breaks_under_a_request_is_replaced(peers: Peers, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = fails_at_second(monkeypatch, lambda link: None)
    peers.bring("r0-1.1")
    peers.bring("r0-2.1")
    assert len(peers.links) == 2 and len(asked) == 1


def test_a_peer_that_is_gone_is_not_dialled_again(peers: Peers, monkeypatch: pytest.MonkeyPatch) -> None:
    """A new link to a machine that vanished would be waited for."""
    silent = threading.Event()
    asked = fails_at_second(monkeypatch, lambda link: silent.wait(LIMIT_S))
    peers.bring("r0-1.1")
    peers.ask("r0-2.1")
    assert eventually(lambda: len(asked) == 1)
    peers.threads.stop(orders.StopFetch("r0-2.1", peers.address))
    event = peers.heard()
    silent.set()
    assert isinstance(event, events.ObjectFailed) and event.unreached == [0]
    assert len(peers.links) == 1 and not peers.threads._fetching


def test_a_manager_that_is_left_ends_the_links_to_its_workers(peers: Peers) -> None:
    peers.bring("r0-1.1")
    peers.threads.interrupt()
    assert eventually(lambda: peers.links[0].sock.fileno() == -1)
    peers.bring("r0-2.1")


def test_who_stands_still_is_asked_again_over_a_new_link(peers: Peers, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that was stopped, or whose machine is gone, would be waited for as long as one that sends."""
    monkeypatch.setattr(kept_links, "ANSWER_S", 0.1)
    silent = threading.Event()
    asked = fails_at_second(monkeypatch, lambda link: silent.wait(2 * LIMIT_S))
    peers.bring("r0-1.1")
    try:
        peers.bring("r0-2.1")
    finally:
        silent.set()
    assert len(peers.links) == 2 and len(asked) == 1


def changed_while_sent(monkeypatch: pytest.MonkeyPatch, change: Callable[[str], object]) -> None:
    """What is sent first changes right behind the moment at which its size and digest were taken."""
    right = transfer.file_digest

    def digest(fd: int) -> bytes:
        found = right(fd)
        monkeypatch.setattr(transfer, "file_digest", right)
        change(f"/proc/self/fd/{fd}")
        return found

    monkeypatch.setattr(transfer, "file_digest", digest)


def test_a_file_that_grows_while_it_is_sent_leaves_the_link_as_it_is(peers: Peers, monkeypatch: pytest.MonkeyPatch) -> None:
    def grow(path: str) -> None:
        with open(path, "ab") as file:
            file.write(bytes(500_000))

    changed_while_sent(monkeypatch, grow)
    peers.source.path("r0-1.1").write_bytes(b"in time")
    peers.ask("r0-1.1")
    assert isinstance(peers.heard(), events.ObjectArrived) and peers.store.path("r0-1.1").read_bytes() == b"in time"
    peers.bring("r0-2.1")
    assert len(peers.links) == 1


def test_a_file_that_shrinks_while_it_is_sent_ends_the_link(peers: Peers, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else both sides would wait for the other one."""
    monkeypatch.setattr(kept_links, "IDLE_S", 2 * LIMIT_S)
    changed_while_sent(monkeypatch, lambda path: os.truncate(path, 3))
    peers.source.path("r0-1.1").write_bytes(b"too short")
    peers.ask("r0-1.1")
    event = peers.heard()
    assert isinstance(event, events.ObjectFailed) and (event.absent, event.unreached) == ([], [0])
    peers.bring("r0-2.1")


def test_a_disk_that_takes_only_a_part_of_the_last_bytes_has_no_room(peers: Peers) -> None:
    """It says so at the next write only, and there is none; no peer is to blame, and none is asked in vain."""
    peers.bring("r0-1.1")
    size = 3_000_000
    peers.source.path("r0-2.1").write_bytes(bytes(size))
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size - 1, before[1]))
    try:
        peers.ask("r0-2.1")
        event = peers.heard()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert isinstance(event, events.ObjectFailed) and (event.absent, event.unreached) == ([], [])
    assert not peers.store.path("r0-2.1").exists() and not peers.threads._kept._idle
    peers.bring("r0-2.1", size)


def test_what_was_asked_for_a_manager_that_is_left_does_not_go_on(peers: Peers, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither over a new link, nor at the end of the line; and the next manager hears nothing of it."""
    silent = threading.Event()
    asked = fails_at_second(monkeypatch, lambda link: silent.wait(LIMIT_S))
    peers.bring("r0-1.1")
    for name in ("r0-2.1", "r0-3.1"):
        peers.source.path(name).write_bytes(b"of old")
        peers.ask(name)
    assert eventually(lambda: len(asked) == 1)
    peers.threads.interrupt()
    silent.set()
    peers.bring("r0-4.1")
    assert len(peers.links) == 2 and peers.reports.empty()
    assert not any(peers.store.path(name).exists() for name in ("r0-2.1", "r0-3.1"))


def test_nothing_is_kept_behind_an_end(peers: Peers, monkeypatch: pytest.MonkeyPatch) -> None:
    right, done = Store.aside, threading.Event()

    def interrupted(store: Store, name: str) -> Path:
        peers.threads.interrupt()
        return right(store, name)

    monkeypatch.setattr(Store, "aside", interrupted)
    peers.source.path("r0-1.1").touch()
    peers.ask("r0-1.1")
    peers.threads.submit(done.set)
    assert done.wait(LIMIT_S) and len(peers.links) == 1 and not peers.threads._kept._idle


def test_links_that_idle_too_long_are_closed_without_another_object(peers: Peers, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kept_links, "KEEP_S", -1.0)
    peers.bring("r0-1.1")
    peers.threads.tidy()
    assert eventually(lambda: peers.links[0].sock.fileno() == -1) and not peers.threads._kept._idle


def unheard(peers: Peers, monkeypatch: pytest.MonkeyPatch, count: int) -> list[object]:
    """The peers' server is taken for a manager, which ends so many dials without a word."""
    right, dialled = transfer.dial, []

    def dial(address: tuple[str, int], secret: bytes | None, kind: str = "data", *rest: Any, **named: Any) -> transfer.DataLink:
        dialled.append(kind)
        if len(dialled) <= count:
            raise ConnectionResetError("one too many")
        return right(address, secret, "peer", *rest, **named)

    monkeypatch.setattr(transfer, "dial", dial)
    peers.threads.address = peers.address
    return dialled


def ask_manager(peers: Peers, name: str) -> None:
    peers.source.path(name).write_bytes(b"at the manager")
    peers.threads.fetch(orders.FetchObject(name, 0, [], make_ticket(KEY, name, 7, EXPIRES_S), EXPIRES_S), 7)


def test_a_manager_that_does_not_hear_us_among_others_is_asked_again(peers: Peers, monkeypatch: pytest.MonkeyPatch) -> None:
    """It lets few strangers wait for each address, and many workers of one machine may want the same file at once."""
    dialled = unheard(peers, monkeypatch, 3)
    ask_manager(peers, "r0-1.1")
    assert isinstance(peers.heard(), events.ObjectArrived) and len(dialled) == 4


def test_a_manager_that_is_left_is_not_asked_again(peers: Peers, monkeypatch: pytest.MonkeyPatch) -> None:
    done = threading.Event()
    dialled = unheard(peers, monkeypatch, 1_000_000)
    ask_manager(peers, "r0-1.1")
    assert eventually(lambda: len(dialled) > 2)
    peers.threads.interrupt()
    peers.threads.submit(done.set)
    assert done.wait(LIMIT_S) and peers.reports.empty()


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> list[transfer.DataLink]:
    """The links that managers have served."""
    found: list[transfer.DataLink] = []
    serve = ManagerLoop._serve_data

    def counted(loop: ManagerLoop, link: transfer.DataLink) -> None:
        found.append(link)
        serve(loop, link)

    monkeypatch.setattr(ManagerLoop, "_serve_data", counted)
    return found


def test_files_come_from_the_manager_over_few_links(
    start: Callable[..., Worker], tmp_path: Path, served: list[transfer.DataLink]
) -> None:
    with Manager(port=0) as m:
        start("127.0.0.1", m.port, "--cores", 1)
        for number in range(30):
            (tmp_path / str(number)).write_bytes(b"%d" % number)
            task = Task("cat in", tag=str(number))
            task.add_input(m.declare_file(tmp_path / str(number)), "in")
            m.submit(task)
        for _ in range(30):
            done = m.wait(LIMIT_S)
            assert done is not None and done.std_output == done.tag
        assert 1 <= len(served) <= 2 * transfer_threads.TRANSFER_THREADS
    assert eventually(lambda: all(link.sock.fileno() == -1 for link in served)), "the end of the manager is theirs"


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_a_fork_of_the_users_process_keeps_no_link(
    start: Callable[..., Worker], tmp_path: Path, served: list[transfer.DataLink]
) -> None:
    """The end of one would not reach its worker, which would ask over it, and wait."""
    with Manager(port=0) as m:
        start("127.0.0.1", m.port, "--cores", 1)
        (tmp_path / "file").write_bytes(b"content")
        task = Task("cat in")
        task.add_input(m.declare_file(tmp_path / "file"), "in")
        m.submit(task)
        done = m.wait(LIMIT_S)
        assert done is not None and done.std_output == "content"
        numbers = [link.sock.fileno() for link in served]
        assert numbers and -1 not in numbers
        child = os.fork()
        if child == 0:
            os._exit(sum(stat.S_ISSOCK(os.fstat(number).st_mode) for number in numbers))
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
