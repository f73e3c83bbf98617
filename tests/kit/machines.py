"""Both real machines in a small world: virtual clock, links with delays, slots that behave like ``runtime/slot.py``.

    ManagerShell --link--> FakeWorker(WorkerMachine) --batches--> FakeSlot      values are digests of (task, values of its inputs)
         ^------------------------'  ^--results, claims---------------'

Each message is encoded and decoded by ``wire.messages``; after each event both machines ``check()`` themselves. The world
(``network.py``) knows what a task ought to compute, how long it takes, how often it raises or kills its slot, and counts
executions; it must never decide for a machine.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import msgspec

from tests.kit.builders import RUN, hello
from tests.kit.network import Network, Violation
from tests.kit.splices import FakeSplices
from tests.kit.workers import FakeWorker
from vinecore.manager import events as to_manager
from vinecore.manager import orders as from_manager
from vinecore.manager.entries import FileEntry, TaskEntry
from vinecore.manager.machine import ManagerMachine

# Looking at n tasks costs as much as handling that many events: after so many tasks for each event that was not looked at.
CHECK_SHARE = 16


class ManagerShell:
    """Performs the orders of a ManagerMachine and remembers what was delivered, said and brought."""

    def __init__(self, network: Network, machine: ManagerMachine | None = None) -> None:
        self.network = network
        self.machine = machine or ManagerMachine(RUN)
        self.machine.state.address = "HOST PORT"
        self.machine.state.machine = "here"
        self.workers: dict[int, FakeWorker] = {}
        # Every worker that ever was, for checks at the end.
        self.all_workers: list[FakeWorker] = []
        self.objects: dict[str, bytes] = {}
        self.splices = FakeSplices(self)
        self.delivered: list[TaskEntry] = []
        self.delivery_counts: Counter[int] = Counter()
        self.outcomes: dict[int, tuple[object, bytes | None]] = {}
        self.on_deliver: Callable[[TaskEntry], None] | None = None
        self.files: list[tuple[FileEntry, object, bytes | str]] = []
        self.on_file: Callable[[FileEntry, object, bytes | None, str, str], None] | None = None
        self.said: list[str] = []
        self.notes: list[object] = []
        self.tick_at = 0.0
        self._unchecked = 0
        self.next_worker_id = 1

    # -- workers

    def join(self, cores: int = 2, machine: str = "there", memory_mb: int = 1000, has_port: bool = False) -> FakeWorker:
        """A worker connects. The port at which its peers find it, if it has one, is its number."""
        worker_id = self.next_worker_id
        self.next_worker_id += 1
        said = hello(cores, memory_mb, machine, f"host{worker_id}", peer_port=worker_id if has_port else 0)
        said = msgspec.structs.replace(said, store=f"/objects-{worker_id}")
        worker = self.workers[worker_id] = FakeWorker(self.network, self, worker_id, said)
        self.all_workers.append(worker)
        self.handle(to_manager.WorkerJoined(self.network.now, worker_id, said))
        return worker

    def peer_at(self, port: int) -> FakeWorker | None:
        """The worker that has, or had, this port."""
        return self.all_workers[port - 1] if 0 < port <= len(self.all_workers) else None

    def worker_said(self, worker: FakeWorker, message: object) -> None:
        self.handle(to_manager.WorkerSaid(self.network.now, worker.worker_id, message))

    def link_lost(self, worker: FakeWorker, reason: str) -> None:
        if self.workers.pop(worker.worker_id, None) is not None:
            self.handle(to_manager.WorkerLeft(self.network.now, worker.worker_id, reason))

    def upload_came(self, transfer_id: int, name: str, data: bytes) -> None:
        relay = self.machine.state.relays.get(transfer_id)
        if relay is not None:
            self.objects[name] = data
            self.network.later(0.0, self._upload_arrived, transfer_id)

    def _upload_arrived(self, transfer_id: int) -> None:
        self.handle(to_manager.UploadArrived(self.network.now, transfer_id, 100_000))

    # -- the machine

    def handle(self, event: to_manager.Event) -> None:
        orders = self.machine.handle(event)
        self._check()
        for order in orders:
            self._perform(order)
        due = self.machine.next_deadline()
        now = self.network.now
        if due is not None and not now < self.tick_at <= due:
            self.tick_at = max(due, now + 1e-3)
            self.network.later(self.tick_at - now, self._tick, self.tick_at)

    def _check(self) -> None:
        """Ask the machine for its promises: after each event, while it has little to do, else after every few."""
        self._unchecked += 1
        if self._unchecked * CHECK_SHARE >= len(self.machine.state.tasks):
            self._unchecked = 0
            self.machine.check()

    def _tick(self, at: float) -> None:
        if at == self.tick_at:
            self.tick_at = 0.0
            self.handle(to_manager.Tick(self.network.now))

    def _perform(self, order: object) -> None:
        if isinstance(order, from_manager.SendTo):
            if order.worker_id in self.workers:
                self.workers[order.worker_id].from_manager.send(order.message)
        elif isinstance(order, from_manager.Deliver):
            for entry in order.entries:
                self._deliver(entry)
        elif isinstance(order, from_manager.FileHere):
            self._file_here(order)
        elif isinstance(order, from_manager.FileFailed):
            self.files.append((order.file, order.handle, order.reason))
            if self.on_file is not None:
                self.on_file(order.file, order.handle, None, order.reason, "")
        elif isinstance(order, from_manager.ForgetObjects):
            for name in order.names:
                self.objects.pop(name, None)
        elif isinstance(order, from_manager.EndSplice):
            self.splices.end(order)
        elif isinstance(order, from_manager.CloseWorker):
            worker = self.workers.pop(order.worker_id, None)
            if worker is not None:
                worker.freeze()
        elif isinstance(order, from_manager.Say):
            self.said.append(order.text)
        elif isinstance(order, from_manager.Emit):
            self.notes.extend(order.notes)
        else:
            raise Violation(f"{order!r} is no order of a manager")

    def _deliver(self, entry: TaskEntry) -> None:
        if entry.state != "finished":
            raise Violation(f"{entry} was delivered")
        self.delivered.append(entry)
        self.delivery_counts[entry.task_id] += 1
        self.outcomes[entry.task_id] = (entry.error, entry.value)
        assert entry.handle is not None
        entry.handle.settled(entry)
        if self.on_deliver is not None:
            self.on_deliver(entry)

    def _file_here(self, order: from_manager.FileHere) -> None:
        file = order.file
        data: bytes | None
        if order.path:
            holder = next((w for w in self.workers.values() if order.path == f"{w.said.store}/{file.name}"), None)
            # A worker on this machine, or its copy, may be gone by now: reading the path fails, and the reader asks again.
            data = holder.store.get(file.name) if holder is not None else None
        else:
            data = file.data if file.data is not None else self.objects.get(file.name)
            if data is None:
                raise Violation(f"{file} is said to be here")
        self.files.append((file, order.handle, data or b""))
        if self.on_file is not None:
            self.on_file(file, order.handle, data, "", order.path)


class MachinePair:
    """One manager and its workers without delays or faults: each event goes through both machines until all is quiet."""

    def __init__(self, workers: int = 1, cores: int = 2) -> None:
        self.network = Network()
        self.shell = ManagerShell(self.network)
        self.workers = [self.shell.join(cores) for _ in range(workers)]
        self.run()

    def handle(self, event: to_manager.Event) -> None:
        """One event for the manager, and everything that follows within a second."""
        event.now = self.network.now
        self.shell.handle(event)
        self.run()

    def run(self, seconds: float = 1.0) -> None:
        self.network.run(seconds)
