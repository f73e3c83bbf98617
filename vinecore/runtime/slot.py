"""A slot: the forked process that runs calls, one at a time, for one library on one worker.

    worker  --Batch, SlotCode-->  [recv] -> codes, values -> run in order -> [results] --Done-->  worker
                                                 |
                              claims: 16 shared bytes, [started | revoked from]

It is a plain blocking loop: no asyncio, no selector. It owns the table of values that calls of a group hand to each other
and a small memory of recent objects of the store. It writes large results into the store itself (aside, then rename) and never
talks to the manager. It must end when its socket does, and it must not let a call end it: whatever user code raises becomes a
Result.

Claims: before a call with sequence number n starts, the slot writes n and then reads the number from which calls are revoked; at
or above it nothing starts, everything left is handed back, behind the values that were kept for what is left of a group. So the
worker can take back work from a slot that is stuck in a long call, and knows which call a dead slot was running.
"""

from __future__ import annotations

import errno
import mmap
import os
import pickle
import socket
from _thread import allocate_lock
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from time import perf_counter
from typing import TYPE_CHECKING, Any

from vinecore.errors import UnpicklableError
from vinecore.runtime import payload as payloads
from vinecore.runtime import raised
from vinecore.runtime import vertex as vertices
from vinecore.runtime.strays import end_stray
from vinecore.wire import messages
from vinecore.wire.framing import FrameReader, FrameWriter
from vinecore.wire.messages import Call, Done, Result

if TYPE_CHECKING:
    from vinecore.runtime.flusher import Flusher

# Results wait at most this long for company; higher: fewer, larger messages, and slower first answers of a batch.
FLUSH_AFTER_S = 0.002
# Objects of the store kept unpickled for later vertices of graphs; higher: fewer reloads, more memory per slot.
RECENT_BYTES = 128 * 1024 * 1024
RECENT_COUNT = 64
RECEIVE_BYTES = 256 * 1024
# A slot's claims: two numbers of eight bytes.
CLAIM_BYTES = 16
# A slot looks at its memory this often; higher: it grows further before it is replaced.
MEMORY_LOOK_S = 0.25
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


class Recent:
    """Objects of the store that vertices used lately, by cache name, bounded in count and bytes.

    Only vertices of graphs share objects (Dask forbids them to change their inputs); calls get a fresh unpickling.
    """

    __slots__ = ("_bytes", "_objects")

    def __init__(self) -> None:
        self._objects: OrderedDict[str, tuple[object, int]] = OrderedDict()
        self._bytes = 0

    def get(self, name: str) -> tuple[object, int] | None:
        found = self._objects.get(name)
        if found is not None:
            self._objects.move_to_end(name)
        return found

    def put(self, name: str, value: object, size_bytes: int) -> None:
        if size_bytes > RECENT_BYTES or name in self._objects:
            return
        self._objects[name] = (value, size_bytes)
        self._bytes += size_bytes
        while self._bytes > RECENT_BYTES or len(self._objects) > RECENT_COUNT:
            _, (_, dropped) = self._objects.popitem(last=False)
            self._bytes -= dropped


def own_memory_bytes() -> int:
    """Memory of this process that no file backs; pages still shared with the parent are in it, before and after."""
    with open("/proc/self/statm", "rb") as file:
        _, resident, shared, *_ = file.read().split()
    return (int(resident) - int(shared)) * _PAGE_BYTES


class Broken:
    """Stands for code that could not be unpickled here: every call of it raises why."""

    def __init__(self, error: BaseException) -> None:
        self.error = error
        self.traceback = raised.frames_of(error)

    def __call__(self, *args: object, **kwargs: object) -> object:
        # As it was: without what earlier calls added to its traceback, which would grow with each.
        raise BaseException.with_traceback(self.error, self.traceback)


class Codes(dict[int, Any]):
    """Functions, or pieces of graphs, by code id. What came as code is unpickled when it is wanted first, which is after a call
    was claimed: if a module that it imports ends this process, that call is to blame and no other.

    Parameters:
        known: what is there without being unpickled.
    """

    def __init__(self, known: Mapping[int, object]) -> None:
        super().__init__(known)
        self.waiting: dict[int, messages.SlotCode] = {}

    def __missing__(self, code_id: int) -> object:
        message = self.waiting.pop(code_id, None)
        if message is None:
            raise KeyError(code_id)
        data = message.payload
        try:
            if message.path:
                with open(message.path, "rb") as file:
                    data = file.read()
            code = pickle.loads(data)
        except BaseException as error:
            code = Broken(error)
        self[code_id] = code
        return code

    def load(self, code_ids: Iterable[int]) -> None:
        """Unpickle those of these that wait for it."""
        for code_id in code_ids:
            if code_id in self.waiting:
                self[code_id]

    def forget(self, code_ids: list[int]) -> bool:
        """Drop code that is not used again; True when some of it had been unpickled."""
        was_there = [self.pop(code_id, None) is not None for code_id in code_ids]
        for code_id in code_ids:
            self.waiting.pop(code_id, None)
        return any(was_there)


class MissingInput(Exception):
    """An input of a call is not here (its producer failed, or its object was lost)."""


class NoRoom(Exception):
    """A result could not be written here: another worker may be able to."""


def _is_inert(value: object) -> bool:
    """Whether nothing can happen when this object ends: plain values, and arrays of numbers (numpy is not imported here)."""
    kind = type(value)
    if kind in payloads.ATOMIC:
        return True
    return kind.__name__ == "ndarray" and kind.__module__ == "numpy" and not value.dtype.hasobject  # type: ignore[attr-defined]


class Slot:
    """The state of one slot process; ``serve`` runs until the worker's end of the socket closes."""

    hold_s = FLUSH_AFTER_S

    def __init__(
        self,
        sock: socket.socket,
        claims: memoryview,
        begin: messages.Begin,
        functions: dict[int, Callable[..., object]],
    ) -> None:
        self.sock = sock
        self.claims = claims
        self.store = begin.store
        self.run_name = begin.run
        self.inline_limit_bytes = begin.inline_limit_bytes
        self.functions = Codes(functions)
        # Rows of packed vertices.
        self.pieces = Codes({})
        self.recent = Recent()
        # Values of the running group and inline inputs of the running batch, by task id.
        self.kept: dict[int, object] = {}
        self.uses_left: dict[int, int] = {}
        # What runs now, and which of its kept values were written after all.
        self.group: list[Call] = []
        self.written: set[int] = set()
        self.inline: dict[int, bytes] = {}
        self.decoded: dict[int, object] = {}
        # Values of the running batch that went into the store, by task id.
        self.stored: dict[int, str] = {}
        self.out: list[Result] = []
        # Of their values: bounds a frame.
        self.out_bytes = 0
        self.out_lock = allocate_lock()
        self.last_flush = 0.0
        self.writer = FrameWriter()
        # Made for the first batch of several calls.
        self.flusher: Flusher | None = None
        # Growth after which it asks to be replaced, once; 0: never.
        self.growth_bytes = begin.growth_mb << 20
        self.memory_looked_at = perf_counter()
        self.memory_before = own_memory_bytes() if self.growth_bytes else 0

    # ------------------------------------------------------------ loop

    def serve(self) -> None:
        """Read frames and run batches until the socket ends."""
        reader = FrameReader(messages.CONTROL_FRAME_LIMIT_BYTES)
        decode = messages.decode_to_slot
        receive = self.receiver()
        # One buffer for all reads: a fresh one for each costs more than the copy out of it.
        buffer = memoryview(bytearray(RECEIVE_BYTES))
        while True:
            size_bytes = receive(buffer)
            if not size_bytes:
                return
            for frame in reader.feed(buffer[:size_bytes]):
                message = decode(frame)
                if isinstance(message, messages.Batch):
                    self.run_batch(message)
                elif isinstance(message, messages.SlotCode):
                    self.learn(message)
                elif isinstance(message, messages.SlotForget):
                    self.forget(message.code_ids)

    def say_ready(self) -> None:
        """Of a slot that has loaded its library by itself: calls may come now."""
        self.sock.sendall(self.writer.write(messages.encode(messages.Ready())))

    def receiver(self) -> Callable[[memoryview], int]:
        """What waits for frames, and puts them into a buffer."""
        return self.sock.recv_into

    def learn(self, message: messages.SlotCode) -> None:
        """Take code; the first call of it unpickles it, and every call of it raises what goes wrong with that."""
        (self.pieces if message.is_piece else self.functions).waiting[message.code_id] = message

    def forget(self, code_ids: list[int]) -> None:
        """Drop code that is not used again."""
        self.functions.forget(code_ids)
        self.pieces.forget(code_ids)

    def run_batch(self, batch: messages.Batch) -> None:
        """Run all groups in order, unless revoked; send every result before returning."""
        for task_id, data in batch.values:
            self.inline[task_id] = data
        sequence = batch.first
        claims = self.claims
        several = len(batch.groups) > 1 or len(batch.groups[0]) > 1
        if several:
            self._watch()
        self.last_flush = perf_counter()
        for group in batch.groups:
            self.group = group
            for call in group:
                claims[0] = sequence
                if sequence >= claims[1]:
                    if self.kept:
                        self.hand_out(group)
                    self.report(Result(call.task_id, call.attempt, messages.HANDED_BACK, 0), False)
                else:
                    self.run_call(call)
                sequence += 1
            if self.kept:
                self.kept.clear()
                self.uses_left.clear()
            if self.written:
                self.written.clear()
        self.inline.clear()
        self.decoded.clear()
        self.stored.clear()
        if self.flusher is not None:
            self.flusher.rest()
        self.flush()
        if self.growth_bytes and self.last_flush - self.memory_looked_at > MEMORY_LOOK_S:
            self._look_at_memory()

    def _look_at_memory(self) -> None:
        """Ask to be replaced when too much memory does not come back; what is only kept for later is let go before."""
        self.memory_looked_at = self.last_flush
        if own_memory_bytes() - self.memory_before <= self.growth_bytes:
            return
        self.recent = Recent()
        grown = own_memory_bytes() - self.memory_before
        if grown > self.growth_bytes:
            self.growth_bytes = 0
            with self.out_lock:
                self.sock.sendall(self.writer.write(messages.encode(messages.Tired(grown >> 20))))

    # ------------------------------------------------------------ one call

    def run_call(self, call: Call) -> None:
        """Run one call and gather its Result."""
        result = self.execute(call)
        with self.out_lock:
            self.out.append(result)
            self.out_bytes += len(result.value)
        if perf_counter() - self.last_flush > self.hold_s or self.out_bytes > messages.BATCH_LIMIT_BYTES:
            self.flush()

    def execute(self, call: Call) -> Result:
        """Run one call; nothing that user code raises gets out of here."""
        started = perf_counter()
        process = os.getpid()
        try:
            if call.index < 0 and not call.inputs:
                # The usual call, without detours: in a forked child each function on the way costs several copied pages.
                given: Any = payloads.decode(call.payload)
                value = self.functions[call.code_id](*given[0], **given[1])
            else:
                value = self.evaluate(call)
            encoded = self.encode(call, value) if call.publish else b""
            if os.getpid() != process:
                end_stray()  # neither its value nor its answer counts
            if call.publish:
                result = self.publish(call, value, encoded)
            else:
                result = Result(call.task_id, call.attempt, messages.OK_KEPT, 0)
            if call.uses:
                self.keep(call, value, result)
        except MissingInput as error:
            if self.kept:
                # It runs elsewhere, and what else it reads of this group has to be there.
                self.write_later([made for made in self.group if made.task_id in call.inputs])
            result = Result(call.task_id, call.attempt, messages.NO_INPUT, 0, str(error).encode())
        except NoRoom as error:
            result = Result(call.task_id, call.attempt, messages.LOST, 0, str(error).encode())
        except BaseException as error:
            if os.getpid() != process:
                end_stray(error)
            result = Result(call.task_id, call.attempt, messages.RAISED, 0, raised.encode_error(error))
        result.duration_us = int((perf_counter() - started) * 1e6)
        return result

    def keep(self, call: Call, value: object, result: Result) -> None:
        """Have a value ready for later calls of the group.

        One that was published is read back instead: others hold copies of it then, and the end of the original must not pull
        something away from under these (an object that deletes its directory, say), so it ends here and now.
        """
        if result.status == messages.OK_KEPT or _is_inert(value):
            self.kept[call.task_id] = value
            self.uses_left[call.task_id] = call.uses
        elif result.status == messages.OK_INLINE:
            self.inline[call.task_id] = result.value
        else:
            self.stored[call.task_id] = f"{self.run_name}-{call.task_id}.{call.attempt}"

    def hand_out(self, group: list[Call]) -> None:
        """The group ends early: values that stayed here for its later calls are needed elsewhere."""
        self.write_later(group)
        self.kept.clear()
        self.uses_left.clear()

    def write_later(self, calls: list[Call]) -> None:
        """Publish what these calls have made, where it was kept for others of their group.

        What cannot be written is made again, where it fails in the user's sight.
        """
        for call in calls:
            if call.task_id in self.kept and not call.publish and call.task_id not in self.written:
                value = self.kept[call.task_id]
                try:
                    result = self.publish(call, value, self.encode(call, value))
                except Exception:
                    continue
                self.written.add(call.task_id)
                result.status = messages.WRITTEN_LATER
                self.report(result, False)

    def encode(self, call: Call, value: object) -> bytes | payloads.Encoded:
        """A value as it travels: a payload, or what a sandboxed task asked for."""
        spec = call.sandbox
        if spec is not None and spec.raw_result:
            if not isinstance(value, bytes | bytearray | memoryview):
                kind = type(value).__name__
                raise UnpicklableError(f"{self._name_of(call)} must return bytes (its output is not serialized), not {kind}")
            return bytes(value)
        try:
            return payloads.encode(value) if spec is None or not spec.plain_pickle else payloads.dump(value)
        except Exception as error:
            raise payloads.result_error(value, self._name_of(call), error) from error

    def evaluate(self, call: Call) -> object:
        """The value of one call."""
        if call.index >= 0:
            piece = self.pieces[call.code_id]
            if isinstance(piece, Broken):
                piece()
            inputs = self.vertex_inputs(call.inputs) if call.inputs else ()
            return vertices.run_packed(piece[call.index], self.functions, inputs)
        function = self.functions[call.code_id]
        args, kwargs = self.arguments(call)
        return function(*args, **kwargs)

    def arguments(self, call: Call) -> tuple[Any, Any]:
        """Positional and keyword arguments of a plain call that has inputs."""
        refs = call.inputs
        if call.payload_file:
            data: bytes | mmap.mmap = self._map(refs[0])
            refs = refs[1:]
        else:
            data = call.payload
        return payloads.decode_arguments(data, [self.call_input(ref) for ref in refs])

    def vertex_inputs(self, refs: list[int | str]) -> list[object]:
        """All of them; those that were kept are not used up when one is missing."""
        given: list[object] = []
        try:
            for ref in refs:
                given.append(self.vertex_input(ref))  # noqa: PERF401 - what was read is known when one is missing
        except MissingInput:
            for ref, value in zip(refs, given, strict=False):
                if isinstance(ref, int) and ref not in self.decoded and ref not in self.stored:
                    self.kept[ref] = value
                    self.uses_left[ref] = self.uses_left.get(ref, 0) + 1
            raise
        return given

    def vertex_input(self, ref: int | str) -> object:
        """An input of a graph's vertex: shared between vertices of this slot."""
        if isinstance(ref, str):
            found = self.recent.get(ref)
            if found is not None:
                return found[0]
            path = f"{self.store}/{ref}"
            try:
                value = payloads.decode_file(path)
                self.recent.put(ref, value, os.path.getsize(path))
            except FileNotFoundError:
                raise MissingInput(ref) from None
            return value
        if ref in self.kept:
            value = self.kept[ref]
            left = self.uses_left[ref] - 1
            if left:
                self.uses_left[ref] = left
            else:
                del self.kept[ref], self.uses_left[ref]
            return value
        if ref in self.decoded:
            return self.decoded[ref]
        if ref in self.stored:
            return self.vertex_input(self.stored[ref])
        data = self.inline.get(ref)
        if data is None:
            raise MissingInput(str(ref))
        value = self.decoded[ref] = payloads.decode(data)
        return value

    def call_input(self, ref: int | str) -> object:
        """An input of a plain call: a fresh unpickling each time, so that a call may change its arguments."""
        if isinstance(ref, str):
            try:
                return payloads.decode_file(f"{self.store}/{ref}")
            except FileNotFoundError:
                raise MissingInput(ref) from None
        data = self.inline.get(ref)
        if data is None:
            raise MissingInput(str(ref))
        return payloads.decode(data)

    def publish(self, call: Call, value: object, encoded: bytes | payloads.Encoded) -> Result:
        """Report small values inline, write large ones into the store."""
        if isinstance(encoded, bytes):
            size = len(encoded)
            if size <= self.inline_limit_bytes:
                return Result(call.task_id, call.attempt, messages.OK_INLINE, 0, encoded)
        else:
            size = encoded.size_bytes
            if size <= self.inline_limit_bytes:
                return Result(call.task_id, call.attempt, messages.OK_INLINE, 0, encoded.join())
        name = f"{self.run_name}-{call.task_id}.{call.attempt}"
        aside = f"{self.store}/.aside-{name}"
        try:
            payloads.write_file(aside, encoded)
            os.rename(aside, f"{self.store}/{name}")
        except OSError as error:
            # A partial object must not stay behind: it would hold the space that the next try needs.
            try:
                os.unlink(aside)
            except FileNotFoundError:
                pass
            if error.errno in (errno.EFBIG, errno.EMFILE):
                raise  # a limit that the call has set for its process: it would again
            raise NoRoom(f"its result could not be written: {error.strerror}") from None
        if call.index >= 0 and _is_inert(value):
            self.recent.put(name, value, size)
        return Result(call.task_id, call.attempt, messages.OK_STORED, 0, b"", size)

    def _map(self, ref: int | str) -> mmap.mmap:
        try:
            with open(f"{self.store}/{ref}", "rb") as file:
                return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
        except FileNotFoundError:
            raise MissingInput(str(ref)) from None

    def _name_of(self, call: Call) -> str:
        if call.index >= 0:
            return "a vertex of the graph"
        return getattr(self.functions.get(call.code_id), "__name__", "the function")

    # ------------------------------------------------------------ results

    def report(self, result: Result, flush: bool) -> None:
        with self.out_lock:
            self.out.append(result)
            self.out_bytes += len(result.value)
        if flush or self.out_bytes > messages.BATCH_LIMIT_BYTES:
            self.flush()

    def flush(self) -> None:
        """Send what has gathered."""
        with self.out_lock:
            if self.out:
                data = self.writer.write(messages.encode(Done(self.out)))
                self.out = []
                self.out_bytes = 0
                self.sock.sendall(data)
            self.last_flush = perf_counter()

    def _watch(self) -> None:
        """Let a helper thread send results that a long call of this batch would hold up."""
        if self.flusher is None:
            from vinecore.runtime.flusher import Flusher

            self.flusher = Flusher(self)
        self.flusher.watch()
