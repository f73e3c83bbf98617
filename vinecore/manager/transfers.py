"""Objects from worker to worker: which peers to name, the ticket, limits per source, and what follows when it fails.

When a worker cannot reach a peer, what that peer holds comes to it through the manager (``splices``) for a while: one broken
link is forgotten, and a wall between the two is met again at the price of one failed fetch. A peer that does not have the object
any more has lost a copy, which is no failure of the link.
"""

from __future__ import annotations

from collections import deque

from vinecore.manager import near, orders
from vinecore.manager import transitions as t
from vinecore.manager.entries import FileEntry, TaskEntry, WorkerEntry
from vinecore.manager.state import ManagerState
from vinecore.model.ticket import LIFETIME_S, make_ticket
from vinecore.wire import messages

# Peers named for one fetch: when the first cannot give it, the worker asks the next by itself.
NAMED_PEERS = 3
# Seconds for which a pair of workers is not tried again; higher: fewer vain fetches where a wall stands, longer ways round
# after a link that broke once.
INDIRECT_S = 60.0
# Entries looked at again for each transfer that ends: it has room for one, and those that find a copy where they run need none.
WOKEN = 16


def peers_with(state: ManagerState, file: FileEntry, worker: WorkerEntry) -> list[WorkerEntry]:
    """Workers from which this one could fetch the file, least busy first."""
    if not state.transfer_key or not file.on_workers:
        return []
    found = []
    unused = 0
    for worker_id in file.on_workers:
        peer = state.workers.get(worker_id)
        if peer is not None and peer is not worker and peer.address[1] and not is_indirect(state, worker, worker_id):
            found.append(peer)
            unused += peer.outgoing == 0
            if unused == NAMED_PEERS:
                break  # of a file that thousands have, the rest is no better
    if len(found) > 1:
        found.sort(key=lambda peer: (peer.outgoing, peer.worker_id))
    return found


def is_indirect(state: ManagerState, worker: WorkerEntry, peer_id: int) -> bool:
    """Whether a worker failed to reach a peer a short time ago."""
    return bool(worker.unreachable) and state.now < worker.unreachable.get(peer_id, 0.0)


def not_reached(state: ManagerState, worker: WorkerEntry, peers: list[int]) -> None:
    """A worker could not fetch from these: the pairs are indirect for a while. Those whose time is over are dropped."""
    if peers:
        kept = {peer_id: until for peer_id, until in worker.unreachable.items() if state.now < until}
        worker.unreachable = kept | dict.fromkeys(peers, state.now + INDIRECT_S)


def has_room(state: ManagerState, peers: list[WorkerEntry]) -> bool:
    """Whether the least busy of these peers may serve one more."""
    return bool(peers) and peers[0].outgoing < max(1, state.tunables.worker_source_max_transfers)


def fetch(state: ManagerState, file: FileEntry, worker: WorkerEntry, peers: list[WorkerEntry]) -> None:
    """Order a fetch from peers; the ticket lets this worker, and nobody else, have the object for a while."""
    # One that was dropped while it was on its way, and is wanted again: the worker answers both orders once.
    ended(state, file.name, worker.worker_id)
    named = peers[:NAMED_PEERS]
    named[0].outgoing += 1
    state.peer_fetches[file.name, worker.worker_id] = tuple([peer.worker_id for peer in named])
    expires = int(state.now + state.epoch_offset_s) + LIFETIME_S
    ticket = make_ticket(state.transfer_key, file.name, worker.worker_id, expires)
    sources = [peer.address for peer in named]
    state.orders.append(orders.SendTo(worker.worker_id, messages.Fetch(file.name, file.size_bytes, sources, ticket, expires)))


def ended(state: ManagerState, name: str, worker_id: int) -> tuple[int, ...]:
    """A fetch ended, well or not: its source has a transfer to spare. Returns the workers named; none if from the manager."""
    named = state.peer_fetches.pop((name, worker_id), ())
    if not named:
        return ()
    source_id = named[0]
    source = state.workers.get(source_id)
    if source is not None:
        source.outgoing -= 1
        look_again(state, source_id, WOKEN if source.outgoing else None)
    return named


def wait_for_room(state: ManagerState, entry: TaskEntry, source: WorkerEntry) -> None:
    """Every source of an input is busy, this one least: look again when a transfer of it ends."""
    state.crowded.setdefault(source.worker_id, deque()).append(entry)


def look_again(state: ManagerState, source_id: int, most: int | None) -> None:
    """Queue the first entries that wait for a source; all of them when nothing is under way that would call again."""
    waiting = state.crowded.get(source_id)
    if waiting is None:
        return
    for _ in range(len(waiting) if most is None else min(most, len(waiting))):
        entry = waiting.popleft()
        if entry.state is t.READY and entry.queue is None:
            near.put_back(state, entry)
    if not waiting:
        del state.crowded[source_id]


def worker_left(state: ManagerState, worker: WorkerEntry) -> None:
    """Fetches of a worker that is gone do not end any more; those from it are reported by their other side, which need not wait.

    A frozen or cut off source says nothing: without being told, the other side would wait for it until its own limit.
    """
    worker_id = worker.worker_id
    for name, destination in [key for key in state.peer_fetches if key[1] == worker_id]:
        ended(state, name, destination)
    for (name, destination), named in state.peer_fetches.items():
        if worker_id in named and destination in state.workers:
            stop = messages.StopFetch(name, *worker.address)
            state.orders.append(orders.SendTo(destination, stop))
    look_again(state, worker_id, None)
