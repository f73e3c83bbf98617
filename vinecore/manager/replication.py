"""More than one copy of each temp, for those who ask for it (``temp-replica-count``): a lost worker then loses no value.

A file is looked at when its copies change. What lacks copies is copied at once where a source and a destination have room, those
with fewest copies first; what finds none waits in ``ManagerState.scarce`` for the end of a transfer or a new worker. The source
is the holder that serves fewest, the destination has most free disk of a few workers that are looked at in turn, so that the
cost of a copy does not grow with the number of workers.
"""

from __future__ import annotations

from vinecore.manager import transfers
from vinecore.manager.state import FileEntry, ManagerState, WorkerEntry

# Workers looked at for one copy; higher: a more even use of disks, more work for each copy.
CANDIDATES = 16
# Files that are tried for each event; the others have their turn at the next one.
TRIES = 32
# A worker that could not take what its source had (its disk is full, say) gets no copies for this long; lower: more vain
# transfers, higher: a disk with room again is used later.
PAUSE_S = 15.0


def look_at(state: ManagerState, file: FileEntry) -> None:
    """Its copies have changed: note it when it has too few. Files of the user, and values in messages, are safe as they are."""
    wanted = state.tunables.temp_replica_count
    if wanted > 1 and file.on_workers and file.producer is not None and file.data is None and len(file.on_workers) < wanted:
        state.scarce.setdefault(len(file.on_workers), {})[file.name] = file


def worker_joined(state: ManagerState) -> None:
    """There is one more place for copies."""
    if state.tunables.temp_replica_count > 1:
        for file in state.held.values():
            look_at(state, file)


def settle(state: ManagerState) -> None:
    """Order copies of the scarcest files, as far as there is room."""
    tries = TRIES
    for count in sorted(state.scarce):
        files = state.scarce[count]
        for name, file in list(files.items())[:tries]:
            tries -= 1
            if not _is_scarce(state, name, file, count) or _copy(state, file):
                del files[name]
        if not files:
            del state.scarce[count]
        if tries <= 0:
            return


def _is_scarce(state: ManagerState, name: str, file: FileEntry, count: int) -> bool:
    """Whether it still is what it was noted for; if its copies changed, it was noted again."""
    if state.held.get(name) is not file or not file.is_needed() or file.on_workers is None or len(file.on_workers) != count:
        return False
    return count + len(file.coming or ()) < state.tunables.temp_replica_count


def _copy(state: ManagerState, file: FileEntry) -> bool:
    """Have one worker more fetch it; False when nobody can now."""
    best: WorkerEntry | None = None
    for _ in range(min(CANDIDATES, len(state.ring))):
        worker = state.workers[state.ring[0]]
        state.ring.rotate(-1)
        if _can_take(state, file, worker) and (best is None or worker.free_bytes() > best.free_bytes()):
            best = worker
    if best is None:
        return False
    peers = transfers.peers_with(state, file, best)
    if not transfers.has_room(state, peers):
        return False
    if file.coming is None:
        file.coming = set()
    file.coming.add(best.worker_id)
    best.hold(file)
    transfers.fetch(state, file, best, peers)
    return file.on_workers is None or len(file.on_workers) + len(file.coming) >= state.tunables.temp_replica_count


def _can_take(state: ManagerState, file: FileEntry, worker: WorkerEntry) -> bool:
    has = worker.worker_id in (file.on_workers or ()) or worker.worker_id in (file.coming or ())
    if has or state.now < worker.copies_from:
        return False
    return worker.takes_work() and worker.free_bytes() > file.size_bytes and bool(transfers.peers_with(state, file, worker))
