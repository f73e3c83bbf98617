"""Objects that pass through the manager, from a worker to one that cannot reach it; nothing of them stays here.

    placed: Fetch(id) --> destination dials, Get(id) --> SpliceOpened --> Upload(id) --> a source dials, Put(id): the shell
    pairs the two links and passes the bytes on                                  destination: Fetched or FetchFailed

The destination dials first, and only then is a source told to send: so whoever sends has somebody who reads, and no set of
workers can wait for each other with all their threads. The source is chosen at that moment, and another one when it fails before
the first byte. Only the destination says how a splice ended: it alone has counted and verified the bytes.
"""

from __future__ import annotations

from collections import deque

from vinecore.manager import orders, transfers
from vinecore.manager.entries import FileEntry, TaskEntry, WorkerEntry
from vinecore.manager.state import MANAGER, ManagerState, Splice
from vinecore.wire import messages

# Splices under way at one time. Higher: more links, threads and buffers in the user's process, each of them slower.
AT_ONCE = 32


def has_room(state: ManagerState) -> bool:
    """Whether one more object may pass through."""
    return len(state.splices) < AT_ONCE


def wait_for_room(state: ManagerState, entry: TaskEntry) -> None:
    """Look again when a splice ends."""
    state.crowded.setdefault(MANAGER, deque()).append(entry)


def begin(state: ManagerState, file: FileEntry, destination: WorkerEntry) -> None:
    """Tell a worker to fetch an object that only workers have which it cannot reach."""
    key = (file.name, destination.worker_id)
    splice = state.splices_to.get(key)
    if splice is None:
        splice = Splice(state.next_transfer_id, file, file.name, destination.worker_id)
        state.next_transfer_id += 1
        state.splices[splice.transfer_id] = state.splices_to[key] = splice
    # One that was dropped meanwhile and is wanted again is under way still.
    fetch = messages.Fetch(file.name, file.size_bytes, transfer_id=splice.transfer_id)
    state.orders.append(orders.SendTo(destination.worker_id, fetch))


def opened(state: ManagerState, transfer_id: int) -> None:
    """The destination waits for the bytes: tell a source to send them."""
    splice = state.splices.get(transfer_id)
    if splice is None:
        state.orders.append(orders.EndSplice(transfer_id))
    else:
        splice.is_open = True
        # Asked twice: whoever was sending has nobody who reads any more.
        _let_source_go(state, splice)
        _ask(state, splice)


def source_failed(state: ManagerState, splice: Splice) -> None:
    """Its source cannot send: another one may, if the destination has got nothing yet."""
    _let_source_go(state, splice)
    _ask(state, splice)


def ended(state: ManagerState, name: str, worker_id: int) -> Splice | None:
    """A fetch ended, well or not. Returns its splice; None when it was none."""
    splice = state.splices_to.pop((name, worker_id), None)
    if splice is not None:
        del state.splices[splice.transfer_id]
        # A destination that gave up does not wait any more.
        state.orders.append(orders.EndSplice(splice.transfer_id))
        _let_source_go(state, splice)
        transfers.look_again(state, MANAGER, transfers.WOKEN if state.splices else None)
    return splice


def worker_left(state: ManagerState, worker_id: int) -> None:
    """Splices to a worker that is gone have ended; those from it are cut off, and begin again where no byte has passed."""
    for name, destination_id in [key for key in state.splices_to if key[1] == worker_id]:
        ended(state, name, destination_id)
    for splice in list(state.splices.values()):
        if splice.source_id == worker_id:
            state.orders.append(orders.EndSplice(splice.transfer_id, is_source_gone=True))
            source_failed(state, splice)


def _ask(state: ManagerState, splice: Splice) -> None:
    if not splice.is_open:
        return
    holders = splice.file.on_workers if splice.file.name == splice.name else ()
    found = [
        worker
        for worker_id in holders or ()
        if worker_id not in splice.tried and worker_id != splice.destination_id
        if (worker := state.workers.get(worker_id)) is not None
    ]
    if not found:
        # The destination is told by the end of its link, and tells us.
        state.orders.append(orders.EndSplice(splice.transfer_id))
        return
    source = min(found, key=lambda worker: (worker.outgoing, worker.worker_id))
    source.outgoing += 1
    splice.source_id = source.worker_id
    state.orders.append(orders.SendTo(source.worker_id, messages.Upload(splice.transfer_id, splice.name)))


def _let_source_go(state: ManagerState, splice: Splice) -> None:
    """Whoever was to send it sends it no more."""
    source_id, splice.source_id = splice.source_id, 0
    if not source_id:
        return
    splice.tried.add(source_id)
    source = state.workers.get(source_id)
    if source is not None:
        source.outgoing -= 1
        transfers.look_again(state, source_id, transfers.WOKEN if source.outgoing else None)
