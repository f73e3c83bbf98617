"""The manager at size: ``python -m tests.sim.scale [--workers N] [--tasks N] [--waiting N] [--losses 0.01] [--plot FILE]``.

    Feed --blocks of calls and a graph--> ManagerMachine --messages, encoded and decoded--> ModelWorker (one of thousands)
      ^--------------outcomes-----------------'  ^------------- answers in virtual time -------------'

The manager's machine is the real one; workers are models that hold objects, fetch from peers with tickets, run calls for a drawn
time, and crash. Only the manager is timed: ``handle`` and, apart from it, decoding what comes and encoding what leaves.
Durations are drawn such that the fleet would end ``RATE_PER_S`` tasks a second, whatever its size, so that what the manager does
by the clock (looks, keepalives) weighs the same; bundles and pipelines, which save messages only where tasks are short, are off.
"""

from __future__ import annotations

import argparse
import gc
import heapq
import random
import sys
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter, thread_time

from tests.kit.builders import RUN, declared, hello
from tests.sim import memory
from tests.sim.plot import Line, plot
from vinecore.manager import events, orders
from vinecore.manager.entries import CodeEntry, FileEntry, GraphEntry, Kind, LibraryEntry, Shape, TaskEntry
from vinecore.manager.machine import ManagerMachine
from vinecore.model.config import Tunables
from vinecore.model.ticket import check_ticket
from vinecore.wire import messages

RATE_PER_S = 10_000.0
SLOTS = 1
# One block: so many calls of their own, and one graph of so many vertices.
BLOCK_CALLS, BLOCK_LEAVES, BLOCK_INNER, FAN_IN = 499, 376, 124, 4
BLOCK = BLOCK_CALLS + BLOCK_LEAVES + BLOCK_INNER + 1
TEMP_BYTES = 1_000_000
COMMON_BYTES = 50_000_000
BANDWIDTH_BYTES_PER_S = 1e9
LATENCY_S = 0.0005
POLL_S = 0.005
FETCH_FAILS = 0.01
# Of the calls that are lost, this share takes the whole worker along; the rest lose their slot.
CRASH_SHARE = 0.1
AWAY_S = 1.0
TRANSFER_KEY = b"k" * 16
# What the manager is timed with.
_clock: Callable[[], float] = perf_counter


@dataclass
class Spent:
    """Seconds of the manager."""

    handle_s: float = 0.0
    gc_s: float = 0.0
    wire_s: float = 0.0
    tick_s: float = 0.0
    event_count: int = 0
    message_count: int = 0
    by_kind: dict[str, list[float]] = field(default_factory=dict)

    def note(self, kind: str, seconds: float) -> None:
        row = self.by_kind.setdefault(kind, [0, 0.0])
        row[0] += 1
        row[1] += seconds


class ModelWorker:
    """What the manager can see of a worker."""

    __slots__ = ("alive", "codes", "fetching", "free", "objects", "queue", "worker_id", "world")

    def __init__(self, world: World, worker_id: int) -> None:
        self.world, self.worker_id = world, worker_id
        self.alive = True
        self.free = SLOTS
        self.queue: deque[list[messages.Call]] = deque()
        self.objects: set[str] = set()
        self.codes: set[int] = set()
        # Groups that wait, by the object that is under way.
        self.fetching: dict[str, list[list[messages.Call]]] = {}

    def said(self, message: object) -> None:
        """A message of the manager."""
        kind = type(message)
        if kind is messages.Run:
            for group in message.groups:  # type: ignore[attr-defined]
                self._take(group)
        elif kind is messages.Code:
            self.codes.add(message.code_id)  # type: ignore[attr-defined]
        elif kind is messages.ForgetCode:
            self.codes.difference_update(message.code_ids)  # type: ignore[attr-defined]
        elif kind is messages.Fetch:
            self._fetch(message, 0)  # type: ignore[arg-type]
        elif kind is messages.Unlink:
            self.objects.difference_update(message.names)  # type: ignore[attr-defined]
        elif kind is messages.StartLibrary:
            self.answer(messages.LibraryReady(message.library_id, SLOTS))  # type: ignore[attr-defined]
        elif kind is messages.Ping:
            self.answer(messages.Pong())
        elif kind is messages.Upload:
            self._upload(message)  # type: ignore[arg-type]
        elif kind is messages.HandBack:
            self._hand_back(message.count)  # type: ignore[attr-defined]

    def answer(self, message: object) -> None:
        if self.alive:
            self.world.later(LATENCY_S, World.worker_said, self.world, self.worker_id, messages.encode(message))

    def _take(self, group: list[messages.Call]) -> None:
        for call in group:
            if call.code_id not in self.codes:
                raise AssertionError(f"worker {self.worker_id} does not know the code of task {call.task_id}")
            for name in call.inputs:
                if type(name) is str and name in self.fetching:
                    self.fetching[name].append(group)
                    return
        self.queue.append(group)
        self._start()

    def _start(self) -> None:
        while self.free and self.queue:
            group = self.queue.popleft()
            self.free -= 1
            self.world.later(self.world.duration() * len(group), ModelWorker._ended, self, group)

    def _ended(self, group: list[messages.Call]) -> None:
        if not self.alive:
            return
        world = self.world
        results = []
        for call in group:
            if any(type(name) is str and name not in self.objects for name in call.inputs):
                missing = next(name for name in call.inputs if type(name) is str and name not in self.objects)
                results.append(messages.Result(call.task_id, call.attempt, messages.NO_INPUT, 0, missing.encode()))
                continue
            if world.losses and world.rng.random() < world.losses:
                if world.rng.random() < CRASH_SHARE:
                    world.crash(self)
                    return
                results.append(messages.Result(call.task_id, call.attempt, messages.LOST, 0, b"killed"))
                continue
            results.append(self._result(call))
        self.free += 1
        world.run_count += len(results)
        self.answer(messages.Done(results))
        self._start()

    def _result(self, call: messages.Call) -> messages.Result:
        size = self.world.sizes.get(call.task_id, 0)
        took_us = int(self.world.mean_s * 1e6)
        if not call.publish:
            return messages.Result(call.task_id, call.attempt, messages.OK_KEPT, took_us)
        if size:
            self.objects.add(f"{RUN}-{call.task_id}.{call.attempt}")
            return messages.Result(call.task_id, call.attempt, messages.OK_STORED, took_us, b"", size)
        return messages.Result(call.task_id, call.attempt, messages.OK_INLINE, took_us, b"%d" % call.task_id)

    def _fetch(self, order: messages.Fetch, number: int) -> None:
        """Ask the sources in turn; without any, the manager."""
        self.fetching.setdefault(order.name, [])
        if order.transfer_id:
            self.world.later(LATENCY_S, World.splice_asked, self.world, self, order)
            return
        took_s = 2 * LATENCY_S + order.size_bytes / BANDWIDTH_BYTES_PER_S
        self.world.later(took_s, self.fetched, order, number)

    def fetched(self, order: messages.Fetch, number: int, reason: str = "") -> None:
        if not self.alive:
            return
        world, name = self.world, order.name
        if reason:
            pass
        elif world.losses and world.rng.random() < FETCH_FAILS:
            reason = "ConnectionResetError: the peer went away"
        elif order.sources:
            peer = world.workers.get(order.sources[number][1])
            check_ticket(TRANSFER_KEY, name, self.worker_id, order.expires_s, order.ticket, world.now)
            if peer is None:
                reason = "ConnectionRefusedError: nobody is there"
            elif name not in peer.objects:
                reason = "FileLost: it is not here"
            if reason and number + 1 < len(order.sources):
                self._fetch(order, number + 1)
                return
        if reason:
            absent = [number] if reason.startswith("FileLost") else []
            self.answer(messages.FetchFailed(name, reason, absent, [] if absent else [number]))
        else:
            self.objects.add(name)
            world.fetch_count += 1
            self.answer(messages.Fetched(name, order.size_bytes))
        for group in self.fetching.pop(name):
            self._take(group)

    def _upload(self, order: messages.Upload) -> None:
        if order.name in self.objects:
            self.world.later(LATENCY_S, self.world.uploaded, order.transfer_id)
        else:
            self.answer(messages.UploadFailed(order.transfer_id, order.name, "FileLost: it is not here"))

    def _hand_back(self, count: int) -> None:
        while count > 0 and self.queue:
            group = self.queue.pop()
            count -= len(group)
            self.answer(messages.Done([messages.Result(c.task_id, c.attempt, messages.HANDED_BACK, 0) for c in group]))


class World:
    """The clock, the fleet, the feed and the manager.

    Parameters:
        workers: of the fleet, each with SLOTS slots.
        tasks: in all; rounded up to whole blocks.
        waiting: tasks that are unfinished at any time, until no more are left to feed.
        losses: share of the runs that end with their slot or worker.
    """

    def __init__(self, workers: int, tasks: int, waiting: int, losses: float = 0.0, seed: int = 1, parts: str = "both") -> None:
        self.rng = random.Random(seed)
        self.now = 1000.0
        self.losses = losses
        self.parts = parts
        self.spent = Spent()
        self.joining = Spent()
        # Destinations that wait for the manager to pass something on, by transfer.
        self.passing: dict[int, tuple[ModelWorker, messages.Fetch]] = {}
        # Called when the fleet is up and the feed begins.
        self.on_start: Callable[[], object] = lambda: None
        self.machine = ManagerMachine(RUN, Tunables(pipeline_ms=0.0, bundle_ms=0.0, bundle_large_ms=0.0, max_losses=50))
        self.machine.state.tunables.bundle_unknown_count = 1
        self.machine.state.transfer_key = TRANSFER_KEY
        self.machine.state.address = "localhost 9123"
        self.workers: dict[int, ModelWorker] = {}
        self.fleet_size = workers
        self.mean_s = workers * SLOTS / RATE_PER_S
        self.block_count = -(-tasks // BLOCK)
        self.fed_blocks = self.task_count = 0
        self.waiting = waiting
        self.unfinished = 0
        self.run_count = self.fetch_count = self.crash_count = 0
        # Stored values, by task; what is not here is small.
        self.sizes: dict[int, int] = {}
        self.told = bytearray(1)
        self.wrong: list[str] = []
        self._next_id = 1
        self._next_worker = 1
        self._heap: list[tuple[float, int, Callable[..., None], tuple[object, ...]]] = []
        self._pushed = 0
        self._tick_at = float("inf")
        self._inbox: list[tuple[int, bytes]] = []
        # Worker and encoded message, or 0 and another order.
        self._out: list[tuple[int, object]] = []
        self._collect_started = self._collecting_s = 0.0
        self.library = LibraryEntry(1, "model", slots=SLOTS)
        self.library.eager = True
        self.kind = Kind("f", Shape(self.library))
        self.code = CodeEntry(0, 1, b"code")
        # Graphs under way: their requested values, piece and block.
        self.ends: dict[int, tuple[GraphEntry, FileEntry, CodeEntry, FileEntry]] = {}

    # ------------------------------------------------------------ time

    def later(self, delay_s: float, function: Callable[..., None], *args: object) -> None:
        self._pushed += 1
        heapq.heappush(self._heap, (self.now + delay_s, self._pushed, function, args))

    def duration(self) -> float:
        return self.mean_s * (0.5 + self.rng.random())

    def run(self) -> None:
        """Live until everything has its outcome."""
        gc.collect()
        self.handle(events.LibraryInstalled(self.now, self.library))
        for _ in range(self.fleet_size):
            self._join()
        while self._heap and self._heap[0][0] <= self.now + 0.1:
            self._step()  # the libraries come up
        self.joining, self.spent = self.spent, Spent()
        self.on_start()
        self._feed()
        while self.unfinished:
            self._step()

    def _step(self) -> None:
        due = self._heap[0][0] if self._heap else float("inf")
        if self._tick_at < due:
            self.now = max(self.now, self._tick_at)
            self._tick()
            return
        if not self._heap:
            raise AssertionError(f"{self.unfinished} tasks wait, nothing is under way: {self.machine.stuck_reason()}")
        at, _, function, args = heapq.heappop(self._heap)
        self.now = max(self.now, at)
        function(*args)

    def _tick(self) -> None:
        started = _clock()
        due = self.machine.next_deadline()
        took = _clock() - started
        self.spent.tick_s += took
        if due is not None and due <= self.now:
            self.handle(events.Tick(self.now))
            started = _clock()
            due = self.machine.next_deadline()
            took = _clock() - started
            self.spent.tick_s += took
        # As the shell: it looks again after at most this long.
        self._tick_at = self.now + 0.1 if due is None else max(due, self.now + 0.001)

    # ------------------------------------------------------------ the manager, timed

    def handle(self, event: events.Event) -> None:
        self._ask(event)
        self._perform()

    def _ask(self, event: events.Event) -> None:
        """The manager's part: what it orders is encoded, and waits in ``_out``."""
        spent, out = self.spent, self._out
        self._collecting_s = 0.0
        started = _clock()
        wanted = self.machine.handle(event)
        took = _clock() - started - self._collecting_s
        spent.handle_s += took
        spent.event_count += 1
        name = type(event).__name__
        spent.note(name if name != "WorkerSaid" else type(event.message).__name__, took)  # type: ignore[union-attr]
        if type(event) is events.Tick:
            spent.tick_s += took
        started = _clock()
        for order in wanted:
            if type(order) is orders.SendTo:
                out.append((order.worker_id, messages.encode(order.message)))
            else:
                out.append((0, order))
        spent.wire_s += _clock() - started

    def _perform(self) -> None:
        """The world's part: workers get their messages, handles their outcomes."""
        out, self._out = self._out, []
        for worker_id, what in out:
            if worker_id:
                self.spent.message_count += 1
                worker = self.workers.get(worker_id)
                if worker is not None:
                    worker.said(messages.decode_from_manager(what))  # type: ignore[arg-type]
            elif type(what) is orders.Deliver:
                self._delivered(what.entries)
            elif type(what) is orders.EndSplice:
                worker, fetch = self.passing.pop(what.transfer_id, (None, None))
                if worker is not None and fetch is not None:
                    worker.fetched(fetch, 0, "PeerError: the data link was closed by the other side")
            elif type(what) is orders.CloseWorker:
                raise AssertionError(f"worker {what.worker_id} was closed: {what.reason}")
        if self._tick_at == float("inf"):
            self._tick_at = self.now + 0.1

    def collected(self, phase: str, _: dict[str, int]) -> None:
        """Called by the garbage collector, whose time in the whole process (models included) is told apart."""
        if phase == "start":
            self._collect_started = _clock()
        else:
            took = _clock() - self._collect_started
            self._collecting_s += took
            self.spent.gc_s += took

    def worker_said(self, worker_id: int, data: bytes) -> None:
        """Messages that come within a moment are taken together, as the shell does after one poll."""
        if not self._inbox:
            self.later(POLL_S, World._read_all, self)
        self._inbox.append((worker_id, data))

    def _read_all(self) -> None:
        inbox, self._inbox = self._inbox, []
        for worker_id, data in inbox:
            started = _clock()
            message = messages.decode_from_worker(data)
            self.spent.wire_s += _clock() - started
            self.spent.message_count += 1
            self._ask(events.WorkerSaid(self.now, worker_id, message))
        self._perform()

    def splice_asked(self, worker: ModelWorker, order: messages.Fetch) -> None:
        """A destination waits for what the manager passes on."""
        self.passing[order.transfer_id] = worker, order
        self.handle(events.SpliceOpened(self.now, order.transfer_id))

    def uploaded(self, transfer_id: int) -> None:
        if transfer_id in self.passing:
            worker, order = self.passing.pop(transfer_id)
            worker.fetched(order, 0)
            return
        self.handle(events.UploadArrived(self.now, transfer_id, TEMP_BYTES))

    # ------------------------------------------------------------ the fleet

    def _join(self) -> None:
        worker_id = self._next_worker
        self._next_worker += 1
        self.workers[worker_id] = ModelWorker(self, worker_id)
        greeting = hello(SLOTS, 8000, f"m{worker_id}", f"n{worker_id}")
        # The number of a worker is the port at which its peers find it.
        words = messages.Hello(
            greeting.hostname, 1, SLOTS, 8000, 1000, 0, [], "3", greeting.machine, "/objects", [], peer_port=worker_id
        )
        self.handle(events.WorkerJoined(self.now, worker_id, words, "10.0.0.1"))

    def crash(self, worker: ModelWorker) -> None:
        """A worker dies with all it holds; the link tells the manager, and another one comes in its place."""
        worker.alive = False
        self.crash_count += 1
        del self.workers[worker.worker_id]
        self.later(LATENCY_S, self._left, worker.worker_id)
        self.later(AWAY_S, self._join)

    def _left(self, worker_id: int) -> None:
        self.handle(events.WorkerLeft(self.now, worker_id, "the connection was closed"))

    # ------------------------------------------------------------ the feed

    def _feed(self) -> None:
        while self.fed_blocks < self.block_count and (self.unfinished < self.waiting):
            self.fed_blocks += 1
            if self.parts != "graphs":
                self._feed_calls(BLOCK_CALLS if self.parts == "both" else BLOCK)
            if self.parts != "calls":
                self._feed_graph(1 if self.parts == "both" else 2)

    def _entry(self, code: CodeEntry, handle: object, inputs: tuple[FileEntry, ...] = ()) -> TaskEntry:
        entry = TaskEntry(self._next_id, self.kind, code, b"arguments of a call", handle, inputs)  # type: ignore[arg-type]
        self._next_id += 1
        self.told.append(0)
        self.task_count += 1
        return entry

    def _feed_calls(self, count: int) -> None:
        entries = [self._entry(self.code, self) for _ in range(count)]
        self.unfinished += count
        self.handle(events.TasksSubmitted(self.now, entries))

    def _feed_graph(self, count: int) -> None:
        for _ in range(count):
            size = BLOCK_LEAVES + BLOCK_INNER + 1
            graph = GraphEntry(self._next_id, self, size)
            piece = CodeEntry(-graph.graph_id, 1, b"a piece of a graph", (), (self.code,), True)
            self._next_id += 1
            self.told.append(0)
            common = declared(graph.graph_id, COMMON_BYTES)
            common.holds = 1
            entries = list(self._vertices(piece, common))
            for entry in entries:
                for file in entry.inputs:
                    file.to_come += file is not common
            last = entries[-1]
            assert last.output is not None
            last.handle = graph.handle
            last.output.holds = 1
            self.ends[last.task_id] = (graph, last.output, piece, common)
            self.unfinished += 1
            self.handle(events.VerticesSubmitted(self.now, graph, entries))

    def _vertices(self, piece: CodeEntry, common: FileEntry) -> Iterator[TaskEntry]:
        """Leaves make temps, the rest is a tree that reads FAN_IN each; the last one is asked for."""
        rng = self.rng
        outputs: deque[FileEntry] = deque()
        for number in range(BLOCK_LEAVES + BLOCK_INNER + 1):
            is_leaf = number < BLOCK_LEAVES
            inputs: tuple[FileEntry, ...] = ()
            if is_leaf and number % 100 == 0:
                inputs = (common,)
            elif not is_leaf:
                inputs = tuple(outputs.popleft() for _ in range(FAN_IN))
            entry = self._entry(piece, None, inputs)
            entry.index = number
            entry.output = FileEntry(entry.task_id)
            entry.output.producer = entry
            outputs.append(entry.output)
            if number < BLOCK_LEAVES + BLOCK_INNER // 2 and rng.random() < 0.8:  # so some values travel inline
                self.sizes[entry.task_id] = TEMP_BYTES
            yield entry

    def settled(self, entry: TaskEntry) -> object:
        """An outcome; what a graph leaves behind is let go of as the engine does."""
        self.told[entry.task_id] += 1
        value = entry.value if entry.value is not None else b""
        if entry.error is not None or value != b"%d" % entry.task_id:
            self.wrong.append(f"{entry} has {entry.error!r} {value!r}")
        self.unfinished -= 1
        end = self.ends.pop(entry.task_id, None)
        if end is not None:
            graph, output, piece, common = end
            self.later(0.0, self._graph_ended, graph, output, piece, common)
        return None

    def _graph_ended(self, graph: GraphEntry, output: FileEntry, piece: CodeEntry, common: FileEntry) -> None:
        self.handle(events.GraphEnded(self.now, graph, [output], False, [piece]))
        self.handle(events.FileReleased(self.now, [common]))
        for entry in graph.vertices:
            self.sizes.pop(entry.task_id, None)

    def _delivered(self, entries: list[TaskEntry]) -> None:
        for entry in entries:
            if entry.handle is not None:
                entry.handle.settled(entry)
        if self.unfinished < self.waiting - BLOCK // 2 and self.fed_blocks < self.block_count:
            self._feed()

    # ------------------------------------------------------------ the end

    def check(self) -> None:
        """Everything was told once, and nobody believes in anything any more.

        Raises:
            AssertionError: something else is so.
        """
        while any(at <= self.now + 1.0 for at, *_ in self._heap[:1]):
            self._step()
        assert not self.wrong, self.wrong[:3]
        calls = {"both": BLOCK_CALLS, "calls": BLOCK, "graphs": 0}[self.parts]
        graphs = {"both": 1, "calls": 0, "graphs": 2}[self.parts]
        assert sum(self.told) == self.block_count * (calls + graphs), f"{sum(self.told)} outcomes"
        assert max(self.told) == 1, "an outcome was told twice"
        state = self.machine.state
        self.machine.check()
        assert not state.tasks and not state.held and not state.parked and not state.crowded, "the manager's tables are not empty"
        assert not state.peer_fetches and not state.splices, f"transfers never end: {state.peer_fetches} {state.splices}"
        for worker in self.workers.values():
            assert not worker.queue and not worker.objects, f"worker {worker.worker_id} still holds {worker.objects}"


@dataclass
class Row:
    """Figures of one life, microseconds for each task."""

    workers: int
    waiting: int
    tasks: int
    handle_us: float
    wire_us: float
    tick_us: float
    gc_us: float
    message_count: float
    joining_us: float
    fetch_count: int
    crash_count: int
    rerun_count: int

    @property
    def total_us(self) -> float:
        return self.handle_us + self.wire_us

    def text(self) -> str:
        cells = [f"{self.workers:,}", f"{self.waiting:,}", f"{self.tasks:,}"]
        cells += [f"{us:.1f}" for us in (self.handle_us, self.wire_us, self.total_us, self.gc_us)]
        cells += [f"{self.tick_us:.2f}", f"{self.message_count:.2f}", f"{self.joining_us:.0f}"]
        cells += [f"{count:,}" for count in (self.fetch_count, self.crash_count, self.rerun_count)]
        return "| " + " | ".join(cells) + " |"


TITLES = ["workers", "waiting", "tasks", "handle us", "wire us", "sum us", "collector us", "ticks us", "messages", "join us"]
TITLES += ["fetches", "crashes", "reruns"]
HEAD = "| " + " | ".join(TITLES) + " |\n" + "|---" * len(TITLES) + "|"


def measure(workers: int, tasks: int, waiting: int, losses: float, seed: int, parts: str, verbose: bool = False) -> Row:
    """One life, measured and checked."""
    world = World(workers, tasks, waiting, losses, seed, parts)
    gc.callbacks.append(world.collected)
    try:
        world.run()
    finally:
        gc.callbacks.remove(world.collected)
    world.check()
    spent, count = world.spent, world.task_count
    if verbose:
        for name, (number, seconds) in sorted(spent.by_kind.items(), key=lambda item: -item[1][1]):
            print(f"    {name:20} {number:9,.0f} x {seconds / number * 1e6:8.1f} us = {seconds / count * 1e6:6.2f} us a task")
    return Row(
        workers,
        waiting,
        count,
        spent.handle_s / count * 1e6,
        spent.wire_s / count * 1e6,
        spent.tick_s / count * 1e6,
        spent.gc_s / count * 1e6,
        spent.message_count / count,
        (world.joining.handle_s + world.joining.wire_s) / workers * 1e6,
        world.fetch_count,
        world.crash_count,
        world.machine.state.counters.rerun,
    )


def best(repeats: int, *args: object) -> Row:
    """The fastest of some lives: others on the machine only ever add time."""
    return min((measure(*args) for _ in range(repeats)), key=lambda row: row.total_us)  # type: ignore[arg-type]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, nargs="*", default=[10, 100, 1_000, 10_000])
    parser.add_argument("--tasks", type=int, default=100_000)
    parser.add_argument("--waiting", type=int, nargs="*", default=[1_000, 10_000, 100_000, 1_000_000], help="at 100 workers")
    parser.add_argument("--losses", type=float, default=0.0, help="share of runs that end with their slot or worker")
    parser.add_argument("--parts", choices=["both", "calls", "graphs"], default="both")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=1, help="lives for each row, of which the fastest is shown")
    parser.add_argument("--verbose", action="store_true", help="also by kind of event")
    parser.add_argument("--plot", type=Path, help="write an SVG file")
    parser.add_argument(
        "--cpu-time",
        action="store_true",
        help="count processor time, where others use the machine too; reading that clock adds about a microsecond a task",
    )
    args = parser.parse_args()
    global _clock
    _clock = thread_time if args.cpu_time else perf_counter
    rest = (args.losses, args.seed, args.parts, args.verbose)
    print(HEAD, flush=True)
    by_workers, by_waiting = [], []
    for workers in args.workers:
        by_workers.append(best(args.repeats, workers, args.tasks, args.tasks, *rest))
        print(by_workers[-1].text(), flush=True)
    for waiting in args.waiting:
        tasks = max(args.tasks, waiting)
        by_waiting.append(best(args.repeats, 100, tasks, waiting, *rest))
        print(by_waiting[-1].text(), flush=True)
    print(f"a cache line that is not near costs {memory.text()} more")
    if args.plot:
        lines = [
            Line(f"workers, {args.tasks:,} tasks", [(row.workers, row.total_us) for row in by_workers]),
            Line("waiting tasks, 100 workers", [(row.waiting, row.total_us) for row in by_waiting]),
        ]
        args.plot.write_text(plot([line for line in lines if line.points], "microseconds of the manager for each task"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
