"""Work that has no place to run: what is missing, in words, and the command that helps.

Each reason has a key of its own: it is told once when it has held for ``no_worker_notice`` seconds, and again only after it was
gone. So the second request that nobody can fulfil is told like the first one.
"""

from __future__ import annotations

from itertools import islice

from vinecore.errors import UsageError
from vinecore.manager import on_tasks, orders, placement, reserving
from vinecore.manager import transitions as t
from vinecore.manager.entries import FileEntry, TaskEntry, WorkerEntry
from vinecore.manager.state import ManagerState, Stall
from vinecore.model.resources import Resources

# Tasks looked at for the reason of a stall; bounds a tick.
LOOKED_AT = 1000

# Names of hosts in one line, and inputs that are named one by one.
HOSTS_NAMED = 5
INPUTS_NAMED = 10

# Key of the reason that there is no worker at all.
NO_WORKER = "no worker"
# Key of the reason that those that came were not let in.
REFUSED = "refused"
# Key of the reason that work waits for more workers.
GATHERING = "gathering"


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
        if state.refused_count:
            state.stalls[REFUSED] = Stall(state.now)


def refused(state: ManagerState, who: str, why: str) -> None:
    """Somebody was not let in: told while work waits and nobody else is there."""
    state.refused_count += 1
    state.refused = f"{who}: {why}"
    if not state.workers and state.tasks:
        state.stalls.setdefault(REFUSED, Stall(state.now))


def next_notice(state: ManagerState) -> float | None:
    """When a reason has held for so long that it is to be told; None: there is none that was not."""
    untold = [stall.since for stall in state.stalls.values() if not stall.is_told]
    return min(untold) + state.tunables.no_worker_notice if untold else None


def reasons(state: ManagerState) -> dict[object, str]:
    """Why ready work has no place to run: a line for each different reason."""
    if not state.tasks:
        return {}
    if not state.workers and not state.address:
        return {NO_WORKER: f"{_tasks(len(state.tasks), 'wait')} for the worker of this machine, which has not come up yet"}
    if not state.workers:
        how = f"start one with:  vine_worker {state.address}"
        none: dict[object, str] = {NO_WORKER: f"{_tasks(len(state.tasks), 'wait')} and no worker is connected; {how}"}
        if state.refused_count:
            who = "a worker was" if state.refused_count == 1 else f"{state.refused_count} workers were"
            none[REFUSED] = f"{who} not let in, the latest from {state.refused}"
        return none
    found: dict[object, str] = {}
    if placement.is_gathering(state):
        return {GATHERING: f"{_tasks(len(state.tasks), 'wait')}: {_gathering(state)}"}
    all_closed = _closed(state, Resources())
    ready = sum(len(shape.ready) for shape in state.active)
    if all_closed and ready:
        found[_closed_key(state, Resources())] = f"{_tasks(min(ready, len(state.tasks)), 'wait')}; {all_closed}"
    waiting: dict[Resources, int] = {}
    for shape in state.active:
        if shape.constrained and len(shape.ready):
            waiting[shape.request] = waiting.get(shape.request, 0) + len(shape.ready)
    for request, count in waiting.items():
        lacks = lacking_everywhere(state, request)
        if lacks:
            who = "the worker of this machine" if not state.address else f"any of the {len(state.workers)} workers"
            found[request] = f"{_tasks(count, 'ask')} for more than {who} has: {lacks}; ask for less, or use a larger worker"
        elif not all_closed and (closed := _closed(state, request)):
            found[_closed_key(state, request)] = f"{_tasks(count, 'wait')}; {closed}"
    if not found and not any(worker.placed_count() for worker in state.workers.values()):
        found.update(_unmade(state))
    return found


def _tasks(count: int, do: str) -> str:
    """So many tasks do something."""
    return f"1 task {do}s" if count == 1 else f"{count} tasks {do}"


def _gathering(state: ManagerState) -> str:
    count = len(state.workers)
    who = "1 worker is" if count == 1 else f"{count} workers are"
    return f"{who} connected, and work begins with {state.tunables.wait_for_workers:g} (wait-for-workers)"


def lacking_everywhere(state: ManagerState, request: Resources) -> str:
    """What the first worker lacks for this request, if every worker lacks something; else empty."""
    lacks = ""
    for worker in state.workers.values():
        lacking = request.missing_in(worker.total)
        if not lacking:
            return ""
        lacks = lacks or lacking
    return lacks


def _closed(state: ManagerState, request: Resources) -> str:
    """Said when every worker that is large enough is blocked or leaves; empty when one takes work, or none is large enough."""
    blocked: list[WorkerEntry] = []
    draining: list[WorkerEntry] = []
    for worker in state.workers.values():
        if request.missing_in(worker.total):
            continue
        if worker.takes_work():
            return ""
        (blocked if worker.blocked else draining).append(worker)
    count = len(blocked) + len(draining)
    if not count:
        return ""
    who = "the only worker" if count == 1 else f"all {count} workers"
    if count < len(state.workers):
        who += " that is large enough" if count == 1 else " that are large enough"
    do = "is" if count == 1 else "are"
    if not draining:
        return f"{who} {do} on blocked hosts ({_hosts(blocked)}); unblock_host() lets them work"
    if not blocked:
        how = "start another one, or end that with set_draining_by_hostname(name, False)"
        return f"{who} {do} draining or leaving ({_hosts(draining)}); {how}"
    some = f"{len(blocked)} are on blocked hosts ({_hosts(blocked)}; unblock_host() lets them work)"
    return f"{who} take no work: {some}, {len(draining)} are draining or leaving ({_hosts(draining)})"


def _closed_key(state: ManagerState, request: Resources) -> object:
    """Blocked is another reason than draining; that one worker more is blocked is not."""
    return ("closed", request, any(worker.blocked for worker in state.workers.values()))


def _hosts(workers: list[WorkerEntry]) -> str:
    names = sorted({worker.hello.hostname for worker in workers})
    more = [] if len(names) <= HOSTS_NAMED else [f"{len(names) - HOSTS_NAMED} more"]
    return ", ".join([*names[:HOSTS_NAMED], *more])


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


def explain(state: ManagerState, task_id: int) -> list[str]:
    """Why a task is where it is: first in words, then what else is known of it."""
    entry = state.tasks.get(task_id)
    if entry is None:
        return [f"task {task_id} has ended, or was never submitted here"]
    who = f"task {task_id} ({entry.kind.name})"
    missing = [file for file in entry.inputs if not file.is_available()]
    if entry.state is t.PLACED and entry.instance is not None:
        worker = entry.instance.worker
        lines = [f"{who} runs on worker {worker.worker_id} ({worker.hello.hostname}), or is next in line there"]
    elif entry.state is t.READY:
        lines = [f"{who} is ready and waits: {_why_ready(state, entry)}"]
    else:
        lines = [f"{who} waits for {len(missing)} of its {len(entry.inputs)} inputs"]
        lines += [f"  {_why_missing(file)}" for file in missing[:INPUTS_NAMED]]
    if entry.losses:
        lines.append(f"  it was lost {entry.losses} times so far; more than {state.tunables.max_losses:g} times make it fail")
    return lines + [why for why in reasons(state).values() if why.partition("; ")[2] not in lines[0]]


def _why_ready(state: ManagerState, entry: TaskEntry) -> str:
    """What a task whose inputs are all there waits for."""
    shape = entry.kind.shape
    fitting = [worker for worker in state.workers.values() if not shape.request.missing_in(worker.total)]
    if not state.workers:
        return "no worker is connected"
    if placement.is_gathering(state):
        return _gathering(state)
    if not fitting:
        return f"no worker is large enough; the first one lacks {lacking_everywhere(state, shape.request)}"
    closed = _closed(state, shape.request)
    if closed:
        return closed
    instances = [shape.library.instances.get(worker.worker_id) for worker in fitting if worker.takes_work()]
    if not any(instance is not None and instance.state is t.UP and instance.slots for instance in instances):
        return f"library {shape.library.name!r} is not up yet on any worker that could run it"
    if entry.queue is None:
        return "other transfers must end before an input can be brought to a worker"
    full = f"; {len(entry.no_room_at)} workers had no room for its result or an input" if entry.no_room_at else ""
    kept_id, kept = reserving.told(state, entry)
    if not kept_id:
        return f"the {len(instances)} workers that could run it are busy with other tasks{full}"
    others = len(instances) - 1
    more = f"; {others} more that could run it {'is' if others == 1 else 'are'} busy with other tasks" if others else ""
    return kept + more + full


def _why_missing(file: FileEntry) -> str:
    """Who makes an input that is not there."""
    producer = file.producer
    if producer is None:
        return f"{file.name or 'a temp'}: no submitted task makes it"
    how = {t.PLACED: "is running", t.READY: "is ready", t.WAITING: "waits for inputs itself"}.get(producer.state, "is over")
    return f"the value of task {producer.task_id} ({producer.kind.name}), which {how}"
