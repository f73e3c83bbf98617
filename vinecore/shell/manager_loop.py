"""The manager's shell: one thread, one asyncio loop, the manager's machine.

    user threads --post(event or entry)--> inbox --one wake-up per batch--> ManagerMachine.handle --> orders --> perform
    sockets --payloads--> decode ------------------------------------------^                         |-> links: one write
    transfer threads --UploadArrived--> (through the loop) ----------------^                         |-> handles

It decides nothing. Only this thread touches the machine. Handles are told in this thread and must not block; a failing loop
fails everything that waits (LoopDied) instead of hanging it.

Stop order: release workers, close links and the port, end transfers, stop the loop.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Sequence
from typing import Protocol

from vinecore.errors import AuthenticationError, FileLost, LoopDied, PeerError, ProtocolError, VersionError, VineError
from vinecore.manager import events, orders
from vinecore.manager.entries import FileEntry, TaskEntry
from vinecore.manager.machine import ManagerMachine
from vinecore.model.config import Tunables
from vinecore.shell import transfer
from vinecore.shell.kept_links import Requests
from vinecore.shell.splice import Splices
from vinecore.shell.strangers import ACCEPT_QUEUE, Strangers
from vinecore.shell.stream import Link
from vinecore.shell.tls import CONTROL_PREAMBLE, Identity
from vinecore.shell.tls_gate import TlsGate
from vinecore.wire import messages
from vinecore.wire.handshake import Listener

# No machine has more; slots are counted in them, so a wrong number would be taken at its word.
MOST_CORES = 1 << 16
# How often the loop looks at its deadlines when the machine names none.
IDLE_TICK_S = 0.25


class FileHandle(Protocol):
    """Who waits for a file; called in the loop's thread, must not block."""

    def here(self, file: FileEntry, path: str) -> None: ...

    def failed(self, error: Exception) -> None: ...


class Sink(Protocol):
    """Something that wants one call after a batch of outcomes."""

    def flush(self) -> None: ...


class ManagerLoop:
    """Owns the machine, the port and the links.

    Parameters:
        run: short text that makes the names of this run's temps unique.
        tunables: values in force.
        listener: a bound, listening socket.
        secret: of this run; None switches authentication off.
        say: prints one line for the user.
    """

    def __init__(
        self, run: str, tunables: Tunables, listener: socket.socket, secret: bytes | None, say: Callable[[str], None]
    ) -> None:
        self.machine = ManagerMachine(run, tunables)
        self.machine.state.transfer_key = os.urandom(32)
        self.machine.state.epoch_offset_s = time.time() - time.monotonic()
        self.listener = listener
        self.secret = secret
        self.say = say
        # Key and certificate when links are encrypted; set before ``start``.
        self.identity: Identity | None = None
        self.loop: asyncio.AbstractEventLoop | None = None
        self.thread: threading.Thread | None = None
        self.inbox: deque[object] = deque()
        self.awake = False
        # Cheaper than call_soon_threadsafe: no handle, no context, no second read. Closed with this object, because a
        # thread that is about to write must never meet a reused number.
        self._wake_fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        weakref.finalize(self, os.close, self._wake_fd)
        self._ended = False
        # Bytes of objects that live at the manager: parts by cache name. User threads add, this thread removes.
        self.objects: dict[str, Sequence[bytes | memoryview] | transfer.LocalPath] = {}
        # Of objects that workers brought; threads add to it at the same time, so it only says whether some came.
        self.received_bytes = 0
        self.links: dict[int, Link] = {}
        # Whoever dialled and has not proved himself.
        self.joining = Strangers()
        self.refused_count = 0
        self.next_worker_id = 1
        self.observers: list[Callable[[list[object]], None]] = []
        self.died: Exception | None = None
        self.after_batch: Callable[[], None] | None = None
        # Called with the pid of a worker whose link has ended; must not block.
        self.worker_left: Callable[[int], None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._stop: asyncio.Event | None = None
        self._started = threading.Event()
        self._transfers: set[transfer.DataLink] = set()
        self._splices = Splices()
        self._requests = Requests()

    # ------------------------------------------------------------ life (user threads)

    def start(self) -> None:
        """Start the loop's thread; returns when it accepts connections."""
        self.thread = threading.Thread(target=self._run, name="vine-manager", daemon=True)
        self.thread.start()
        self._started.wait()

    def post(self, item: object) -> None:
        """Hand an event or a new entry to the loop, in order; any thread, never blocks.

        Raises:
            LoopDied: the loop has ended.
        """
        self.inbox.append(item)
        if not self.awake:
            self.wake()

    def wake(self) -> None:
        """Make the loop look at its inbox.

        Raises:
            LoopDied: the loop has ended.
        """
        if self._ended:
            raise LoopDied(f"the manager has ended{': ' + str(self.died) if self.died else ''}; make a new one")
        self.awake = True
        os.eventfd_write(self._wake_fd, 1)

    def stop(self, timeout_s: float) -> None:
        """Stop the loop and wait for its thread; safe to call twice."""
        loop, stop = self.loop, self._stop
        if loop is not None and stop is not None:
            with contextlib.suppress(RuntimeError):
                loop.call_soon_threadsafe(stop.set)
        if self.thread is not None and self.thread is not threading.current_thread():
            self.thread.join(timeout_s)

    # ------------------------------------------------------------ the loop's thread

    def _run(self) -> None:
        try:
            asyncio.run(self._main())
        except BaseException as error:
            # The outermost frame: whatever it is, nobody may be left waiting.
            self.died = error if isinstance(error, Exception) else RuntimeError(str(error))
        finally:
            self._started.set()
            self._fail_all()

    async def _main(self) -> None:
        self.loop = asyncio.get_running_loop()
        self._stop = asyncio.Event()
        self.loop.set_exception_handler(self._loop_error)
        server = await self.loop.create_server(self._accept, sock=self.listener)
        self.listener.listen(ACCEPT_QUEUE)
        self.loop.add_reader(self._wake_fd, self._woken)
        self._started.set()
        self._drain()
        self._tick()
        await self._stop.wait()
        self._drain()
        server.close()
        # Connections that were just accepted become links first: nobody would close them otherwise.
        await self._turns()
        for worker_id in list(self.links):
            self._send(worker_id, messages.Release(False, "the manager ends"))
        ending = list(self.links.values())
        for link in ending:
            link.close()
        self.joining.end_all()
        for data_link in list(self._transfers):
            data_link.interrupt()
        self._splices.end_all()
        if self._timer is not None:
            self._timer.cancel()
        await self._turns()
        for link in ending:
            # Who does not read what is left is not waited for.
            if link.transport is not None:
                link.transport.abort()
        await self._turns()

    async def _turns(self) -> None:
        """Let transports do what they have put off: to open or to close takes them three turns of the loop at most."""
        for _ in range(4):
            await asyncio.sleep(0)

    def _loop_error(self, loop: asyncio.AbstractEventLoop, context: dict[str, object]) -> None:
        error = context.get("exception")
        if isinstance(error, VineError) or not isinstance(error, OSError):
            self.died = error if isinstance(error, Exception) else RuntimeError(str(context.get("message")))
            if self._stop is not None:
                self._stop.set()

    def _fail_all(self) -> None:
        """The loop ends: every waiting entry and file handle hears of it."""
        reason = LoopDied(f"the manager ended before this was done{': ' + repr(self.died) if self.died else ''}")
        # First of all: what is posted from now on wakes the loop, and so hears that it has ended.
        self._ended = True
        self.awake = False
        waiting = list(self.machine.state.tasks.values())
        self.machine.state.tasks = {}
        wanted: list[object] = []
        while self.inbox:
            item = self.inbox.popleft()
            if isinstance(item, TaskEntry):
                waiting.append(item)
            elif isinstance(item, events.FileWanted):
                wanted.append(item.handle)
        sinks: set[Sink] = set()
        for entry in waiting:
            handle = entry.graph.handle if entry.graph is not None else entry.handle
            if handle is not None:
                entry.error, entry.value = reason, b""
                sink = handle.settled(entry)
                if sink is not None:
                    sinks.add(sink)  # type: ignore[arg-type]
        for sink in sinks:
            sink.flush()
        wanted += [handle for _, handle in self.machine.state.wanted_later]
        for handles in self.machine.state.wanted_here.values():
            wanted.extend(handles)
        for file_handle in wanted:
            file_handle.failed(reason)  # type: ignore[attr-defined]
        if self.after_batch is not None:
            self.after_batch()

    def _woken(self) -> None:
        # Work leaves first: each system call here may hand the interpreter to the thread that posted.
        self._drain()
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(self._wake_fd)
        # What was posted meanwhile may have had its wake-up read away: the next post must write one again, even if all was taken.
        self.awake = False
        if self.inbox:
            self._drain()

    def _drain(self) -> None:
        """Take what user threads posted: runs of entries become one event."""
        self.awake = False
        inbox = self.inbox
        entries: list[TaskEntry] = []
        now = time.monotonic()
        while inbox:
            item = inbox.popleft()
            if type(item) is TaskEntry:
                entries.append(item)
                continue
            if entries:
                self._handle(events.TasksSubmitted(now, entries))
                entries = []
            if callable(item):
                item()
            else:
                item.now = now  # type: ignore[attr-defined]
                self._handle(item)  # type: ignore[arg-type]
        if entries:
            self._handle(events.TasksSubmitted(now, entries))

    def handle_now(self, event: events.Event) -> None:
        """Take an event at once; only in this thread, from a handle that was just told something."""
        self._handle(event)

    def _handle(self, event: events.Event) -> None:
        touched: set[Link] = set()
        for order in self.machine.handle(event):
            kind = type(order)
            if kind is orders.SendTo:
                link = self.links.get(order.worker_id)  # type: ignore[union-attr]
                if link is not None:
                    link.send(messages.encode(order.message))  # type: ignore[union-attr]
                    touched.add(link)
            elif kind is orders.Deliver:
                # Work for the slots leaves before the user's thread is woken.
                for link in touched:
                    link.flush()
                touched.clear()
                self._deliver(order.entries)  # type: ignore[union-attr]
            else:
                self._perform(order)
        for link in touched:
            link.flush()

    def _deliver(self, entries: list[TaskEntry]) -> None:
        sinks: set[Sink] = set()
        for entry in entries:
            handle = entry.handle
            if handle is not None:
                sink = handle.settled(entry)
                if sink is not None:
                    sinks.add(sink)  # type: ignore[arg-type]
        for sink in sinks:
            sink.flush()
        if self.after_batch is not None:
            self.after_batch()

    def _perform(self, order: orders.Order) -> None:
        if isinstance(order, orders.FileHere):
            order.handle.here(order.file, order.path)  # type: ignore[attr-defined]
        elif isinstance(order, orders.FileFailed):
            order.handle.failed(FileLost(f"{order.file.name or 'the value'} cannot be had: {order.reason}"))  # type: ignore[attr-defined]
        elif isinstance(order, orders.ForgetObjects):
            for name in order.names:
                self.objects.pop(name, None)
        elif isinstance(order, orders.EndSplice):
            self._splices.end(order.transfer_id, order.is_source_gone)
        elif isinstance(order, orders.CloseWorker):
            # The machine has let go of it already: the end of the link is no news to it, only to who started that worker.
            link = self.links.pop(order.worker_id, None)
            if link is not None:
                link.fail(PeerError(order.reason))
                self._tell_worker_left(link)
        elif isinstance(order, orders.Say):
            self.say(order.text)
        elif isinstance(order, orders.Emit):
            self._emit(list(order.notes))

    def _emit(self, notes: list[object]) -> None:
        """Observers receive, never decide, and are dropped when they fail."""
        for observer in list(self.observers):
            try:
                observer(notes)
            except Exception as error:
                self.observers.remove(observer)
                self.say(f"an observer failed and was dropped: {error!r}")

    def _tick(self) -> None:
        now = time.monotonic()
        due = self.machine.next_deadline()
        if due is not None and due <= now:
            self._handle(events.Tick(now))
            due = self.machine.next_deadline()
        wait = IDLE_TICK_S if due is None else min(IDLE_TICK_S, max(0.01, due - now))
        assert self.loop is not None
        self._timer = self.loop.call_later(wait, self._tick)

    # ------------------------------------------------------------ links

    def _accept(self) -> asyncio.BaseProtocol:
        if self.identity is None:
            return _ManagerLink(self)
        return TlsGate(self.identity, self.joining, self.secret, "data", self._serve_data, lambda: _ManagerLink(self))

    def link_ready(self, link: Link) -> None:
        """A peer proved itself: a worker's control link, or a data link that goes to a thread."""
        kind = link.handshake.kind  # type: ignore[union-attr]
        # Over TLS, data links went to threads at their first bytes: taken out of TLS here, a socket would go on in the clear.
        if kind == "data" and self.identity is None:
            sock, leftover = link.detach_socket()
            data_link = transfer.DataLink(sock, link.reader, link.writer, leftover)
            sock.setblocking(True)
            data_link.sock.settimeout(transfer.STALL_S)
            # Known before its thread runs: the end of the loop must find it.
            self._transfers.add(data_link)
            threading.Thread(target=self._serve_data, args=(data_link,), name="vine-transfer", daemon=True).start()
        elif kind != "worker":
            raise PeerError(f"a link of kind {kind!r}, which is not served here")

    def payloads(self, link: Link, payloads: list[bytes]) -> None:
        """Messages of a worker; the first must be its hello."""
        now = time.monotonic()
        worker_id: int = getattr(link, "worker_id", 0)
        together: list[object] = []
        for payload in payloads:
            message = messages.decode_from_worker(payload)
            last = together[-1] if together else None
            if type(message) is messages.Done and type(last) is messages.Done:
                # Those that arrived together are one event: the work that follows them leaves together too.
                last.results.extend(message.results)
            else:
                together.append(message)
        for message in together:
            if worker_id:
                self._handle(events.WorkerSaid(now, worker_id, message))
            elif isinstance(message, messages.Hello):
                if not 1 <= message.cores <= MOST_CORES or min(message.memory_mb, message.disk_mb, message.gpus) < 0:
                    raise PeerError(f"a worker offers {message.cores} cores, or less than nothing of something else")
                worker_id = link.worker_id = self.next_worker_id  # type: ignore[attr-defined]
                self.next_worker_id += 1
                link.pid = message.pid  # type: ignore[attr-defined]
                self.links[worker_id] = link
                self._handle(events.WorkerJoined(now, worker_id, message, _host_of(link.peer)))
            else:
                raise PeerError("a worker's first message was not its hello")

    def link_lost(self, link: Link, error: Exception | None) -> None:
        """A link ended: a worker left, or somebody never got in."""
        worker_id = getattr(link, "worker_id", 0)
        if worker_id and self.links.get(worker_id) is link:
            del self.links[worker_id]
            self._handle(events.WorkerLeft(time.monotonic(), worker_id, str(error or "the connection was closed")))
            self._tell_worker_left(link)
        elif not worker_id:
            self.refused_count += 1
            why = _why_refused(link, error)
            if why:
                self._handle(events.WorkerRefused(time.monotonic(), _address_of(link.peer), why))

    def _tell_worker_left(self, link: Link) -> None:
        if self.worker_left is not None:
            self.worker_left(getattr(link, "pid", 0))

    def _send(self, worker_id: int, message: object) -> None:
        link = self.links.get(worker_id)
        if link is not None:
            link.send(messages.encode(message))
            link.flush()

    # ------------------------------------------------------------ data links (transfer threads)

    def _serve_data(self, link: transfer.DataLink) -> None:
        """One object in or through, or several out, one after the other."""
        request: object = None
        # Over TLS it comes straight from the thread that encrypted it.
        self._transfers.add(link)
        with contextlib.ExitStack() as stack:
            stack.callback(link.close)
            try:
                request = link.receive()
                while isinstance(request, messages.Get) and not self._is_destination(request):
                    parts = self.objects.get(request.name)
                    if parts is None or request.transfer_id:
                        link.send(messages.Missing(request.name))
                    else:
                        transfer.send_object(link, request.name, parts)
                    request = self._requests.next_of(link)
                if isinstance(request, messages.Get):
                    # From here on it belongs to the table, and is closed with its splice.
                    stack.pop_all()
                    self._splices.park(request.transfer_id, link)
                    self.post(events.SpliceOpened(time.monotonic(), request.transfer_id))
                elif isinstance(request, messages.Put) and self._is_source(request):
                    # How it went is the destination's to say.
                    with contextlib.suppress(PeerError, OSError):
                        self._splices.pass_on(link, request)
                elif isinstance(request, messages.Put):
                    self._receive(link, request)
            except (PeerError, OSError, LoopDied) as error:
                # A fetch that failed is reported by the worker's half; an upload that was refused or cut looked well from there.
                if isinstance(request, messages.Put):
                    failed = messages.UploadFailed(request.transfer_id, request.name, str(error))
                    with contextlib.suppress(LoopDied):
                        self.post(events.WorkerSaid(time.monotonic(), request.worker_id, failed))
            finally:
                self._transfers.discard(link)

    def _is_destination(self, request: messages.Get) -> bool:
        """Whether this worker was told to fetch this object through us."""
        splice = self.machine.state.splices.get(request.transfer_id)
        return splice is not None and (splice.name, splice.destination_id) == (request.name, request.worker_id)

    def _is_source(self, request: messages.Put) -> bool:
        """Whether this worker was told to send this object to another one through us."""
        splice = self.machine.state.splices.get(request.transfer_id)
        return (
            splice is not None
            and (splice.name, splice.source_id) == (request.name, request.worker_id)
            and splice.file.size_bytes == request.size_bytes
        )

    def _receive(self, link: transfer.DataLink, request: messages.Put) -> None:
        relay = self.machine.state.relays.get(request.transfer_id)
        if relay is None or relay.name != request.name or relay.file.size_bytes != request.size_bytes:
            raise PeerError(f"nobody asked for {request.name[:80]!r} of {request.size_bytes} bytes")
        data = bytearray(request.size_bytes)
        view = memoryview(data)
        position = 0

        def take(piece: memoryview) -> None:
            nonlocal position
            view[position : position + len(piece)] = piece
            position += len(piece)
            self.received_bytes += len(piece)

        link.receive_bytes(request.size_bytes, request.digest, take)
        self.objects[request.name] = [view]
        event = events.UploadArrived(time.monotonic(), request.transfer_id, request.size_bytes)
        with contextlib.suppress(LoopDied):
            self.post(event)

    # ------------------------------------------------------------ after a fork of the user's process

    def close_in_child(self) -> None:
        """In a child that the user forked: our descriptors must not live on there."""
        # Nobody drains the inbox here: every post must look at the pid.
        self.awake = False
        null = os.open(os.devnull, os.O_RDWR)
        os.dup2(null, self._wake_fd)
        links = [link.transport.get_extra_info("socket") for link in self.links.values() if link.transport]
        # Links for objects too: workers that were told nothing else learn from their end that it came.
        for sock in [self.listener, *links, *(link.sock for link in self._transfers)]:
            with contextlib.suppress(OSError):
                # Replaced, not closed: the number must not be closed a second time by the socket's finaliser.
                os.dup2(null, sock.fileno())
        os.close(null)


def _why_refused(link: Link, error: Exception | None) -> str:
    """Why a worker was not let in, or turned away itself; empty when it is not sure that this was one."""
    if isinstance(error, AuthenticationError | VersionError):
        return str(error)
    if isinstance(error, ProtocolError) and link.came_last(CONTROL_PREAMBLE):
        # It waits for an answer behind it, so this is all that came.
        text = "a worker with --ssl dialled, and this manager uses no TLS"
        return f"{text}: start vine_worker without --ssl, or the manager with ssl=True"
    return link.handshake.left_for() if isinstance(link.handshake, Listener) else ""


def _address_of(peer: str) -> str:
    """The address of a link's other side, without its port."""
    return peer.rpartition(":")[0].removeprefix("::ffff:")


def _host_of(peer: str) -> str:
    """Where peers reach a worker, from the address of its link; empty for one on this host, known to each by another name."""
    host = _address_of(peer)
    return "" if host.startswith("127.") or host == "::1" else host


class _ManagerLink(Link):
    """A link that somebody dialled to the manager's port."""

    def __init__(self, owner: ManagerLoop) -> None:
        binding = b"" if owner.identity is None else owner.identity.binding
        listener = Listener(owner.secret, os.urandom(32), binding)
        super().__init__(listener, owner.link_ready, owner.payloads, owner.link_lost, owner.joining)
        self.worker_id = 0
        self.pid = 0
