"""What a worker does in threads: its transfers, and other things that block.

WorkerLoop --orders--> TransferThreads --blocking sockets--> manager, peers
WorkerLoop <--events-- (report, from the thread)
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

from vinecore.errors import FileLost, PeerError, VineError
from vinecore.shell import kept_links, transfer
from vinecore.shell.kept_links import Address, KeptLinks
from vinecore.shell.store import Store
from vinecore.wire import messages
from vinecore.worker import events, orders

TRANSFER_THREADS = 4
# Others than those: a fetch through the manager waits for the upload of another worker, which must never wait for that in turn.
UPLOAD_THREADS = 4
# Errors of the disk here, and not of the other side.
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO)


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
        # Managers that were left: what was asked for one of them neither goes on for the next one, nor tells it anything.
        self._left_count = 0
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
            self._left_count += 1
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
        self.submit(self._fetch, order, worker_id, self._left_count)

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
        self._senders.submit(self._upload, order, worker_id, self._left_count)

    def _report(self, event: events.Event, era: int) -> None:
        """Tell the manager of that time; under the lock: the next one's loop would take it for an event of its own."""
        with self._links_lock:
            if era == self._left_count:
                self.report(event)

    def _fetch(self, order: orders.FetchObject, worker_id: int, era: int) -> None:
        absent: list[int] = []
        unreached: list[int] = []
        event: events.Event
        try:
            size = self._fetch_from_anywhere(order, worker_id, absent, unreached, era)
            event = events.ObjectArrived(time.monotonic(), order.name, size)
        except (OSError, VineError) as error:
            why = f"{type(error).__name__}: {error}"
            event = events.ObjectFailed(time.monotonic(), order.name, why, absent, unreached)
        self._report(event, era)

    def _fetch_from_anywhere(
        self, order: orders.FetchObject, worker_id: int, absent: list[int], unreached: list[int], era: int
    ) -> int:
        """Ask the peers that were named, one after the other; without any, the manager.

        Parameters:
            absent, unreached: get the numbers of the peers that do not have it, and of those that did not answer well.

        Raises:
            OSError, VineError: of the last one that was asked.
        """
        request = messages.Get(worker_id, order.name, order.ticket, order.expires_s, order.transfer_id)
        if order.transfer_id:
            self._check(era)
            with self._using(transfer.dial(self.address, self.secret, context=self.tls), era) as link:
                return transfer.fetch(link, self.store, request)
        if not order.sources:
            return self._fetch_over_any(order, (*self.address, "data"), _Fetching(), request, era)
        failure: Exception = PeerError("no peer was named")
        for number, source in enumerate(order.sources):
            try:
                return self._fetch_from_peer(order, source, request, era)
            except FileLost as error:
                absent.append(number)
                failure = error
            except (OSError, VineError) as error:
                if isinstance(error, OSError) and error.errno in NO_ROOM:
                    raise  # this disk is to blame, and no other peer would help
                unreached.append(number)
                failure = error
        raise failure

    def _fetch_from_peer(self, order: orders.FetchObject, source: tuple[str, int], request: messages.Get, era: int) -> int:
        """The same with one peer, which ``stop`` may cut short.

        Raises:
            OSError, VineError: it failed.
        """
        fetching = _Fetching(source)
        try:
            return self._fetch_over_any(order, (source[0] or self.address[0], source[1], "peer"), fetching, request, era)
        finally:
            with self._fetching_lock:
                self._fetching.pop(order.name, None)
                fetching.close()

    def _fetch_over_any(
        self, order: orders.FetchObject, address: Address, fetching: _Fetching, request: messages.Get, era: int
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

        self._check(era)
        link = self._kept.take(address)
        if link is not None:
            has_answered = False
            try:
                with self._using(link, era, address):
                    opened(link.sock)
                    header = transfer.ask(link, request, kept_links.ANSWER_S)
                    has_answered = True
                    return transfer.receive_object(link, self.store, header)
            except (OSError, PeerError):
                # It may have been closed there while it idled: a new link will tell. What breaks later would have, over any.
                if has_answered or fetching.is_stopped:
                    raise
        self._check(era)
        host, port, kind = address
        with self._using(transfer.dial((host, port), self.secret, kind, self.tls, opened), era, address) as link:
            return transfer.fetch(link, self.store, request)

    def _check(self, era: int) -> None:
        """Before links are taken or made: those would be the next manager's, and ``interrupt`` does not end a dial.

        Raises:
            PeerError: the manager of that time was left.
        """
        if era != self._left_count:
            raise PeerError("the manager is not served any more")

    @contextlib.contextmanager
    def _using(self, link: transfer.DataLink, era: int, address: Address | None = None) -> Iterator[transfer.DataLink]:
        """Close the link at the end, or keep it if it is good and somebody may ask over it; until then ``interrupt`` finds it.

        Raises:
            PeerError: the manager of that time was left.
        """
        is_good = False
        with self._links_lock:
            self._links.add(link)
        try:
            # ``interrupt`` came before, or finds it from here on.
            self._check(era)
            yield link
            is_good = True
        except FileLost:
            is_good = True  # an answer like any other
            raise
        finally:
            # Under the lock: a number that is given away here may be somebody else's when ``interrupt`` uses it.
            with self._links_lock:
                self._links.discard(link)
                if is_good and address is not None and era == self._left_count:
                    self._kept.keep(address, link)
                else:
                    link.close()

    def _upload(self, order: orders.UploadObject, worker_id: int, era: int) -> None:
        reason = ""
        try:
            self._check(era)
            with self._using(transfer.dial(self.address, self.secret, context=self.tls), era) as link:
                transfer.upload(link, self.store, worker_id, order.transfer_id, order.name)
        except (OSError, VineError) as error:
            reason = f"{type(error).__name__}: {error}"
        self._report(events.UploadEnded(time.monotonic(), order.transfer_id, order.name, reason), era)


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
