"""What the manager's tables hold: files, code, libraries and their instances, workers, graphs, tasks. The tables: ``state.py``.

Entries are slotted and changed in place: purity is kept at the border of the machine, not by copying. Callers build
``TaskEntry`` and ``FileEntry`` objects, hand them over inside an event, and do not touch them until they come back in a Deliver.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Protocol

from vinecore.manager import transitions as t
from vinecore.manager.lists import Offers, Readers, WeakList
from vinecore.manager.ready import ReadyQueue
from vinecore.manager.worker_sets import FEW, Workers
from vinecore.model.allocation import allocate
from vinecore.model.resources import Resources
from vinecore.wire import messages
from vinecore.wire.messages import Call

NO_REQUEST = Resources()
NOTHING: Mapping[int, float] = MappingProxyType({})


class Handle(Protocol):
    """Who gets the outcome of an entry; called by the shell in the loop's thread, must not block."""

    def settled(self, entry: TaskEntry) -> object: ...


# As many instances, and two for each that its library has, are known to have some code before those that are gone are taken out.
HOLDERS_LEAST = 16
# Amounts that a worker remembers; higher: more memory.
AMOUNTS_LIMIT = 512


class FileEntry:
    """One immutable file or value: the output of a task, or something declared by the user.

    It is *available* when it has inline data, is at the manager, or is on a worker.
    """

    __slots__ = (
        "at_manager",
        "coming",
        "consumers",
        "data",
        "holds",
        "kept",
        "maker",
        "name",
        "never_made",
        "on_workers",
        "producer",
        "promised",
        "remakes",
        "size_bytes",
        "to_come",
        "uses",
        "value_id",
    )

    def __init__(self, value_id: int, name: str = "", size_bytes: int = 0) -> None:
        self.value_id = value_id  # id of the producing task, or a negative number for declared files
        self.name = name  # cache name; of a task's output: that of its latest attempt
        self.size_bytes = size_bytes
        self.data: bytes | None = None  # the encoded value, when it travelled inline
        self.at_manager = False  # the shell holds its bytes under its name
        self.on_workers: Workers = ()  # those that hold it
        self.coming: Workers = ()  # those that were told to fetch it
        self.maker = 0  # the worker whose task made it; 0 when none did
        self.kept = False  # unwritten in a slot, for the rest of its bundle
        self.producer: TaskEntry | None = None
        self.promised = False  # declared before the task that makes it was submitted: readers wait for that
        self.never_made = False  # its producer ended well without it: another run would be no better
        # Every entry that has it as input and was submitted, but those that ended for good: a file may outlive millions of them.
        self.consumers: Readers[TaskEntry] | tuple[TaskEntry, ...] = ()
        # Unfinished consumers, and references from outside (futures, requested keys, declarations).
        self.uses = 0
        self.holds = 0
        # Consumers of a streamed graph that have not been submitted yet.
        self.to_come = 0
        # Finished consumers that would read it again if their own output were lost.
        self.remakes = 0

    def read_by(self, entry: TaskEntry) -> None:
        """Note a consumer."""
        consumers = self.consumers
        if type(consumers) is Readers:
            consumers.append(entry)
        elif len(consumers) < FEW:
            self.consumers = (*consumers, entry)
        else:
            self.consumers = Readers((*consumers, entry))

    def left_by(self, entry: TaskEntry) -> None:
        """A consumer has ended for good. What is iterated over meanwhile stays as it is."""
        consumers = self.consumers
        if type(consumers) is Readers:
            self.consumers = consumers.without_ended()
        else:
            self.consumers = tuple([other for other in consumers if other is not entry])

    def is_needed(self) -> bool:
        return self.uses > 0 or self.holds > 0 or self.to_come > 0

    def is_available(self) -> bool:
        return self.data is not None or self.at_manager or bool(self.on_workers)

    def __repr__(self) -> str:
        where = "inline" if self.data is not None else "manager" if self.at_manager else f"workers {sorted(self.on_workers)}"
        return f"<FileEntry {self.name or self.value_id} {where} uses {self.uses} holds {self.holds} remakes {self.remakes}>"


class CodeEntry:
    """A pickled function, or a piece of a graph."""

    __slots__ = ("code_id", "file", "holders", "is_piece", "keeper", "library_id", "message", "modules", "payload", "requires")

    def __init__(
        self,
        code_id: int,
        library_id: int,
        payload: bytes,
        modules: tuple[str, ...] = (),
        requires: tuple[CodeEntry, ...] = (),
        is_piece: bool = False,
        file: FileEntry | None = None,
    ) -> None:
        self.code_id = code_id
        self.library_id = library_id
        self.payload = payload
        self.modules = modules
        self.requires = requires
        self.is_piece = is_piece
        self.file = file  # holds the payload when it is large
        self.keeper: object = None  # lets go of that when no task names this code any more: those that have ended may run again
        # What workers are told: the same to all of them.
        self.message: messages.Code | None = None
        # Instances that were sent it, with their ``code_life`` then. Here and not there: many vertices of a piece are placed one
        # after the other, so this table is in the processor's caches, which those of thousands of instances are not.
        self.holders: dict[Instance, int] = {}

    def held_by(self, instance: Instance) -> None:
        """An instance is sent it. Now and then those that are gone go: a function may outlive any number of workers."""
        holders = self.holders
        if len(holders) >= HOLDERS_LEAST + 2 * len(instance.library.instances):
            self.holders = holders = {other: life for other, life in holders.items() if other.state is not t.GONE}
        holders[instance] = instance.code_life


class Kind:
    """Tasks that are alike: the same function under the same shape. Carries what was measured of them."""

    __slots__ = ("is_recent", "mean_bytes", "mean_us", "name", "shape")

    def __init__(self, name: str, shape: Shape) -> None:
        self.name = name
        self.shape = shape
        self.mean_us = 0.0  # 0 until measured
        self.mean_bytes = 0.0
        self.is_recent = False  # was asked for once more since it was last thought of forgetting it


class Shape:
    """Where a group of tasks can run: one library and one request."""

    __slots__ = (
        *("__weakref__", "allocates", "constrained", "library", "queued", "ready", "refused_by", "request"),
        *("tried", "unfit_in"),
    )

    def __init__(self, library: LibraryEntry, request: Resources = NO_REQUEST, allocates: bool = False) -> None:
        self.library = library
        self.request = request
        # What is unset follows the rules of allocation (a share of the worker), instead of being nothing.
        self.allocates = allocates
        self.constrained = allocates or not request.is_unset()
        self.ready: ReadyQueue[TaskEntry] = ReadyQueue()
        self.queued = False  # is in ManagerState.active
        # Of those that ask for something: how many of LibraryEntry.offers were tried for it, as idle and as hungry ones. What was
        # tried and still has room lacks what is asked for. And the instance that lacked it last.
        self.tried = [0, 0]
        self.refused_by: Instance | None = None
        self.unfit_in = -1  # ManagerState.fleet when no worker could hold it
        library.learn(self)


@dataclass(frozen=True, slots=True)
class LibrarySetup:
    """How instances of a library are started and renewed; most libraries need none of this."""

    # Files in the directory of each instance: file, relative path, flags of a Mount.
    mounts: tuple[tuple[FileEntry, str, int], ...] = ()
    # Run by a shell before the interpreter; how a shell starts a program that answers the calls instead.
    init_command: str = ""
    program: str = ""
    # Calls after which a slot is replaced; 0: never.
    max_calls: int = 0
    # Nothing that calls leave in a slot is promised to later ones: slots that grow too much are replaced.
    is_stateless: bool = False


_PLAIN = LibrarySetup()


class LibraryEntry:
    """A library as the user declared it."""

    __slots__ = (
        "asks",
        "eager",
        "exec_mode",
        "failed_on",
        "file",
        "first_shape",
        "fleet",
        "freed_at",
        "functions",
        "hungry",
        "idle",
        "instances",
        "latest",
        "library_id",
        "modules",
        "name",
        "near",
        "offers",
        "payload",
        "piled",
        "removed",
        "retry_at",
        "setup",
        "shapes",
        "slots",
        "slots_up",
        "stocked",
        "told_fewer",
        "told_slow",
        "told_unsafe",
    )

    def __init__(
        self,
        library_id: int,
        name: str,
        payload: bytes = b"",
        modules: tuple[str, ...] = (),
        slots: int = 0,
        exec_mode: str = "direct",
        setup: LibrarySetup = _PLAIN,
    ) -> None:
        self.library_id = library_id
        self.name = name
        self.payload = payload
        self.file: FileEntry | None = None  # holds the payload when it is large
        self.modules = modules
        self.slots = slots  # 0: as many as the worker has cores
        self.exec_mode = exec_mode
        self.setup = setup
        self.functions: dict[str, CodeEntry] = {}
        # Those that somebody has a use for: tasks may come with a request of their own each, for weeks.
        self.shapes: WeakList[Shape] = WeakList()
        self.first_shape: Shape | None = None
        self.asks = False  # some of them ask for something
        self.eager = False  # started on every worker at once, before there is work
        self.instances: dict[int, Instance] = {}
        # Instances that may have room, by worker id, in the order in which they were offered (ordered dicts, because they are
        # taken from the front). Those found full are dropped until something ends there. ``idle``: those with a free slot.
        self.hungry: OrderedDict[int, Instance] = OrderedDict()
        self.idle: OrderedDict[int, Instance] = OrderedDict()
        # The one offered last is in neither yet: where work waits it is filled at once, which spares four changes of tables.
        self.latest: Instance | None = None
        # Offers in their order, where something is asked for: each shape knows which of them it has tried.
        self.offers: Offers[Instance] = Offers()
        # Instances with ready entries of their own, and those of them that may have room.
        self.stocked: dict[int, Instance] = {}
        self.near: dict[int, Instance] = {}
        # Instances with more groups than slots, or a bundle; those without are met here, and dropped, when work is evened out.
        self.piled: OrderedDict[int, Instance] = OrderedDict()
        # Slots of all instances that are up.
        self.slots_up = 0
        # When calls that hold up entries of their instance were looked for.
        self.freed_at = 0.0
        # ManagerState.fleet when every worker that takes work had an instance.
        self.fleet = -1
        # When the first instance that failed may be started again; infinity: none has failed.
        self.retry_at = math.inf
        # Workers where it failed since it was up anywhere, or since its calls were failed: not all need be GONE at the same time.
        self.failed_on: set[int] = set()
        self.removed = False
        # The user was told: its slots are not forked, a worker has fewer of them than it should, it takes long to start.
        self.told_unsafe = self.told_fewer = self.told_slow = False

    def learn(self, shape: Shape) -> None:
        """There is one shape more; from callers' threads, of which one at a time makes one. Those that are gone are forgotten."""
        self.shapes.add(shape)
        self.first_shape = self.first_shape or shape

    def offer(self, instance: Instance) -> None:
        """An instance may have room: it is looked at when there is something to place."""
        if self.latest is not instance:
            self.line_up()
            self.latest = instance
        if self.stocked and instance.worker_id in self.stocked:
            self.near[instance.worker_id] = instance

    def line_up(self) -> None:
        """The one offered last takes its place behind the others."""
        instance = self.latest
        if instance is not None:
            self.latest = None
            worker_id = instance.worker_id
            self.hungry[worker_id] = instance
            if instance.groups_out < instance.slots:
                self.idle[worker_id] = instance
            if self.asks:
                self.log(instance)

    def number(self) -> None:
        """From now on offers are numbered: some shape asks for something."""
        if not self.asks:
            self.asks = True
            for instance in {**self.idle, **self.hungry}.values():
                self.log(instance)

    def log(self, instance: Instance) -> None:
        """It may have room for what it lacked until now."""
        self.offers.log(instance, len(self.instances), self.shapes)

    def withdraw(self, worker_id: int) -> None:
        """An instance takes nothing any more."""
        self.line_up()
        for table in (self.hungry, self.idle, self.stocked, self.near, self.piled):
            table.pop(worker_id, None)
        instance = self.instances.get(worker_id)
        if instance is not None:
            instance.is_piled = False


class Instance:
    """A library on one worker."""

    __slots__ = (
        "alike",
        "asked_at",
        "behind",
        "bytes",
        "calls",
        "code_life",
        "error",
        "error_data",
        "failed_at",
        "gave_at",
        "groups",
        "groups_out",
        "is_open",
        "is_piled",
        "known_code",
        "library",
        "local",
        "mean_us",
        "most_slots",
        "offered_at",
        "outstanding",
        "progress_at",
        "slots",
        "state",
        "values",
        "worker",
        "worker_id",
    )

    def __init__(self, library: LibraryEntry, worker: WorkerEntry, slots: int) -> None:
        self.library = library
        self.worker = worker
        self.worker_id = worker.worker_id  # here too: usual events are handled without touching the worker's entry
        self.slots = slots
        self.most_slots = slots  # it may have fewer, and all of them again
        self.state = t.STARTING
        self.is_open = False  # it is up, has slots, and its worker takes work
        # Calls placed here and not answered: how many, and the one placed last, behind which the others are (TaskEntry.behind).
        self.outstanding = 0
        self.behind: TaskEntry | None = None
        # Groups placed here whose last call has not been answered.
        self.groups_out = 0
        # The shape of all that is placed here; None: nothing is, or several that ask for something.
        self.alike: Shape | None = None
        self.mean_us = 0.0
        # Grows when everything that was sent here has to be sent again; and the function that was used last and is here.
        self.code_life = 0
        self.known_code: CodeEntry | None = None
        # The number of its last one among LibraryEntry.offers.
        self.offered_at = -1
        self.is_piled = False  # is in LibraryEntry.piled
        # Ready entries whose large inputs are here. Tables that are empty most of the time are None then: of thousands of
        # instances none is in the processor's caches when it is its turn.
        self.local: ReadyQueue[TaskEntry] | None = None
        # The Run message being gathered.
        self.groups: list[list[Call]] | None = None
        self.values: dict[int, bytes] | None = None
        self.calls = 0
        self.bytes = 0
        self.error = ""
        self.error_data = b""
        # When it failed; of those that are GONE.
        self.failed_at = 0.0
        # When it answered last (or began to work), when it was asked for work back, and when it gave some.
        self.progress_at = 0.0
        self.asked_at = 0.0
        self.gave_at = 0.0

    def move(self, state: str) -> None:
        """Change the state, and what the library counts of it."""
        if self.state is t.UP:
            self.library.slots_up -= self.slots
        self.state = state
        if state is t.UP:
            self.library.slots_up += self.slots
        elif state is t.GONE:
            self.library.withdraw(self.worker_id)
        self.look()

    def resize(self, slots: int) -> None:
        """It has another number of slots now, perhaps none for a while. It may hold more work than before then, or have room."""
        if self.state is t.UP:
            self.library.slots_up += slots - self.slots
        self.slots = slots
        if self.groups_out > slots and not self.is_piled:
            self.is_piled = True
            self.library.piled[self.worker_id] = self
        self.look()
        self.library.offer(self)

    def look(self) -> None:
        """Its state, its slots, or what its worker takes, has changed."""
        self.is_open = self.state is t.UP and self.slots > 0 and self.worker.takes_work()

    def placed(self) -> list[TaskEntry]:
        """What is placed here, the first one first."""
        found = []
        entry = self.behind
        while entry is not None:
            found.append(entry)
            entry = entry.behind
        found.reverse()
        return found

    def __repr__(self) -> str:
        return f"<Instance of {self.library.name} on worker {self.worker_id} {self.state} {self.outstanding} outstanding>"


class WorkerEntry:
    """A connected worker."""

    __slots__ = (
        "address",
        "amounts",
        "asked_at",
        "blocked",
        "committed",
        "copies_from",
        "draining",
        "held",
        "held_bytes",
        "hello",
        "instances",
        "leaves",
        "outgoing",
        "pinged_at",
        "spare_bytes",
        "spares",
        "total",
        "unreachable",
        "worker_id",
    )

    def __init__(self, worker_id: int, hello: messages.Hello, now: float, host: str = "") -> None:
        self.worker_id = worker_id
        # Where peers reach it: the host as the manager saw it (empty: the manager's own), and the port (0: they cannot).
        self.address = (host, hello.peer_port)
        # Transfers to peers that it was named for and that have not ended.
        self.outgoing = 0
        # Workers from which it could not fetch, with the time until which their objects come through the manager.
        self.unreachable: Mapping[int, float] = NOTHING
        self.hello = hello
        self.total = Resources(hello.cores, hello.memory_mb, hello.disk_mb, hello.gpus)
        # Resources of placed entries that asked for some.
        self.committed = Resources(0, 0, 0, 0)
        self.instances: dict[int, Instance] = {}
        # What one task of a shape that allocates takes of this worker; None: not asked for yet.
        self.amounts: dict[Shape, Resources] | None = None
        # Files that are here or were told to come, by cache name: the part of ManagerState.held that names this worker.
        self.held: dict[str, FileEntry] = {}
        self.held_bytes = 0
        # When it may be given copies of temps again.
        self.copies_from = 0.0
        # Those of them that only a rerun of another worker's task would read, oldest first, and their size together.
        self.spares: dict[str, FileEntry] | None = None
        self.spare_bytes = 0
        self.pinged_at = now
        # When it was asked first since it last said something; not later than ManagerState.heard: it owes no answer.
        self.asked_at = now
        self.draining = False
        self.leaves = False  # it said goodbye, or was released: its draining has no other end
        self.blocked = False  # its host is on the list of blocked ones

    def takes_work(self) -> bool:
        return not self.draining and not self.blocked

    def close(self, draining: bool | None = None, blocked: bool | None = None) -> None:
        """Change whether it takes work."""
        if draining is not None:
            self.draining = draining
        if blocked is not None:
            self.blocked = blocked
        for instance in self.instances.values():
            instance.look()

    def placed(self) -> list[TaskEntry]:
        """What is placed here, of all libraries."""
        return [entry for instance in self.instances.values() for entry in instance.placed()]

    def placed_count(self) -> int:
        return sum([instance.outstanding for instance in self.instances.values()])

    def hold(self, file: FileEntry) -> None:
        """It is here, or was told to come."""
        if file.name not in self.held:
            self.held_bytes += file.size_bytes
        self.held[file.name] = file

    def left(self) -> None:
        """It is gone. What still names it (code that it was sent) must not keep what it had."""
        self.held, self.held_bytes = {}, 0
        self.spares, self.spare_bytes = None, 0
        self.amounts = None

    def free_bytes(self) -> float:
        """Disk that its files leave."""
        return self.hello.disk_mb * 2**20 - self.held_bytes

    def forget_file(self, file: FileEntry) -> None:
        """It is not here any more, nor told to come."""
        if self.held.pop(file.name, None) is not None:
            self.held_bytes -= file.size_bytes
        if self.spares and self.spares.pop(file.name, None) is not None:
            self.spare_bytes -= file.size_bytes

    def amount_of(self, shape: Shape) -> Resources:
        """Resources that one task of this shape takes here."""
        if not shape.allocates:
            return shape.request
        if self.amounts is None or len(self.amounts) > AMOUNTS_LIMIT:
            self.amounts = {}
        amount = self.amounts.get(shape)
        if amount is None:
            amount = self.amounts[shape] = allocate(shape.request, self.total)
        return amount

    def __repr__(self) -> str:
        return f"<WorkerEntry {self.worker_id} {self.hello.hostname} {self.placed_count()} placed>"


class Bundle:
    """Entries that went to one slot together; kept values live until its last answer."""

    __slots__ = ("entries", "remaining")

    def __init__(self, entries: list[TaskEntry]) -> None:
        self.entries = entries
        self.remaining = len(entries)


class GraphEntry:
    """One submitted graph. Vertices arrive in post-order, in pieces."""

    __slots__ = ("bring_home", "failed", "finished_count", "graph_id", "handle", "size", "unplaced", "vertices")

    def __init__(self, graph_id: int, handle: Handle, size: int) -> None:
        self.graph_id = graph_id
        self.handle = handle
        self.size = size  # vertices in all, submitted or not
        self.vertices: list[TaskEntry] = []
        self.unplaced = size
        self.finished_count = 0
        self.failed = False
        self.bring_home = False  # large values are brought to the manager as soon as they exist


class TaskEntry:
    """One task: a call, or a vertex of a graph. States and causes: ``transitions.py``."""

    __slots__ = (
        "attempt",
        "before",
        "behind",
        "bundle",
        "code",
        "error",
        "graph",
        "handle",
        "index",
        "inputs",
        "instance",
        "is_final",
        "kind",
        "losses",
        "missing",
        "no_room_at",
        "order",
        "output",
        "payload",
        "payload_file",
        "priority",
        "products",
        "queue",
        "report",
        "retries",
        "sandbox",
        "state",
        "task_id",
        "value",
    )

    def __init__(
        self,
        task_id: int,
        kind: Kind,
        code: CodeEntry,
        payload: bytes,
        handle: Handle | None,
        inputs: tuple[FileEntry, ...] = (),
        retries: int = 0,
        priority: float = 0.0,
    ) -> None:
        self.task_id = task_id
        self.kind = kind
        self.code = code
        self.index = -1  # vertex number inside a piece; -1: a call of a function
        self.payload = payload
        self.payload_file = False  # the first input holds the payload
        self.handle = handle
        self.inputs = inputs
        self.retries = retries
        self.priority = priority
        self.state = t.NEW
        self.attempt = 0  # grows at each placing: late answers of older ones are dropped
        self.missing = 0  # of WAITING and READY: inputs that are not available
        self.losses = 0
        # Workers whose disk had no room for its result or an input: it goes there again only if no other can run it.
        self.no_room_at: set[int] | None = None
        self.queue: ReadyQueue[TaskEntry] | None = None  # where it is in line; of READY: None when it was taken out
        self.is_final = False  # let go of its inputs for good: it cannot run again
        self.instance: Instance | None = None
        # While it is placed: its neighbours among what is placed at its instance, which stands before the one placed last.
        # A chain, and no table of the worker: a table's parts are in no cache when one of thousands of workers answers.
        self.before: TaskEntry | Instance | None = None
        self.behind: TaskEntry | None = None
        self.bundle: Bundle | None = None
        self.graph: GraphEntry | None = None
        self.order = -1  # position in graph.vertices
        self.output: FileEntry | None = None
        # A private directory to run in; its mounts are the last of ``inputs``, its products are ``products``, in order.
        self.sandbox: messages.Sandbox | None = None
        self.products: tuple[FileEntry, ...] = ()
        self.report: messages.Report | None = None
        # Outcome: ``value`` is the encoded result or, with ``error`` or a raised exception, the encoded error.
        self.value: bytes | None = None
        self.error: Exception | str | None = None

    def __repr__(self) -> str:
        return f"<TaskEntry {self.task_id} {self.state} attempt {self.attempt} missing {self.missing} {self.kind.name}>"


def outputs_of(entry: TaskEntry) -> tuple[FileEntry, ...]:
    """Every file that a task makes: its value, if anybody needs that as a file, and its products."""
    return entry.products if entry.output is None else (entry.output, *entry.products)


# TaskEntry.error when the user's code raised: the exception is encoded in ``value``.
RAISED = "raised"
CANCELLED = "cancelled"
