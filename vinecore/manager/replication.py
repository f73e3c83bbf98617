"""More than one copy of each temp, for those who ask for it (``temp-replica-count``): a lost worker then loses no value.

A file is looked at when its copies change. What lacks copies is copied at once where a source and a destination have room, those
with fewest copies first; what finds none waits in ``ManagerState.scarce``, behind the others, until something changes or the next
tick. The source is the holder that serves fewest, the destination has most free disk of a few workers that are looked at in turn,
so that the cost of a copy does not grow with the number of workers.
"""

from __future__ import annotations

from itertools import islice

from vinecore.manager import splices, transfers
from vinecore.manager.entries import FileEntry, WorkerEntry
from vinecore.manager.state import ManagerState
from vinecore.manager.worker_sets import with_worker

# Workers looked at for one copy; higher: a more even use of disks, more work for each copy.
CANDIDATES = 16
# Files that are tried for each event; the others have their turn at the next one.
TRIES = 32
# A worker that could not take what its source had (its disk is full, say) gets no copies for this long; lower: more vain
# transfers, higher: a disk with room again is used later.
PAUSE_S = 15.0
# Copies that pass through the manager, where no holder can be reached directly, may take this many of its splices; higher: values
# that tasks wait for have to wait for copies.
SPLICES_AT_ONCE = splices.AT_ONCE // 4


def look_at(state: ManagerState, file: FileEntry) -> None:
    """Its copies have changed: note it when it has too few. Files of the user, and values in messages, are safe as they are."""
    wanted = state.tunables.temp_replica_count
    if wanted > 1 and file.on_workers and file.producer is not None and file.data is None and len(file.on_workers) < wanted:
        state.scarce.setdefault(len(file.on_workers), {})[file.name] = file
    state.copies_stalled = False


def worker_joined(state: ManagerState) -> None:
    """There is one more place for copies."""
    state.copies_stalled = False
    if state.tunables.temp_replica_count > 1:
        for file in state.held.values():
            look_at(state, file)


def settle(state: ManagerState) -> None:
    """Order copies of the scarcest files, as far as there is room."""
    if state.copies_stalled:
        return  # as long as nothing changes, nothing could be ordered
    tries, ordered = TRIES, False
    for count in sorted(state.scarce):
        files = state.scarce[count]
        for name, file in list(islice(files.items(), tries)):
            tries -= 1
            del files[name]
            if _is_scarce(state, name, file, count):
                ordered = _copy(state, file) or ordered
                if _is_scarce(state, name, file, count):
                    files[name] = file  # behind the others
        if not files:
            del state.scarce[count]
        if tries <= 0:
            break
    state.copies_stalled = not ordered


def _is_scarce(state: ManagerState, name: str, file: FileEntry, count: int) -> bool:
    """Whether it still is what it was noted for; if its copies changed, it was noted again."""
    if state.held.get(name) is not file or not file.is_needed() or len(file.on_workers) != count:
        return False
    return count + len(file.coming) < state.tunables.temp_replica_count


def _copy(state: ManagerState, file: FileEntry) -> bool:
    """Have one worker more fetch it, from a peer if one can be reached; False when nobody can now."""
    best: WorkerEntry | None = None
    beyond: WorkerEntry | None = None  # the best of those that reach no holder
    for _ in range(min(CANDIDATES, len(state.ring))):
        worker = state.workers[state.ring[0]]
        state.ring.rotate(-1)
        if not _can_take(state, file, worker):
            continue
        if transfers.peers_with(state, file, worker):
            if best is None or worker.free_bytes() > best.free_bytes():
                best = worker
        elif beyond is None or worker.free_bytes() > beyond.free_bytes():
            beyond = worker
    destination = best or beyond
    if destination is None:
        return False
    peers = transfers.peers_with(state, file, destination)
    if peers and not transfers.has_room(state, peers):
        return False
    if not peers and len(state.splices) >= SPLICES_AT_ONCE:
        return False
    file.coming = with_worker(file.coming, destination.worker_id)
    destination.hold(file)
    if peers:
        transfers.fetch(state, file, destination, peers)
    else:
        splices.begin(state, file, destination)
    return True


def _can_take(state: ManagerState, file: FileEntry, worker: WorkerEntry) -> bool:
    has = worker.worker_id in file.on_workers or worker.worker_id in file.coming
    return not has and state.now >= worker.copies_from and worker.takes_work() and worker.free_bytes() > file.size_bytes
