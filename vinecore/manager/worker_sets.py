"""Sets of workers that hold, or wait for, one file: mostly one or two."""

from __future__ import annotations

# Workers, by id. Nearly all values are on one or two of them and have one or two consumers: a tuple of these is a quarter of a
# set's memory, and of what has to come into the processor's caches. Beyond FEW it becomes a set.
Workers = set[int] | tuple[int, ...]
FEW = 8


def with_worker(ids: Workers, worker_id: int) -> Workers:
    """These and one more; a set is changed in place."""
    if type(ids) is set:
        ids.add(worker_id)
        return ids
    if worker_id in ids:
        return ids
    return (*ids, worker_id) if len(ids) < FEW else {*ids, worker_id}


def without_worker(ids: Workers, worker_id: int) -> Workers:
    """These without one; a set is changed in place."""
    if type(ids) is set:
        ids.discard(worker_id)
        return ids
    return tuple([other for other in ids if other != worker_id])
