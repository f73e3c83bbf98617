"""``DaskVine``: a manager whose ``get`` is a Dask scheduler.

    get(dsk, keys) -> Plan (graph.py) -> pieces of PIECE_COUNT vertices: one pickle each -> entries -> the engine's core, streamed
    requested values <- decoded in this thread <- the core, which alone follows the graph's progress

Nothing is kept on the manager between two gets but code, measured durations and a bounded memory of results (``reuse.py``), so several threads
may call ``get`` at once.
"""

from __future__ import annotations

import pickle
import threading
from collections.abc import Iterator
from typing import Any

from daskvine.functional import Manager
from daskvine.futures import failure_of
from daskvine.graph import Plan, annotations_of
from daskvine.options import GetOptions, checked_retries, request_of
from daskvine.progress import Progress
from daskvine.reuse import Results
from vinecore.api.engine import Engine
from vinecore.errors import LoopDied
from vinecore.manager.events import GraphCancelled, VerticesSubmitted
from vinecore.manager.state import CodeEntry, FileEntry, GraphEntry, Kind, TaskEntry
from vinecore.runtime import payload as payloads
from vinecore.runtime.vertex import is_plain, pack_vertex

# Vertices packed by one pickle and named by one code id. Higher: less per vertex; but a slot that gets a few of them gets all.
PIECE_COUNT = 256
# The first piece is smaller, so that slots start early.
FIRST_PIECE_COUNT = 48


class Piece:
    """Consecutive vertices of a plan, packed."""

    __slots__ = ("functions", "modules", "numbers", "payload")

    def __init__(self, numbers: range, payload: bytes, functions: tuple[CodeEntry, ...], modules: tuple[str, ...]) -> None:
        self.numbers = numbers
        self.payload = payload
        self.functions = functions
        self.modules = modules


class DaskVine(Manager):
    """A Manager for Dask: ``x.compute(scheduler=m.get)``, ``dask.config.set(scheduler=m.get)``.

    Parameters: those of Manager; ``DaskVine(local_cores=4)`` needs nothing else, ``DaskVine(port=9123)`` waits for ``vine_worker HOST 9123``.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._results = Results(self.engine)

    def get(self, dsk: Any, keys: Any, **options: Any) -> Any:
        """Compute keys of a graph on the workers; intermediate values stay there.

        Parameters:
            dsk: a mapping of keys to tasks, a HighLevelGraph, or what Dask hands to schedulers.
            keys: one key or nested lists of keys.
            options: see GetOptions.

        Returns:
            The values, nested like ``keys``.

        Raises:
            MissingKeyError, UsageError: a key that is not there, a cycle, an unknown option.
            Exception: what a vertex raised, as itself, with the remote traceback as its cause.
        """
        chosen = GetOptions.parse(options)
        self.engine.refuse_in_loop("get")
        plan = Plan(dsk, keys)
        notes = annotations_of(dsk)
        pieces: Any = pack(self.engine, plan, chosen)
        signature = None
        if chosen.reuse:
            pieces, signature = self._results.looked_up(plan, pieces)
            found = self._results.values(signature) if signature is not None else None
            if found is not None:
                return plan.pack(found)
        run = GraphRun(self.engine, plan, chosen, notes)
        with Progress(run.graph, chosen):
            values = run.compute(pieces)
        if chosen.reuse:
            self._results.keep(plan, run, values)
        run.release()
        return plan.pack(values)

    __call__ = get


def pack(engine: Engine, plan: Plan, options: GetOptions) -> Iterator[Piece]:
    """Convert a plan piece by piece; functions are interned, literals of a piece travel in one pickle."""
    start = 0
    count = FIRST_PIECE_COUNT
    total = len(plan)
    while start < total:
        numbers = range(start, min(total, start + count))
        yield pack_piece(engine, plan, numbers, options)
        start = numbers.stop
        count = PIECE_COUNT


def pack_piece(engine: Engine, plan: Plan, numbers: range, options: GetOptions) -> Piece:
    """One piece of a plan.

    Raises:
        UnpicklableError: a function or a literal cannot be pickled.
    """
    functions: dict[int, CodeEntry] = {}
    modules: dict[str, None] = dict.fromkeys(options.lib_modules)
    packed: list[Any] = []
    plain = True
    for number in numbers:
        vertex = plan.vertex(number)
        code_id = 0
        if vertex.function is not None:
            code, _ = engine.code_of(vertex.function)
            code_id = code.code_id
            functions[code_id] = code
        step_ids: tuple[int, ...] = ()
        if vertex.steps:
            codes = [engine.code_of(step[0])[0] if step[0] is not None else None for step in vertex.steps]
            for code_or_none in codes:
                if code_or_none is not None:
                    functions[code_or_none.code_id] = code_or_none
            step_ids = tuple(c.code_id if c is not None else 0 for c in codes)
        one = pack_vertex(vertex, code_id, step_ids)
        plain = plain and is_plain(one)
        packed.append(one)
    if plain:
        payload = pickle.dumps(packed, 5)
    else:
        payload = _pickle_any(plan, numbers, packed)
    for code in functions.values():
        modules.update(dict.fromkeys(code.modules))
    return Piece(numbers, payload, tuple(functions.values()), tuple(modules))


def _pickle_any(plan: Plan, numbers: range, packed: list[Any]) -> bytes:
    """Literals that plain pickle may not know; on trouble the vertex at fault is named."""
    try:
        payloads.register_local_modules()
        return payloads.dump(packed)
    except Exception as error:
        from vinecore.errors import UnpicklableError

        for number, one in zip(numbers, packed, strict=True):
            if payloads.failure_of(one) is not None:
                where, text = payloads.find_culprit(one, error)
                raise UnpicklableError(f"the graph's key {plan.order[number]!r} cannot be sent{where}: {text}") from error
        raise


class GraphRun:
    """One ``get`` on its way: the handle of its graph's requested vertices."""

    def __init__(self, engine: Engine, plan: Plan, options: GetOptions, notes: dict[str, dict[Any, Any]]) -> None:
        self.engine = engine
        self.plan = plan
        self.options = options
        self.notes = notes
        self.graph = GraphEntry(next(engine._graph_ids), self, len(plan))
        self.graph.bring_home = not options.worker_transfers
        self.requested = set(plan.requested)
        self.outputs: list[FileEntry] = []
        self.entries: dict[int, TaskEntry] = {}
        self.remaining = len(self.requested)
        self.failed: TaskEntry | None = None
        self.ended = threading.Condition()
        self._kinds: dict[Any, Kind] = {}

    # -------------------------------------------------- the loop's side

    def settled(self, entry: TaskEntry) -> GraphRun:
        """A requested vertex has its value, or the graph has failed (loop's thread)."""
        entry.handle = None
        if entry.error is not None:
            self.failed = self.failed or entry
        else:
            self.remaining -= 1
        return self

    def flush(self) -> None:
        """After a batch: wake the caller when there is nothing left to wait for."""
        if self.failed is not None or self.remaining <= 0:
            with self.ended:
                self.ended.notify_all()

    # -------------------------------------------------- the caller's side

    def compute(self, pieces: Iterator[Piece]) -> dict[int, Any]:
        """Submit the pieces, wait, and bring the requested values here.

        Raises:
            Exception: what a vertex raised; or KeyboardInterrupt: then everything of this graph is cancelled.
        """
        try:
            for piece in pieces:
                if self.failed is not None:
                    break
                self.submit(piece)
            self._wait()
            if self.failed is not None:
                self._raise()
            return {number: self._value(number) for number in self.requested}
        except BaseException:
            self._give_up()
            raise

    def submit(self, piece: Piece) -> None:
        """Hand the vertices of a piece to the core."""
        engine, plan, outputs = self.engine, self.plan, self.outputs
        code = engine.new_code(engine.python, piece.payload, piece.modules, piece.functions, True)
        entries = []
        next_id = engine._task_ids.__next__
        requested = self.requested
        retries, priority = self.options.retries, self.options.priority
        for index, number in enumerate(piece.numbers):
            inputs = plan.inputs[number]
            kind = self._kind(number)
            entry = TaskEntry(next_id(), kind, code, b"", None, tuple([outputs[i] for i in inputs]), retries, priority)
            entry.index = index
            output = entry.output = FileEntry(entry.task_id)
            output.producer = entry
            output.to_come = len(plan.consumers[number])
            if number in requested:
                output.holds = 1
                entry.handle = self
                self.entries[number] = entry
            outputs.append(output)
            entries.append(entry)
        if self.notes:
            self._annotate(piece, entries)
        engine.post(VerticesSubmitted(0.0, self.graph, entries))

    def _kind(self, number: int) -> Kind:
        """Vertices whose keys begin alike are alike; tokens at the end of names do not count."""
        key = self.plan.order[number]
        name = key[0] if type(key) is tuple and key else key
        kind = self._kinds.get(name)
        if kind is None:
            from dask.utils import key_split

            shape = self.engine.shape_for(self.engine.python, self.options.resources)
            kind = self._kinds[name] = self.engine.kind_for(f"dask:{key_split(name)}", shape)
        return kind

    def _annotate(self, piece: Piece, entries: list[TaskEntry]) -> None:
        """``dask.annotate(retries=, priority=, resources=)`` for single keys."""
        retries, priority, resources = (self.notes.get(name, {}) for name in ("retries", "priority", "resources"))
        for number, entry in zip(piece.numbers, entries, strict=True):
            key = self.plan.order[number]
            if key in retries:
                entry.retries = checked_retries(retries[key])
            if key in priority:
                entry.priority = float(priority[key])
            if key in resources:
                shape = self.engine.shape_for(self.engine.python, request_of(resources[key]))
                entry.kind = self.engine.kind_for(entry.kind.name, shape)

    def _wait(self) -> None:
        thread = self.engine.loop.thread
        with self.ended:
            while self.failed is None and self.remaining > 0:
                self.ended.wait(1.0)
                if thread is None or not thread.is_alive():
                    raise LoopDied(f"the manager ended during get: {self.engine.loop.died!r}")

    def _raise(self) -> None:
        entry = self.failed
        assert entry is not None
        failure = failure_of(entry)
        assert failure is not None
        key = self.plan.order[entry.order] if entry.order >= 0 else "?"
        failure.add_note(f"while computing the key {key!r} of the graph")
        raise failure

    def _value(self, number: int) -> Any:
        entry = self.entries[number]
        if entry.value is not None:
            return payloads.decode(entry.value)
        assert entry.output is not None
        return self.engine.read_value(entry.output)

    def _give_up(self) -> None:
        if not self.engine.closed:
            try:
                self.engine.post(GraphCancelled(0.0, self.graph))
                self.release()
            except LoopDied:
                pass  # the loop has failed everything already

    def release(self) -> None:
        """The caller has its values: nothing outside holds the graph's files any more."""
        self.engine.release([entry.output for entry in self.entries.values() if entry.output is not None])
