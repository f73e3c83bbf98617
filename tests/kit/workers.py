"""The worker's shell without processes, sockets and disk: performs the orders of a WorkerMachine in the small world."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING

from tests.kit.network import Network, Violation, Wire
from tests.kit.slots import FakeSlot
from tests.kit.transfers import FakeTransfers
from vinecore.wire import messages
from vinecore.worker import events as to_worker
from vinecore.worker import orders as from_worker
from vinecore.worker.machine import WorkerMachine
from vinecore.worker.state import NOT_REVOKED

if TYPE_CHECKING:
    from tests.kit.machines import ManagerShell


# As in the worker's shell: how long one that was told to stop waits for its objects to be handed over.
HANDOVER_S = 5.0


class FakeHost:
    """A library's parent."""

    def __init__(self, begin: messages.StartLibrary) -> None:
        self.modules = set(begin.modules)
        self.alive = True


class FakeWorker:
    """Performs the orders of a WorkerMachine: the worker's shell without processes, sockets and disk."""

    def __init__(self, network: Network, shell: ManagerShell, worker_id: int, said: messages.Hello) -> None:
        self.network, self.shell, self.worker_id, self.said = network, shell, worker_id, said
        self.machine = WorkerMachine()
        self.machine.state.last_heard = network.now
        self.alive, self.linked = True, True
        self.store: dict[str, bytes] = {}
        self.hosts: dict[int, FakeHost] = {}
        self.slots: dict[int, FakeSlot] = {}
        self.runs: Counter[tuple[int, int]] = Counter()
        self.slot_deaths = self.host_deaths = 0
        self.next_pid = 100
        self.tick_at = 0.0
        self.to_manager = Wire(network, messages.decode_from_worker, self._to_manager)  # type: ignore[arg-type]
        self.from_manager = Wire(network, messages.decode_from_manager, self._said)  # type: ignore[arg-type]
        self.to_manager.duplicable = True
        self.left_because = ""
        # Its clock is ahead of the manager's by so much.
        self.skew_s = 0.0
        self.disk_full = False
        self.is_frozen = False
        self.transfers = FakeTransfers(self)

    def _to_manager(self, message: object) -> None:
        self.shell.worker_said(self, message)

    def _said(self, message: object) -> None:
        if self.alive:
            self.handle(to_worker.ManagerSaid(self.network.now, message))

    # -- faults

    def freeze(self) -> None:
        """Its machine goes away without a word: no message leaves or arrives, the manager must notice."""
        self.from_manager.cut = self.to_manager.cut = True
        self.is_frozen = True
        self._end()

    def crash(self) -> None:
        """The process tree is gone; what it sent before may still arrive."""
        self.from_manager.cut = True
        self._end()
        delay = max(0.0, self.to_manager.last - self.network.now) + self.network.delay()
        self.network.later(delay, self.shell.link_lost, self, "it crashed")

    def cut_link(self) -> None:
        """The link breaks; the worker ends its tree as the shell does."""
        self.to_manager.cut = True
        self.crash()

    def _end(self) -> None:
        self.alive = self.linked = False
        for slot in self.slots.values():
            slot.alive = False
        self.slots, self.hosts = {}, {}

    def kill_host(self, library_id: int, text: str = "its process was killed by SIGKILL") -> None:
        if self.hosts.pop(library_id, None) is None:
            return
        self.host_deaths += 1
        for slot_id in [i for i, slot in self.slots.items() if slot.library_id == library_id]:
            self._drop(slot_id)
        self.handle(to_worker.HostGone(self.network.now, library_id, text))

    def say_goodbye(self) -> None:
        """It was told to stop: it goes on until it is released, or has waited long enough."""
        if self.alive and self.linked:
            self.to_manager.send(messages.Goodbye("got SIGTERM"))
            self.network.later(HANDOVER_S, self._leave)

    def _leave(self) -> None:
        if self.alive:
            self.left_because = "got SIGTERM"
            self.crash()

    def tire(self, slot_id: int) -> None:
        """A slot asks to be replaced."""
        self.handle(to_worker.SlotTired(self.network.now, slot_id, 100))

    def lose_object(self, name: str) -> None:
        """The disk forgets an object; nobody is told."""
        self.store.pop(name, None)

    def check_room(self) -> None:
        """Sandboxes that exist here at once, and that the manager placed, share the worker: no part of it is given twice."""
        entries = self.shell.machine.state.workers[self.worker_id].placed() if self.worker_id in self.shell.workers else []
        placed = {entry.task_id: entry for entry in entries}
        boxes = [slot.in_box for slot in self.slots.values() if slot.alive and slot.in_box is not None]
        live = [
            call.sandbox
            for call in boxes
            if call.sandbox is not None and call.task_id in placed and placed[call.task_id].attempt == call.attempt
        ]
        cores, memory = sum(box.cores for box in live), sum(box.memory_mb for box in live)
        if cores > self.said.cores or memory > self.said.memory_mb:
            raise Violation(f"worker {self.worker_id} runs sandboxes with {cores} cores and {memory} MB at once")

    # -- events in

    def handle(self, event: to_worker.Event) -> None:
        if not self.alive:
            return
        orders = self.machine.handle(event)
        self.machine.check()
        for order in orders:
            self._perform(order)
        due = self.machine.next_deadline()
        if due is not None and not self.network.now < self.tick_at <= due:
            self.tick_at = max(due, self.network.now + 1e-6)
            self.network.later(self.tick_at - self.network.now, self._tick, self.tick_at)

    def _tick(self, at: float) -> None:
        if at == self.tick_at:
            self.tick_at = 0.0
            self.handle(to_worker.Tick(self.network.now))

    def slot_answered(self, slot: FakeSlot, results: list[messages.Result]) -> None:
        if self.slots.get(slot.slot_id) is slot:
            self.handle(to_worker.SlotAnswered(self.network.now, slot.slot_id, results))

    def slot_gone(self, slot: FakeSlot, started: int) -> None:
        if self.slots.get(slot.slot_id) is slot:
            del self.slots[slot.slot_id]
            self.handle(to_worker.SlotGone(self.network.now, slot.slot_id, started))

    # -- orders out

    def _perform(self, order: object) -> None:
        if isinstance(order, from_worker.ToManager):
            if self.linked:
                self.to_manager.send(order.message)
        elif isinstance(order, from_worker.StartHost):
            self._start_host(order)
        elif isinstance(order, from_worker.ToHost):
            host = self.hosts.get(order.library_id)
            if host is not None:
                self._host_later(order.library_id, host, self._hoisted, order.library_id, host, order.message)
        elif isinstance(order, from_worker.StopHost):
            self.hosts.pop(order.library_id, None)
            for slot_id in [i for i, s in self.slots.items() if s.library_id == order.library_id]:
                self._drop(slot_id)
        elif isinstance(order, from_worker.UnlinkObjects):
            for name in order.names:
                self.store.pop(name, None)
        elif isinstance(order, from_worker.FetchObject):
            self.transfers.fetch(order)
        elif isinstance(order, from_worker.StopFetch):
            self.transfers.stop(order)
        elif isinstance(order, from_worker.UploadObject):
            self.transfers.upload(order)
        elif isinstance(order, from_worker.LookAtStore):
            pass  # it is there
        elif isinstance(order, from_worker.LeaveManager):
            self.left_because = order.reason
            self.crash()
        else:
            self._perform_for_slots(order)

    def _perform_for_slots(self, order: object) -> None:
        if isinstance(order, from_worker.OpenSlots):
            host = self.hosts.get(order.library_id)
            if host is None:
                return
            for slot_id in order.slot_ids:
                slot = self.slots[slot_id] = FakeSlot(self, slot_id, order.library_id)
                self._host_later(order.library_id, host, self._forked, host, slot)
        elif isinstance(order, from_worker.ToSlot):
            if order.slot_id in self.slots and self.slots[order.slot_id].alive:
                self.slots[order.slot_id].from_worker.send(order.message, 0.0)
        elif isinstance(order, from_worker.Revoke):
            self.network.revocations += order.sequence != NOT_REVOKED
            if order.slot_id in self.slots:
                slot = self.slots[order.slot_id]
                slot.write(slot.revoked, order.sequence)
        elif isinstance(order, from_worker.ReadClaim):
            if order.slot_id in self.slots:
                slot = self.slots[order.slot_id]
                self.handle_soon(to_worker.ClaimRead(self.network.now, order.slot_id, slot.read(slot.started)))
        elif isinstance(order, from_worker.CloseSlot):
            if order.slot_id in self.slots:
                library_id = self.slots[order.slot_id].library_id
                self._drop(order.slot_id)
                self.handle_soon(to_worker.HostSaid(self.network.now, library_id, messages.SlotExited(order.slot_id, 1, 0)))
        elif isinstance(order, from_worker.KillSlot):
            if order.slot_id in self.slots:
                self.slots[order.slot_id].die()
        else:
            raise Violation(f"{order!r} is no order of a worker")

    def handle_soon(self, event: to_worker.Event) -> None:
        self.network.later(0.0, self.handle, event)

    def _drop(self, slot_id: int) -> None:
        slot = self.slots.pop(slot_id, None)
        if slot is not None:
            slot.alive = False

    # -- library parents

    def _host_later(self, library_id: int, host: FakeHost, function: Callable[..., None], *args: object) -> None:
        def act() -> None:
            if self.alive and self.hosts.get(library_id) is host:
                function(*args)

        self.network.later(self.network.delay(), act)

    def _start_host(self, order: from_worker.StartHost) -> None:
        begin = order.begin
        host = self.hosts[order.library_id] = FakeHost(begin)
        error = b""
        if begin.payload_name and begin.payload_name not in self.store:
            error = b"no payload"
        elif self.network.rng.random() < self.network.faults.library_fails:
            error = b"no module"
        message = messages.Began(error, error.decode())
        event = to_worker.HostSaid(self.network.now, order.library_id, message)
        self._host_later(order.library_id, host, self.handle, event)

    def _hoisted(self, library_id: int, host: FakeHost, message: object) -> None:
        assert isinstance(message, messages.Hoist)
        host.modules |= set(message.modules)
        self.handle(to_worker.HostSaid(self.network.now, library_id, messages.Hoisted(message.modules, 1)))

    def _forked(self, host: FakeHost, slot: FakeSlot) -> None:
        if self.slots.get(slot.slot_id) is not slot:
            return
        self.next_pid += 1
        slot.fork(host.modules)
        self.handle(to_worker.HostSaid(self.network.now, slot.library_id, messages.Forked(slot.slot_id, self.next_pid)))
