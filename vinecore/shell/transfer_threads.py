"""What a worker does in threads: its transfers, and other things that block.

WorkerLoop --orders--> TransferThreads --blocking sockets--> manager, peers
WorkerLoop <--events-- (report, from the thread)
"""

from __future__ import annotations

import contextlib
import errno
import os
import random
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from vinecore.errors import FileLost, PeerError, VineError
from vinecore.shell import kept_links, transfer
from vinecore.shell.kept_links import Address, KeptLinks
from vinecore.shell.store import Store
from vinecore.wire import messages
from vinecore.worker import events, orders

TRANSFER_THREADS = 4
# Others than those: a fetch through the manager waits for the upload of another worker, which must never wait for that in turn.
UPLOAD_THREADS = 4
# How long a manager that does not hear a dial is asked again, and with which pauses, each twice the one before. A thousand
# workers dial at once when they get the same work: longer pauses leave it idle, shorter ones keep it busy with unheard dials.
UNHEARD_S = 30.0
PAUSES_S = (0.02, 4.0)
# Errors of the disk here, and not of the other side.
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO)

T = TypeVar("T")


class TransferThreads:
    """Fetches and uploads of one worker.

    Parameters:
        report: takes an event; called from the threads.
    """

    def __init__(
        self, store: Store, secret: bytes | None, tls: ssl.SSLContext | None, report: Callable[[events.Event], None]
    ) -> None:
        self.store = store
        self.secret = secret
        self.tls = tls
        self.report = report
        # Of the manager that is served now.
        self.address: tuple[str, int] = ("", 0)
        # Set when that is left: what was asked for it neither goes on for the next one, nor tells it anything.
        self._left = threading.Event()
        # Connections in use by the threads.
        self._links: set[transfer.DataLink] = set()
        self._links_lock = threading.Lock()
        self._pool: ThreadPoolExecutor | None = None
        self._senders: ThreadPoolExecutor | None = None
        self._kept = KeptLinks()
        # Fetches from peers that are under way, by name.
        self._fetching: dict[str, _Fetching] = {}
        self._fetching_lock = threading.Lock()

    def submit(self, function: Callable[..., object], *args: object) -> None:
        """Call ``function`` in a thread; the first call makes them."""
        if self._pool is None:
            self._pool = ThreadPoolExecutor(TRANSFER_THREADS, "vine-transfer")
        self._pool.submit(function, *args)

    def interrupt(self) -> None:
        """End the transfers that are under way: the manager that they were for is not served any more."""
        with self._links_lock:
            self._left.set()
            self._left = threading.Event()
            for link in self._links:
                link.interrupt()
            self._kept.close()

    def tidy(self) -> None:
        """Close links that have idled for too long; any thread."""
        self._kept.tidy()

    def close(self) -> None:
        """Drop what waits, end what runs."""
        self.interrupt()
        for pool in (self._pool, self._senders):
            if pool is not None:
                pool.shutdown(wait=False, cancel_futures=True)

    def fetch(self, order: orders.FetchObject, worker_id: int) -> None:
        """Bring one object here; reports ObjectArrived or ObjectFailed."""
        self.submit(self._fetch, order, worker_id, self._left)

    def stop(self, order: orders.StopFetch) -> None:
        """End the wait for a peer that is gone (the loop's thread); its fetch goes on with the next source, or fails."""
        with self._fetching_lock:
            fetching = self._fetching.get(order.name)
            if fetching is not None and fetching.source == order.source:
                fetching.is_stopped = True
                with contextlib.suppress(OSError):
                    fetching.sock.shutdown(socket.SHUT_RDWR)

    def upload(self, order: orders.UploadObject, worker_id: int) -> None:
        """Take one object to the manager; reports UploadEnded."""
        if self._senders is None:
            self._senders = ThreadPoolExecutor(UPLOAD_THREADS, "vine-upload")
        self._senders.submit(self._upload, order, worker_id, self._left)

    def _report(self, event: events.Event, left: threading.Event) -> None:
        """Tell the manager of that time; under the lock: the next one's loop would take it for an event of its own."""
        with self._links_lock:
            if not left.is_set():
                self.report(event)

    def _fetch(self, order: orders.FetchObject, worker_id: int, left: threading.Event) -> None:
        absent: list[int] = []
        unreached: list[int] = []
        event: events.Event
        try:
            size = self._fetch_from_anywhere(order, worker_id, absent, unreached, left)
            event = events.ObjectArrived(time.monotonic(), order.name, size)
        except (OSError, VineError) as error:
            why = f"{type(error).__name__}: {error}"
            event = events.ObjectFailed(time.monotonic(), order.name, why, absent, unreached)
        self._report(event, left)

    def _fetch_from_anywhere(
        self, order: orders.FetchObject, worker_id: int, absent: list[int], unreached: list[int], left: threading.Event
    ) -> int:
        """Ask the peers that were named, one after the other; without any, the manager.

        Parameters:
            absent, unreached: get the numbers of the peers that do not have it, and of those that did not answer well.

        Raises:
            OSError, VineError: of the last one that was asked.
        """
        request = messages.Get(worker_id, order.name, order.ticket, order.expires_s, order.transfer_id)
        if order.transfer_id:
            with self._using(self._dial_manager(left), left) as link:
                return transfer.fetch(link, self.store, request)
        if not order.sources:
            return self._fetch_over_any(order, (*self.address, "data"), _Fetching(), request, left)
        failure: Exception = PeerError("no peer was named")
        for number, source in enumerate(order.sources):
            try:
                return self._fetch_from_peer(order, source, request, left)
            except FileLost as error:
                absent.append(number)
                failure = error
            except (OSError, VineError) as error:
                if isinstance(error, OSError) and error.errno in NO_ROOM:
                    raise  # this disk is to blame, and no other peer would help
                unreached.append(number)
                failure = error
        raise failure

    def _fetch_from_peer(
        self, order: orders.FetchObject, source: tuple[str, int], request: messages.Get, left: threading.Event
    ) -> int:
        """The same with one peer, which ``stop`` may cut short.

        Raises:
            OSError, VineError: it failed.
        """
        fetching = _Fetching(source)
        try:
            return self._fetch_over_any(order, (source[0] or self.address[0], source[1], "peer"), fetching, request, left)
        finally:
            with self._fetching_lock:
                self._fetching.pop(order.name, None)
                fetching.close()

    def _fetch_over_any(
        self, order: orders.FetchObject, address: Address, fetching: _Fetching, request: messages.Get, left: threading.Event
    ) -> int:
        """Over the link of the last object from there, if it is still good, or over a new one.

        Raises:
            OSError, VineError: it failed.
        """

        def opened(sock: socket.socket) -> None:
            if fetching.source is None:
                return
            with self._fetching_lock:
                if fetching.is_stopped:
                    raise PeerError("the peer is gone")
                fetching.use(sock)
                self._fetching[order.name] = fetching

        _check(left)
        link = self._kept.take(address)
        if link is not None:
            has_answered = False
            try:
                with self._using(link, left, address):
                    opened(link.sock)
                    header = transfer.ask(link, request, kept_links.ANSWER_S)
                    has_answered = True
                    return transfer.receive_object(link, self.store, header)
            except (OSError, PeerError):
                # It may have been closed there while it idled: a new link will tell. What breaks later would have, over any.
                if has_answered or fetching.is_stopped:
                    raise
        _check(left)

        def over_a_new_one() -> int:
            link = transfer.dial(address[:2], self.secret, address[2], self.tls, opened)
            with self._using(link, left, address):
                return transfer.fetch(link, self.store, request)

        return over_a_new_one() if fetching.source is not None else _until_heard(over_a_new_one, left)

    def _dial_manager(self, left: threading.Event) -> transfer.DataLink:
        """A link to the manager that is served now.

        Raises:
            OSError, PeerError: it cannot be reached, refuses us, or was left.
        """
        _check(left)
        address = self.address
        return _until_heard(lambda: transfer.dial(address, self.secret, context=self.tls), left)

    @contextlib.contextmanager
    def _using(
        self, link: transfer.DataLink, left: threading.Event, address: Address | None = None
    ) -> Iterator[transfer.DataLink]:
        """Close the link at the end, or keep it if it is good and somebody may ask over it; until then ``interrupt`` finds it.

        Raises:
            PeerError: the manager of that time was left.
        """
        is_good = False
        with self._links_lock:
            self._links.add(link)
        try:
            # ``interrupt`` came before, or finds it from here on.
            _check(left)
            yield link
            is_good = True
        except FileLost:
            is_good = True  # an answer like any other
            raise
        finally:
            # Under the lock: a number that is given away here may be somebody else's when ``interrupt`` uses it.
            with self._links_lock:
                self._links.discard(link)
                if is_good and address is not None and not left.is_set():
                    self._kept.keep(address, link)
                else:
                    link.close()

    def _upload(self, order: orders.UploadObject, worker_id: int, left: threading.Event) -> None:
        reason = ""
        try:
            with self._using(self._dial_manager(left), left) as link:
                transfer.upload(link, self.store, worker_id, order.transfer_id, order.name)
        except (OSError, VineError) as error:
            reason = f"{type(error).__name__}: {error}"
        self._report(events.UploadEnded(time.monotonic(), order.transfer_id, order.name, reason), left)


class _Fetching:
    """A fetch, with a duplicate of its socket: the thread may close its own, and somebody else get its number."""

    __slots__ = ("is_stopped", "sock", "source")

    def __init__(self, source: tuple[str, int] | None = None) -> None:
        self.source = source  # None: the manager, whose end ends the fetch in another way
        self.sock: socket.socket
        self.is_stopped = False

    def use(self, sock: socket.socket) -> None:
        self.close()
        # One under TLS refuses to be duplicated; what is wanted is the plain one below it.
        self.sock = socket.socket(sock.family, sock.type, sock.proto, fileno=os.dup(sock.fileno()))

    def close(self) -> None:
        if hasattr(self, "sock"):
            self.sock.close()


def _check(left: threading.Event) -> None:
    """Before links are taken or made: those would be the next manager's, and ``interrupt`` does not end a dial.

    Raises:
        PeerError: the manager of that time was left.
    """
    if left.is_set():
        raise PeerError("the manager is not served any more")


def _until_heard(ask: Callable[[], T], left: threading.Event) -> T:
    """Ask a manager; once more, and again, when it did not hear us among many others.

    Raises:
        OSError, VineError: of ``ask``; or the manager was left.
    """
    until = time.monotonic() + UNHEARD_S
    pause_s, longest_s = PAUSES_S
    while True:
        try:
            return ask()
        except transfer.UNHEARD:
            if time.monotonic() > until:
                raise
        # Not all at the same moment again.
        left.wait(random.uniform(0.5, 1.0) * pause_s)
        _check(left)
        pause_s = min(2 * pause_s, longest_s)
