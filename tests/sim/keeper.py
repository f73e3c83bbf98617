"""The part of the user that keeps and ends things: graphs whose values are read or kept, functions that nobody holds any more,
copies of temps, limits, vertices that run apart. And the books of who reads what, against what the manager says of its files.

It draws from numbers of its own, so that lives without it stay as they are.
"""

from __future__ import annotations

import random
from collections import Counter

from tests.kit.network import Violation
from tests.sim.boxes import BoxUser
from tests.sim.truth import ALWAYS
from tests.sim.user import User
from vinecore.manager import events
from vinecore.manager import transitions as t
from vinecore.manager.entries import CodeEntry, FileEntry, GraphEntry, Kind, TaskEntry, outputs_of
from vinecore.wire import messages

# How often the books are compared with the manager's, in virtual seconds.
LOOK_S = 0.03


class Keeper:
    """Acts when told to; dresses what the other users submit."""

    def __init__(self, rng: random.Random, user: User, boxes: BoxUser | None) -> None:
        self.rng, self.user, self.boxes = rng, user, boxes
        self.network, self.truth, self.shell = user.network, user.truth, user.shell
        self.codes: list[CodeEntry] = []
        # Files of pieces that are too large for messages.
        self.pieces: list[FileEntry] = []
        self.open_graphs: list[tuple[GraphEntry, list[TaskEntry], CodeEntry]] = []
        user.keeper = self
        if boxes is not None:
            boxes.keeper = self
        self.shell.machine.state.tunables.temp_replica_count = rng.choice([1, 1, 2, 3])

    def act(self) -> None:
        """Do one thing."""
        self.rng.choice([self.end_graphs, self.end_graphs, self.forget_functions])()

    # ------------------------------------------------------------ what others submit

    def dress_graph(self, graph: GraphEntry, entries: list[TaskEntry]) -> list[bytes]:
        """Give a graph code of its own, and perhaps processes of their own to its vertices; returns what all of them mount."""
        library_id, mounts = entries[0].kind.shape.library.library_id, list[tuple[FileEntry, bytes]]()
        if self.boxes is not None and self.rng.random() < 0.3:
            library_id = self.boxes.library.library_id
            kinds = [kind for kind in self.boxes.kinds if kind.shape.request.cores != 64]
            usable = [(file, data) for file, number, data in self.boxes.mountable if number == 0]
            mounts = self.rng.sample(usable, min(len(usable), self.rng.randint(0, 2)))
            if kinds:
                self._set_apart(entries, self.rng.choice(kinds), [file for file, _ in mounts])
            else:
                mounts, library_id = [], entries[0].kind.shape.library.library_id
        file = self.user.declare(b"piece") if self.rng.random() < 0.3 else None
        if file is not None:
            self.pieces.append(file)
        code = CodeEntry(1_000_000_000 + graph.graph_id, library_id, b"" if file else b"piece", (), (), True, file)
        for entry in entries:
            entry.code = code
        self.open_graphs.append((graph, entries, code))
        return [data for _, data in mounts]

    def _set_apart(self, entries: list[TaskEntry], kind: Kind, mounted: list[FileEntry]) -> None:
        box = messages.Sandbox([messages.Mount("", f"in{n}") for n in range(len(mounted))], [], [], "")
        for entry in entries:
            assert self.boxes is not None
            self.user.kind_facts.setdefault(kind, self.boxes.facts[kind])
            entry.kind, entry.sandbox = kind, box
            entry.inputs += tuple(mounted)

    def limits_of(self, entry: TaskEntry) -> int:
        """How often one of its limits ends a task with a sandbox."""
        if self.rng.random() < 0.9:
            return 0
        return 1 if entry.graph is not None and entry.retries else ALWAYS

    # ------------------------------------------------------------ second thoughts

    def end_graphs(self) -> None:
        """Graphs whose values have come are over: these are let go of, or kept without what made them."""
        truth = self.truth
        for graph, entries, code in list(self.open_graphs):
            if -graph.graph_id in truth.given_up or graph.failed:
                self.open_graphs.remove((graph, entries, code))
                continue
            asked = [entry for entry in entries if entry.output is not None and entry.output.holds]
            if not asked or any(not self.shell.delivery_counts[entry.task_id] for entry in asked):
                continue
            self.open_graphs.remove((graph, entries, code))
            keep = self.rng.random() < 0.5
            files = [entry.output for entry in asked if entry.output is not None]
            if keep:
                truth.kept.update(entry.task_id for entry in asked)
                truth.ended.add(graph.graph_id)
            else:
                truth.dropped.update(entry.task_id for entry in asked)
                for entry in asked:
                    truth.held.pop(entry.task_id, None)
            self.shell.handle(events.GraphEnded(self.network.now, graph, files, keep, [code]))

    def forget_functions(self) -> None:
        """Nobody holds some of the functions that were called."""
        gone = [code for code in self.codes if self.rng.random() < 0.5]
        self.codes = [code for code in self.codes if code not in gone]
        if gone:
            self.shell.handle(events.CodesUnused(self.network.now, gone))

    def let_go(self) -> None:
        """No task names the pieces of graphs any more."""
        self.shell.handle(events.FileReleased(self.network.now, self.pieces))

    # ------------------------------------------------------------ the books

    def look(self) -> None:
        """Compare the books now, and again later."""
        self.check_books()
        if self.network.now < self.user.ends_at + 1.0:
            self.network.later(LOOK_S, self.look)

    def check_books(self) -> None:
        """Who reads what, and whether what may be needed can be made again.

        Raises:
            Violation: a file counts other readers than it has, or what somebody needs can come from nowhere.
        """
        calls = [*self.truth.calls, *(entry for _, entries in self.truth.graphs for entry in entries)]
        entries = [entry for entry in calls if entry.state is not t.NEW]
        uses, remakes = Counter[FileEntry](), Counter[FileEntry]()
        files = {file for entry in entries for file in outputs_of(entry)}
        for entry in entries:
            if not entry.is_final:
                (remakes if entry.state is t.FINISHED else uses).update(entry.inputs)
        for file in {*files, *uses, *remakes}:
            if (file.uses, file.remakes) != (uses[file], remakes[file]):
                raise Violation(f"{file} has {uses[file]} readers, and {remakes[file]} that might read it again")
        if not self.truth.removed:
            self._check_sources(entries, files)

    def _check_sources(self, entries: list[TaskEntry], files: set[FileEntry]) -> None:
        """What unfinished tasks read, and what is held, has bytes that no worker can take along, or somebody to make it again."""
        needed = [file for entry in entries if entry.state is not t.FINISHED for file in entry.inputs]
        needed += [file for file in files if file.holds and file.producer is not None and file.value_id not in self.truth.kept]
        seen = set[FileEntry]()
        while needed:
            file = needed.pop()
            if file in seen or file.data is not None or file.at_manager or file.never_made or file.value_id in self.truth.kept:
                continue
            seen.add(file)
            maker = file.producer
            if maker is None:
                if not file.on_workers and not file.promised:
                    raise Violation(f"{file} is needed, and nothing makes it")
            elif maker.error is None and maker.state is not t.NEW:
                if maker.is_final:
                    raise Violation(f"{file} is needed, and {maker} cannot run again")
                needed += maker.inputs
