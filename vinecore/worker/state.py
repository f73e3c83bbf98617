"""The worker's tables, one written invariant for each field; ``check`` proves them.

A *group* waits in its library's queue (``staging`` while inputs are on their way, else ``runnable``), then is *outstanding* at
one slot until its last result. Nothing here touches the world.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, field

from vinecore.errors import InvariantError
from vinecore.wire import messages
from vinecore.wire.messages import Call

# "No call is revoked": larger than any sequence number.
NOT_REVOKED = 2**63


class Group:
    """Calls that run in order in one slot."""

    __slots__ = ("calls", "missing", "values")

    def __init__(self, calls: list[Call], values: dict[int, bytes] | None) -> None:
        self.calls = calls
        # Inline inputs of the Run message it came in (shared with its neighbours); None when it needs none.
        self.values = values
        # Names of objects (inputs or code) that are still being fetched.
        self.missing: set[str] | None = None


class WorkerSlot:
    """What the worker knows of one slot process."""

    __slots__ = (
        "cancelled",
        "codes",
        "draining",
        "first",
        "generation",
        "had",
        "is_killed",
        "is_ready",
        "is_revoking",
        "library_id",
        "outstanding",
        "pid",
        "progress_at",
        "ready_at",
        "retiring",
        "returned",
        "revoke_checked_at",
        "revoked_at",
        "revoked_from",
        "sent",
        "slot_id",
        "taken",
        "uncut",
    )

    def __init__(self, slot_id: int, library_id: int, generation: int) -> None:
        self.slot_id = slot_id
        self.library_id = library_id
        self.generation = generation
        self.pid = 0  # 0 until the parent has forked it
        # It takes calls: it was forked, and has loaded what it loads by itself.
        self.is_ready = False
        self.ready_at = 0.0
        # Calls sent and not answered, in order; the first has sequence number ``first``, the last ``sent - 1``.
        self.outstanding: deque[tuple[Call, Group]] = deque()
        self.first = 0
        self.sent = 0
        # Calls that were left to it, and those of its elders when it was made: what slots are compared by.
        self.had = 0
        # Sequence numbers >= this were taken back, and so were these: answers for them only close the books.
        self.taken = NOT_REVOKED
        self.returned: set[int] = set()
        # From here on the slot starts nothing; while ``is_revoking`` it may not have seen that, the claim has to be read.
        self.revoked_from = NOT_REVOKED
        self.is_revoking = False
        # The call behind which its group cannot be cut, since everything there needs what is in the slot.
        self.uncut = -1
        self.revoked_at = 0.0
        self.revoke_checked_at = 0.0
        self.codes: set[int] = set()
        self.progress_at = 0.0
        # A slot of an old generation takes no new work and ends when it is empty.
        self.draining = False
        # Draining because of its age or size; the one in its place works when this one has ended.
        self.retiring = False
        # Sequence numbers of outstanding calls that were cancelled: their answers are not passed on.
        self.cancelled: set[int] = set()
        # Killed by us for a call that was cancelled: nobody else is to blame for its death.
        self.is_killed = False

    def held(self) -> list[tuple[int, Call, Group]]:
        """What it still has to answer for, with its sequence number: taken back calls only close the books."""
        taken, returned = self.taken, self.returned
        return [
            (number, call, group)
            for number, (call, group) in enumerate(self.outstanding, self.first)
            if number < taken and number not in returned
        ]

    def __repr__(self) -> str:
        return f"<WorkerSlot {self.slot_id} pid {self.pid} {len(self.outstanding)} outstanding>"


@dataclass(slots=True)
class CodeHere:
    """Code known to a library here."""

    message: messages.Code


class WorkerLibrary:
    """One library instance on this worker."""

    __slots__ = (
        "answered",
        "answered_then",
        "began",
        "closing",
        "codes",
        "deadly",
        "early_ends",
        "failed_slots",
        "failed_starts",
        "forking",
        "generation",
        "has_code_objects",
        "hoist_began",
        "hoisted",
        "hoisting",
        "idle_ends",
        "lacking",
        "lacks",
        "library_id",
        "look_at",
        "mean_us",
        "missing",
        "owed",
        "queue",
        "queued_calls",
        "ready_told",
        "refill_at",
        "restarts",
        "retiring",
        "slots",
        "slow_at",
        "spec",
        "start_began",
        "step",
        "step_began",
        "stopping",
        "told_lacking",
        "unsafe",
        "wanted_modules",
        "was_ready",
    )

    def __init__(self, spec: messages.StartLibrary) -> None:
        self.library_id = spec.library_id
        self.spec = spec
        self.began = self.ready_told = self.stopping = False
        self.slots: dict[int, WorkerSlot] = {}
        # Groups that no slot has; queued_calls is the number of calls in them.
        self.queue: deque[Group] = deque()
        self.queued_calls = 0
        self.codes: dict[int, CodeHere] = {}
        # Some code here is an object of the store.
        self.has_code_objects = False
        # Modules present in the parent, asked of it now, and wanted next.
        self.hoisted: set[str] = set(spec.modules)
        self.hoisting: set[str] = set()
        self.hoist_began = 0.0
        self.wanted_modules: set[str] = set()
        # Modules during whose import a parent ended: none imports them again, what needs them does so in its slot.
        self.deadly: set[str] = set()
        # What the parent does while it loads the library (None: it has not said so, or has begun), and since when.
        self.step: messages.Loading | None = None
        self.step_began = 0.0
        # Since when it has been starting (until a slot takes calls), and when the manager is to hear of that; 0: not any more.
        self.start_began = 0.0
        self.slow_at = 0.0
        # Slots that could not be started beside others, why, when they are tried again (0: there are none), and how many the
        # manager knows of.
        self.lacking = 0
        self.lacks = ""
        self.refill_at = 0.0
        self.told_lacking = 0
        # When a step, an import, the start as a whole or a slot that did not start has to be looked at; 0: nothing is under way.
        self.look_at = 0.0
        self.generation = 0
        self.forking = 0
        # Mean time of a call, microseconds; 0 until one is measured.
        self.mean_us = 0.0
        # Calls that the manager wants back and that no queue had yet.
        self.owed = 0
        # Times of the latest starts of the parent.
        self.restarts: deque[float] = deque()
        # Parents in a row that ended before a slot took calls, and slots in a row that ended before they did, whenever that was.
        self.failed_starts = 0
        self.failed_slots = 0
        # A slot of this parent has taken calls.
        self.was_ready = False
        # Objects that it needs for its start and that are on their way.
        self.missing: set[str] = set()
        # Why slots are not forked from the parent; empty when they are.
        self.unsafe = ""
        # Times at which forked slots ended before their first call.
        self.early_ends: deque[float] = deque()
        # Of slots that load it themselves: those in a row that were ready and ended before their first call, how many calls had
        # been answered then, and how many were by slots that are gone.
        self.idle_ends = 0
        self.answered_then = 0
        self.answered = 0
        # Slots that were told to end when they had nothing to do, and whose processes may not have ended yet.
        self.closing: set[int] = set()
        # Number of slots that are retiring.
        self.retiring = 0

    def __repr__(self) -> str:
        return f"<WorkerLibrary {self.spec.name} {len(self.slots)} slots, {self.queued_calls} calls queued>"


@dataclass(slots=True)
class WorkerState:
    """Everything the worker's machine knows."""

    now: float = 0.0
    welcome: messages.Welcome | None = None
    libraries: dict[int, WorkerLibrary] = field(default_factory=dict)
    slots: dict[int, WorkerSlot] = field(default_factory=dict)
    next_slot_id: int = 1
    # Objects complete in the store, by name; size in bytes.
    objects: dict[str, int] = field(default_factory=dict)
    # Objects on their way, with the groups that wait for them.
    fetching: dict[str, list[tuple[WorkerLibrary, Group]]] = field(default_factory=dict)
    # Objects on their way that the manager has dropped meanwhile: they go when they come.
    unwanted: set[str] = field(default_factory=set)
    # Libraries that wait for an object before they start, by its name.
    late_starts: dict[str, list[int]] = field(default_factory=dict)
    orders: list[object] = field(default_factory=list)
    # Results gathered in this turn, sent as one Done.
    results: list[messages.Result] = field(default_factory=list)
    last_heard: float = 0.0
    # A manager that says nothing for so long is left.
    silence_s: float = math.inf
    # When a look first found it silent for so long; older than what was heard last: not since then.
    doubted_at: float = -math.inf
    # When it was asked for a word last.
    asked_at: float = -math.inf
    leaving: bool = False

    def libraries_busy(self) -> bool:
        """True while any call is queued, waiting for an object or at a slot."""
        return (
            bool(self.fetching)
            or any(library.queue for library in self.libraries.values())
            or any(slot.outstanding for slot in self.slots.values())
        )

    def check(self) -> None:
        """Raise InvariantError when a promise above is broken."""
        for slot in self.slots.values():
            if slot.sent - slot.first != len(slot.outstanding):
                raise InvariantError(f"{slot}: numbers {slot.first}..{slot.sent} do not match")
            if not slot.outstanding and (slot.returned or slot.is_revoking):
                raise InvariantError(f"{slot} is empty, and something of it is still revoked")
            library = self.libraries.get(slot.library_id)
            if library is None or library.slots.get(slot.slot_id) is not slot:
                raise InvariantError(f"{slot} belongs to no library")
        for library in self.libraries.values():
            queued = sum(len(group.calls) for group in library.queue)
            if library.retiring != sum(slot.retiring for slot in library.slots.values()):
                raise InvariantError(f"{library}: {library.retiring} slots are not the number that retire")
            if queued != library.queued_calls:
                raise InvariantError(f"{library}: {queued} calls are queued, {library.queued_calls} counted")
        for name in self.fetching:
            if name in self.objects:
                raise InvariantError(f"{name} is both here and on its way")
        if not self.unwanted <= self.fetching.keys():
            raise InvariantError(f"{self.unwanted} are unwanted, but not on their way")
