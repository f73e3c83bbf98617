"""The manager's machine.

    callers ──────┐                                ┌─> messages to workers (Run, Fetch, Upload, Unlink, Cancel ...)
    workers ──────┼─> handle(event) ─> on_*.py ────┼─> outcomes to deliver
    transfers ────┤       then settle(): place,    ├─> files that are here now
    ticks ────────┘       unlink, cancel           └─> one line for the user, notes for observers

It has no clock, no socket, no thread: events carry the time, orders are performed by ``shell/manager_loop.py`` (or by the
simulator). Events and orders carry lists, and settling looks only at what an event touched, so that a call costs microseconds.
"""

from __future__ import annotations

from vinecore.errors import ProtocolError, unreachable
from vinecore.manager import (
    events,
    invariants,
    on_drain,
    on_files,
    on_hosts,
    on_libraries,
    on_stalls,
    on_tasks,
    on_workers,
    orders,
    placement,
    replication,
    splices,
)
from vinecore.manager.state import ManagerState
from vinecore.model.config import Tunables

# How often ready work that was not placed is looked at; higher: the line about work that fits nowhere comes later.
EVEN_OUT_LOOK_S = 0.1  # with several workers: how often to look whether one idles while work waits at another
STUCK_LOOK_S = 1.0


class ManagerMachine:
    """Feed it events, perform the orders it returns.

    Parameters:
        run: short text that makes the names of this run's temps unique.
        tunables: values in force; may be changed between events.
    """

    def __init__(self, run: str, tunables: Tunables | None = None) -> None:
        self.state = ManagerState(run, tunables or Tunables())

    def handle(self, event: events.Event) -> list[orders.Order]:
        """The only way in. Returns the orders that follow from this event.

        Raises:
            ProtocolError: a worker sent what is not legal now; the tables are untouched, its link should be closed.
        """
        state = self.state
        state.now = event.now
        kind = type(event)
        if kind is events.WorkerSaid:
            on_workers.said(state, event.worker_id, event.message)  # type: ignore[union-attr]
        elif kind is events.TasksSubmitted:
            on_tasks.submitted(state, event.entries)  # type: ignore[union-attr]
        elif kind is events.VerticesSubmitted:
            on_tasks.vertices_submitted(state, event.graph, event.entries)  # type: ignore[union-attr]
        else:
            self._rare(event)
        self._settle()
        out: list[orders.Order] = state.orders  # type: ignore[assignment]
        state.orders = []
        return out

    def _rare(self, event: events.Event) -> None:
        state = self.state
        match event:
            case events.WorkerJoined():
                on_workers.joined(state, event.worker_id, event.hello, event.host)
            case events.WorkerRefused():
                on_stalls.refused(state, event.who, event.why)
            case events.WorkerLeft():
                on_workers.left(state, event.worker_id, event.reason)
            case events.TasksCancelled():
                on_tasks.cancelled(state, event.entries)
            case events.GraphCancelled():
                on_tasks.graph_cancelled(state, event.graph)
            case events.LibraryInstalled():
                on_libraries.installed(state, event.library)
            case events.LibraryRemoved():
                on_libraries.removed(state, event.library)
            case events.FileReleased():
                on_files.released(state, event.files)
            case events.GraphEnded():
                on_files.graph_ended(state, event.files, event.keep)
                on_libraries.forget_codes(state, event.graph, event.codes)
            case events.FilePruned():
                on_files.pruned(state, event.file)
            case events.FileWanted():
                on_files.wanted(state, event.file, event.handle, event.gone)
            case events.UploadArrived():
                on_files.arrived(state, event.transfer_id)
            case events.SpliceOpened():
                splices.opened(state, event.transfer_id)
            case events.CodesUnused():
                on_libraries.drop_codes(state, event.codes)
            case events.HostsChanged():
                on_hosts.changed(state, event)
            case events.WorkerDrained():
                if event.worker_id in state.workers:
                    on_drain.drain(state, state.workers[event.worker_id], True, on_drain.SHUT_DOWN)
            case events.Tick():
                on_workers.tick(state)
            case events.WorkerSaid() | events.TasksSubmitted() | events.VerticesSubmitted():
                raise ProtocolError("handled before")
            case _:
                unreachable(event)

    def _settle(self) -> None:
        """Place what can be placed, then send what was gathered."""
        state = self.state
        if state.active:
            placement.place(state)
            if state.active:
                on_libraries.fail_hopeless(state)
        if state.lost_files:
            on_tasks.fail_lost(state)
            if state.active:
                placement.place(state)  # what ran for those that failed has left room
        if state.bring_home:
            on_files.bring_home(state)
        if state.wanted_later:
            on_files.look_again(state)
        if state.scarce:
            replication.settle(state)
        if state.drains:
            on_drain.settle(state)
        if state.unlinks:
            on_files.send_unlinks(state)
        if state.cancels:
            on_tasks.send_cancels(state)
        if state.delivered:
            state.orders.append(orders.Deliver(state.delivered))
            state.delivered = []
        if state.notes:
            state.orders.append(orders.Emit(state.notes))
            state.notes = []
        if not state.workers:
            on_stalls.settle_alone(state)

    def next_deadline(self) -> float | None:
        """When to send a Tick at the latest; None: nothing is pending."""
        state = self.state
        due: list[float] = []
        interval = state.tunables.keepalive_interval
        if interval > 0 and state.workers:
            due.append(on_workers.keepalive_due(state))
        if state.workers and state.keepalive_told != on_workers.keepalive(state):
            due.append(state.ticked_at)
        notice = on_stalls.next_notice(state)
        if notice is not None:
            due.append(notice)
        if (state.tasks or state.stalls) and (notice is None or state.workers):
            # Another reason may begin while one waits to be told; one that was told may be over, and then begin again.
            due.append(state.ticked_at + STUCK_LOOK_S)
        if state.expiring:
            due.append(state.expiring[0][0])
        if state.even_out_at is not None:
            due.append(state.even_out_at)
        elif len(state.workers) > 1 and state.tasks:
            due.append(state.ticked_at + EVEN_OUT_LOOK_S)
        return min(due, default=None)

    def check(self) -> None:
        """Raise InvariantError when a promise of the state is broken."""
        invariants.check(self.state)

    def stuck_reason(self) -> str:
        """Why ready work has no place to run, a line for each reason; empty when it has."""
        return "\n".join(on_stalls.reasons(self.state).values())

    def story(self, *ids: int) -> list[str]:
        """What is known of these tasks, in words, for error reports and ``explain``."""
        return [line for task_id in ids for line in on_stalls.explain(self.state, task_id)]
