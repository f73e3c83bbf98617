"""Workers join, speak, fall silent, leave."""

from __future__ import annotations

from vinecore.errors import ProtocolError
from vinecore.manager import (
    evening,
    near,
    on_drain,
    on_files,
    on_hosts,
    on_libraries,
    on_stalls,
    on_tasks,
    orders,
    placement,
    replication,
    splices,
    transfers,
)
from vinecore.manager import transitions as t
from vinecore.manager.entries import WorkerEntry
from vinecore.manager.state import ManagerState
from vinecore.model.notes import WorkerJoined, WorkerRemoved
from vinecore.wire import messages

# Seconds between two looks at the silence of all workers, for each worker; higher: pings are later in a large fleet.
KEEPALIVE_PAUSE_S = 5e-5
# Part of the timeout within which a silent worker is asked in time; half of it is the latest that tunables allow. One that is
# asked later (the timeout was lowered, or this process stood still) had no reason to speak: it gets the whole timeout from then.
# Lower: ordinary delays of a question count as late, and lost workers are noticed later. Higher: less time for an answer.
ASKED_IN_TIME = 0.6


def joined(state: ManagerState, worker_id: int, hello: messages.Hello, host: str = "") -> None:
    """A worker passed the handshake and said what it has."""
    tunables = state.tunables
    if 0 <= tunables.max_workers <= len(state.workers):
        state.orders.append(orders.SendTo(worker_id, messages.Release(False, "this manager has as many workers as it may")))
        return
    worker = WorkerEntry(worker_id, hello, state.now, host)
    if not state.workers:
        state.stalls.clear()
        state.refused_count, state.refused = 0, ""
        state.keepalive_due = 0.0
        state.keepalive_told = keepalive(state)
    state.workers[worker_id] = worker
    state.heard[worker_id] = state.now
    on_hosts.mark(state, worker)
    state.counters.workers_joined += 1
    state.orders.append(
        orders.SendTo(
            worker_id,
            messages.Welcome(
                worker_id,
                state.run,
                tunables.keepalive_interval,
                tunables.keepalive_timeout,
                transfer_key=state.transfer_key,
                peer_key=state.peer_key,
                peer_certificate=state.peer_certificate,
            ),
        )
    )
    state.ring.append(worker_id)
    on_libraries.start_wanted(state, worker)
    replication.worker_joined(state)
    for library in state.libraries.values():
        for shape in library.shapes:
            if len(shape.ready):
                state.activate(shape)
    if state.notes_wanted:
        state.notes.append(WorkerJoined(state.now, worker_id, hello.hostname, hello.cores))


def said(state: ManagerState, worker_id: int, message: object) -> None:
    """A message of a worker.

    Raises:
        ProtocolError: it is not legal now; the worker's link is closed and the tables are untouched.
    """
    heard = state.heard
    if worker_id not in heard:
        return
    heard[worker_id] = state.now
    kind = type(message)
    if kind is messages.Done:
        on_tasks.answered(state, worker_id, message.results)  # type: ignore[attr-defined]
    elif kind is messages.Fetched:
        on_files.fetched(state, state.workers[worker_id], message)  # type: ignore[arg-type]
    elif kind is not messages.Pong:
        _said_rarely(state, state.workers[worker_id], message)


def _said_rarely(state: ManagerState, worker: WorkerEntry, message: object) -> None:
    worker_id = worker.worker_id
    if isinstance(message, messages.LibraryReady):
        on_libraries.ready(state, worker, message)
    elif isinstance(message, messages.LibraryGone):
        on_libraries.gone(state, worker, message)
    elif isinstance(message, messages.LibrarySlow):
        on_libraries.slow(state, worker, message)
    elif isinstance(message, messages.FetchFailed):
        on_files.fetch_failed(state, worker, message)
    elif isinstance(message, messages.UploadFailed):
        on_files.upload_failed(state, worker, message)
    elif isinstance(message, messages.Removed):
        for name in message.names:
            on_files.lost_copy(state, worker_id, name)
    elif isinstance(message, messages.Ping):
        state.orders.append(orders.SendTo(worker_id, messages.Pong()))
    elif isinstance(message, messages.Goodbye):
        on_drain.goodbye(state, worker)
    else:
        raise ProtocolError(f"a worker sent {type(message).__name__}, which a manager does not take now")


def left(state: ManagerState, worker_id: int, reason: str) -> None:
    """A worker is gone: its calls run elsewhere, what only it held is made again where it is needed."""
    placement.is_gathering(state)  # counts them: they may have been enough while no work waited
    worker = state.workers.pop(worker_id, None)
    if worker is None:
        return
    del state.heard[worker_id]
    state.ring.remove(worker_id)
    lost = worker.placed()
    state.counters.workers_removed += 1
    if lost:
        state.counters.workers_lost += 1
    for library_id, instance in worker.instances.items():
        instance.move(t.GONE)
        library = state.libraries.get(library_id)
        if library is not None:
            library.instances.pop(worker_id, None)
        near.abandon(state, instance)
    state.drains.pop(worker_id, None)
    # Copies first: entries that wait again must see what is gone.
    for file in worker.held.values():
        on_tasks.lose_copy(state, file, worker_id)
    on_tasks.worker_lost(state, worker, lost)
    on_files.relays_lost(state, worker_id)
    transfers.worker_left(state, worker)
    splices.worker_left(state, worker_id)
    worker.left()
    if state.notes_wanted:
        state.notes.append(WorkerRemoved(state.now, worker_id, reason, len(lost)))


def keepalive(state: ManagerState) -> tuple[float, float]:
    """Interval and timeout in force."""
    return state.tunables.keepalive_interval, state.tunables.keepalive_timeout


def keepalive_due(state: ManagerState) -> float:
    """When the silence of a worker may need an answer, at the earliest: it holds on, since they only speak later."""
    span = min(state.tunables.keepalive_interval, state.tunables.keepalive_timeout)
    if state.keepalive_for != span or not state.keepalive_due:
        state.keepalive_for = span
        state.keepalive_due = _first_silence(state)
    return state.keepalive_due


def _first_silence(state: ManagerState) -> float:
    return min(state.heard.values(), default=state.now) + state.keepalive_for


def _is_lost(worker: WorkerEntry, heard: float, now: float, timeout: float) -> bool:
    """Whether it was asked, and has been silent for too long."""
    asked_at = worker.asked_at
    if asked_at <= heard:
        return False
    return now - (heard if asked_at - heard <= ASKED_IN_TIME * timeout else asked_at) > timeout


def _ask_silent(state: ManagerState, interval: float, timeout: float) -> float:
    """Ping workers that are silent, give up those that do not answer; returns when the first of the others spoke or was asked.

    Of thousands of workers, only those that are silent are looked at.
    """
    now, span = state.now, state.keepalive_for
    first = min(state.heard.values())
    if now - first < span:
        return first
    silent = {worker_id: heard for worker_id, heard in state.heard.items() if now - heard >= span}
    first = min([heard for heard in state.heard.values() if now - heard < span], default=now)
    for worker_id, heard in silent.items():
        worker = state.workers[worker_id]
        if _is_lost(worker, heard, now, timeout):
            why = f"nothing was heard of it for {now - heard:.0f} s"
            state.orders.append(orders.CloseWorker(worker_id, why))
            left(state, worker_id, why)
            continue
        if now - heard >= interval and now - worker.pinged_at >= interval:
            if worker.asked_at <= heard:
                worker.asked_at = now
            worker.pinged_at = now
            state.orders.append(orders.SendTo(worker_id, messages.Ping()))
        first = min(first, max(heard, worker.pinged_at))
    return first


def tick(state: ManagerState) -> None:
    """Keepalive, and the lines about work that has no place to run."""
    state.ticked_at = state.now
    state.copies_stalled = False
    interval, timeout = asked = keepalive(state)
    if state.keepalive_told != asked:
        # Workers leave a manager that is silent for longer than they were told it would be.
        state.keepalive_told = asked
        for worker_id in state.workers:
            state.orders.append(orders.SendTo(worker_id, messages.Keepalive(interval, timeout)))
    if interval > 0 and state.workers and state.now >= keepalive_due(state):
        first = _ask_silent(state, interval, timeout)
        pause = KEEPALIVE_PAUSE_S * len(state.workers)
        state.keepalive_due = max(first + state.keepalive_for, state.now + pause)
    if state.blocked_hosts:
        on_hosts.look(state)
    if state.expiring:
        on_tasks.expire(state)
    state.even_out_at = evening.even_out(state)
    on_stalls.notice(state)
