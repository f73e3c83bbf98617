"""The data links of a worker in the small world: objects from peers and from the manager, and to both."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.kit.network import Violation
from vinecore.errors import AuthenticationError
from vinecore.model.ticket import check_ticket
from vinecore.wire import messages
from vinecore.worker import events as to_worker
from vinecore.worker import orders as from_worker

if TYPE_CHECKING:
    from tests.kit.workers import FakeWorker

# As in ``shell/transfer.py``: how long a dead host keeps who dials it waiting.
DIAL_S = 10.0
LOOK_S = 0.5
# No ticket may hold longer than this.
TICKET_S = 3600.0
OBJECT_BYTES = 100_000
# How long it takes until a full disk is found out: what is tried again at once is tried only so often.
FULL_S = 0.005


class FakeTransfers:
    """Performs fetches and uploads of one worker, and serves its peers."""

    def __init__(self, worker: FakeWorker) -> None:
        self.worker = worker
        self.network = worker.network
        # Orders to fetch from peers that came, with the time.
        self.tickets: list[tuple[float, from_worker.FetchObject]] = []
        # Objects and ports of peers that are not waited for any more.
        self.hopeless: set[tuple[str, int]] = set()

    # -- out of here

    def serve(self, request: messages.Get) -> bytes | str:
        """What the open port answers: the bytes, or why not."""
        worker = self.worker
        welcome = worker.machine.state.welcome
        if welcome is None or not welcome.transfer_key:
            return "PeerError: the data link was closed by the other side"
        try:
            check_ticket(welcome.transfer_key, request.name, request.worker_id, request.expires_s, request.ticket, self.clock_s())
        except AuthenticationError:
            return "PeerError: the data link was closed by the other side"
        data = worker.store.get(request.name)
        return f"FileLost: the other side does not have {request.name}" if data is None else data

    def clock_s(self) -> float:
        """Seconds since the epoch, as this machine believes."""
        return self.network.now + self.worker.shell.machine.state.epoch_offset_s + self.worker.skew_s

    def upload(self, order: from_worker.UploadObject) -> None:
        """Send an object to the manager, for itself or for another worker."""
        self.network.later(self.network.delay(), self._upload_begins, order.transfer_id, order.name)

    def _upload_begins(self, transfer_id: int, name: str) -> None:
        worker = self.worker
        if worker.alive and name in worker.store:
            # Another file of that name may be dropped while its bytes are under way: they are read from an open one.
            worker.shell.splices.begins(transfer_id)
        self.network.later(self.network.delay() * 2, self._uploaded, transfer_id, name, worker.store.get(name))

    def _uploaded(self, transfer_id: int, name: str, opened: bytes | None) -> None:
        worker, splices = self.worker, self.worker.shell.splices
        if not worker.alive:
            splices.ends(transfer_id, None)
            return
        if transfer_id in splices.passing:
            failed = self.network.rng.random() < self.network.faults.upload_fails
            splices.ends(transfer_id, None if failed else opened)
            reason = "ConnectionResetError: the link broke" if failed else ""
            worker.handle(to_worker.UploadEnded(self.network.now, transfer_id, name, reason))
            return
        reason = ""
        if name not in worker.store or self.network.rng.random() < self.network.faults.upload_fails:
            reason = "FileLost: it could not be read"
        else:
            worker.shell.upload_came(transfer_id, name, worker.store[name])
        worker.handle(to_worker.UploadEnded(self.network.now, transfer_id, name, reason))

    # -- into here

    def fetch(self, order: from_worker.FetchObject) -> None:
        """Ask the peers that were named, one after the other; without any, the manager."""
        if order.sources:
            issued = self.network.now + self.worker.shell.machine.state.epoch_offset_s
            if order.expires_s > issued + TICKET_S:
                raise Violation(f"the ticket for {order.name} holds until {order.expires_s - issued:.0f} s from now")
            self.tickets.append((self.network.now, order))
            self.network.later(self.network.delay(), self._ask, order, 0, [])
        else:
            self.network.later(self.network.delay(), self._ask_manager, order)

    def stop(self, order: from_worker.StopFetch) -> None:
        """Wait no longer for a peer that is gone."""
        self.hopeless.add((order.name, order.source[1]))

    def _ask_manager(self, order: from_worker.FetchObject) -> None:
        if order.transfer_id and self.worker.alive:
            self.worker.shell.splices.asked(order.transfer_id, self.worker, order.name)
            return
        # Once the transfer runs, the manager may forget the object: the bytes arrive all the same.
        data = self.worker.shell.objects.get(order.name)
        self.network.later(self.network.delay() * 2, self.fetched, order.name, data)

    def fetched(self, name: str, data: bytes | None) -> None:
        """What came from the manager, or through it; None: nothing did."""
        if not self.worker.alive:
            return
        if data is None or self.network.rng.random() < self.network.faults.fetch_fails:
            self._failed(name, "PeerError: it could not be fetched", [])
        else:
            self._came(name, data, [])

    def _ask(self, order: from_worker.FetchObject, number: int, told: list[str]) -> None:
        """Dial a peer; what it has now is what it gives."""
        if not self.worker.alive:
            return
        peer = self.worker.shell.peer_at(order.sources[number][1])
        wait_s = self.network.delay() * 2
        answer: bytes | str = "ConnectionRefusedError: nobody listens there"
        if peer is not None and peer.is_frozen:
            self._wait(order, number, told, self.network.now + DIAL_S)
            return
        elif peer is not None and peer.alive:
            request = messages.Get(self.worker.worker_id, order.name, order.ticket, order.expires_s)
            answer = peer.transfers.serve(request)
            if isinstance(answer, bytes) and self.network.rng.random() < self.network.faults.peer_breaks:
                answer = "PeerError: the data link was closed too early"
        self.network.later(wait_s, self._answered, order, number, answer, told)

    def _wait(self, order: from_worker.FetchObject, number: int, told: list[str], until: float) -> None:
        """A peer does not answer: until the worker has waited long enough, or is told that it waits in vain."""
        key = (order.name, order.sources[number][1])
        if self.network.now < until and key not in self.hopeless:
            self.network.later(LOOK_S, self._wait, order, number, told, until)
            return
        self.hopeless.discard(key)
        self._answered(order, number, "TimeoutError: no answer came", told)

    def _answered(self, order: from_worker.FetchObject, number: int, answer: bytes | str, told: list[str]) -> None:
        if not self.worker.alive:
            return
        if isinstance(answer, bytes):
            self._came(order.name, answer, told)
            return
        told = [*told, answer]
        if number + 1 < len(order.sources):
            self._ask(order, number + 1, told)
        else:
            self._failed(order.name, answer, told)

    def _came(self, name: str, data: bytes, told: list[str]) -> None:
        if self.worker.disk_full:
            reason = "OSError: [Errno 28] No space left on device"
            self.network.later(FULL_S, self._failed, name, reason, told)
            return
        self.worker.store[name] = data
        self.worker.handle(to_worker.ObjectArrived(self.network.now, name, OBJECT_BYTES))

    def _failed(self, name: str, reason: str, told: list[str]) -> None:
        if not self.worker.alive:
            return
        absent = [number for number, answer in enumerate(told) if answer.startswith("FileLost")]
        unreached = [number for number in range(len(told)) if number not in absent]
        self.worker.handle(to_worker.ObjectFailed(self.network.now, name, reason, absent, unreached))
