"""A worker is kept for an entry that fits nowhere while later ones, which ask for less, go on: what ends there is for it.

    first of its shape for RESERVE_S --a worker is large enough--> that worker is kept for it
    kept --nothing that it lacks was given back there for hold_s--> another worker is kept, for twice as long
    kept --it was placed, or can no longer run there--> looked for again

One worker at a time. Only what takes something that the entry then lacks is held back there.
"""

from __future__ import annotations

import math
from heapq import nsmallest

from vinecore.manager import near
from vinecore.manager.entries import Instance, Shape, TaskEntry, WorkerEntry
from vinecore.manager.state import ManagerState, Reservation

# Seconds for which an entry that fits nowhere is passed by later ones before a worker is kept for it; higher: fewer cores idle
# for it, lower: it waits less.
RESERVE_S = 1.0
# Shapes whose first entries are looked at, in their order: one that no worker can hold must not be in the way of the next. Each
# costs a look at all workers, once in RESERVE_S.
SHAPES = 8
# Seconds for which a worker is kept at first while nothing that is lacking is given back there. Twice as long at each change: so
# in a time like that of the longest call one is kept for long enough, however many workers there are.
HOLD_S = 5.0


def look(state: ManagerState) -> None:
    """After each round of placing in which something asked for resources."""
    kept = state.reserved
    if kept is not None:
        first = kept.shape.ready.first()
        if first is not None and first.task_id == kept.task_id and _stays(state, kept, first):
            return
        state.reserved = None
        state.passed = {}
    if not state.passed:
        state.passed, state.passed_since = _first_ones(state), state.now
    elif state.now - state.passed_since >= RESERVE_S:
        state.reserved = _reservation(state)
        state.passed, state.passed_since = _first_ones(state), state.now


def is_kept_from(state: ManagerState, entry: TaskEntry, instance: Instance) -> bool:
    """Whether its worker is kept for another entry that comes before this one, and that would lack what this one takes."""
    kept = state.reserved
    if kept is None or kept.worker_id != instance.worker_id or kept.shape is entry.kind.shape:
        return False
    worker = instance.worker
    amount = worker.amount_of(entry.kind.shape)
    if not amount.takes_from(worker.amount_of(kept.shape), worker.total.minus(worker.committed)):
        return False
    return near.turn_of(kept.shape) < near.turn(entry)


def _first_ones(state: ManagerState) -> dict[Shape, int]:
    """The first entries of a few shapes, by shape."""
    first: dict[Shape, int] = {}
    asking = [shape for shape in state.active if shape.constrained and shape.unfit_in != state.fleet]
    for shape in nsmallest(SHAPES, asking, near.turn_of):
        entry = shape.ready.first()
        if entry is not None and not _is_too_large(state, shape):
            first[shape] = entry.task_id
    return first


def _is_too_large(state: ManagerState, shape: Shape) -> bool:
    """Whether no worker that takes work can hold it: it is not in the way of others until another worker does."""
    for worker in state.workers.values():
        if worker.takes_work() and not worker.amount_of(shape).missing_in(worker.total):
            return False
    shape.unfit_in = state.fleet
    return True


def _reservation(state: ManagerState) -> Reservation | None:
    """For the first of those passed that are still first of their shapes, and that some worker would be kept for."""
    for shape, task_id in state.passed.items():
        entry = shape.ready.first()
        if entry is not None and entry.task_id == task_id:
            kept = Reservation(shape, task_id, state.now, HOLD_S)
            if _choose(state, kept, entry):
                return kept
    return None


def _stays(state: ManagerState, kept: Reservation, entry: TaskEntry) -> bool:
    """Whether a worker is still kept for it, this one or another."""
    instance = _place_for(state, kept.shape, entry, kept.worker_id)
    if instance is None:
        return _choose(state, kept, entry)
    lacks = _lacks(kept.shape, instance.worker)
    if not lacks:
        return False  # it waits for a slot of its library, which nobody else takes
    if lacks < kept.lacks:
        kept.lacks, kept.since = lacks, state.now
    elif state.now - kept.since >= kept.hold_s:
        kept.tried.add(kept.worker_id)
        kept.hold_s *= 2
        return _choose(state, kept, entry)
    return True


def _choose(state: ManagerState, kept: Reservation, entry: TaskEntry) -> bool:
    """Keep the worker that lacks least, of those not tried if there are any; False: none is to be kept now."""
    shape = kept.shape
    # Where these go on one after the other, it is not its turn.
    earlier = [other for other in _first_ones(state) if other is not shape and near.turn_of(other) < near.turn(entry)]
    best: tuple[bool, float, int] = (True, math.inf, 0)
    for worker_id, worker in state.workers.items():
        instance = _place_for(state, shape, entry, worker_id)
        if instance is None:
            continue
        lacks = _lacks(shape, worker)
        if not lacks:
            return False  # it waits for a slot there
        this = (worker_id in kept.tried, lacks, worker_id)
        if this > best or _waits_for_its_like(shape, instance):
            continue
        if not any(_is_shut_out(shape, other, other.library.instances.get(worker_id)) for other in earlier):
            best = this
    was_tried, kept.lacks, kept.worker_id = best
    kept.since = state.now
    if was_tried:
        kept.tried.clear()  # all of them once more
    return kept.worker_id != 0


def _place_for(state: ManagerState, shape: Shape, entry: TaskEntry, worker_id: int) -> Instance | None:
    """Where it can run on this worker, once enough has ended there."""
    instance = shape.library.instances.get(worker_id)
    if instance is None or not instance.is_open or (entry.no_room_at and worker_id in entry.no_room_at):
        return None
    worker = instance.worker
    return None if worker.amount_of(shape).missing_in(worker.total) else instance


def _lacks(shape: Shape, worker: WorkerEntry) -> float:
    return worker.amount_of(shape).shortage(worker.total.minus(worker.committed))


def _waits_for_its_like(shape: Shape, instance: Instance) -> bool:
    """Whether one of its like must end there before it fits: what that gives back is enough, whatever others take meanwhile."""
    if instance.alike is shape and instance.groups_out >= instance.slots:
        return True
    return _is_shut_out(shape, shape, instance)


def _is_shut_out(shape: Shape, other: Shape, instance: Instance | None) -> bool:
    """Whether there is no room beside those of another shape (or of this one) that run at an instance, if any do."""
    if instance is None or not instance.groups_out:
        return False
    if instance.alike is other:
        count = instance.groups_out
    else:
        count = len({entry.bundle or entry for entry in instance.placed() if entry.kind.shape is other})
    worker = instance.worker
    beside = worker.total.minus(worker.amount_of(other).times(count))
    return count > 0 and bool(worker.amount_of(shape).missing_in(beside))


def told(state: ManagerState, entry: TaskEntry) -> tuple[int, str]:
    """A worker that a reservation makes a ready entry wait for, or that is kept for it, in words; 0: there is none."""
    kept = state.reserved
    if kept is None:
        return 0, ""
    who = f"worker {kept.worker_id} is kept for"
    if kept.task_id == entry.task_id:
        return kept.worker_id, f"{who} it until enough has ended there"
    instance = entry.kind.shape.library.instances.get(kept.worker_id)
    if instance is None or not entry.kind.shape.constrained or not is_kept_from(state, entry, instance):
        return 0, ""
    return kept.worker_id, f"{who} task {kept.task_id}, which comes first and asks for more than is free there"
