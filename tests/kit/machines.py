"""Both real machines in a small world: virtual clock, links with delays, slots that behave like ``runtime/slot.py``.

    ManagerShell --link--> FakeWorker(WorkerMachine) --batches--> FakeSlot      values are digests of (task, values of its inputs)
         ^------------------------'  ^--results, claims---------------'

Everything follows from the network's seed. Each message is encoded and decoded by ``wire.messages``; after each event both
machines ``check()`` themselves. The world knows what a task ought to compute, how long it takes, how often it raises or kills
its slot, and counts executions; it must never decide for a machine.
"""

from __future__ import annotations

import hashlib
import heapq
import random
from collections import Counter, deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from tests.kit.builders import RUN, hello
from tests.kit.splices import FakeSplices
from vinecore.manager import events as to_manager
from vinecore.manager import orders as from_manager
from vinecore.manager.machine import ManagerMachine
from vinecore.manager.state import FileEntry, TaskEntry
from vinecore.wire import messages
from vinecore.worker import events as to_worker
from vinecore.worker import orders as from_worker
from vinecore.worker.machine import WorkerMachine
from vinecore.worker.state import NOT_REVOKED

# A write to shared memory is seen by the other side within this time; the worker trusts that it is below REVOKE_SETTLE_S.
STORE_BUFFER_S = 0.001
FLUSH_AFTER_S = 0.002
STUCK_FLUSH_S = 0.005


class Violation(AssertionError):
    """A machine broke a rule that only the world can see."""


@dataclass
class Spec:
    """What a task does when it runs."""

    duration_s: float = 0.0
    size_bytes: int = 8
    raises: int = 0
    kills: int = 0
    raised: int = 0


@dataclass
class Faults:
    """How bad the world is. Delays in seconds, the rest are chances."""

    delay_s: float = 0.0
    fetch_fails: float = 0.0
    upload_fails: float = 0.0
    library_fails: float = 0.0
    # A Done that comes a second time, later.
    duplicates: float = 0.0


def digest(task_id: int, inputs: list[bytes]) -> bytes:
    """The value of a task."""
    return hashlib.blake2b(b"%d:" % task_id + b",".join(inputs), digest_size=8).digest()


class Network:
    """The clock, what is under way, and the truth about tasks."""

    def __init__(self, seed: int = 0, faults: Faults | None = None) -> None:
        self.rng = random.Random(seed)
        self.faults = faults or Faults()
        self.now = 1000.0
        self._heap: list[tuple[float, int, Callable[..., None], tuple[object, ...]]] = []
        self._count = 0
        self.specs: dict[int, Spec] = {}
        self.executions: Counter[int] = Counter()
        self.runs: Counter[tuple[int, int, int]] = Counter()
        self.frames: Counter[str] = Counter()
        self.revocations = 0
        self.written_later = 0

    def spec(self, task_id: int) -> Spec:
        return self.specs.setdefault(task_id, Spec())

    def later(self, delay_s: float, function: Callable[..., None], *args: object) -> None:
        self._count += 1
        heapq.heappush(self._heap, (self.now + delay_s, self._count, function, args))

    def delay(self) -> float:
        return self.rng.random() * self.faults.delay_s

    def step(self) -> bool:
        """Do the next thing; False when nothing is left."""
        if not self._heap:
            return False
        at, _, function, args = heapq.heappop(self._heap)
        self.now = max(self.now, at)
        function(*args)
        return True

    def run(self, seconds: float, done: Callable[[], bool] | None = None) -> bool:
        """Let time pass; True as soon as ``done()``, False when the time is over first."""
        end = self.now + seconds
        while self._heap and self._heap[0][0] <= end:
            if done is not None and done():
                return True
            self.step()
        self.now = end
        return done() if done is not None else True


class Wire:
    """One direction of one link: in order, delayed, encoded and decoded; what is under way when it is cut is lost."""

    def __init__(self, network: Network, decode: Callable[[bytes], object], deliver: Callable[[object], None]) -> None:
        self.network, self.decode, self.deliver = network, decode, deliver
        self.last = 0.0
        self.cut = False
        self.duplicable = False

    def send(self, message: object, delay_s: float | None = None) -> None:
        if self.cut:
            return
        network = self.network
        data = messages.encode(message)
        if len(data) > messages.CONTROL_FRAME_LIMIT_BYTES:
            raise Violation(f"a {type(message).__name__} of {len(data)} bytes is above the frame limit")
        network.frames[type(message).__name__] += 1
        at = max(self.last, network.now + (network.delay() if delay_s is None else delay_s))
        self.last = at
        network.later(at - network.now, self._arrive, data)
        may_repeat = network.faults.duplicates > 0 and self.duplicable and isinstance(message, messages.Done)
        if may_repeat and network.rng.random() < network.faults.duplicates:
            network.later(at - network.now + network.rng.random() * 0.2, self._arrive, data)

    def _arrive(self, data: bytes) -> None:
        if not self.cut:
            self.deliver(self.decode(data))


class FakeSlot:
    """A slot process as ``runtime/slot.py`` has it: claims, kept values, batched results, death."""

    def __init__(self, worker: FakeWorker, slot_id: int, library_id: int) -> None:
        self.worker, self.slot_id, self.library_id = worker, slot_id, library_id
        self.network = worker.network
        self.alive, self.forked, self.busy = True, False, False
        self.modules: set[str] = set()
        self.inbox: deque[object] = deque()
        self.codes: set[int] = set()
        self.out: list[messages.Result] = []
        self.kept: dict[int, bytes] = {}
        self.uses_left: dict[int, int] = {}
        self.inline: dict[int, bytes] = {}
        self.last_flush = 0.0
        # Shared memory: (visible to the other side from, number).
        self.started: list[tuple[float, int]] = [(0.0, NOT_REVOKED)]
        self.revoked: list[tuple[float, int]] = [(0.0, NOT_REVOKED)]
        self.to_worker = Wire(self.network, messages.decode_from_slot, self._results)
        self.from_worker = Wire(self.network, messages.decode_to_slot, self._receive)

    # -- shared memory

    def write(self, cell: list[tuple[float, int]], number: int) -> None:
        at = max(cell[-1][0], self.network.now + self.network.rng.random() * STORE_BUFFER_S * (self.network.faults.delay_s > 0))
        cell.append((at, number))

    def read(self, cell: list[tuple[float, int]]) -> int:
        """What the other side sees now."""
        while len(cell) > 1 and cell[1][0] <= self.network.now:
            del cell[0]
        return cell[0][1]

    # -- life

    def fork(self, modules: set[str]) -> None:
        self.forked, self.modules = True, set(modules)
        self._resume(self._serve())

    def die(self) -> None:
        """Killed: what was not flushed is lost; the worker hears of it behind everything that was sent."""
        if not self.alive:
            return
        self.alive = False
        self.worker.slot_deaths += 1
        delay = max(0.0, self.to_worker.last - self.network.now)
        self.network.later(delay, self.worker.slot_gone, self, self.started[-1][1])

    def _receive(self, message: object) -> None:
        self.inbox.append(message)
        if self.forked and not self.busy:
            self._resume(self._serve())

    def _resume(self, work: Iterator[float]) -> None:
        if not self.alive:
            return
        self.busy = True
        delay = next(work, None)
        if delay is None:
            self.busy = False
        else:
            self.network.later(delay, self._resume, work)

    def _serve(self) -> Iterator[float]:
        while self.inbox:
            message = self.inbox.popleft()
            if isinstance(message, messages.SlotCode):
                if message.path and message.path not in self.worker.store:
                    raise Violation(f"slot {self.slot_id} was given code {message.code_id}, whose object is not in the store")
                self.codes.add(message.code_id)
            elif isinstance(message, messages.Batch):
                yield from self._batch(message)
            elif isinstance(message, messages.SlotForget):
                self.codes.difference_update(message.code_ids)

    def _batch(self, batch: messages.Batch) -> Iterator[float]:
        self.inline.update(batch.values)
        sequence = batch.first
        self.last_flush = self.network.now
        for group in batch.groups:
            for call in group:
                self.write(self.started, sequence)
                if sequence >= self.read(self.revoked):
                    self._hand_out(group)
                    self.out.append(messages.Result(call.task_id, call.attempt, messages.HANDED_BACK, 0))
                else:
                    yield from self._call(call)
                    if not self.alive:
                        return
                sequence += 1
            self.kept.clear()
            self.uses_left.clear()
        self.inline.clear()
        self._flush()

    def _call(self, call: messages.Call) -> Iterator[float]:
        network, spec = self.network, self.network.spec(call.task_id)
        if call.code_id not in self.codes:
            raise Violation(f"task {call.task_id} came to slot {self.slot_id} before its code {call.code_id}")
        try:
            inputs = [self._input(ref) for ref in call.inputs]
        except KeyError as error:
            name = str(error.args[0]).encode()
            self.out.append(messages.Result(call.task_id, call.attempt, messages.NO_INPUT, 0, name))
            return
        network.executions[call.task_id] += 1
        self.worker.runs[call.task_id, call.attempt] += 1
        if self.worker.runs[call.task_id, call.attempt] > 1 + self.worker.slot_deaths + self.worker.host_deaths:
            raise Violation(f"task {call.task_id} attempt {call.attempt} ran twice on one worker, where nothing died")
        if spec.duration_s > STUCK_FLUSH_S:
            yield STUCK_FLUSH_S
            self._flush()
            yield spec.duration_s - STUCK_FLUSH_S
        elif spec.duration_s:
            yield spec.duration_s
        if spec.kills > 0:
            spec.kills -= 1
            self.die()
            return
        result = messages.Result(call.task_id, call.attempt, messages.RAISED, 0, b"boom %d" % call.task_id)
        if spec.raises > 0:
            spec.raises -= 1
            spec.raised += 1
        else:
            self._ended(call, digest(call.task_id, inputs), result)
        result.duration_us = max(1, int(spec.duration_s * 1e6))
        self.out.append(result)
        if network.now - self.last_flush > FLUSH_AFTER_S:
            self._flush()

    def _ended(self, call: messages.Call, value: bytes, result: messages.Result) -> None:
        size = self.network.spec(call.task_id).size_bytes
        if not call.publish:
            result.status, result.value = messages.OK_KEPT, b""
        elif size <= messages.INLINE_LIMIT_BYTES:
            result.status, result.value = messages.OK_INLINE, value
        else:
            result.status, result.value, result.size_bytes = messages.OK_STORED, b"", size
            self.worker.store[f"{RUN}-{call.task_id}.{call.attempt}"] = value
        if call.uses:
            self.kept[call.task_id], self.uses_left[call.task_id] = value, call.uses

    def _hand_out(self, group: list[messages.Call]) -> None:
        """Values that were kept for the rest of a group are written when that is handed back."""
        for call in group:
            if call.task_id in self.kept and not call.publish:
                result = messages.Result(call.task_id, call.attempt, messages.WRITTEN_LATER, 0, self.kept[call.task_id])
                if self.network.spec(call.task_id).size_bytes > messages.INLINE_LIMIT_BYTES:
                    result.value, result.size_bytes = b"", self.network.spec(call.task_id).size_bytes
                    self.worker.store[f"{RUN}-{call.task_id}.{call.attempt}"] = self.kept[call.task_id]
                self.out.append(result)
                self.network.written_later += 1
        self.kept.clear()
        self.uses_left.clear()

    def _input(self, ref: int | str) -> bytes:
        if isinstance(ref, str):
            return self.worker.store[ref]
        if ref not in self.kept:
            return self.inline[ref]
        self.uses_left[ref] -= 1
        if self.uses_left[ref]:
            return self.kept[ref]
        del self.uses_left[ref]
        return self.kept.pop(ref)

    def _flush(self) -> None:
        self.last_flush = self.network.now
        if self.out and self.alive:
            self.to_worker.send(messages.Done(self.out), self.network.rng.random() * 1e-4)
            self.out = []

    def _results(self, message: object) -> None:
        assert isinstance(message, messages.Done)
        self.worker.slot_answered(self, message.results)


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

    def _to_manager(self, message: object) -> None:
        self.shell.worker_said(self, message)

    def _said(self, message: object) -> None:
        if self.alive:
            self.handle(to_worker.ManagerSaid(self.network.now, message))

    # -- faults

    def freeze(self) -> None:
        """Its machine goes away without a word: no message leaves or arrives, the manager must notice."""
        self.from_manager.cut = self.to_manager.cut = True
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
            self.network.later(self.network.delay(), self._fetch_begins, order.name, order.transfer_id)
        elif isinstance(order, from_worker.UploadObject):
            self.network.later(self.network.delay(), self._upload_begins, order.transfer_id, order.name)
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
            self._drop(order.slot_id)
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

    # -- data links

    def _fetch_begins(self, name: str, transfer_id: int) -> None:
        if transfer_id and self.alive:
            self.shell.splices.asked(transfer_id, self, name)
            return
        # Once the transfer runs, the manager may forget the object: the bytes arrive all the same.
        self.network.later(self.network.delay() * 2, self.fetched, name, self.shell.objects.get(name))

    def fetched(self, name: str, data: bytes | None) -> None:
        if not self.alive:
            return
        if data is None or self.network.rng.random() < self.network.faults.fetch_fails:
            self.handle(to_worker.ObjectFailed(self.network.now, name, "it could not be fetched"))
        else:
            self.store[name] = data
            self.handle(to_worker.ObjectArrived(self.network.now, name, 100_000))

    def _upload_begins(self, transfer_id: int, name: str) -> None:
        if self.alive and name in self.store:
            # Another file of that name may be dropped while its bytes are under way: they are read from an open one.
            self.shell.splices.begins(transfer_id)
        self.network.later(self.network.delay() * 2, self._uploaded, transfer_id, name, self.store.get(name))

    def _uploaded(self, transfer_id: int, name: str, opened: bytes | None) -> None:
        if not self.alive:
            self.shell.splices.ends(transfer_id, None)
            return
        if transfer_id in self.shell.splices.passing:
            failed = self.network.rng.random() < self.network.faults.upload_fails
            self.shell.splices.ends(transfer_id, None if failed else opened)
            reason = "ConnectionResetError: the link broke" if failed else ""
            self.handle(to_worker.UploadEnded(self.network.now, transfer_id, name, reason))
            return
        reason = ""
        if name not in self.store or self.network.rng.random() < self.network.faults.upload_fails:
            reason = "FileLost: it could not be read"
        else:
            self.shell.upload_came(transfer_id, name, self.store[name])
        self.handle(to_worker.UploadEnded(self.network.now, transfer_id, name, reason))


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
        self.on_file: Callable[[FileEntry, object, bytes | None, str], None] | None = None
        self.said: list[str] = []
        self.notes: list[object] = []
        self.tick_at = 0.0
        self.next_worker_id = 1

    # -- workers

    def join(self, cores: int = 2, machine: str = "there", memory_mb: int = 1000) -> FakeWorker:
        """A worker connects."""
        worker_id = self.next_worker_id
        self.next_worker_id += 1
        said = hello(cores, memory_mb, machine, f"host{worker_id}")
        worker = self.workers[worker_id] = FakeWorker(self.network, self, worker_id, said)
        self.all_workers.append(worker)
        self.handle(to_manager.WorkerJoined(self.network.now, worker_id, said))
        return worker

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
        self.machine.check()
        for order in orders:
            self._perform(order)
        due = self.machine.next_deadline()
        now = self.network.now
        if due is not None and not now < self.tick_at <= due:
            self.tick_at = max(due, now + 1e-3)
            self.network.later(self.tick_at - now, self._tick, self.tick_at)

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
                self.on_file(order.file, order.handle, None, order.reason)
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
            holder = next((w for w in self.workers.values() if w.said.machine == "here" and file.name in w.store), None)
            # A worker on this machine may be gone by now: reading the path fails, and the reader asks again.
            data = holder.store[file.name] if holder is not None else None
        else:
            data = file.data if file.data is not None else self.objects.get(file.name)
            if data is None:
                raise Violation(f"{file} is said to be here")
        self.files.append((file, order.handle, data or b""))
        if self.on_file is not None:
            self.on_file(file, order.handle, data, "")


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
