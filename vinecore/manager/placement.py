"""Ready entries to instances with room, gathered into one Run message for each instance.

Placing is driven by instances that have room (``LibraryEntry.hungry``), so its cost per entry does not grow with the number of
workers or of waiting entries. An instance holds a little more than it can run: about ``pipeline_ms`` per slot by measured time,
one call more at least.
"""

from __future__ import annotations

import math
from bisect import insort
from collections import OrderedDict

from vinecore.manager import bundles, near, orders, reserving, splices, transfers
from vinecore.manager import transitions as t
from vinecore.manager.entries import Bundle, CodeEntry, FileEntry, Instance, LibraryEntry, Shape, TaskEntry, WorkerEntry
from vinecore.manager.ready import ReadyQueue
from vinecore.manager.state import ManagerState, Relay
from vinecore.manager.worker_sets import with_worker
from vinecore.wire import messages
from vinecore.wire.messages import Call

# Calls at an instance for each slot, whatever their time; bounds what is lost with a worker.
MOST_PER_SLOT = 1000
# A Run message is sent when this many calls have gathered; bounds a frame.
RUN_CALLS = 512
# Idle instances that look for entries meant for busy ones at each event; higher: sooner a balance, more work for nothing.
TAKE_OVER_LOOKS = 4
# And when so many bytes of arguments and inline inputs have gathered.
RUN_BYTES = messages.BATCH_LIMIT_BYTES


def place(state: ManagerState) -> None:
    """Give every hungry instance what it can take; keep shapes that still have ready entries active."""
    if not state.active:
        return
    if is_gathering(state):
        return
    active = state.active
    if len(active) > 1:
        active.sort(key=near.turn_of)
    still: list[Shape] = []
    is_asking = False
    for position, shape in enumerate(active):
        is_asking |= shape.constrained
        if len(active) > 1:
            state.limit = near.limit_of(active, position)
        stays = _place_shape(state, shape)
        if state.limit is not None and len(shape.ready) and shape.ready.urgency() < state.limit:
            insort(active, shape, position + 1, key=near.turn_of)  # the rest of it comes behind others
        elif stays:
            still.append(shape)
        else:
            shape.queued = False
    state.limit = None
    state.active = still
    if state.reserved is not None or is_asking:
        reserving.look(state)


def _place_shape(state: ManagerState, shape: Shape) -> bool:
    """Give hungry instances what they can take of one shape; whether it may have ready entries still."""
    library = shape.library
    if library.fleet != state.fleet or library.retry_at <= state.now:
        ensure_started(state, library)
    if library.stocked and state.now - library.freed_at > near.STUCK_S:
        near.free_stuck(state, library, shape)
    latest = library.latest
    if latest is not None and not library.hungry and near.is_alone(library, latest) and (library.near or len(shape.ready)):
        # Nobody else may take anything: both rounds in one.
        has_room = _fill(state, shape, latest, True)
        if library.near:
            near.look(latest, True)
        if not has_room:
            library.latest = None
        return len(shape.ready) > 0 or bool(library.stocked)
    library.line_up()
    # Two rounds: first every slot of every instance gets something, then the instances are topped up. Each ends with the
    # last ready entry, so that the many who then get nothing are not asked.
    if library.near:
        _serve_near(state, shape, False)
    _serve(state, shape, library.idle, False)
    if library.stocked and library.idle:
        _take_over(state, shape)
    if library.near:
        _serve_near(state, shape, True)
    _serve(state, shape, library.hungry, True)
    return len(shape.ready) > 0 or bool(library.stocked)


def is_gathering(state: ManagerState) -> bool:
    """Whether work still waits until enough workers are there: once they have been, those that go are not waited for."""
    wanted = state.tunables.wait_for_workers
    if wanted > state.gathered and len(state.workers) >= wanted:
        state.gathered = wanted
    return wanted > state.gathered


def _serve(state: ManagerState, shape: Shape, offered: OrderedDict[int, Instance], deep: bool) -> None:
    """Fill instances in the order in which they were offered, while entries are ready; those found full are dropped."""
    if shape.constrained:
        _serve_asking(state, shape, offered, deep)
        return
    kept: list[Instance] = []
    while offered and len(shape.ready) and (state.limit is None or shape.ready.urgency() >= state.limit):
        _, instance = offered.popitem(last=False)
        if _fill(state, shape, instance, deep):
            kept.append(instance)
    for instance in reversed(kept):
        worker_id = instance.worker_id
        offered[worker_id] = instance
        offered.move_to_end(worker_id, last=False)


def _serve_asking(state: ManagerState, shape: Shape, offered: OrderedDict[int, Instance], deep: bool) -> None:
    """The same for entries that ask for something, of which only those are looked at that were offered since they lacked it."""
    library = shape.library
    may_take_more: list[Instance] = []
    while len(shape.ready) and shape.tried[deep] < len(library.offers):
        if state.limit is not None and shape.ready.urgency() < state.limit:
            break
        number = shape.tried[deep]
        shape.tried[deep] += 1
        instance = library.offers[number]
        if instance.offered_at != number or offered.get(instance.worker_id) is not instance:
            continue
        if deep and number < shape.tried[False] and instance.groups_out < instance.slots:
            continue  # it lacked it a moment ago, when it was tried as an idle one
        shape.refused_by = None
        if not _fill(state, shape, instance, deep):
            offered.pop(instance.worker_id, None)
        elif shape.refused_by is not instance:
            may_take_more.append(instance)
    for instance in may_take_more:
        library.log(instance)


def _serve_near(state: ManagerState, shape: Shape, deep: bool) -> None:
    """Fill instances that have entries of their own."""
    library = shape.library
    for instance in list(library.near.values()):
        if _has_room(state, instance, 0.0, deep):
            _fill(state, shape, instance, deep)
        near.look(instance, deep)


def _take_over(state: ManagerState, shape: Shape) -> None:
    """Idle instances take entries that were meant for busy ones; a few are looked at for each event."""
    library = shape.library
    for _ in range(min(TAKE_OVER_LOOKS, len(library.idle))):
        worker_id, instance = next(iter(library.idle.items()))
        if not _has_room(state, instance, 0.0, False):
            del library.idle[worker_id]
            continue
        library.idle.move_to_end(worker_id)

        def fits(entry: TaskEntry, instance: Instance = instance) -> bool:
            return not entry.kind.shape.constrained or _fits(state, instance, entry)

        found = near.to_take_over(library, instance, state.now, fits)
        if found is not None:
            other, entry = found
            assert other.local is not None
            other.local.remove(entry)
            near.put_back(state, entry)
            limit, state.limit = state.limit, None
            _fill(state, entry.kind.shape, instance, False)
            state.limit = limit


def ensure_started(state: ManagerState, library: LibraryEntry) -> None:
    """Start the library on workers that do not have it, or where it failed long enough ago."""
    if library.removed:
        return
    library.fleet = state.fleet
    if library.retry_at <= state.now:
        _forget_failures(state, library)
    for worker in state.workers.values():
        start_on(state, library, worker)


def _forget_failures(state: ManagerState, library: LibraryEntry) -> None:
    """What failed once need not fail for the rest of a worker's life: it may be tried again when its window is over."""
    window = state.tunables.library_restart_window
    library.retry_at = math.inf
    for worker_id, instance in list(library.instances.items()):
        if instance.state is t.GONE:
            if instance.failed_at + window <= state.now:
                del library.instances[worker_id], instance.worker.instances[library.library_id]
            else:
                library.retry_at = min(library.retry_at, instance.failed_at + window)


def start_on(state: ManagerState, library: LibraryEntry, worker: WorkerEntry) -> None:
    """Start the library on a worker that takes work, unless it is there."""
    if library.library_id in worker.instances or not worker.takes_work() or library.removed:
        return
    slots = library.slots or max(1, worker.hello.cores)
    instance = Instance(library, worker, slots)
    worker.instances[library.library_id] = library.instances[worker.worker_id] = instance
    tunables, setup = state.tunables, library.setup
    name = ""
    if library.file is not None:
        name = library.file.name
        _fetch_to(state, library.file, instance)
    for file, _, _ in setup.mounts:
        _fetch_to(state, file, instance)
    message = messages.StartLibrary(
        library.library_id,
        library.name,
        slots,
        library.exec_mode,
        library.payload,
        list(library.modules),
        int(tunables.max_library_retries),
        tunables.library_restart_window,
        name,
        [messages.Mount(file.name, path, flags) for file, path, flags in setup.mounts],
        setup.init_command,
        setup.program,
        setup.max_calls,
        int(worker.hello.memory_mb * tunables.slot_growth_share / slots) if setup.is_stateless else 0,
    )
    state.orders.append(orders.SendTo(worker.worker_id, message))


def _has_room(state: ManagerState, instance: Instance, next_us: float, deep: bool) -> bool:
    """Whether one more call may go there."""
    if not instance.is_open:
        return False
    groups = instance.groups_out
    if groups < instance.slots:
        return True
    if not deep:
        return False
    if groups == instance.slots:
        return True  # at least one extra group, so that no slot waits for the manager
    mean = max(instance.mean_us, next_us)
    if mean == 0.0:
        return False
    count = instance.outstanding
    return count * mean < instance.slots * state.tunables.pipeline_ms * 1000.0 and count < instance.slots * MOST_PER_SLOT


def _fill(state: ManagerState, shape: Shape, instance: Instance, deep: bool) -> bool:
    """Place entries of a shape at an instance while there is room; True when there still is.

    Not where one did not fit and something runs: that will end, and offer the instance again.
    """
    deep = deep and not near.is_held_up(instance, state.now)
    library = shape.library
    worker_id, limit = instance.worker_id, state.limit
    several = len(library.hungry) + (worker_id not in library.hungry)
    # The second round shares what is ready, so that one instance does not drain it before the next is asked.
    share = max(instance.slots, -(-len(shape.ready) // several)) if deep else instance.slots
    taken, was_refused, none_fits = 0, False, False  # the last: of its own
    passed_over: list[TaskEntry] = []
    behind: TaskEntry | None = None  # of its own: the next one, where the first one lacks something
    while taken < share:
        if not _has_room(state, instance, 0.0, deep):
            break
        entry, behind, line = behind, None, instance.local
        if entry is None and line is not None and library.stocked and worker_id in library.stocked and not none_fits:
            entry = line.pop() if line.urgency() >= shape.ready.urgency() else None
        if entry is None:
            line = shape.ready
            entry = line.pop() if limit is None or passed_over else near.pop_before(line, limit)
        if entry is None:
            break
        if entry.no_room_at and _has_room_elsewhere(state, entry, instance):
            passed_over.append(entry)
            if len(passed_over) == near.PASSED_OVER:
                break
            continue
        own = entry.kind.shape  # entries near their inputs may be of another shape of this library
        full = own.constrained and _is_refused(state, shape, entry, instance)
        # Unknown or long calls are not queued behind each other.
        if full or (instance.groups_out > instance.slots and not _has_room(state, instance, _expected_us(state, entry), deep)):
            was_refused = True
            if not _keep(state, entry, instance, line) or not full:
                break
            behind = _behind(state, shape, entry, instance)
            none_fits = behind is None
            continue
        if entry.inputs and not _reachable(state, entry, instance):
            continue
        if entry.graph is None or entry.sandbox is not None:
            # Also a vertex with a process of its own: nothing could be handed on in there.
            _place_one(state, entry, instance)
            taken += 1
        else:
            chosen = bundles.bundle_for(entry, library.slots_up, worker_id, state.tunables)
            _place_bundle(state, chosen, instance)
            taken += len(chosen)
            entry = chosen[-1]
        if (entry.output is not None or entry.products) and len(own.ready) > len(library.idle) * instance.slots:
            near.keep_together(entry, instance)
        if instance.calls >= RUN_CALLS or instance.bytes >= RUN_BYTES:
            send_run(state, instance)
    for entry in passed_over:
        near.put_back(state, entry)
    if instance.groups:
        send_run(state, instance)
    return not (was_refused and instance.groups_out >= instance.slots) and _has_room(state, instance, 0.0, deep)


def _is_refused(state: ManagerState, shape: Shape, entry: TaskEntry, instance: Instance) -> bool:
    """Whether an entry gets nothing here of what it asks for; one of the shape being served is noted as lacking it."""
    if _fits(state, instance, entry):
        return reserving.is_kept_from(state, entry, instance)
    if entry.kind.shape is shape:
        shape.refused_by = instance
    return True


def _keep(state: ManagerState, entry: TaskEntry, instance: Instance, line: ReadyQueue[TaskEntry] | None) -> bool:
    """One that was refused goes back in line; True: in that of the instance, since what ends there makes room for it."""
    if line is None or line is not instance.local or not instance.groups_out:
        near.put_back(state, entry)
        return False
    line.push(entry)
    return True


def _behind(state: ManagerState, shape: Shape, refused: TaskEntry, instance: Instance) -> TaskEntry | None:
    """One of an instance's own that does not have to wait for what another one lacks; taken out of its line."""
    local = instance.local
    assert local is not None
    for entry in local.some(near.PASSED_OVER):
        own = entry.kind.shape
        if own is not refused.kind.shape and not (own.constrained and _is_refused(state, shape, entry, instance)):
            local.remove(entry)
            return entry
    return None


def _has_room_elsewhere(state: ManagerState, entry: TaskEntry, instance: Instance) -> bool:
    """True where it was lost here for lack of room, and there is a worker to run it where it was not."""
    avoided = entry.no_room_at or set()
    if instance.worker_id not in avoided:
        return False
    shape = entry.kind.shape
    for worker in state.workers.values():
        if worker.worker_id not in avoided and worker.takes_work():
            other = shape.library.instances.get(worker.worker_id)
            if other is not None and other.state is not t.GONE and not shape.request.missing_in(worker.total):
                return True
    return False


def _expected_us(state: ManagerState, entry: TaskEntry) -> float:
    """How long it will run; one that nobody has measured counts as long."""
    return entry.kind.mean_us or state.tunables.pipeline_ms * 1000.0


def _fits(state: ManagerState, instance: Instance, entry: TaskEntry) -> bool:
    """Whether the request fits what the worker has left, or may wait there behind its like."""
    worker = instance.worker
    amount = worker.amount_of(entry.kind.shape)
    if not amount.missing_in(worker.total.minus(worker.committed)):
        return True
    short_us = state.tunables.pipeline_ms * 1000.0
    if not entry.kind.shape.allocates or not 0 < entry.kind.mean_us < short_us or instance.groups_out > 2 * instance.slots:
        return False
    # One shape alone, of which every slot can run one at once (also those that are missing for a while): whatever waits there
    # never runs beside too many others.
    return (
        worker.placed_count() == instance.outstanding
        and instance.alike is entry.kind.shape
        and not amount.times(instance.most_slots).missing_in(worker.total)
    )


def _reachable(state: ManagerState, entry: TaskEntry, instance: Instance) -> bool:
    """True when every input can be used on that worker now or be fetched from somewhere.

    An input that only other workers have comes from them; if all of these are busy the entry waits. If none can be reached the
    object passes through the manager; one that is on its way there anyway is waited for.
    """
    worker = instance.worker
    worker_id = worker.worker_id
    for file in entry.inputs:
        if file.data is not None or file.at_manager or worker_id in file.on_workers:
            continue
        if worker_id in file.coming:
            continue
        peers = transfers.peers_with(state, file, worker)
        if transfers.has_room(state, peers):
            state.found_peers[file] = peers
            continue
        # What was found for other inputs holds for this worker and this moment only.
        state.found_peers.clear()
        if peers:
            transfers.wait_for_room(state, entry, peers[0])
            return False
        if file.name in state.wanted_here:
            state.parked.setdefault(file.name, []).append(entry)
            return False
        if not splices.has_room(state):
            splices.wait_for_room(state, entry)
            return False
    return True


def bring_here(state: ManagerState, file: FileEntry) -> None:
    """Have a worker send an object to the manager, unless that is under way."""
    if file.name in state.wanted_here:
        return
    state.wanted_here[file.name] = []
    worker_id = min(file.on_workers)
    transfer_id = state.next_transfer_id
    state.next_transfer_id += 1
    state.relays[transfer_id] = Relay(transfer_id, file, worker_id, file.name)
    state.orders.append(orders.SendTo(worker_id, messages.Upload(transfer_id, file.name)))


def _fetch_to(state: ManagerState, file: FileEntry, instance: Instance) -> None:
    """Tell a worker to fetch an object, once: from a peer that has time, else from the manager, or through it."""
    worker = instance.worker
    worker_id = worker.worker_id
    if worker_id not in file.coming and worker_id not in file.on_workers:
        file.coming = with_worker(file.coming, worker_id)
        state.held[file.name] = file
        worker.hold(file)
        peers = state.found_peers.pop(file, None) or transfers.peers_with(state, file, worker)
        if peers and (transfers.has_room(state, peers) or not file.at_manager):
            transfers.fetch(state, file, worker, peers)
        elif file.on_workers and not file.at_manager:
            splices.begin(state, file, worker)
        else:
            state.orders.append(orders.SendTo(worker_id, messages.Fetch(file.name, file.size_bytes)))


def _input_refs(state: ManagerState, entry: TaskEntry, instance: Instance, inside: set[TaskEntry] | None) -> list[int | str]:
    """How the slot finds each input: a value id, or the name of an object in the worker's store."""
    refs: list[int | str] = []
    worker_id = instance.worker_id
    for file in entry.inputs:
        if inside is not None and file.producer in inside:
            refs.append(file.value_id)
        elif file.data is not None:
            refs.append(file.value_id)
            if instance.values is None:
                instance.values = {}
            if file.value_id not in instance.values:
                instance.values[file.value_id] = file.data
                instance.bytes += len(file.data)
        elif worker_id in file.on_workers:
            refs.append(file.name)
        else:
            _fetch_to(state, file, instance)
            refs.append(file.name)
    return refs


def _know_code(state: ManagerState, code: CodeEntry, instance: Instance) -> None:
    """Send code the first time an instance needs it, what it names first."""
    code.held_by(instance)
    for required in code.requires:
        if required is not instance.known_code and required.holders.get(instance) != instance.code_life:
            _know_code(state, required, instance)
    if code.library_id != instance.library.library_id or (not code.payload and code.file is None):
        return  # part of the library's own payload
    name = ""
    if code.file is not None:
        name = code.file.name
        _fetch_to(state, code.file, instance)
    if code.message is None or code.message.name != name:
        code.message = messages.Code(
            code.library_id,
            code.code_id,
            code.payload if code.file is None else b"",
            list(code.modules),
            [required.code_id for required in code.requires],
            code.is_piece,
            name,
        )
    state.orders.append(orders.SendTo(instance.worker_id, code.message))


def _mark_placed(state: ManagerState, entry: TaskEntry, instance: Instance) -> None:
    entry.state = t.PLACED
    entry.queue = None
    entry.attempt += 1
    entry.instance = instance
    first = instance.behind
    entry.before = instance
    entry.behind = first
    if first is not None:
        first.before = entry
    instance.behind = entry
    instance.outstanding += 1
    instance.calls += 1
    code = entry.code
    if code is not instance.known_code:
        if code.holders.get(instance) != instance.code_life:
            _know_code(state, code, instance)
        if not code.is_piece:
            instance.known_code = code


def _commit(state: ManagerState, shape: Shape, instance: Instance, is_bundle: bool = False) -> None:
    """A group takes what one of its calls asks for: they run one after the other."""
    if instance.groups_out == 0:
        instance.progress_at = state.now
        instance.alike = shape
    elif instance.alike is not shape:
        instance.alike = None
    instance.groups_out += 1
    if (instance.groups_out > instance.slots or is_bundle) and not instance.is_piled:
        instance.is_piled = True
        instance.library.piled[instance.worker_id] = instance
    if shape.constrained:
        worker = instance.worker
        worker.committed = worker.committed.plus(worker.amount_of(shape))


def _place_one(state: ManagerState, entry: TaskEntry, instance: Instance) -> None:
    if entry.graph is not None:
        entry.graph.unplaced -= 1
    _mark_placed(state, entry, instance)
    _commit(state, entry.kind.shape, instance)
    instance.bytes += len(entry.payload)
    refs = _input_refs(state, entry, instance, None) if entry.inputs else []
    box = None
    if entry.sandbox is not None:
        instance.bytes += messages.sandbox_bytes(entry.sandbox)
        refs, box = _filled(state, entry, entry.sandbox, refs, instance)
    call = Call(
        entry.task_id, entry.attempt, entry.code.code_id, entry.index, entry.payload, refs, 0, True, entry.payload_file, box
    )
    if instance.groups is None:
        instance.groups = [[call]]
    else:
        instance.groups.append([call])


def _filled(
    state: ManagerState, entry: TaskEntry, box: messages.Sandbox, refs: list[int | str], instance: Instance
) -> tuple[list[int | str], messages.Sandbox]:
    """The inputs that are arguments, and a sandbox with its sources, the names of its products and its allocation."""
    border = len(refs) - len(box.mounts)
    base = f"{state.run}-{entry.task_id}.{entry.attempt}"
    amount = instance.worker.amount_of(entry.kind.shape)
    return refs[:border], messages.filled_sandbox(
        box,
        refs[border:],
        [f"{base}.{number}" for number in range(len(box.products))],
        amount.whole(),
    )


def _place_bundle(state: ManagerState, chosen: list[TaskEntry], instance: Instance) -> None:
    """Place vertices together: values that only members read are kept in the slot."""
    inside = set(chosen)
    bundle = Bundle(chosen) if len(chosen) > 1 else None
    graph = chosen[0].graph
    assert graph is not None
    graph.unplaced -= len(chosen)
    _commit(state, chosen[0].kind.shape, instance, bundle is not None)
    calls: list[Call] = []
    for entry in chosen:
        _mark_placed(state, entry, instance)
        entry.bundle = bundle
        output = entry.output
        assert output is not None
        uses = 0
        publish = output.holds > 0 or output.to_come > 0
        if bundle is not None:
            for consumer in output.consumers:
                if consumer in inside:
                    uses += 1
                elif consumer.state is not t.FINISHED:
                    publish = True
        else:
            publish = True
        refs = _input_refs(state, entry, instance, inside) if entry.inputs else []
        calls.append(Call(entry.task_id, entry.attempt, entry.code.code_id, entry.index, b"", refs, uses, publish))
    if instance.groups is None:
        instance.groups = [calls]
    else:
        instance.groups.append(calls)


def send_run(state: ManagerState, instance: Instance) -> None:
    """Send what was gathered for an instance."""
    groups, instance.groups = instance.groups, None
    assert groups is not None
    values: list[tuple[int, bytes]] = []
    if instance.values is not None:
        values = list(instance.values.items())
        instance.values = None
    state.counters.dispatched += instance.calls
    instance.calls = instance.bytes = 0
    state.orders.append(orders.SendTo(instance.worker_id, messages.Run(instance.library.library_id, groups, values)))


def unplace(entry: TaskEntry) -> Instance:
    """Undo the bookkeeping of a placement whose answer came (or never will); the caller moves the entry's state."""
    instance, before, behind = entry.instance, entry.before, entry.behind
    assert instance is not None and before is not None
    before.behind = behind
    if behind is not None:
        behind.before = before
        entry.behind = None
    entry.before = None
    instance.outstanding -= 1
    bundle = entry.bundle
    if bundle is not None:
        bundle.remaining -= 1
        if bundle.remaining:
            return instance
    instance.groups_out -= 1
    shape = entry.kind.shape
    if shape.constrained:
        worker = instance.worker
        worker.committed = worker.committed.minus(worker.amount_of(shape))
        if len(worker.instances) > 1:
            for other in worker.instances.values():
                if other.library.asks and other.is_open and other is not instance:
                    other.library.offer(other)  # it may have lacked what is free now
    return instance


def unpark(state: ManagerState, name: str) -> None:
    """An object came to the manager, or will not: entries that waited for that are looked at again."""
    for entry in state.parked.pop(name, ()):
        if entry.state is t.READY and entry.queue is None:
            near.put_back(state, entry)
