"""Work that has no place to run: what is missing, in words, and the command that helps.

Each reason has a key of its own: it is told once when it has held for ``no_worker_notice`` seconds, and again only after it was
gone. So the second request that nobody can fulfil is told like the first one.
"""

from __future__ import annotations

from itertools import islice

from vinecore.errors import UsageError
from vinecore.manager import on_tasks, orders
from vinecore.manager import transitions as t
from vinecore.manager.state import ManagerState, Stall
from vinecore.model.resources import Resources

# Tasks looked at for the reason of a stall; bounds a tick.
LOOKED_AT = 1000

# Key of the reason that there is no worker at all.
NO_WORKER = "no worker"


def notice(state: ManagerState) -> None:
    """Once per stall: say what is missing and the command that helps."""
    found = reasons(state)
    for key in [key for key in state.stalls if key not in found]:
        del state.stalls[key]
    for key, why in found.items():
        stall = state.stalls.setdefault(key, Stall(state.now))
        if stall.is_told or state.now - stall.since < state.tunables.no_worker_notice:
            continue
        stall.is_told = True
        state.orders.append(orders.Say(why))
        if isinstance(key, Resources) and not state.address:
            _fail_impossible(state, key)
            # The next one that asks for as much is told and failed like this one.
            del state.stalls[key]


def settle_alone(state: ManagerState) -> None:
    """No worker is connected: the time that work waits begins now, since no tick may come before it is over."""
    if not state.tasks:
        state.stalls.clear()
    elif NO_WORKER not in state.stalls:
        state.stalls[NO_WORKER] = Stall(state.now)


def next_notice(state: ManagerState) -> float | None:
    """When a reason has held for so long that it is to be told; None: there is none that was not."""
    untold = [stall.since for stall in state.stalls.values() if not stall.is_told]
    return min(untold) + state.tunables.no_worker_notice if untold else None


def reasons(state: ManagerState) -> dict[object, str]:
    """Why ready work has no place to run: a line for each different reason."""
    if not state.tasks:
        return {}
    if not state.workers and not state.address:
        return {NO_WORKER: f"{len(state.tasks)} tasks wait for the worker of this machine, which has not come up yet"}
    if not state.workers:
        how = f"start one with:  vine_worker {state.address}"
        return {NO_WORKER: f"{len(state.tasks)} tasks wait and no worker is connected; {how}"}
    found: dict[object, str] = {}
    waiting: dict[Resources, int] = {}
    for shape in state.active:
        if shape.constrained and len(shape.ready):
            waiting[shape.request] = waiting.get(shape.request, 0) + len(shape.ready)
    for request, count in waiting.items():
        lacks = lacking_everywhere(state, request)
        if lacks:
            who = "the worker of this machine" if not state.address else f"any of the {len(state.workers)} workers"
            found[request] = f"{count} tasks ask for more than {who} has: {lacks}; ask for less, or use a larger worker"
    if not found and not any(worker.running for worker in state.workers.values()):
        found.update(_unmade(state))
    return found


def lacking_everywhere(state: ManagerState, request: Resources) -> str:
    """What the first worker lacks for this request, if every worker lacks something; else empty."""
    lacks = ""
    for worker in state.workers.values():
        lacking = request.missing_in(worker.total)
        if not lacking:
            return ""
        lacks = lacks or lacking
    return lacks


def _unmade(state: ManagerState) -> dict[object, str]:
    """Said when nothing runs and tasks wait for temps that no submitted task makes."""
    for entry in islice(state.tasks.values(), LOOKED_AT):
        if entry.state is t.WAITING and any(f.promised and f.producer is None and not f.is_available() for f in entry.inputs):
            who = f"task {entry.task_id} ({entry.kind.name})"
            why = f"{who} waits for a temp that no submitted task makes: submit that task, or cancel this one"
            return {entry.task_id: why}
    return {}


def _fail_impossible(state: ManagerState, request: Resources) -> None:
    """No other worker can join this manager: tasks that do not fit its only one never will."""
    lacks = lacking_everywhere(state, request)
    for shape in [shape for shape in state.active if shape.request == request]:
        for entry in shape.ready.drain():
            why = f"task {entry.task_id} ({entry.kind.name}) asks for more than the worker of this machine has: {lacks}"
            on_tasks.fail(state, entry, UsageError(f"{why}; ask for less, or give the manager more local_cores or a port"), b"")
