"""Graphs handed to the core piece by piece, and their requested values. Whoever converts graphs (daskvine) stands on this.

caller: add_piece, add_piece ... wait, value    loop's thread: settled, flush
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from vinecore.api.commands import checked_file
from vinecore.api.engine import Engine
from vinecore.api.files import File, check_owner, checked_name
from vinecore.api.outcome import failure_of, rebuilt
from vinecore.errors import LoopDied, VineError
from vinecore.manager.entries import CodeEntry, FileEntry, GraphEntry, Kind, LibraryEntry, TaskEntry
from vinecore.manager.events import GraphCancelled, GraphEnded, VerticesSubmitted
from vinecore.runtime.raised import add_note
from vinecore.wire import messages

# What a vertex that runs apart prints is kept up to here, for the error that it may end with.
PRINTED_LIMIT_BYTES = 64 * 1024


@dataclass(frozen=True, slots=True)
class Piece:
    """Consecutive vertices of a graph, packed by one pickle.

    numbers: their places in the graph. payload: the pickled list of packed vertices. functions: code that they name.
    modules: to import before slots are forked.
    """

    numbers: range
    payload: bytes
    functions: tuple[CodeEntry, ...]
    modules: tuple[str, ...]


class Apart:
    """How vertices run apart: each in a process of its own and a private directory, where ``files`` are mounted.

    Parameters:
        files: File to its name in the directory.

    Raises:
        UsageError: a file of another manager, or one that is not there. TypeError, ValueError: no file, or a bad name.
    """

    def __init__(self, engine: Engine, files: Mapping[File, str]) -> None:
        for file in files:
            check_owner(checked_file(file), engine)
        # Held: what is mounted must not be released while the graph runs.
        self.files = tuple(files)
        self.mounted = tuple(file.mount_entry() for file in files)
        self._mounts = [
            messages.Mount("", checked_name(name), messages.EXECUTABLE if file.is_program() else 0)
            for file, name in files.items()
        ]

    def box(self, variables: Mapping[str, str | None], wall_time_s: float) -> messages.Sandbox:
        """What slots must know of the directory; vertices may share one. ``wall_time_s`` 0: no limit."""
        return messages.Sandbox(
            mounts=self._mounts,
            products=[],
            environment=list(variables.items()),
            wall_time_s=wall_time_s,
            stdout_limit_bytes=PRINTED_LIMIT_BYTES,
        )

    def signature(self) -> list[tuple[str, str]]:
        """Which bytes are mounted where, for those who compare graphs."""
        # What a task makes gets a new name with each attempt.
        names = [entry.name if entry.producer is None else f"#{entry.value_id}" for entry in self.mounted]
        return [(name, mount.path) for name, mount in zip(names, self._mounts, strict=True)]


class VertexPlan:
    """What the core must know of one vertex: inputs by place in the graph, how alike it is, how many consumers it will have.

    ``box``: of a vertex that runs apart, from ``Apart.box``.
    """

    __slots__ = ("box", "consumer_count", "inputs", "kind", "priority", "retries")

    def __init__(
        self,
        inputs: Sequence[int],
        kind: Kind,
        consumer_count: int,
        retries: int,
        priority: float,
        box: messages.Sandbox | None = None,
    ) -> None:
        self.box = box
        self.inputs = inputs
        self.kind = kind
        self.consumer_count = consumer_count
        self.retries = retries
        self.priority = priority


class GraphSubmission:
    """One graph on its way; the handle of its requested vertices.

    Parameters:
        size: number of vertices in all.
        requested: places of those whose values are wanted.
        library: the one that runs the vertices.
        bring_home: bring every large value to the manager as soon as it exists.
        apart: vertices run in processes of their own; each plan has a box then.
    """

    def __init__(
        self,
        engine: Engine,
        size: int,
        requested: Sequence[int],
        library: LibraryEntry,
        bring_home: bool = False,
        apart: Apart | None = None,
    ) -> None:
        self.engine = engine
        self.library = library
        self._apart = apart
        self.requested = frozenset(requested)
        self.graph = GraphEntry(next(engine.graph_ids), self, size)
        self.graph.bring_home = bring_home
        self.entries: dict[int, TaskEntry] = {}
        self._outputs: list[FileEntry] = []
        self._codes: list[CodeEntry] = []
        self._remaining = len(self.requested)
        self._failed: TaskEntry | None = None
        self._ended = threading.Condition()
        # Hand-overs, counted by the caller, and those that the core has taken, counted by the loop.
        self._handed_over = 0
        self._taken = 0

    # -------------------------------------------------- the loop's side

    def settled(self, entry: TaskEntry) -> GraphSubmission:
        """A requested vertex has its value, or the graph has failed (loop's thread)."""
        entry.handle = None
        if entry.error is not None:
            self._failed = self._failed or entry
        else:
            self._remaining -= 1
        return self

    def _took(self) -> None:
        """The core has taken what was handed over before (loop's thread)."""
        with self._ended:
            self._taken += 1
            self._ended.notify_all()

    def flush(self) -> None:
        """After a batch: wake the caller when there is nothing left to wait for (loop's thread)."""
        if self._failed is not None or self._remaining <= 0:
            with self._ended:
                self._ended.notify_all()

    # -------------------------------------------------- the caller's side

    @property
    def finished_count(self) -> int:
        """Vertices that are done, for progress displays."""
        return self.graph.finished_count

    @property
    def has_failed(self) -> bool:
        """Whether some vertex failed for good: submitting more is of no use."""
        return self._failed is not None

    def add_pieces(self, pieces: Sequence[tuple[Piece, Sequence[VertexPlan]]]) -> None:
        """Hand the next vertices to the core, in post-order, all at once."""
        entries = [entry for piece, plans in pieces for entry in self._entries(piece, plans)]
        self.engine.post(VerticesSubmitted(0.0, self.graph, entries))
        self._handed_over += 1
        self.engine.post(self._took)

    def let_core_catch_up(self) -> None:
        """Wait until the core has taken all that was handed over; one that has ended is left to ``wait``.

        Who converts a graph and the core share one interpreter: without this the core gets little of it until the conversion
        is over, slots wait for work that was handed over long ago, and the last part of the graph comes all at once.
        """
        thread = self.engine.loop.thread
        with self._ended:
            while self._taken < self._handed_over and thread is not None and thread.is_alive():
                self._ended.wait(1.0)

    def _entries(self, piece: Piece, plans: Sequence[VertexPlan]) -> list[TaskEntry]:
        engine, outputs = self.engine, self._outputs
        code = engine.new_code(self.library, piece.payload, piece.modules, piece.functions, True)
        mounted = self._apart.mounted if self._apart is not None else ()
        self._codes.append(code)
        next_id = engine.task_ids.__next__
        requested = self.requested
        entries = []
        for index, (number, plan) in enumerate(zip(piece.numbers, plans, strict=True)):
            inputs = tuple([outputs[i] for i in plan.inputs])
            if mounted:
                inputs += mounted
            entry = TaskEntry(next_id(), plan.kind, code, b"", None, inputs, plan.retries, plan.priority)
            entry.index = index
            entry.sandbox = plan.box
            output = entry.output = FileEntry(entry.task_id)
            output.producer = entry
            output.to_come = plan.consumer_count
            if number in requested:
                output.holds = 1
                entry.handle = self
                self.entries[number] = entry
            outputs.append(output)
            entries.append(entry)
        return entries

    def wait(self) -> None:
        """Wait until every requested vertex has its value, or the graph failed.

        Raises:
            LoopDied: the manager ended.
        """
        loop = self.engine.loop
        with self._ended:
            while self._failed is None and self._remaining > 0:
                self._ended.wait(1.0)
                if loop.thread is None or not loop.thread.is_alive():
                    raise LoopDied(f"the manager ended before the graph was done: {loop.died!r}")

    def failure(self) -> tuple[BaseException, int] | None:
        """The exception of the vertex that failed first, and its place in the graph; None when none did."""
        entry = self._failed
        if entry is None:
            return None
        failure = failure_of(entry)
        assert failure is not None
        printed = entry.report.stdout if entry.report is not None else b""
        if printed:
            add_note(failure, "it printed:\n" + printed.decode("utf-8", "replace").rstrip())
        return failure, entry.order

    def value(self, number: int) -> Any:
        """The value of a requested vertex, brought here and decoded."""
        entry = self.entries[number]
        name = entry.kind.name
        if entry.value is not None:
            return rebuilt(entry.value, name)
        assert entry.output is not None
        return self.engine.read_value(entry.output, None, name)

    def files(self) -> dict[int, FileEntry]:
        """The requested values as files, by place in the graph."""
        return {number: entry.output for number, entry in self.entries.items() if entry.output is not None}

    def end(self, keep: bool = False) -> None:
        """The caller has its values: nothing of this graph runs again.

        Parameters:
            keep: the requested values stay where they are, until ``Engine.release`` of ``files``.
        """
        with contextlib.suppress(VineError):  # the loop has ended, and with it the graph
            self.engine.post(GraphEnded(0.0, self.graph, list(self.files().values()), keep, self._codes))

    def cancel(self) -> None:
        """Give everything of this graph up."""
        with contextlib.suppress(VineError):
            self.engine.post(GraphCancelled(0.0, self.graph))
            self.end()
