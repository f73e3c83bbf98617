"""Ready entries that wait for one instance: their inputs are there, or their values will be read there (``Instance.local``).

    lineage --inputs are available--> instance of the worker that holds most of them
    placement --a value is made here--> the others that its reader needs are kept for the same worker

A line of an instance is a preference, not a promise: idle instances take over what busy ones have in theirs.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import islice

from vinecore.manager import transitions as t
from vinecore.manager.entries import FileEntry, Instance, LibraryEntry, Shape, TaskEntry
from vinecore.manager.ready import ReadyQueue
from vinecore.manager.state import ManagerState

# An input with more copies than this draws nobody: it can be had from many workers, and looking at each would cost more.
NEAR_COPIES = 8
# Readers with more inputs than this keep nothing together: what makes them is in order in the common line already.
TOGETHER = 8
# Instances with entries of their own that are looked at for an idle one; higher: sooner a balance, more work for nothing.
STEAL_LOOKS = 4
# Entries of one line that are passed over at one time for lack of room; higher: less waits behind them, more work for nothing.
PASSED_OVER = 16
# Instances with entries of their own that are looked at for calls that hold these up, once in STUCK_S for each library.
FREED_LOOKS = 16
# Shapes looked at for one whose priority comes between those of another; higher: a stricter order between many requests.
RIVALS = 8
# Work behind calls that have run this long without an answer goes where a slot is free; lower: more messages for nothing.
STUCK_S = 0.03
# A call that has run for so many means is long for its kind; lower: more is moved that would have had its turn soon.
LONG_FACTOR = 10.0


def nearest(entry: TaskEntry) -> Instance | None:
    """The instance on the worker that holds most bytes of the inputs; None when no input is on a worker only."""
    best: Instance | None = None
    most = 0
    instances = entry.kind.shape.library.instances
    if len(instances) < 2:
        return None
    held: dict[int, int] = {}
    for file in entry.inputs:
        if file.data is None and file.on_workers and len(file.on_workers) <= NEAR_COPIES:
            for worker_id in file.on_workers:
                held[worker_id] = held.get(worker_id, 0) + file.size_bytes
    for worker_id, size in held.items():
        if entry.no_room_at and worker_id in entry.no_room_at:
            continue
        instance = instances.get(worker_id)
        if instance is not None and instance.is_open and size > most:
            best, most = instance, size
    return best


def line_up(state: ManagerState, entry: TaskEntry, instance: Instance) -> None:
    """A ready entry waits for this instance."""
    library = instance.library
    if instance.local is None:
        instance.local = ReadyQueue()
    instance.local.push(entry)
    library.stocked[instance.worker_id] = instance
    library.offer(instance)
    state.activate(entry.kind.shape)


def keep_together(entry: TaskEntry, instance: Instance) -> None:
    """Ready entries whose values are read together with what this one makes wait for the same instance: these need not travel."""
    kind, library = entry.kind, instance.library
    output = entry.products[0] if entry.products else entry.output
    if output is None or not output.consumers or len(library.instances) < 2:
        return
    if not entry.products and kind.mean_us > 0.0 and kind.mean_bytes == 0.0:
        return  # such values are small, and travel with the calls
    reader = output.consumers[0]
    if reader.state is not t.WAITING or len(reader.inputs) > TOGETHER:
        return
    shared, worker_id = kind.shape.ready, instance.worker_id
    for file in reader.inputs:
        sibling = file.producer
        if sibling is None or sibling.queue is not shared or sibling.state is not t.READY:
            continue
        if sibling.inputs and not all(_is_at_hand(other, worker_id) for other in sibling.inputs):
            continue
        if instance.local is None:
            instance.local = ReadyQueue()
        shared.remove(sibling)
        instance.local.push(sibling)
        library.stocked[worker_id] = library.near[worker_id] = instance


def _is_at_hand(file: FileEntry, worker_id: int) -> bool:
    """No other worker has to send it."""
    return file.data is not None or file.at_manager or worker_id in file.on_workers


def is_alone(library: LibraryEntry, instance: Instance) -> bool:
    """True when no other instance has both room and entries of its own."""
    count = len(library.near)
    return count == 0 or (count == 1 and instance.worker_id in library.near)


def look(instance: Instance, is_filled: bool) -> None:
    """It stays among those that are served first while it has entries of its own; once filled, until something ends there."""
    library, worker_id = instance.library, instance.worker_id
    if not instance.local:
        library.stocked.pop(worker_id, None)
        library.near.pop(worker_id, None)
    elif is_filled and instance.groups_out:
        library.near.pop(worker_id, None)


def to_take_over(
    library: LibraryEntry, instance: Instance, now: float, fits: Callable[[TaskEntry], bool]
) -> tuple[Instance, TaskEntry] | None:
    """Another instance, and an entry that waits for it and that this one, which has a free slot, may take over."""
    for worker_id, other in list(islice(library.stocked.items(), STEAL_LOOKS)):
        local = other.local
        if not local:
            del library.stocked[worker_id]
        elif other is not instance and other.outstanding:  # had it room, it would have taken them before
            entry = local.last()
            # What has inputs there waits for a moment, unless nothing at all runs here: that worker may have time for it soon.
            is_stuck = now - other.progress_at > STUCK_S
            if is_stuck:
                entry = local.first()
            if entry is None or not (is_stuck or instance.outstanding == 0 or not entry.inputs):
                continue
            if not fits(entry):
                # It must not be in the way of others there, nor its instance in that of others.
                shape = entry.kind.shape
                some = local.some(PASSED_OVER) if is_stuck or instance.outstanding == 0 else []
                entry = next((one for one in some if one.kind.shape is not shape and fits(one)), None)
                library.stocked[worker_id] = library.stocked.pop(worker_id)
            if entry is not None:
                return other, entry
    return None


def free_stuck(state: ManagerState, library: LibraryEntry, shape: Shape) -> None:
    """What waits for an instance behind a long call, and would be before others in the common line, goes there."""
    library.freed_at = state.now
    for worker_id, other in list(islice(library.stocked.items(), FREED_LOOKS)):
        # The next look begins behind it.
        del library.stocked[worker_id]
        if not other.local:
            continue
        library.stocked[worker_id] = other
        if other.groups_out < other.slots or state.now - other.progress_at <= STUCK_S:
            continue
        entry, first = other.local.first(), shape.ready.first()
        if entry is not None and first is not None and turn(entry) < turn(first):
            other.local.remove(entry)
            put_back(state, entry)


def long_s(instance: Instance) -> float:
    """Seconds after which a call there is long, measured by those before."""
    return LONG_FACTOR * instance.mean_us / 1e6


def is_held_up(instance: Instance, now: float) -> bool:
    """What runs there is much longer than what ran there before: nobody knows how long what comes behind it has to wait."""
    if instance.groups_out < instance.slots or now - instance.progress_at <= STUCK_S:
        return False
    return 0.0 < long_s(instance) < now - instance.progress_at


def turn(entry: TaskEntry) -> tuple[float, int]:
    """By this entries are ordered: priority, then submission."""
    return -entry.priority, entry.task_id


def turn_of(shape: Shape) -> tuple[float, int]:
    """By this shapes are served: as their first entries would be in one line."""
    first = shape.ready.first()
    return (math.inf, 0) if first is None else turn(first)


def limit_of(active: list[Shape], position: int) -> float | None:
    """Entries of the shape at this position come behind another shape that wants the same if their priority is below this.

    Shapes want the same where they share slots, or ask both for what a worker has. None: there is no such shape.
    """
    shape = active[position]
    if len(shape.ready) < 2:
        return None
    for other in islice(active, position + 1, position + 1 + RIVALS):
        if other.library is shape.library or (other.constrained and shape.constrained):
            limit = other.ready.urgency()
            return limit if limit <= shape.ready.urgency() else None
    return None


def pop_before(line: ReadyQueue[TaskEntry], limit: float) -> TaskEntry | None:
    """Take the first entry of a line, if its priority is not below this."""
    first = line.first()
    return line.pop() if first is not None and first.priority >= limit else None


def put_back(state: ManagerState, entry: TaskEntry) -> None:
    """Any instance may take it; it is in no line now."""
    shape = entry.kind.shape
    shape.ready.push(entry)
    state.activate(shape)


def abandon(state: ManagerState, instance: Instance) -> None:
    """An instance ended, or takes no more work: entries that waited for it are as good elsewhere."""
    worker_id = instance.worker_id
    instance.library.stocked.pop(worker_id, None)
    instance.library.near.pop(worker_id, None)
    for entry in instance.local.drain() if instance.local is not None else ():
        put_back(state, entry)
