"""The manager's tables, one written invariant for each field; ``invariants.check`` proves them. Their entries: ``entries.py``."""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, field

from vinecore.manager.entries import CodeEntry, FileEntry, LibraryEntry, Shape, TaskEntry, WorkerEntry
from vinecore.model.config import Tunables
from vinecore.model.notes import Note


@dataclass(slots=True)
class Relay:
    """An object on its way from a worker to the manager."""

    transfer_id: int
    file: FileEntry
    worker_id: int
    # The object's name when it was asked for; another attempt gives the file another name.
    name: str


# In tables that are keyed by worker: the manager itself.
MANAGER = 0


@dataclass(slots=True)
class Splice:
    """An object on its way from one worker to another through the manager."""

    transfer_id: int
    file: FileEntry
    # The object's name when it was asked for.
    name: str
    destination_id: int
    # Who was told to send it; 0: nobody (yet).
    source_id: int = 0
    # The destination has dialled and waits.
    is_open: bool = False
    # Sources that were told before.
    tried: set[int] = field(default_factory=set)


@dataclass(slots=True)
class Reservation:
    """A worker that is kept for an entry that fits nowhere now (reserving.py)."""

    shape: Shape
    task_id: int
    # When it was chosen, or something that is lacking was given back there last; for how long it is kept without that.
    since: float
    hold_s: float
    worker_id: int = 0
    # How much is lacking there, as little as it has ever been.
    lacks: float = math.inf
    # Workers that were kept for it in vain.
    tried: set[int] = field(default_factory=set)


@dataclass(slots=True)
class Stall:
    """One reason why ready work has no place to run."""

    since: float
    is_told: bool = False


@dataclass(slots=True)
class Counters:
    """Totals for ``Manager.stats``."""

    submitted: int = 0
    dispatched: int = 0
    done: int = 0
    failed: int = 0
    cancelled: int = 0
    lost: int = 0
    rerun: int = 0
    workers_joined: int = 0
    workers_removed: int = 0
    workers_lost: int = 0
    execute_us: int = 0


@dataclass(slots=True)
class ManagerState:
    """Everything the manager's machine knows."""

    run: str
    tunables: Tunables
    now: float = 0.0
    # Unfinished entries by id.
    tasks: dict[int, TaskEntry] = field(default_factory=dict)
    workers: dict[int, WorkerEntry] = field(default_factory=dict)
    # When each of them said something last. A table of its own, which stays in the processor's caches.
    heard: dict[int, float] = field(default_factory=dict)
    # Grows when a worker comes that may lack libraries, or takes work again.
    fleet: int = 0
    # When the silence of workers is looked at next, and the interval for which that was computed.
    keepalive_due: float = 0.0
    keepalive_for: float = 0.0
    # Interval and timeout that the workers were told.
    keepalive_told: tuple[float, float] = (0.0, 0.0)
    libraries: dict[int, LibraryEntry] = field(default_factory=dict)
    # Shapes that may have ready entries.
    active: list[Shape] = field(default_factory=list)
    relays: dict[int, Relay] = field(default_factory=dict)
    # Objects that somebody wants at the manager, by name, with who asked; a relay brings each of them.
    wanted_here: dict[str, list[object]] = field(default_factory=dict)
    # Files with a copy on a worker (or told to fetch one), by cache name.
    held: dict[str, FileEntry] = field(default_factory=dict)
    # Files that were wanted at the manager before they existed (again), with who asked.
    wanted_later: list[tuple[FileEntry, object]] = field(default_factory=list)
    # New values of graphs that want theirs at the manager, gathered over one event.
    bring_home: list[FileEntry] = field(default_factory=list)
    # (task id, attempt) to cancel, by worker, gathered over one event.
    cancels: dict[int, list[tuple[int, int]]] = field(default_factory=dict)
    # Files whose last copy is gone and that nothing can make again, gathered over one event.
    lost_files: list[FileEntry] = field(default_factory=list)
    # Why an object of the manager could not be sent (a local file is gone, say), by name; until it is let go of.
    unreadable: dict[str, str] = field(default_factory=dict)
    # Shared by the workers of this run, for tickets; empty switches transfers between workers off.
    transfer_key: bytes = b""
    # Key and certificate (PEM) that workers show to each other when links are encrypted.
    peer_key: bytes = b""
    peer_certificate: bytes = b""
    # The worker that is kept for an entry which later ones have passed.
    reserved: Reservation | None = None
    # First entries of shapes that ask for resources, in their order, and since when: those that stay first may be reserved for.
    passed: dict[Shape, int] = field(default_factory=dict)
    passed_since: float = 0.0
    # Tasks with an end by the calendar: when to look at each (a heap).
    expiring: list[tuple[float, int]] = field(default_factory=list)
    # The highest wait-for-workers that was reached: it is forgotten then.
    gathered: float = 0
    # Seconds since the epoch at the machine's time 0: tickets expire by the calendar, which events do not carry.
    epoch_offset_s: float = 0.0
    # Functions that no caller holds, and that unfinished tasks still call.
    unused_codes: list[CodeEntry] = field(default_factory=list)
    # Workers that are to leave when nothing runs there and nothing is held there alone, with the reason that they are told.
    drains: dict[int, tuple[WorkerEntry, str]] = field(default_factory=dict)
    # Hosts that get no work, with the time at which that ends; infinity for ever.
    blocked_hosts: dict[str, float] = field(default_factory=dict)
    # While one shape is placed: its entries below this priority come behind others (near.limit_of).
    limit: float | None = None
    # When to look again whether work should move between workers; None: no reason to.
    even_out_at: float | None = None
    # (object, destination) of transfers between workers under way, with the workers that were named, the one to ask first first.
    peer_fetches: dict[tuple[str, int], tuple[int, ...]] = field(default_factory=dict)
    # Peers from which the worker that is being given an entry may fetch its inputs, found when these were looked at.
    found_peers: dict[FileEntry, list[WorkerEntry]] = field(default_factory=dict)
    # Objects that pass through the manager, by transfer; and by (object, destination).
    splices: dict[int, Splice] = field(default_factory=dict)
    splices_to: dict[tuple[str, int], Splice] = field(default_factory=dict)
    # Ready entries that wait until a source has a transfer to spare, by that worker; it has transfers under way. By
    # MANAGER: those that wait for a splice to end.
    crowded: dict[int, deque[TaskEntry]] = field(default_factory=dict)
    # Temps with too few copies and no room for one more yet, by number of copies and name (replication.py).
    scarce: dict[int, dict[str, FileEntry]] = field(default_factory=dict)
    # None of them could be copied at the last look, and nothing has changed since.
    copies_stalled: bool = False
    # All workers, in the order in which they are looked at for the next copy.
    ring: deque[int] = field(default_factory=deque)
    # Ready entries that wait for an object which is on its way to the manager, by its name.
    parked: dict[str, list[TaskEntry]] = field(default_factory=dict)
    # Pieces of finished graphs that workers have not been told of, their size, their copies on workers, and the size of those.
    forgotten: list[CodeEntry] = field(default_factory=list)
    forgotten_bytes: int = 0
    forgotten_copies: int = 0
    forgotten_copies_bytes: int = 0
    next_transfer_id: int = 1
    orders: list[object] = field(default_factory=list)
    delivered: list[TaskEntry] = field(default_factory=list)
    # Names to unlink, by worker id, gathered over one event.
    unlinks: dict[int, list[str]] = field(default_factory=dict)
    counters: Counters = field(default_factory=Counters)
    notes_wanted: bool = False
    notes: list[Note] = field(default_factory=list)
    # Why ready work has no place to run, by reason (on_stalls.py); a reason that is gone is not in it.
    stalls: dict[object, Stall] = field(default_factory=dict)
    # Workers that were not let in since one was connected last: how many, and who the latest was and why.
    refused_count: int = 0
    refused: str = ""
    # When the latest Tick came.
    ticked_at: float = 0.0
    # HOST PORT of this manager, and the id of the machine it runs on.
    address: str = ""
    machine: str = ""
    # Bring wanted files over data links even when their worker shares this machine.
    never_map: bool = False

    def activate(self, shape: Shape) -> None:
        if not shape.queued:
            shape.queued = True
            self.active.append(shape)
            if shape.constrained and not shape.library.asks:
                shape.library.number()  # here, in the machine: shapes are made in the threads of callers
