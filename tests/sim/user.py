"""The user of a life: submits calls and graphs, cancels, lets go, prunes, reads; behaves like the layers above the engine."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

from tests.kit.builders import Builder, declared
from tests.kit.machines import ManagerShell
from tests.kit.network import Network, Spec, Violation, digest
from tests.sim.truth import ALWAYS, Truth
from vinecore.manager import events
from vinecore.manager.entries import CodeEntry, FileEntry, GraphEntry, Kind, TaskEntry
from vinecore.model.resources import Resources

if TYPE_CHECKING:
    from tests.sim.keeper import Keeper

DURATIONS_S = (0.0, 1e-5, 1e-4, 1e-3, 5e-3, 0.02, 0.1, 0.3)
SIZES = (8, 8, 8, 1000, 100_000, 400_000)


class User:
    """Acts when told to. Draws from the life's own numbers, so that a seed decides everything."""

    def __init__(self, rng: random.Random, calm: bool, network: Network, shell: ManagerShell, truth: Truth) -> None:
        self.rng, self.calm, self.network, self.shell, self.truth = rng, calm, network, shell, truth
        self.builders = [Builder(slots=rng.choice([0, 1, 3]))]
        if rng.random() < 0.5:
            self.builders.append(Builder(0, Resources(cores=rng.choice([1, 2])), 2, eager=rng.random() < 0.5))
        self.kinds = {b: [Kind(f"k{i}", b.shape) for i in range(rng.randint(1, 3))] for b in self.builders}
        self.kind_facts = {kind: (rng.choice(DURATIONS_S), rng.choice(SIZES)) for kinds in self.kinds.values() for kind in kinds}
        # Many tiny calls with a long one now and then: slots get stuck, and what waits behind is taken back.
        self.uneven = rng.random() < 0.3
        if self.uneven:
            self.kind_facts = {kind: (1e-4, 8) for kind in self.kind_facts}
        # Later nothing is pruned any more.
        self.ends_at = 0.0
        self.declared: list[FileEntry] = []
        # Pieces of graphs that have not been submitted yet.
        self.pending_pieces = 0
        self.keeper: Keeper | None = None
        shell.on_deliver = self._delivered
        shell.on_file = self._file

    def install(self) -> None:
        """Libraries first."""
        for builder in self.builders:
            if self.rng.random() < 0.3:
                builder.library.file = self.declare(b"payload")
            self.shell.handle(events.LibraryInstalled(self.network.now, builder.library))

    def act(self) -> None:
        """Do one thing."""
        rng = self.rng
        acts = [self.submit_calls, self.submit_calls, self.submit_graph, self.submit_graph, self.cancel, self.drop]
        if len(self.builders) > 1 and not self.calm and rng.random() < 0.05:
            # A library is removed; what the user submits to it later fails at once.
            self.truth.removed = True
            self.shell.handle(events.LibraryRemoved(self.network.now, self.builders[1].library))
        rng.choice(acts)()

    def declare(self, data: bytes) -> FileEntry:
        """A file whose bytes the manager holds for the whole life."""
        file = declared(len(self.declared) + 1)
        file.holds = 1
        self.shell.objects[file.name] = data
        self.declared.append(file)
        return file

    # ------------------------------------------------------------ calls

    def _code_for(self, builder: Builder) -> CodeEntry:
        rng = self.rng
        if rng.random() < 0.5:
            return builder.code
        modules = tuple(f"m{rng.randint(0, 3)}" for _ in range(rng.randint(0, 2)))
        file = self.declare(b"code") if rng.random() < 0.3 else None
        requires = (builder.code,) if rng.random() < 0.5 else ()
        code = CodeEntry(next(builder.ids), builder.library.library_id, b"" if file else b"code", modules, requires, False, file)
        if self.keeper is not None:
            self.keeper.codes.append(code)
        return code

    def submit_calls(self) -> None:
        """Some calls of one function, whose inputs are values of others."""
        rng, truth, builder = self.rng, self.truth, self.rng.choice(self.builders)
        code = self._code_for(builder)
        entries = []
        usable = [e for e in truth.calls if e.task_id not in truth.dropped and e.sandbox is None]
        for _ in range(rng.choice([1, 2, 5, 20, 200 if self.uneven else 60])):
            inputs: list[TaskEntry | FileEntry] = (
                [rng.choice(usable) for _ in range(rng.randint(0, 3))] if usable and rng.random() < 0.5 else []
            )
            entry = builder.call(*inputs, kind=rng.choice(self.kinds[builder]), retries=rng.randint(0, 2))
            entry.code = code
            entry.priority = float(rng.choice([0, 0, 0, 1, -1]))
            values = [truth.values[i.task_id] for i in inputs if isinstance(i, TaskEntry)]
            if rng.random() < (0.02 if self.uneven else 0.2):
                file = self.declare(b"declared")
                file.holds = 0
                entry.inputs = (file, *entry.inputs)
                entry.payload_file = True
                values.insert(0, b"declared")
            self._describe(entry, values, [i.task_id for i in inputs if isinstance(i, TaskEntry)], 0.03)
            entries.append(entry)
            usable.append(entry)
            truth.calls.append(entry)
        self.shell.handle(events.TasksSubmitted(self.network.now, entries))
        if rng.random() < 0.3:
            # While the first messages are still on their way.
            self.network.later(rng.random() * self.network.faults.delay_s * 3, self.cancel)

    def _describe(self, entry: TaskEntry, values: list[bytes], inputs: list[int], bad: float) -> None:
        """Decide what a task does, and what must come of it."""
        rng = self.rng
        duration, size = self.kind_facts[entry.kind]
        spec = self.network.specs[entry.task_id] = Spec(duration, size)
        self.truth.values[entry.task_id] = digest(entry.task_id, values)
        if self.uneven:
            spec.duration_s = 0.3 if rng.random() < 0.03 else spec.duration_s
        elif rng.random() < 0.1:
            spec.size_bytes = rng.choice(SIZES)
            spec.duration_s = rng.choice(DURATIONS_S)
        if not self.calm or (entry.graph is None and not inputs):
            if rng.random() < bad:
                spec.raises = ALWAYS
            elif entry.retries and rng.random() < 0.2:
                spec.raises = rng.randint(1, entry.retries)
        if not self.calm and rng.random() < 0.02:
            spec.kills = rng.randint(1, 2)
        if self.keeper is not None and entry.sandbox is not None and not spec.raises:
            spec.limits = self.keeper.limits_of(entry)
        self.truth.describe(entry, inputs)

    # ------------------------------------------------------------ graphs

    def _edges(self) -> list[list[int]]:
        """A random graph in post-order: most vertices use recent ones that nobody has used."""
        rng = self.rng
        size = rng.choice([1, 3, 10, 30, 80])
        fan = rng.choice([1, 2, 4])
        edges: list[list[int]] = []
        free: list[int] = []
        for number in range(size):
            needs: list[int] = []
            while free and len(needs) < fan and rng.random() < 0.6:
                needs.append(free.pop())
            if number and rng.random() < 0.2:
                needs.append(rng.randrange(number))
            edges.append(needs)
            free.append(number)
        return edges

    def submit_graph(self) -> None:
        """A graph, whole or in pieces."""
        rng, truth, builder = self.rng, self.truth, self.rng.choice(self.builders)
        edges = self._edges()
        used = {i for needs in edges for i in needs}
        requested = {i for i in range(len(edges)) if i not in used or rng.random() < 0.05}
        kinds = [rng.choice(self.kinds[builder]) for _ in edges]
        graph, entries = builder.vertices(edges, sorted(requested), kinds)
        graph.bring_home = rng.random() < 0.15
        bad = rng.choice([0.0, 0.0, 0.01])
        mounted = [] if self.keeper is None else self.keeper.dress_graph(graph, entries)
        for number, entry in enumerate(entries):
            entry.graph = graph
            entry.retries = rng.choice([0, 0, 1])
            values = [truth.values[entries[i].task_id] for i in edges[number]] + mounted
            self._describe(entry, values, [entries[i].task_id for i in edges[number]], bad)
            if number in requested:
                assert entry.output is not None
                truth.held[entry.task_id] = entry.output
                truth.makers[entry.task_id] = entry
        if any(e.task_id in truth.doomed for e in entries):
            truth.broken_graphs.add(graph.graph_id)
        truth.graphs.append((graph, entries))
        at, delay = 0, 0.0
        while at < len(entries):
            count = len(entries) if self.calm or rng.random() < 0.5 else rng.randint(1, len(entries))
            self.pending_pieces += 1
            self.network.later(delay, self._submit_piece, graph, entries[at : at + count])
            at += count
            delay += rng.random() * 0.05

    def _submit_piece(self, graph: GraphEntry, entries: list[TaskEntry]) -> None:
        self.pending_pieces -= 1
        self.shell.handle(events.VerticesSubmitted(self.network.now, graph, entries))

    # ------------------------------------------------------------ second thoughts

    def cancel(self) -> None:
        """Give up a graph, or some of the latest calls."""
        rng, truth = self.rng, self.truth
        if truth.graphs and rng.random() < 0.3:
            graph, entries = rng.choice(truth.graphs)
            truth.given_up.update(e.task_id for e in entries)
            truth.given_up.add(-graph.graph_id)
            self.shell.handle(events.GraphCancelled(self.network.now, graph))
        elif truth.calls:
            victims = [
                e
                for e in rng.sample(truth.calls[-30:], min(8, len(truth.calls[-30:])))
                if not self.shell.delivery_counts[e.task_id]
            ]
            truth.cancel(victims)
            self.shell.handle(events.TasksCancelled(self.network.now, victims))

    def drop(self) -> None:
        """Forget some futures, or prune a file."""
        rng, truth = self.rng, self.truth
        done = [e for e in truth.calls if self.shell.delivery_counts[e.task_id] and e.task_id not in truth.dropped]
        for entry in rng.sample(done, min(len(done), rng.randint(0, 5))):
            self.let_go(entry)
        files = [f for f in truth.held.values() if f.producer is not None and f.producer.state == "finished"]
        if files and not self.calm and rng.random() < 0.5:
            self.shell.handle(events.FilePruned(self.network.now, rng.choice(files)))

    def _prune(self, file: FileEntry) -> None:
        if self.network.now < self.ends_at:
            self.shell.handle(events.FilePruned(self.network.now, file))

    def let_go(self, entry: TaskEntry) -> None:
        """Drop a call's value and what it left in its sandbox."""
        truth = self.truth
        truth.dropped.add(entry.task_id)
        truth.held.pop(entry.task_id, None)
        if entry.output is not None:
            self.shell.handle(events.FileReleased(self.network.now, [entry.output]))
        kept = [file for file in entry.products if file.value_id not in truth.dropped]
        for file in kept:
            truth.dropped.add(file.value_id)
            truth.held.pop(file.value_id, None)
        if kept:
            self.shell.handle(events.FileReleased(self.network.now, kept))

    def let_go_of_everything(self) -> None:
        """Nothing is referred to any more, but what was declared for the whole life."""
        truth = self.truth
        for entry in truth.calls:
            if entry.task_id not in truth.dropped:
                self.let_go(entry)
        for _, entries in truth.graphs:
            held = [e.output for e in entries if e.output is not None and e.output.holds]
            truth.given_up.update(e.task_id for e in entries)
            self.shell.handle(events.FileReleased(self.network.now, held))
        if self.keeper is not None:
            self.keeper.let_go()

    # ------------------------------------------------------------ what comes back

    def _delivered(self, entry: TaskEntry) -> None:
        truth = self.truth
        truth.judge(entry)
        if entry.error is None and entry.value is None and (entry.output is None or entry.output.data is None):
            if entry.output is None:
                raise Violation(f"{entry} has neither a value nor a file")
            truth.held[entry.task_id] = entry.output
            truth.makers[entry.task_id] = entry
            self.network.later(self.rng.random() * 0.3, self._want, entry.output)
            if not self.calm and self.rng.random() < 0.2:
                self.network.later(self.rng.random() * 0.3, self._prune, entry.output)
        elif entry.error is None:
            truth.read.add(entry.task_id)
        for file in entry.products:
            if file.value_id not in truth.dropped and (entry.error is None or file.is_available()):
                truth.held[file.value_id] = file
                self.network.later(self.rng.random() * 0.3, self._want, file)

    def _is_unwanted(self, number: int) -> bool:
        return number in self.truth.dropped or number in self.truth.given_up

    def _want(self, file: FileEntry, gone: str = "") -> None:
        if not self._is_unwanted(file.value_id):
            self.shell.handle(events.FileWanted(self.network.now, file, self, gone))

    def _file(self, file: FileEntry, handle: object, data: bytes | None, reason: str, path: str) -> None:
        truth, number = self.truth, file.value_id
        if self._is_unwanted(number):
            return
        if reason and (truth.is_over(number) or (number in truth.kept and not self.calm)):
            truth.given_up.add(number)
        elif reason:
            raise Violation(f"{file} cannot be had: {reason}")
        elif data is None:
            self.network.later(0.001, self._want, file, path)
        elif data != truth.values[number]:
            raise Violation(f"{file} has the wrong bytes")
        else:
            truth.read.add(number)
