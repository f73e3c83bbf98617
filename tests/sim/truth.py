"""What must come of everything in a life, known to nobody but the simulation: right values, what has to fail, what may."""

from __future__ import annotations

from tests.kit.machines import ManagerShell
from tests.kit.network import Network, Violation
from vinecore.errors import FileLost, LibraryFailed, TaskFailed
from vinecore.manager.entries import CANCELLED, RAISED, FileEntry, GraphEntry, LibraryEntry, TaskEntry, outputs_of

ALWAYS = 10**9


class Truth:
    """The book of a life. Values are known by the id of their task, products by the id of their file."""

    def __init__(self, network: Network, shell: ManagerShell) -> None:
        self.network, self.shell = network, shell
        # The right bytes; whose task or file can never succeed; which errors may come with it.
        self.values: dict[int, bytes] = {}
        self.doomed: set[int] = set()
        self.errors: dict[int, frozenset[str]] = {}
        self.inputs_of: dict[int, list[int]] = {}
        self.libraries: dict[int, LibraryEntry] = {}
        self.calls: list[TaskEntry] = []
        self.graphs: list[tuple[GraphEntry, list[TaskEntry]]] = []
        # What the user gave up, let go of, and read.
        self.cancelled: set[int] = set()
        self.given_up: set[int] = set()
        self.dropped: set[int] = set()
        self.read: set[int] = set()
        # What the user still refers to, and whose value or product it is.
        self.held: dict[int, FileEntry] = {}
        self.makers: dict[int, TaskEntry] = {}
        self.broken_graphs: set[int] = set()
        # Values of graphs that are kept without what made them: lost with their worker, they are gone.
        self.kept: set[int] = set()
        # Their graphs.
        self.ended: set[int] = set()
        # Calls, and graphs by their negative number, that a failed library took along.
        self.unlucky: set[int] = set()
        self.removed = False
        self.libraries_fail = network.faults.library_fails > 0
        # Workers came or went on purpose, or were lost: then the same task may run twice.
        self.moved = False

    def describe(self, entry: TaskEntry, inputs: list[int]) -> None:
        """Note what a task reads, and which errors it may have."""
        number = entry.task_id
        self.inputs_of[number] = inputs
        self.libraries[number] = entry.kind.shape.library
        allowed = frozenset[str]().union(*(self.errors.get(i, frozenset()) for i in inputs))
        if self.network.spec(number).raises == ALWAYS:
            allowed |= {RAISED}
        is_cut_short = entry.graph is not None and self.network.spec(number).limits == ALWAYS
        if is_cut_short:
            allowed |= {TaskFailed.__name__}
        if allowed:
            self.errors[number] = allowed
        if self.network.spec(number).raises == ALWAYS or is_cut_short or any(i in self.doomed for i in inputs):
            self.doomed.add(number)
        if any(i in self.cancelled for i in inputs):
            self.cancelled.add(number)

    def describe_value(self, entry: TaskEntry) -> int:
        """A limit ends the task, which is no error of its own: who reads its value has one. Returns the number of that value."""
        number = -entry.task_id
        self.errors[number] = self.errors.get(entry.task_id, frozenset()) | {FileLost.__name__}
        self.doomed.add(number)
        self.makers[number] = entry
        if entry.task_id in self.cancelled:
            self.cancelled.add(number)
        return number

    def describe_product(self, entry: TaskEntry, file: FileEntry, value: bytes, is_made: bool) -> None:
        """Note what a task leaves in its sandbox; ``is_made``: if it runs to its end, however that is."""
        number, product = entry.task_id, file.value_id
        self.values[product] = value
        self.makers[product] = entry
        errors = self.errors.get(number, frozenset())
        if not is_made or errors:
            self.errors[product] = errors | {FileLost.__name__}
        never_runs = any(i in self.doomed for i in self.inputs_of[number])
        if not is_made or never_runs:
            self.doomed.add(product)
        if number in self.cancelled:
            self.cancelled.add(product)

    def cancel(self, victims: list[TaskEntry]) -> None:
        """The user gives these up, which may take along whoever reads them."""
        self.cancelled.update(e.task_id for e in victims)
        for entry in self.calls:
            if any(i in self.cancelled for i in self.inputs_of[entry.task_id]):
                self.cancelled.add(entry.task_id)
            if entry.task_id in self.cancelled:
                self.cancelled.update(file.value_id for file in entry.products)
                self.cancelled.add(-entry.task_id)

    def is_over(self, number: int) -> bool:
        """Nobody expects this value or product any more."""
        entry = self.makers[number]
        over = entry.task_id in self.given_up or entry.error is not None
        return over or number in self.doomed or (entry.graph is not None and entry.graph.failed)

    def unread(self) -> list[int]:
        """What is held, expected and not read."""
        wanted = [i for i in self.held if i in self.makers and not self.is_over(i)]
        return [i for i in wanted if i not in self.read and i not in self.dropped]

    # ------------------------------------------------------------ single outcomes

    def judge(self, entry: TaskEntry) -> None:
        """Is this outcome one that may be?"""
        number, error = entry.task_id, entry.error
        graph = entry.graph
        if graph is not None and graph.graph_id in self.ended and isinstance(error, FileLost):
            # A value that is kept was being made again when what it is made of, kept too by then, was lost: nobody listens.
            self.unlucky.add(-graph.graph_id)
            return
        # A requested vertex that was lost and can never be made again fails its graph, whatever was told before.
        told_again = graph is not None and error is not None and (self.removed or self.libraries_fail)
        if self.shell.delivery_counts[number] > 1 + told_again:
            raise Violation(f"{entry} was delivered {self.shell.delivery_counts[number]} times")
        if error is None:
            if number in self.doomed:
                raise Violation(f"{entry} succeeded, but it or one of its inputs always raises")
            is_cut = entry.report is not None and entry.report.outcome
            if entry.value is not None and entry.value != (b"" if is_cut else self.values[number]):
                raise Violation(f"{entry} has a wrong value")
        elif isinstance(error, LibraryFailed) and entry.value == b"no module" and self.libraries_fail:
            # A library that failed on each worker fails its calls, and their graphs.
            self.unlucky.add(-graph.graph_id if graph is not None else number)
        elif isinstance(error, LibraryFailed) and self.removed:
            self.unlucky.add(-graph.graph_id if graph is not None else number)
        elif error == RAISED:
            if RAISED not in self.errors.get(number, ()) and (graph is None or graph.graph_id not in self.broken_graphs):
                raise Violation(f"{entry} failed with {entry.value!r}, but nothing it needs always raises")
            if entry.value is None or not entry.value.startswith(b"boom"):
                raise Violation(f"{entry} lost the error's bytes: {entry.value!r}")
        elif isinstance(error, TaskFailed) and graph is not None and graph.graph_id in self.broken_graphs:
            pass
        elif error == CANCELLED:
            if number not in self.cancelled:
                raise Violation(f"{entry} was cancelled by nobody")
        elif isinstance(error, FileLost) and (FileLost.__name__ in self.errors.get(number, ()) or self._reads_orphan(number)):
            pass
        else:
            raise Violation(f"{entry} failed with {error!r}")

    def _reads_orphan(self, number: int) -> bool:
        """Does something that this was made of come from a library that is removed? Once pruned or lost, it is gone for good."""
        open_ids, seen = list(self.inputs_of[number]), set[int]()
        while open_ids:
            maker = open_ids.pop()
            maker = maker if maker in self.libraries else self.makers[maker].task_id
            if self.libraries[maker].removed:
                return True
            if maker not in seen:
                seen.add(maker)
                open_ids += self.inputs_of[maker]
        return False

    # ------------------------------------------------------------ at the end

    def check_outcomes(self, calm: bool) -> None:
        """Everything wanted came exactly once."""
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
        if calm:
            self._check_runs()

    def _check_runs(self) -> None:
        """Without faults each task runs once, and once more for each time it raised."""
        # A peer that leaves, or whose clock is wrong, does not give an input: what was kept for its readers is made again, and a
        # slot that missed it may be believed after another copy has come.
        missed = self.network.frames["FetchFailed"] > 0
        for entry in self.calls:
            self._check_count(entry, missed or entry.task_id in self.cancelled or entry.task_id in self.errors)
        for graph, entries in self.graphs:
            # A revocation may part a bundle: then the values that were kept for its rest are written, not made again.
            again = missed or any(self.network.spec(e.task_id).raised or self.network.spec(e.task_id).limited for e in entries)
            for entry in entries:
                self._check_count(entry, again or -graph.graph_id in self.given_up or graph.graph_id in self.broken_graphs)

    def _check_count(self, entry: TaskEntry, is_free: bool) -> None:
        count, raised = self.network.executions[entry.task_id], self.network.spec(entry.task_id).raised
        # A slot that is killed for a cancelled call takes along what it had done and not yet told.
        killed = sum(worker.slot_deaths for worker in self.shell.all_workers)
        if not is_free and not 1 + raised <= count <= 1 + raised + killed:
            raise Violation(f"{entry} ran {count} times, raised {raised} times, and nothing failed")

    def check_files(self) -> None:
        """When the user has let go of everything, no file may be referred to or be anywhere."""
        for entry in self.calls + [e for _, entries in self.graphs for e in entries]:
            for file in outputs_of(entry):
                if file.uses or file.holds or file.remakes or file.is_available() or file.kept:
                    raise Violation(
                        f"{file} of {entry}: uses {file.uses}, holds {file.holds}, remakes {file.remakes}, kept {file.kept}"
                    )
