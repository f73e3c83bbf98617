"""Workers that leave on purpose: no new work, what waits there goes elsewhere, sole copies are handed over first.

A worker drains because the user said so (it then ends when it is empty), or because it said goodbye (idle, a signal, its wall
time). What only it holds and somebody needs goes to another worker that takes work, else to the manager; then it is released.
"""

from __future__ import annotations

from vinecore.manager import near, on_tasks, orders, placement, splices, transfers
from vinecore.manager.entries import FileEntry, WorkerEntry
from vinecore.manager.state import ManagerState
from vinecore.wire import messages

# Asking for more than a worker can hold gives back all that has not started.
EVERYTHING = 1_000_000
# Why a worker is released, as it tells whoever started it; one that said goodbye tells its own reason.
DRAINED = "it was drained"
SHUT_DOWN = "the manager shut it down"


def drain(state: ManagerState, worker: WorkerEntry, on: bool, why: str = DRAINED) -> None:
    """Begin or end the draining of a worker. ``why``: what it is told when it is released."""
    if worker.leaves:
        return
    worker.close(draining=on)
    if not on:
        state.drains.pop(worker.worker_id, None)
        state.fleet += 1
        for instance in worker.instances.values():
            if instance.is_open:
                instance.library.offer(instance)
            for shape in instance.library.shapes:
                if len(shape.ready):
                    state.activate(shape)
        return
    state.drains[worker.worker_id] = worker, why
    for library_id, instance in worker.instances.items():
        near.abandon(state, instance)
        if instance.groups_out > instance.slots:
            state.orders.append(orders.SendTo(worker.worker_id, messages.HandBack(EVERYTHING, library_id)))


def goodbye(state: ManagerState, worker: WorkerEntry) -> None:
    """A worker wants to leave now: its calls run elsewhere, which counts as no loss; its sole copies are fetched."""
    worker.leaves = True
    worker.close(draining=True)
    state.drains[worker.worker_id] = worker, DRAINED
    for instance in worker.instances.values():
        near.abandon(state, instance)
    on_tasks.taken_back(state, worker.placed())


def settle(state: ManagerState) -> None:
    """Move what draining workers alone hold; release those that are empty."""
    for worker, why in list(state.drains.values()):
        if worker.placed_count():
            continue
        sole = [file for file in worker.held.values() if _is_sole(state, file, worker.worker_id)]
        for file in sole:
            _hand_over(state, file, worker)
        if not sole:
            del state.drains[worker.worker_id]
            worker.leaves = True
            state.orders.append(orders.SendTo(worker.worker_id, messages.Release(True, why)))


def _is_sole(state: ManagerState, file: FileEntry, worker_id: int) -> bool:
    """Whether nobody who stays has a file that is needed: others that leave as well may be gone first."""
    if file.data is not None or file.at_manager or not file.on_workers or not file.is_needed():
        return False
    return worker_id in file.on_workers and all(state.workers[holder].draining for holder in file.on_workers)


def _can_take(state: ManagerState, file: FileEntry, worker: WorkerEntry) -> bool:
    """A worker that failed to take something a moment ago (its disk is full, say) would fail again: this one is in a hurry."""
    return worker.takes_work() and state.now >= worker.copies_from and worker.free_bytes() > file.size_bytes


def _hand_over(state: ManagerState, file: FileEntry, worker: WorkerEntry) -> None:
    """Have another worker fetch it, through the manager if it must be; where no other can take it, bring it to the manager."""
    if file.coming or file.name in state.wanted_here:
        return
    others = [w for w in state.workers.values() if w is not worker and _can_take(state, file, w)]
    others.sort(key=lambda w: (w.placed_count(), w.worker_id))
    for other in others:
        peers = transfers.peers_with(state, file, other)
        if transfers.has_room(state, peers):
            file.coming = (other.worker_id,)
            other.hold(file)
            transfers.fetch(state, file, other, peers)
            return
        if peers:
            return  # its source is busy: another look when a transfer has ended
    if not others:
        placement.bring_here(state, file)
    elif splices.has_room(state):
        file.coming = (others[0].worker_id,)
        others[0].hold(file)
        splices.begin(state, file, others[0])
