"""Seeded random lives of a small cluster: calls and graphs, workers that come, crash, freeze and leave, slots and parents that
die.

    python -m tests.sim.simulate --seeds 1000 --start 0

A seed decides everything: what is submitted, when, what breaks, how long each message takes. The user behaves like the layers
above the engine: reads large values, drops futures, cancels. At the end faults stop, everything wanted must be delivered
exactly once with the right value, and when the user has let go of everything no table may hold anything.
"""

from __future__ import annotations

import argparse
import random
import sys
import time
import traceback

from tests.kit.builders import Builder, declared
from tests.kit.machines import Faults, ManagerShell, Network, Spec, Violation, digest
from vinecore.errors import LibraryFailed
from vinecore.manager import events
from vinecore.manager.state import CANCELLED, RAISED, CodeEntry, FileEntry, GraphEntry, Kind, TaskEntry
from vinecore.model.resources import Resources
from vinecore.wire import messages

# Faults stop after this much virtual time; everything must be done after so much more.
BUSY_S = 1.5
LIMIT_S = 900.0
ALWAYS = 10**9
DURATIONS_S = (0.0, 1e-5, 1e-4, 1e-3, 5e-3, 0.02, 0.1, 0.3)
SIZES = (8, 8, 8, 1000, 100_000, 400_000)


class Simulation:
    """One life. ``run`` raises when a promise is broken."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.rng = rng = random.Random(f"life {seed}")
        self.calm = rng.random() < 0.2  # no faults at all: then nothing may run twice
        harsh = 0.0 if self.calm else rng.choice([0.0, 0.02, 0.1])
        delay = rng.choice([0.0, 0.0005, 0.005, 0.05])
        self.network = Network(seed, Faults(delay, harsh, harsh, harsh * 0.5 if rng.random() < 0.3 else 0.0, harsh))
        self.libraries_fail = self.network.faults.library_fails > 0
        self.removed = False
        self.unlucky: set[int] = set()
        self.shell = ManagerShell(self.network)
        state = self.shell.machine.state
        state.tunables.max_losses = 10_000
        state.tunables.max_library_retries = 10_000
        state.notes_wanted = rng.random() < 0.2
        self.shell.on_deliver = self._delivered
        self.shell.on_file = self._file
        self.builders = [Builder(slots=rng.choice([0, 1, 3]))]
        if rng.random() < 0.5:
            self.builders.append(Builder(0, Resources(cores=rng.choice([1, 2])), 2, eager=rng.random() < 0.5))
        self.kinds = {b: [Kind(f"k{i}", b.shape) for i in range(rng.randint(1, 3))] for b in self.builders}
        self.kind_facts = {kind: (rng.choice(DURATIONS_S), rng.choice(SIZES)) for kinds in self.kinds.values() for kind in kinds}
        # Many tiny calls with a long one now and then: slots get stuck, and what waits behind is taken back.
        self.uneven = rng.random() < 0.3
        if self.uneven:
            self.kind_facts = {kind: (1e-4, 8) for kind in self.kind_facts}
        self.ends_at = self.network.now + BUSY_S
        # Truth: the right value of each task, what must fail, what the user gave up.
        self.values: dict[int, bytes] = {}
        self.doomed: set[int] = set()
        self.cancelled: set[int] = set()
        self.calls: list[TaskEntry] = []
        self.graphs: list[tuple[GraphEntry, list[TaskEntry]]] = []
        self.given_up: set[int] = set()
        self.broken_graphs: set[int] = set()
        self.pending_pieces = 0
        # What the user still refers to; files that were read and are right; files being read.
        self.held: dict[int, FileEntry] = {}
        self.dropped: set[int] = set()
        self.read: set[int] = set()
        self.inputs_of: dict[int, list[int]] = {}
        self.declared: list[FileEntry] = []
        self.entry_by_file: dict[int, TaskEntry] = {}

    # ------------------------------------------------------------ the whole life

    def run(self) -> None:
        rng, network = self.rng, self.network
        for builder in self.builders:
            if rng.random() < 0.3:
                builder.library.file = self._declare(b"payload")
            self.shell.handle(events.LibraryInstalled(network.now, builder.library))
        for _ in range(rng.randint(0, 3)):
            network.later(rng.random() * 0.3, self._join)
        for _ in range(rng.randint(1, 8)):
            network.later(rng.random() * BUSY_S, self._act_as_user)
        network.later(0.0, self._act_as_user)
        if not self.calm:
            for _ in range(rng.randint(0, 10)):
                network.later(rng.random() * BUSY_S, self._break_something)
        network.run(BUSY_S)
        self._calm_down()
        if not network.run(LIMIT_S, self._is_done):
            raise Violation("stuck: " + "; ".join(self._story()))
        self._check_outcomes()
        self._let_go()
        network.run(60.0)
        self._check_empty()

    def _calm_down(self) -> None:
        faults = self.network.faults
        faults.fetch_fails = faults.upload_fails = faults.library_fails = faults.duplicates = 0.0
        self.shell.join(4)
        self.shell.join(2, "here")

    def _is_done(self) -> bool:
        shell = self.shell
        if self.pending_pieces or shell.machine.state.tasks:
            return False
        return all(i in self.read or i in self.dropped for i in self._wanted_files())

    def _wanted_files(self) -> list[int]:
        return [i for i in self.held if i in self.entry_by_file and not self._is_over(self.entry_by_file[i])]

    def _is_over(self, entry: TaskEntry) -> bool:
        """Nobody expects its value any more."""
        return entry.task_id in self.given_up or entry.error is not None or (entry.graph is not None and entry.graph.failed)

    def _story(self) -> list[str]:
        state = self.shell.machine.state
        out = [repr(entry) + " in " + repr(entry.inputs) for entry in list(state.tasks.values())[:4]]
        out += [f"unread {self.held[i]!r}" for i in self._wanted_files() if i not in self.read and i not in self.dropped][:4]
        out += [repr(i) for w in state.workers.values() for i in w.instances.values()]
        out += [f"{len(state.tasks)} tasks", f"active {len(state.active)}", f"parked {state.parked}", f"relays {state.relays}"]
        return out

    # ------------------------------------------------------------ the user

    def _act_as_user(self) -> None:
        rng = self.rng
        acts = [self._submit_calls, self._submit_calls, self._submit_graph, self._submit_graph, self._cancel, self._drop]
        if len(self.builders) > 1 and not self.calm and rng.random() < 0.05:
            # A library is removed; what the user submits to it later fails at once.
            self.removed = True
            self.shell.handle(events.LibraryRemoved(self.network.now, self.builders[1].library))
        rng.choice(acts)()

    def _declare(self, data: bytes) -> FileEntry:
        file = declared(len(self.declared) + 1)
        file.holds = 1
        self.shell.objects[file.name] = data
        self.declared.append(file)
        return file

    def _code_for(self, builder: Builder) -> CodeEntry:
        rng = self.rng
        if rng.random() < 0.5:
            return builder.code
        modules = tuple(f"m{rng.randint(0, 3)}" for _ in range(rng.randint(0, 2)))
        file = self._declare(b"code") if rng.random() < 0.3 else None
        requires = (builder.code,) if rng.random() < 0.5 else ()
        return CodeEntry(next(builder.ids), builder.library.library_id, b"" if file else b"code", modules, requires, False, file)

    def _submit_calls(self) -> None:
        rng, builder = self.rng, self.rng.choice(self.builders)
        code = self._code_for(builder)
        entries = []
        usable = [e for e in self.calls if e.task_id not in self.dropped]
        for _ in range(rng.choice([1, 2, 5, 20, 200 if self.uneven else 60])):
            inputs: list[TaskEntry | FileEntry] = (
                [rng.choice(usable) for _ in range(rng.randint(0, 3))] if usable and rng.random() < 0.5 else []
            )
            entry = builder.call(*inputs, kind=rng.choice(self.kinds[builder]), retries=rng.randint(0, 2))
            entry.code = code
            entry.priority = float(rng.choice([0, 0, 0, 1, -1]))
            values = [self.values[i.task_id] for i in inputs if isinstance(i, TaskEntry)]
            if rng.random() < (0.02 if self.uneven else 0.2):
                file = self._declare(b"declared")
                file.holds = 0
                entry.inputs = (file, *entry.inputs)
                entry.payload_file = True
                values.insert(0, b"declared")
            self._describe(entry, values, [i.task_id for i in inputs if isinstance(i, TaskEntry)], 0.03)
            entries.append(entry)
            usable.append(entry)
            self.calls.append(entry)
        self.shell.handle(events.TasksSubmitted(self.network.now, entries))
        if rng.random() < 0.3:
            # While the first messages are still on their way.
            self.network.later(rng.random() * self.network.faults.delay_s * 3, self._cancel)

    def _describe(self, entry: TaskEntry, values: list[bytes], inputs: list[int], bad: float) -> None:
        """Decide what a task does, and what must come of it."""
        rng = self.rng
        duration, size = self.kind_facts[entry.kind]
        spec = self.network.specs[entry.task_id] = Spec(duration, size)
        self.values[entry.task_id] = digest(entry.task_id, values)
        self.inputs_of[entry.task_id] = inputs
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
        if spec.raises == ALWAYS or any(i in self.doomed for i in inputs):
            self.doomed.add(entry.task_id)
        if any(i in self.cancelled for i in inputs):
            self.cancelled.add(entry.task_id)

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

    def _submit_graph(self) -> None:
        rng, builder = self.rng, self.rng.choice(self.builders)
        edges = self._edges()
        used = {i for needs in edges for i in needs}
        requested = {i for i in range(len(edges)) if i not in used or rng.random() < 0.05}
        kinds = [rng.choice(self.kinds[builder]) for _ in edges]
        graph, entries = builder.vertices(edges, sorted(requested), kinds)
        graph.bring_home = rng.random() < 0.15
        bad = rng.choice([0.0, 0.0, 0.01])
        for number, entry in enumerate(entries):
            entry.graph = graph
            entry.retries = rng.choice([0, 0, 1])
            values = [self.values[entries[i].task_id] for i in edges[number]]
            self._describe(entry, values, [entries[i].task_id for i in edges[number]], bad)
            if number in requested:
                assert entry.output is not None
                self.held[entry.task_id] = entry.output
                self.entry_by_file[entry.task_id] = entry
        if any(e.task_id in self.doomed for e in entries):
            self.broken_graphs.add(graph.graph_id)
        self.graphs.append((graph, entries))
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

    def _cancel(self) -> None:
        rng = self.rng
        if self.graphs and rng.random() < 0.3:
            graph, entries = rng.choice(self.graphs)
            self.given_up.update(e.task_id for e in entries)
            self.given_up.add(-graph.graph_id)
            self.shell.handle(events.GraphCancelled(self.network.now, graph))
        elif self.calls:
            victims = [
                e
                for e in rng.sample(self.calls[-30:], min(8, len(self.calls[-30:])))
                if not self.shell.delivery_counts[e.task_id]
            ]
            self.cancelled.update(e.task_id for e in victims)
            for entry in self.calls:
                if any(i in self.cancelled for i in self.inputs_of[entry.task_id]):
                    self.cancelled.add(entry.task_id)
            self.shell.handle(events.TasksCancelled(self.network.now, victims))

    def _drop(self) -> None:
        """The user forgets some futures, or prunes a file."""
        rng = self.rng
        done = [e for e in self.calls if self.shell.delivery_counts[e.task_id] and e.task_id not in self.dropped]
        for entry in rng.sample(done, min(len(done), rng.randint(0, 5))):
            self._drop_one(entry)
        files = [f for i, f in self.held.items() if f.producer is not None and f.producer.state == "finished"]
        if files and not self.calm and rng.random() < 0.5:
            self.shell.handle(events.FilePruned(self.network.now, rng.choice(files)))

    def _prune(self, file: FileEntry) -> None:
        if self.network.now < self.ends_at:
            self.shell.handle(events.FilePruned(self.network.now, file))

    def _drop_one(self, entry: TaskEntry) -> None:
        self.dropped.add(entry.task_id)
        self.held.pop(entry.task_id, None)
        if entry.output is not None:
            self.shell.handle(events.FileReleased(self.network.now, [entry.output]))

    # ------------------------------------------------------------ what comes back

    def _delivered(self, entry: TaskEntry) -> None:
        self._judge(entry)
        if entry.error is None and entry.value is None and (entry.output is None or entry.output.data is None):
            if entry.output is None:
                raise Violation(f"{entry} has neither a value nor a file")
            self.held[entry.task_id] = entry.output
            self.entry_by_file[entry.task_id] = entry
            self.network.later(self.rng.random() * 0.3, self._want, entry.output)
            if not self.calm and self.rng.random() < 0.2:
                self.network.later(self.rng.random() * 0.3, self._prune, entry.output)
        elif entry.error is None:
            self.read.add(entry.task_id)

    def _want(self, file: FileEntry) -> None:
        if file.value_id not in self.dropped and file.value_id not in self.given_up:
            self.shell.handle(events.FileWanted(self.network.now, file, self))

    def _file(self, file: FileEntry, handle: object, data: bytes | None, reason: str) -> None:
        if file.value_id in self.dropped or file.value_id in self.given_up:
            return
        if reason and self._is_over(self.entry_by_file[file.value_id]):
            self.given_up.add(file.value_id)
        elif reason:
            raise Violation(f"{file} cannot be had: {reason}")
        elif data is None:
            self.network.later(0.001, self._want, file)
        elif data != self.values[file.value_id]:
            raise Violation(f"{file} has the wrong bytes")
        else:
            self.read.add(file.value_id)

    def _judge(self, entry: TaskEntry) -> None:
        """Is this outcome one that may be?"""
        number, error = entry.task_id, entry.error
        graph = entry.graph
        # A requested vertex that was lost and can never be made again fails its graph, whatever was told before.
        told_again = graph is not None and error is not None and (self.removed or self.libraries_fail)
        if self.shell.delivery_counts[number] > 1 + told_again:
            raise Violation(f"{entry} was delivered {self.shell.delivery_counts[number]} times")
        if error is None:
            if number in self.doomed:
                raise Violation(f"{entry} succeeded, but it or one of its inputs always raises")
            if entry.value is not None and entry.value != self.values[number]:
                raise Violation(f"{entry} has a wrong value")
        elif error == RAISED and entry.value == b"no module" and self.libraries_fail:
            # A library that failed on each worker fails its calls, and their graphs.
            self.unlucky.add(-graph.graph_id if graph is not None else number)
        elif isinstance(error, LibraryFailed) and self.removed:
            self.unlucky.add(-graph.graph_id if graph is not None else number)
        elif error == RAISED:
            if number not in self.doomed and (graph is None or graph.graph_id not in self.broken_graphs):
                raise Violation(f"{entry} failed, but nothing it needs always raises")
            if entry.value is None or not entry.value.startswith(b"boom"):
                raise Violation(f"{entry} lost the error's bytes: {entry.value!r}")
        elif error == CANCELLED:
            if number not in self.cancelled:
                raise Violation(f"{entry} was cancelled by nobody")
        else:
            raise Violation(f"{entry} failed with {error!r}")

    # ------------------------------------------------------------ faults

    def _join(self) -> None:
        self.shell.join(self.rng.choice([1, 2, 4]), self.rng.choice(["there", "here"]))

    def _break_something(self) -> None:
        rng = self.rng
        workers = list(self.shell.workers.values())
        what = rng.choice(["join", "crash", "cut", "freeze", "slot", "slot", "host", "hand back"])
        if what == "join" or not workers:
            self._join()
            return
        worker = rng.choice(workers)
        if not worker.alive:
            return
        if what == "crash":
            worker.crash()
        elif what == "cut":
            worker.cut_link()
        elif what == "freeze":
            worker.freeze()
        elif what == "slot" and worker.slots:
            rng.choice(list(worker.slots.values())).die()
        elif what == "host" and worker.hosts:
            worker.kill_host(rng.choice(list(worker.hosts)))
        elif what == "hand back":
            worker.from_manager.send(messages.HandBack(rng.randint(1, 5), 1))

    # ------------------------------------------------------------ the end

    def _check_outcomes(self) -> None:
        shell = self.shell
        for entry in self.calls:
            if shell.delivery_counts[entry.task_id] != 1:
                raise Violation(f"{entry} was delivered {shell.delivery_counts[entry.task_id]} times")
        for graph, entries in self.graphs:
            if -graph.graph_id in self.given_up:
                continue
            errors = sum(e.task_id in shell.outcomes and shell.outcomes[e.task_id][0] is not None for e in entries)
            must_fail = graph.graph_id in self.broken_graphs
            if errors > 1 or (must_fail != (errors == 1) and -graph.graph_id not in self.unlucky):
                raise Violation(f"graph {graph.graph_id} was told {errors} errors")
            for entry in entries:
                assert entry.output is not None
                if not errors and entry.output.holds and shell.delivery_counts[entry.task_id] != 1:
                    raise Violation(f"{entry} was requested and not delivered")
        if self.calm:
            self._check_runs()

    def _check_runs(self) -> None:
        """Without faults each task runs once, and once more for each time it raised."""
        for entry in self.calls:
            self._check_count(entry, entry.task_id in self.cancelled or entry.task_id in self.doomed)
        for graph, entries in self.graphs:
            # A revocation may part a bundle: then the values that were kept for its rest are written, not made again.
            again = any(self.network.spec(e.task_id).raised for e in entries)
            for entry in entries:
                self._check_count(entry, again or -graph.graph_id in self.given_up or graph.graph_id in self.broken_graphs)

    def _check_count(self, entry: TaskEntry, is_free: bool) -> None:
        count, raised = self.network.executions[entry.task_id], self.network.spec(entry.task_id).raised
        if not is_free and count != 1 + raised:
            raise Violation(f"{entry} ran {count} times, raised {raised} times, and nothing failed")

    def _let_go(self) -> None:
        for entry in self.calls:
            if entry.task_id not in self.dropped:
                self._drop_one(entry)
        for _, entries in self.graphs:
            held = [e.output for e in entries if e.output is not None and e.output.holds]
            self.given_up.update(e.task_id for e in entries)
            self.shell.handle(events.FileReleased(self.network.now, held))

    def _check_empty(self) -> None:
        """Nobody refers to anything: nothing may be left."""
        state = self.shell.machine.state
        for name in (
            "tasks",
            "relays",
            "splices",
            "crowded",
            "wanted_here",
            "wanted_later",
            "parked",
            "unlinks",
            "cancels",
            "delivered",
        ):
            if getattr(state, name):
                raise Violation(f"the manager still has {name}: {getattr(state, name)!r:.300}")
        if self.shell.splices.waiting or self.shell.splices.passing:
            raise Violation("links of a splice are left")
        permanent = {f.name for f in self.declared if f.holds}
        left = set(self.shell.objects) - permanent
        if left:
            raise Violation(f"the manager still has objects {sorted(left)}")
        left = {name for name in state.held if name not in permanent}
        if left:
            raise Violation(f"the manager believes in copies of {sorted(left)}")
        for entry in self.calls + [e for _, entries in self.graphs for e in entries]:
            file = entry.output
            if file is not None and (file.uses or file.holds or file.remakes or file.is_available() or file.kept):
                raise Violation(
                    f"{file} of {entry}: uses {file.uses}, holds {file.holds}, remakes {file.remakes}, kept {file.kept}"
                )
        for worker in self.shell.workers.values():
            self._check_worker_empty(worker.worker_id, permanent)

    def _check_worker_empty(self, worker_id: int, permanent: set[str]) -> None:
        worker = self.shell.workers[worker_id]
        entry = self.shell.machine.state.workers[worker_id]
        for instance in entry.instances.values():
            if instance.outstanding or instance.groups_out or instance.groups or instance.values or instance.calls:
                raise Violation(f"{instance} still has {instance.groups_out} groups")
        if entry.committed != Resources(0, 0, 0, 0):
            raise Violation(f"{entry} still has {entry.committed} committed")
        if not worker.alive:
            return
        left = set(worker.store) - permanent
        if left:
            raise Violation(f"worker {worker_id} still stores {sorted(left)}")
        left = set(worker.machine.state.objects) - permanent
        if left or worker.machine.state.fetching or worker.machine.state.libraries_busy():
            raise Violation(f"worker {worker_id} believes in {sorted(left)}, or is busy")


def simulate(seed: int) -> Simulation:
    """Live one life.

    Raises:
        Violation, InvariantError: a promise was broken; the text names the seed.
    """
    life = Simulation(seed)
    life.run()
    return life


def failing(seeds: range) -> list[tuple[int, str]]:
    """The seeds that break a promise, with what went wrong."""
    out = []
    for seed in seeds:
        try:
            simulate(seed)
        except Exception as error:
            frame = traceback.extract_tb(error.__traceback__)[-1]
            out.append((seed, f"{type(error).__name__}: {error} ({frame.filename.rpartition('/')[2]}:{frame.lineno})"))
    return out


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=300)
    parser.add_argument("--start", type=int, default=0)
    args = parser.parse_args()
    started = time.perf_counter()
    bad = failing(range(args.start, args.start + args.seeds))
    for seed, text in bad:
        print(f"seed {seed}: {text:.600}")
    print(f"{args.seeds} lives in {time.perf_counter() - started:.1f} s, {len(bad)} failed")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
