"""Hosts that the user drains or blocks."""

from __future__ import annotations

from vinecore.manager import on_drain
from vinecore.manager.entries import WorkerEntry
from vinecore.manager.events import HostsChanged
from vinecore.manager.state import ManagerState


def changed(state: ManagerState, event: HostsChanged) -> None:
    """Apply a change to the workers that are connected; later ones are looked up when they join."""
    if event.drain:
        for worker in state.workers.values():
            if worker.hello.hostname == event.drain:
                on_drain.drain(state, worker, event.drain_on)
    if event.block:
        state.blocked_hosts[event.block] = event.until
    if event.unblock is not None:
        state.blocked_hosts.pop(event.unblock, None)
    if event.unblock_all:
        state.blocked_hosts.clear()
    look(state)


def look(state: ManagerState) -> None:
    """Forget blocks that are over, and mark the workers concerned."""
    for host in [host for host, until in state.blocked_hosts.items() if until <= state.now]:
        del state.blocked_hosts[host]
    for worker in state.workers.values():
        mark(state, worker)


def mark(state: ManagerState, worker: WorkerEntry) -> None:
    """Note whether a worker's host is blocked; one that is not any more is offered work."""
    was = worker.blocked
    worker.close(blocked=worker.hello.hostname in state.blocked_hosts)
    if was and not worker.blocked:
        state.fleet += 1
        for instance in worker.instances.values():
            if instance.is_open:
                instance.library.offer(instance)
            for shape in instance.library.shapes:
                if len(shape.ready):
                    state.activate(shape)
