"""A slot that behaves like ``runtime/slot.py`` and, with sandboxes, like ``runtime/forking_slot.py``."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import TYPE_CHECKING

from tests.kit.builders import RUN
from tests.kit.network import Spec, Violation, Wire, digest, product_value
from tests.kit.transfers import FULL_S
from vinecore.wire import messages
from vinecore.worker.state import NOT_REVOKED

if TYPE_CHECKING:
    from tests.kit.workers import FakeWorker

# A write to shared memory is seen by the other side within this time; the worker trusts that it is below REVOKE_SETTLE_S.
STORE_BUFFER_S = 0.001
FLUSH_AFTER_S = 0.002
STUCK_FLUSH_S = 0.005


class FakeSlot:
    """A slot process as ``runtime/slot.py`` has it: claims, kept values, batched results, death."""

    def __init__(self, worker: FakeWorker, slot_id: int, library_id: int) -> None:
        self.worker, self.slot_id, self.library_id = worker, slot_id, library_id
        self.network = worker.network
        self.alive, self.forked, self.busy = True, False, False
        self.modules: set[str] = set()
        self.inbox: deque[object] = deque()
        self.codes: set[int] = set()
        # Objects with code that no call has used: they are read then, as by the real slot.
        self.unread: dict[int, str] = {}
        self.out: list[messages.Result] = []
        self.kept: dict[int, bytes] = {}
        self.group: list[messages.Call] = []
        self.written: set[int] = set()
        self.uses_left: dict[int, int] = {}
        self.inline: dict[int, bytes] = {}
        self.last_flush = 0.0
        # The call whose sandbox exists now.
        self.in_box: messages.Call | None = None
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
                self.codes.add(message.code_id)
                self.unread[message.code_id] = message.path
            elif isinstance(message, messages.Batch):
                yield from self._batch(message)
            elif isinstance(message, messages.SlotForget):
                self.codes.difference_update(message.code_ids)

    def _batch(self, batch: messages.Batch) -> Iterator[float]:
        self.inline.update(batch.values)
        sequence = batch.first
        self.last_flush = self.network.now
        for group in batch.groups:
            self.group = group
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
            self.written.clear()
        self.inline.clear()
        self._flush()

    def _call(self, call: messages.Call) -> Iterator[float]:
        network, spec = self.network, self.network.spec(call.task_id)
        box = call.sandbox
        if call.code_id not in self.codes and not (box is not None and box.command):
            raise Violation(f"task {call.task_id} came to slot {self.slot_id} before its code {call.code_id}")
        path = self.unread.pop(call.code_id, "")
        if path and path not in self.worker.store:
            if not self._is_cancelled(call):
                raise Violation(f"slot {self.slot_id} was given code {call.code_id}, whose object is not in the store")
            self._lost(call, "its code is gone")  # with what needed it; nobody hears of this
            return
        if self.worker.disk_full:
            yield FULL_S
        if box is not None and self.worker.disk_full:
            self._lost(call, "its sandbox failed: no space left on device")
            return
        before = dict(self.kept), dict(self.uses_left)
        try:
            inputs = [self._input(ref) for ref in call.inputs]
            inputs += [self._input(mount.source) for mount in box.mounts] if box is not None else []
        except KeyError as error:
            self.kept, self.uses_left = before
            self._write_later([made for made in self.group if made.task_id in call.inputs])
            name = str(error.args[0]).encode()
            self.out.append(messages.Result(call.task_id, call.attempt, messages.NO_INPUT, 0, name))
            return
        network.executions[call.task_id] += 1
        self.worker.runs[call.task_id, call.attempt] += 1
        if box is not None:
            self.in_box = call
            self.worker.check_room()
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
        if box is not None:
            self.in_box = None
            self._box_ended(call, box, spec, inputs)
            if spec.late_kills > 0:
                spec.late_kills -= 1
                self.die()
                return
        else:
            self._plain_ended(call, spec, inputs)
        if network.now - self.last_flush > FLUSH_AFTER_S:
            self._flush()

    def _plain_ended(self, call: messages.Call, spec: Spec, inputs: list[bytes]) -> None:
        result = messages.Result(call.task_id, call.attempt, messages.RAISED, 0, b"boom %d" % call.task_id)
        if spec.raises > 0:
            spec.raises -= 1
            spec.raised += 1
        else:
            self._ended(call, digest(call.task_id, inputs), result)
        result.duration_us = max(1, int(spec.duration_s * 1e6))
        self.out.append(result)

    def _is_cancelled(self, call: messages.Call) -> bool:
        """The worker has been told that nobody waits for it any more, and kills the slot if it sees it run."""
        known = self.worker.machine.state.slots.get(self.slot_id)
        if known is None:
            return False
        numbers = enumerate(known.outstanding, known.first)
        return any(other.task_id == call.task_id and number in known.cancelled for number, (other, _) in numbers)

    def _lost(self, call: messages.Call, why: str) -> None:
        self.out.append(messages.Result(call.task_id, call.attempt, messages.LOST, 0, why.encode()))

    def _box_ended(self, call: messages.Call, box: messages.Sandbox, spec: Spec, inputs: list[bytes]) -> None:
        """The end of a call in a sandbox: its value, its products, what it wrote into."""
        result = messages.Result(call.task_id, call.attempt, messages.OK_INLINE, 0)
        report = messages.Report(0, b"", [], [], [])
        if spec.child_kills > 0 and not box.command:
            spec.child_kills -= 1
            result.status, result.value, report.exit_code = messages.LOST, b"its process was killed", -1
        elif spec.raises > 0:
            spec.raises -= 1
            spec.raised += 1
            result.status, result.value, report.exit_code = messages.RAISED, b"boom %d" % call.task_id, 1
        elif spec.limits > 0:
            spec.limits -= 1
            spec.limited += 1
            report.exit_code, report.outcome = 9, "max wall time"
        elif not box.command:
            self._ended(call, digest(call.task_id, inputs), result)
        self._collect(call, box, spec, inputs, report)
        if self.worker.disk_full and any(not content for _, size, content in report.products if size):
            # Written only in part: nothing of it stays, the slot reports that its sandbox failed.
            for name, _, _ in report.products:
                self.worker.store.pop(name, None)
            if result.status == messages.OK_STORED:
                del self.worker.store[f"{RUN}-{call.task_id}.{call.attempt}"]
            self._lost(call, "its sandbox failed: no space left on device")
            return
        if spec.damages > 0:
            # The slot drops what was written into, before anybody else can read it.
            spec.damages -= 1
            report.damaged = [m.source for m in box.mounts if isinstance(m.source, str) and m.source in self.worker.store][:1]
            for name in report.damaged:
                del self.worker.store[name]
        result.report = report
        result.duration_us = max(1, int(spec.duration_s * 1e6))
        self.out.append(result)

    def _collect(
        self, call: messages.Call, box: messages.Sandbox, spec: Spec, inputs: list[bytes], report: messages.Report
    ) -> None:
        """Products go into the store, small ones that are wanted at the manager ride along."""
        succeeded = report.exit_code == 0
        for number, product in enumerate(box.products):
            if product.flags & (messages.ON_FAILURE if succeeded else messages.ON_SUCCESS):
                continue
            if number in spec.leaves_out:
                report.missing.append(product.path)
                continue
            size = spec.product_sizes[number]
            content = product_value(call.task_id, number, inputs, size)
            rides = product.flags & messages.HOME and size <= messages.INLINE_LIMIT_BYTES
            if size and not rides:
                self.worker.store[product.name] = content
            report.products.append((product.name, size, content if rides else b""))

    def _ended(self, call: messages.Call, value: bytes, result: messages.Result) -> None:
        size = self.network.spec(call.task_id).size_bytes
        if not call.publish:
            result.status, result.value = messages.OK_KEPT, b""
        elif size <= messages.INLINE_LIMIT_BYTES:
            result.status, result.value = messages.OK_INLINE, value
        elif self.worker.disk_full:
            result.status, result.value = messages.LOST, b"its result could not be written: no space left on device"
            return
        else:
            result.status, result.value, result.size_bytes = messages.OK_STORED, b"", size
            self.worker.store[f"{RUN}-{call.task_id}.{call.attempt}"] = value
        if call.uses:
            self.kept[call.task_id], self.uses_left[call.task_id] = value, call.uses

    def _hand_out(self, group: list[messages.Call]) -> None:
        """Values that were kept for the rest of a group are written when that is handed back."""
        self._write_later(group)
        self.kept.clear()
        self.uses_left.clear()

    def _write_later(self, calls: list[messages.Call]) -> None:
        for call in calls:
            if call.task_id in self.kept and not call.publish and call.task_id not in self.written:
                result = messages.Result(call.task_id, call.attempt, messages.WRITTEN_LATER, 0, self.kept[call.task_id])
                if self.network.spec(call.task_id).size_bytes > messages.INLINE_LIMIT_BYTES:
                    if self.worker.disk_full:
                        continue  # made again: nobody was promised that it is written
                    result.value, result.size_bytes = b"", self.network.spec(call.task_id).size_bytes
                    self.worker.store[f"{RUN}-{call.task_id}.{call.attempt}"] = self.kept[call.task_id]
                self.out.append(result)
                self.written.add(call.task_id)
                self.network.written_later += 1

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
