"""Which task makes which file: references, availability, release, and what must run again when the last copy is gone.

A file's entry holds its producer, a producer holds its inputs until its own output is safe (inline, at the manager, or
released): so the chain that could make a file again lives exactly as long as it may be needed. Such inputs count as
``remakes``: their copies on workers go when nobody reads them, but what could not be made again stays (inline data, objects of
the manager), and so does their own lineage. One copy stays as a *spare* when it was read on another worker than the one that made
it: when that reader's worker is lost, only what was done there is done again.
"""

from __future__ import annotations

from vinecore.manager import near, orders
from vinecore.manager import transitions as t
from vinecore.manager.entries import FileEntry, TaskEntry, WorkerEntry, outputs_of
from vinecore.manager.lists import Readers
from vinecore.manager.state import ManagerState
from vinecore.manager.worker_sets import Workers

# Spares take at most this share of a worker's disk; higher: less is computed again after a loss, less room for values.
SPARE_SHARE = 0.25


def attach(state: ManagerState, entry: TaskEntry) -> None:
    """Count a new entry as user of its inputs; one input lost meanwhile is made again."""
    missing = 0
    for file in entry.inputs:
        file.uses += 1
        if file.to_come:
            file.to_come -= 1
        file.read_by(entry)
        if not file.is_available():
            missing += 1
            make_again(state, file)
    entry.missing = missing


def became_available(state: ManagerState, file: FileEntry) -> None:
    """Consumers that waited only for this file are ready."""
    for consumer in file.consumers:
        if consumer.state is t.WAITING:
            consumer.missing -= 1
            if consumer.missing == 0:
                make_ready(state, consumer)


def make_ready(state: ManagerState, entry: TaskEntry) -> None:
    """Queue an entry whose inputs are all available, near its large inputs if it has any."""
    entry.state = t.TASK[entry.state, "inputs available"]
    if entry.inputs:
        instance = near.nearest(entry)
        if instance is not None:
            near.line_up(state, entry, instance)
            return
    near.put_back(state, entry)


def became_unavailable(state: ManagerState, file: FileEntry) -> None:
    """Its last copy is gone: consumers wait again, and it is made again if anybody needs it."""
    for consumer in file.consumers:
        if consumer.state is t.READY:
            consumer.state = t.TASK[consumer.state, "input lost"]
            consumer.missing = 1
        elif consumer.state is t.WAITING:
            consumer.missing += 1
    if file.is_needed():
        make_again(state, file)


def make_again(state: ManagerState, file: FileEntry) -> None:
    """Run the producer of a lost file once more, and theirs, as deep as needed."""
    producer = file.producer
    if file.kept:
        return  # decided when its bundle has ended
    if producer is None:
        if not file.promised:
            state.lost_files.append(file)
    elif producer.state is t.FINISHED:
        if producer.error is not None or file.never_made:
            state.lost_files.append(file)
        else:
            rerun(state, producer)


def rerun(state: ManagerState, entry: TaskEntry) -> None:
    """A finished entry whose output is lost runs again; without recursion, chains may be long."""
    pending = [entry]
    while pending:
        task = pending.pop()
        if task.state is not t.FINISHED:
            continue
        if task.is_final:
            state.lost_files.extend(outputs_of(task))
            continue
        state.counters.rerun += 1
        if task.graph is not None:
            task.graph.unplaced += 1
            task.graph.finished_count -= 1
        task.state = t.TASK[task.state, "output lost"]
        task.value = None
        _tell_once(state, task)
        state.tasks[task.task_id] = task
        missing = 0
        for file in task.inputs:
            file.remakes -= 1
            file.uses += 1
            if not file.is_available():
                missing += 1
                if file.producer is None or file.producer.error is not None or file.never_made:
                    state.lost_files.append(file)
                elif not file.kept:
                    pending.append(file.producer)
        task.missing = missing
        if missing == 0:
            make_ready(state, task)


def _tell_once(state: ManagerState, task: TaskEntry) -> None:
    """A handle hears of one end only: the one it was told, or is about to be told when that never left."""
    if task in state.delivered:
        state.delivered.remove(task)
    else:
        task.handle = None


def wait_again(state: ManagerState, entry: TaskEntry, cause: str) -> None:
    """A placed entry did not run to its end: back to waiting or ready, its lost inputs are made again."""
    entry.state = t.TASK[entry.state, cause]
    entry.instance = None
    entry.bundle = None
    if entry.graph is not None:
        entry.graph.unplaced += 1
    missing = 0
    for file in entry.inputs:
        if not file.is_available():
            missing += 1
            make_again(state, file)
    # Making inputs again never makes them available at once, so the count is still right here.
    entry.missing = missing
    if missing == 0:
        make_ready(state, entry)


def use_ended(state: ManagerState, entry: TaskEntry) -> None:
    """A finished entry needs its inputs no more; it lets go of them when its output cannot be lost."""
    inputs = entry.inputs
    if entry.error is not None or all(f.data is not None or f.at_manager or f.never_made for f in outputs_of(entry)):
        entry.inputs = ()
        entry.is_final = True
    else:
        for file in inputs:
            file.remakes += 1
    for file in inputs:
        file.uses -= 1
        is_needed = file.is_needed()
        if not is_needed:
            release(state, file)
        if entry.is_final and (is_needed or file.remakes > 0):
            file.left_by(entry)


def release(state: ManagerState, file: FileEntry) -> None:
    """Nobody reads this file: drop every copy, and the lineage that could make it again, unless that is needed for others."""
    pending = [file]
    while pending:
        file = pending.pop()
        producer = file.producer
        if file.remakes > 0:
            _thin_out(state, file)
            continue
        drop_copies(state, file)
        file.data = None
        file.kept = False
        _forget_object(state, file)
        if producer is None or producer.state is not t.FINISHED:
            continue
        file.producer = None  # nobody asks for it again: without this cycle both are freed as soon as nobody holds them
        if producer.inputs:
            others = (other for other in outputs_of(producer) if other is not file)
            if not any(other.is_needed() or other.remakes > 0 for other in others):
                pending += _let_go(producer)


def _let_go(producer: TaskEntry) -> list[FileEntry]:
    """A finished task will not run again; returns those of its inputs that nobody needs any more."""
    inputs, producer.inputs, producer.is_final = producer.inputs, (), True
    unneeded = []
    for read in inputs:
        read.remakes -= 1
        if read.remakes <= 0 and not read.is_needed():
            unneeded.append(read)
        else:
            read.left_by(producer)
    return unneeded


def cut(state: ManagerState, file: FileEntry) -> None:
    """The file becomes data of its own: it stays, its graph goes. While it is being made again, it stays part of that."""
    producer = file.producer
    if producer is None or producer.state is not t.FINISHED:
        return
    file.producer = None
    file.consumers = Readers([consumer for consumer in file.consumers if consumer.state is not t.FINISHED])
    for unneeded in _let_go(producer):
        release(state, unneeded)


def _thin_out(state: ManagerState, file: FileEntry) -> None:
    """Only a rerun of a finished consumer would read this file: keep what could not be made again."""
    producer = file.producer
    can_run = producer is not None and producer.error is None and not producer.is_final
    if can_run and _keep_spare(state, file):
        pass
    elif can_run or file.data is not None or file.at_manager:
        drop_copies(state, file)
    if can_run:
        _forget_object(state, file)


def _keep_spare(state: ManagerState, file: FileEntry) -> bool:
    """Leave a file that other workers have read with the worker that made it, and nowhere else; False when there is no such copy.

    The loss of one worker then costs what that worker did: what it made from the files of others is made from their spares.
    """
    maker = state.workers.get(file.maker)
    if maker is None or file.maker not in file.on_workers or file.data is not None:
        return False
    others = {*file.on_workers, *file.coming} - {file.maker}
    if not maker.spares or file.name not in maker.spares:
        if not others:
            return False  # read where it was made: both would be lost together
        if maker.spares is None:
            maker.spares = {}
        maker.spares[file.name] = file
        maker.spare_bytes += file.size_bytes
    _drop_at(state, file, others)
    file.on_workers, file.coming = (file.maker,), ()
    _limit_spares(state, maker)
    return True


def _limit_spares(state: ManagerState, worker: WorkerEntry) -> None:
    """Drop the oldest spares of a worker beyond its limit; one that is read again is none any more, and stays."""
    limit = SPARE_SHARE * worker.hello.disk_mb * 2**20
    while worker.spares and worker.spare_bytes > limit:
        oldest = worker.spares.pop(next(iter(worker.spares)))
        worker.spare_bytes -= oldest.size_bytes
        if not oldest.is_needed():
            drop_copies(state, oldest)


def _forget_object(state: ManagerState, file: FileEntry) -> None:
    if file.at_manager:
        file.at_manager = False
        state.unreadable.pop(file.name, None)
        state.orders.append(orders.ForgetObjects([file.name]))


def drop_copies(state: ManagerState, file: FileEntry) -> None:
    """Unlink a file on every worker that has it or was told to fetch it."""
    on_workers, coming = file.on_workers, file.coming
    if not on_workers and not coming:
        return
    _drop_at(state, file, {*on_workers, *coming} if coming else on_workers)
    file.on_workers = file.coming = ()
    state.held.pop(file.name, None)


def _drop_at(state: ManagerState, file: FileEntry, worker_ids: Workers) -> None:
    for worker_id in worker_ids:
        worker = state.workers.get(worker_id)
        if worker is not None:
            worker.forget_file(file)
            state.unlinks.setdefault(worker_id, []).append(file.name)
