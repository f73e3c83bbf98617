"""The promises of the manager's tables, each with its line: a test or a simulation asks for them after every event."""

from __future__ import annotations

from vinecore.errors import InvariantError
from vinecore.manager import transitions as t
from vinecore.manager.entries import FileEntry, Instance, LibraryEntry, Shape, TaskEntry, WorkerEntry, outputs_of
from vinecore.manager.lists import Readers
from vinecore.manager.ready import ReadyQueue
from vinecore.manager.state import MANAGER, ManagerState
from vinecore.model.resources import Resources


def check(state: ManagerState) -> None:
    """Raise InvariantError when a promise of a field is broken."""
    for entry in state.tasks.values():
        if entry.state is t.FINISHED:
            raise InvariantError(f"{entry} is finished and still in the table")
        if entry.state in (t.WAITING, t.READY):
            missing = sum(not file.is_available() for file in entry.inputs)
            if missing != entry.missing:
                raise InvariantError(f"{entry}: {missing} inputs are missing")
            if (entry.state is t.READY) != (missing == 0):
                raise InvariantError(f"{entry} has {missing} inputs missing")
        if entry.state is t.PLACED:
            instance = entry.instance
            if instance is None or entry.before is None or instance not in instance.worker.instances.values():
                raise InvariantError(f"{entry} is placed, but no worker runs it")
            if state.workers.get(instance.worker_id) is not instance.worker:
                raise InvariantError(f"{entry} is placed on a worker that is gone")
    for graph in {entry.graph for entry in state.tasks.values() if entry.graph is not None and not entry.graph.failed}:
        unplaced = graph.size - sum(entry.state in (t.PLACED, t.FINISHED) for entry in graph.vertices)
        if graph.unplaced != unplaced:
            raise InvariantError(f"graph {graph.graph_id}: {unplaced} vertices are not placed, {graph.unplaced} counted")
    if sorted(state.ring) != sorted(state.workers):
        raise InvariantError("the ring of workers is not that of those connected")
    for worker in state.workers.values():
        _check_worker(worker)
    uses: dict[FileEntry, int] = {}
    for entry in state.tasks.values():
        for file in entry.inputs:
            uses[file] = uses.get(file, 0) + 1
            if entry not in file.consumers:
                raise InvariantError(f"{entry} reads {file}, which does not know of it")
    for file, count in uses.items():
        if file.uses != count or file.remakes < 0:
            raise InvariantError(f"{file} is read by {count} unfinished entries")
        if file.producer is not None and file not in outputs_of(file.producer):
            raise InvariantError(f"{file} is read, and {file.producer} does not make it any more")
        _check_consumers(file)
    for file in [*uses, *state.held.values()]:
        if not (file.on_workers or file.coming) and state.held.get(file.name) is file:
            raise InvariantError(f"{file} is said to have copies")
        for worker_id in file.on_workers:
            if state.held.get(file.name) is not file:
                raise InvariantError(f"{file} is on a worker and not in the table of copies")
            if worker_id not in state.workers:
                raise InvariantError(f"{file} is said to be on worker {worker_id}, which is gone")
        for worker_id in {*file.on_workers, *file.coming}:
            if worker_id in state.workers and state.workers[worker_id].held.get(file.name) is not file:
                raise InvariantError(f"{file} is not in the table of worker {worker_id}, which has it")
    _check_splices(state)
    for source_id in state.crowded:
        if source_id == MANAGER:
            if not state.splices:
                raise InvariantError("entries wait for a splice to end, and none is under way")
        elif source_id not in state.workers or state.workers[source_id].outgoing < 1:
            raise InvariantError(f"entries wait for a transfer of worker {source_id}, which has none under way")
    for library in state.libraries.values():
        _check_library(library)
        if library.asks:
            _check_offers(state, library)
    _check_lines(state)


def _check_consumers(file: FileEntry) -> None:
    consumers = file.consumers
    over = sum(consumer.is_final for consumer in consumers)
    if 2 * over > (len(consumers) if type(consumers) is Readers else 0):
        raise InvariantError(f"{file} remembers {over} readers that have ended for good, of {len(consumers)}")


def _check_splices(state: ManagerState) -> None:
    if {splice.transfer_id for splice in state.splices_to.values()} != state.splices.keys():
        raise InvariantError(f"splices {sorted(state.splices)} are not those of {sorted(state.splices_to)}")
    sending: dict[int, int] = {}
    for (name, destination_id), splice in state.splices_to.items():
        if (splice.name, splice.destination_id) != (name, destination_id) or destination_id not in state.workers:
            raise InvariantError(f"{splice} goes to worker {destination_id}, which is gone")
        if splice.source_id:
            sending[splice.source_id] = sending.get(splice.source_id, 0) + 1
    for source_id, *_ in state.peer_fetches.values():
        sending[source_id] = sending.get(source_id, 0) + 1
    for source in state.workers.values():
        count = sending.get(source.worker_id, 0)
        if source.outgoing != count:
            raise InvariantError(f"{source} has {count} transfers to other workers, {source.outgoing} counted")


def _check_lines(state: ManagerState) -> None:
    """What is ready is in a line that somebody serves, or waits for something that ends."""
    elsewhere = {entry for entries in (*state.crowded.values(), *state.parked.values()) for entry in entries}
    counts: dict[ReadyQueue[TaskEntry], int] = {}
    for entry in state.tasks.values():
        if entry.state is t.READY and entry.queue is None and entry not in elsewhere:
            raise InvariantError(f"{entry} is ready and in no line")
        if entry.state is t.READY and entry.queue is not None:
            counts[entry.queue] = counts.get(entry.queue, 0) + 1
    lines = {shape.ready for library in state.libraries.values() for shape in library.shapes}
    lines |= {instance.local for library in state.libraries.values() for instance in library.stocked.values() if instance.local}
    for line, count in counts.items():
        if line not in lines:
            raise InvariantError(f"{count} entries are in a line that nobody looks at")
        if len(line) < count:
            raise InvariantError(f"{count} entries are in a line that counts {len(line)}")


def _check_library(library: LibraryEntry) -> None:
    up = [instance for instance in library.instances.values() if instance.state is t.UP]
    if library.slots_up != sum(instance.slots for instance in up):
        raise InvariantError(f"library {library.name!r} counts {library.slots_up} slots")
    for instance in up:
        worker_id = instance.worker_id
        if instance.is_open is not (instance.slots > 0 and instance.worker.takes_work()):
            raise InvariantError(f"{instance} does not know whether it takes work")
        if instance.is_open and instance.groups_out < instance.slots:
            if worker_id in library.idle or instance is library.latest:
                continue
            raise InvariantError(f"{instance} has a free slot and is not offered")
        waits = instance.groups_out > instance.slots or instance.outstanding > instance.groups_out
        if instance.is_piled != (worker_id in library.piled) or (waits and not instance.is_piled):
            raise InvariantError(f"{instance} has {instance.groups_out} groups for {instance.slots} slots, and is piled or not")
        if instance.local is not None and len(instance.local) and worker_id not in library.stocked:
            raise InvariantError(f"{instance} has entries of its own that nobody looks at")


def _check_offers(state: ManagerState, library: LibraryEntry) -> None:
    """What asks for something is tried wherever it may have room since it was refused there."""
    for table in (library.idle, library.hungry):
        for instance in table.values():
            if not 0 <= instance.offered_at < len(library.offers) or library.offers[instance.offered_at] is not instance:
                raise InvariantError(f"{instance} may have room, and what asks for something does not know of it")
    for shape in library.shapes:
        entry = shape.ready.first() if shape.constrained else None
        for deep, table in enumerate((library.idle, library.hungry)):
            for instance in table.values() if entry is not None else ():
                worker = instance.worker
                if instance.offered_at >= shape.tried[deep] or instance is library.latest:
                    continue
                if not instance.is_open or instance.groups_out >= instance.slots:
                    continue
                if instance is library.latest:
                    continue  # offered once more, and not in its place yet
                lacks = worker.amount_of(shape).missing_in(worker.total.minus(worker.committed))
                is_kept = state.reserved is not None and state.reserved.worker_id == instance.worker_id
                if not lacks and not is_kept and not (entry is not None and entry.no_room_at):
                    raise InvariantError(f"{instance} has room for {entry}, and is not looked at")


def _check_worker(worker: WorkerEntry) -> None:
    for file in worker.held.values():
        if worker.worker_id not in file.on_workers and worker.worker_id not in file.coming:
            raise InvariantError(f"{file} is in the table of {worker}, which does not have it")
    if worker.held_bytes != sum(file.size_bytes for file in worker.held.values()):
        raise InvariantError(f"{worker} is said to hold {worker.held_bytes} bytes")
    if worker.spare_bytes != sum(file.size_bytes for file in (worker.spares or {}).values()):
        raise InvariantError(f"{worker} is said to have {worker.spare_bytes} bytes of spares")
    for name, file in (worker.spares or {}).items():
        if worker.held.get(name) is not file or worker.worker_id not in file.on_workers:
            raise InvariantError(f"{file} is a spare of {worker}, which does not have it")
    for instance in worker.instances.values():
        placed = instance.placed()
        if any(entry.state is not t.PLACED or entry.instance is not instance for entry in placed):
            raise InvariantError(f"{instance} is said to run {placed}")
        if instance.outstanding != len(placed):
            raise InvariantError(f"{instance}: {len(placed)} entries are placed there")
        groups = {entry.bundle or entry for entry in placed}
        if instance.groups_out != len(groups):
            raise InvariantError(f"{instance}: {len(groups)} groups are placed there, {instance.groups_out} counted")
    asking = {entry.bundle or entry: entry for entry in worker.placed() if entry.kind.shape.constrained}
    committed = Resources(0, 0, 0, 0)
    for entry in asking.values():
        committed = committed.plus(worker.amount_of(entry.kind.shape))
    if committed != worker.committed:
        raise InvariantError(f"{worker}: {committed} are asked for, {worker.committed} committed")
    # Of one shape more may wait at an instance than it has slots.
    counts: dict[tuple[Instance, Shape], int] = {}
    for entry in asking.values():
        if entry.instance is not None:
            place = entry.instance, entry.kind.shape
            counts[place] = counts.get(place, 0) + 1
    together = Resources(0, 0, 0, 0)
    for (instance, shape), count in counts.items():
        together = together.plus(worker.amount_of(shape).times(min(instance.slots, count)))
    if together.missing_in(worker.total):
        raise InvariantError(f"{worker} is over-committed: it lacks {together.missing_in(worker.total)}")
