"""One function for each thing that happens to tasks: submitted, answered, cancelled."""

from __future__ import annotations

from heapq import heapify, heappop, heappush

from vinecore.errors import FileLost, LibraryFailed, LostError, SlotLost, TaskFailed, VineError, WorkerLost
from vinecore.manager import lineage, orders, placement, replication
from vinecore.manager import transitions as t
from vinecore.manager.entries import (
    CANCELLED,
    RAISED,
    Bundle,
    FileEntry,
    GraphEntry,
    Instance,
    TaskEntry,
    WorkerEntry,
    outputs_of,
)
from vinecore.manager.state import ManagerState
from vinecore.manager.worker_sets import without_worker
from vinecore.model.notes import TaskMoved
from vinecore.wire import messages
from vinecore.wire.messages import Result

# Weight of a new measurement in the means of kinds and instances.
MEAN_WEIGHT = 0.1
# A measurement counts as at most this many means: one long vertex among thousands must not make all bundles small.
OUTLIER_FACTOR = 10.0
# Seconds in which a worker says that it has ended a task whose end has come; the exit code of one that nobody has begun.
EXPIRED_S = 2.0
# So many ends, and two for each task, are remembered before those of tasks that are done are taken out.
EXPIRING_LEAST = 64
EXPIRED_CODE = 9
# What is said of a call whose result, or whose code, its worker's disk did not take.
NO_ROOM = ("could not be written", "could not be fetched")


def submitted(state: ManagerState, entries: list[TaskEntry]) -> None:
    """Take new entries: ready ones are queued, others wait for their files."""
    tasks = state.tasks
    for entry in entries:
        if entry.state is not t.NEW:
            continue  # its graph failed with a vertex that came just before
        shape = entry.kind.shape
        tasks[entry.task_id] = entry
        library = shape.library
        if entry.sandbox is not None and entry.sandbox.end_at_s:
            _expires(state, entry.sandbox.end_at_s, entry.task_id)
        if entry.inputs:
            entry.state = t.WAITING
            entry.inputs = tuple(i if type(i) is FileEntry else _output_of(i) for i in entry.inputs)  # type: ignore[arg-type]
            lineage.attach(state, entry)
            failed = next((f.producer for f in entry.inputs if f.producer is not None and f.producer.error is not None), None)
            if failed is not None:
                fail(state, entry, failed.error, failed.value or b"")
            elif library.removed:
                _fail_removed(state, entry)
            elif entry.missing == 0:
                lineage.make_ready(state, entry)
        elif library.removed:
            entry.state = t.WAITING
            _fail_removed(state, entry)
        else:
            entry.state = t.READY
            shape.ready.push(entry)
            if not shape.queued:
                state.activate(shape)
    state.counters.submitted += len(entries)


def _expires(state: ManagerState, end_at_s: float, task_id: int) -> None:
    """Look at a task when its end has come. Those that are done long before theirs are taken out when they are many."""
    if len(state.expiring) >= EXPIRING_LEAST + 2 * len(state.tasks):
        state.expiring = [item for item in state.expiring if item[1] in state.tasks]
        heapify(state.expiring)
    heappush(state.expiring, (end_at_s - state.epoch_offset_s, task_id))


def expire(state: ManagerState) -> None:
    """Tasks whose end has come before they were done: those that wait end here, those that run are ended where they run.

    One that was placed, and is heard of no more in time, waits behind others there, or its worker does not answer.
    """
    while state.expiring and state.expiring[0][0] <= state.now:
        _, task_id = heappop(state.expiring)
        entry = state.tasks.get(task_id)
        if entry is None or entry.sandbox is None:
            continue
        due = entry.sandbox.end_at_s - state.epoch_offset_s
        if entry.state is t.PLACED and state.now < due + EXPIRED_S:
            heappush(state.expiring, (due + EXPIRED_S, task_id))
            continue
        if entry.state is t.PLACED:
            _revoke(state, entry, [])
        entry.report = messages.Report(EXPIRED_CODE, b"", [], [], [], "max end time")
        entry.value = b""
        state.counters.done += 1
        _ended_without_value(state, entry)


def _never_made(entry: TaskEntry) -> str:
    """Why there is no such input."""
    who = f"task {entry.task_id} ({entry.kind.name})"
    if entry.report is not None and entry.report.outcome:
        return f"{who} was ended by its limit ({entry.report.outcome}) without making an input"
    return f"{who} ended without making an input"


def _ended_without_value(state: ManagerState, entry: TaskEntry) -> None:
    """One of its limits has ended a task: it is done, and what was to be its value is nowhere. Who reads that fails."""
    output = entry.output
    if output is not None:
        output.never_made = True
    finish(state, entry)
    if output is None:
        return
    for reader in output.consumers:
        if reader.state is t.WAITING:
            fail(state, reader, FileLost(_never_made(entry)), b"")
    if not output.is_needed():
        lineage.release(state, output)


def _fail_removed(state: ManagerState, entry: TaskEntry) -> None:
    name = entry.kind.shape.library.name
    fail(state, entry, LibraryFailed(f"library {name!r} was removed; install it again before calling it"), b"")


def _output_of(producer: TaskEntry) -> FileEntry:
    """The file of a future's value; made when the first consumer comes."""
    output = producer.output
    if output is None:
        output = producer.output = FileEntry(producer.task_id)
        output.producer = producer
        output.holds = 1  # the future's, which releases it
        if producer.state is t.FINISHED and producer.error is None and producer.value is not None:
            output.never_made = producer.report is not None and bool(producer.report.outcome)
            if not output.never_made:
                output.data = producer.value
                output.size_bytes = len(producer.value)
    return output


def vertices_submitted(state: ManagerState, graph: GraphEntry, entries: list[TaskEntry]) -> None:
    """Take the next vertices of a graph."""
    if graph.failed:
        return
    position = len(graph.vertices)
    graph.vertices.extend(entries)
    for entry in entries:
        entry.graph = graph
        entry.order = position
        position += 1
    submitted(state, entries)


def answered(state: ManagerState, worker_id: int, results: list[Result]) -> None:
    """Results of calls; those of older attempts, and of what is not placed at that worker, are dropped by comparison."""
    tasks = state.tasks
    freed: set[Instance] = set()
    # Giving work back is no progress: what stands before it runs on.
    gave_back: set[Instance] | tuple[()] = ()
    kept: dict[int, TaskEntry] = {}
    later = messages.WRITTEN_LATER
    for result in results:
        if result.status == later:
            if result.task_id not in kept:
                kept = _kept_at(state.workers[worker_id])
            _written_later(state, state.workers[worker_id], kept.get(result.task_id), result)
            continue
        entry = tasks.get(result.task_id)
        at = None if entry is None or entry.before is None else entry.instance
        if entry is None or at is None or entry.attempt != result.attempt or at.worker_id != worker_id:
            if result.status == messages.OK_STORED:
                _drop_late(state, worker_id, f"{state.run}-{result.task_id}.{result.attempt}")
            if result.report is not None:
                for name, size, content in result.report.products:
                    if size and not content:
                        _drop_late(state, worker_id, name)
                _lose_damaged(state, worker_id, result.report)
            continue
        instance = placement.unplace(entry)
        freed.add(instance)
        status = result.status
        if result.report is not None:
            is_last = status <= messages.OK_KEPT or (status == messages.RAISED and entry.retries <= 0)
            _reported(state, instance.worker, entry, result.report, is_last)
        if status <= messages.OK_KEPT:
            _measure(entry, instance, result)
            if entry.graph is not None and entry.report is not None and entry.report.outcome:
                _cut_short(state, entry, entry.report)
            else:
                _succeeded(state, instance, entry, result)
        elif status == messages.RAISED:
            _raised(state, entry, result.value)
        else:
            _not_run(state, entry, status, result.value)
            if status == messages.HANDED_BACK:
                gave_back = {*gave_back, instance}
        bundle = entry.bundle
        if bundle is not None and bundle.remaining == 0:
            _bundle_ended(state, bundle)
    for instance in freed:
        if instance in gave_back:
            instance.gave_at = state.now
        else:
            instance.progress_at = state.now
        library = instance.library
        library.offer(instance)
        if library.near and library.first_shape is not None:
            state.activate(library.first_shape)  # any of them: instances take what is near them whatever its shape


def _drop_late(state: ManagerState, worker_id: int, name: str) -> None:
    """Nobody waits for this result or product any more: its object must not stay in the store."""
    file = state.held.get(name)
    if file is None or worker_id not in file.on_workers:
        state.unlinks.setdefault(worker_id, []).append(name)


def _measure(entry: TaskEntry, instance: Instance, result: Result) -> None:
    duration = result.duration_us or 1
    kind = entry.kind
    mean = kind.mean_us
    kind.mean_us = mean + MEAN_WEIGHT * (min(duration, OUTLIER_FACTOR * mean) - mean) if mean else float(duration)
    size = result.size_bytes
    if size or kind.mean_bytes:
        kind.mean_bytes += MEAN_WEIGHT * (size - kind.mean_bytes)
        if size > kind.mean_bytes:
            # The first large value counts at once: bundles must not wait ten results to learn it.
            kind.mean_bytes = max(kind.mean_bytes, size / 2)
    mean = instance.mean_us
    instance.mean_us = mean + MEAN_WEIGHT * (min(duration, OUTLIER_FACTOR * mean) - mean) if mean else float(duration)


def _succeeded(state: ManagerState, instance: Instance, entry: TaskEntry, result: Result) -> None:
    """The value is inline, in the worker's store, or kept in the slot for its bundle."""
    status = result.status
    output = entry.output
    state.counters.execute_us += result.duration_us
    state.counters.done += 1
    if entry.graph is not None:
        entry.report = None  # only the error of a vertex says what it printed
    elif output is not None and entry.report is not None and entry.report.outcome:
        entry.value = result.value
        _ended_without_value(state, entry)
        return
    # True when a relay brought it while it was being made again.
    was_here = output is not None and output.is_available()
    if status == messages.OK_INLINE:
        if entry.handle is not None or output is None:
            entry.value = result.value  # else nobody reads it here, and it may go before its graph does
        if output is not None:
            _inline(state, output, result.value)
    elif status == messages.OK_STORED and was_here:
        state.unlinks.setdefault(instance.worker_id, []).append(f"{state.run}-{entry.task_id}.{entry.attempt}")
    elif status == messages.OK_STORED:
        if output is None:
            output = entry.output = FileEntry(entry.task_id)
            output.producer = entry
            output.holds = 1  # the handle's, which releases it
        _stored(state, instance.worker, entry, output, result.size_bytes)
    elif output is not None:
        output.kept = True
    finish(state, entry)
    if output is not None and status != messages.OK_KEPT:
        if not was_here:
            lineage.became_available(state, output)
        if not output.is_needed():
            lineage.release(state, output)


def _inline(state: ManagerState, output: FileEntry, value: bytes) -> None:
    """The value of this attempt came in its answer."""
    if output.coming:
        lineage.drop_copies(state, output)  # of the attempt before, whose size may have been another
    output.data = value
    if not output.on_workers:
        output.size_bytes = len(value)  # else that of the copies, by which their workers count


def _stored(state: ManagerState, worker: WorkerEntry, entry: TaskEntry, output: FileEntry, size_bytes: int) -> None:
    """The value of this attempt is an object of a worker."""
    if entry.graph is not None and entry.graph.bring_home:
        state.bring_home.append(output)
    if output.coming:
        lineage.drop_copies(state, output)
    output.name = f"{state.run}-{entry.task_id}.{entry.attempt}"
    output.size_bytes = size_bytes
    output.on_workers = (worker.worker_id,)
    output.maker = worker.worker_id
    state.held[output.name] = output
    worker.hold(output)
    replication.look_at(state, output)


def _kept_at(worker: WorkerEntry) -> dict[int, TaskEntry]:
    """Finished vertices whose values are kept in a slot for others of their bundle, some of which is still placed."""
    bundles = {entry.bundle for entry in worker.placed() if entry.bundle is not None}
    members = [entry for bundle in bundles for entry in bundle.entries if entry.state is t.FINISHED]
    return {entry.task_id: entry for entry in members if entry.output is not None and entry.output.kept}


def _written_later(state: ManagerState, worker: WorkerEntry, entry: TaskEntry | None, result: Result) -> None:
    """The rest of a bundle was taken from its slot: a value that was kept there for it can be had by all now.

    What reads it is still placed there: the slot hands that back behind the values that it needs.
    """
    output = entry.output if entry is not None else None
    if output is not None and output.is_available():
        output.kept = False  # a relay of an earlier attempt brought it meanwhile: one object of a value is enough
    if entry is None or output is None or not output.kept or entry.attempt != result.attempt:
        if result.size_bytes:
            _drop_late(state, worker.worker_id, f"{state.run}-{result.task_id}.{result.attempt}")
        return
    output.kept = False
    if result.size_bytes:
        _stored(state, worker, entry, output, result.size_bytes)
    else:
        _inline(state, output, result.value)
    lineage.became_available(state, output)
    if not output.is_needed():
        lineage.release(state, output)


def _reported(state: ManagerState, worker: WorkerEntry, entry: TaskEntry, report: messages.Report, is_last: bool) -> None:
    """What a sandbox left: its products are files now (if it is not run again), objects that it wrote into are not any more."""
    entry.report = report
    for name, size, content in report.products:
        file = entry.products[int(name.rpartition(".")[2])]
        if file.is_available() or not is_last:
            state.unlinks.setdefault(worker.worker_id, []).append(name)
            continue
        file.size_bytes = size
        file.never_made = False
        if content or size == 0:
            file.data = content
        else:
            if file.coming:
                lineage.drop_copies(state, file)
            file.name = name
            file.on_workers = (worker.worker_id,)
            file.maker = worker.worker_id
            state.held[name] = file
            worker.hold(file)
            replication.look_at(state, file)
        lineage.became_available(state, file)
    _lose_damaged(state, worker.worker_id, report)


def _lose_damaged(state: ManagerState, worker_id: int, report: messages.Report) -> None:
    """What a task wrote into is no copy any more, whoever still waits for that task."""
    for name in report.damaged:
        damaged = state.held.get(name)
        state.unlinks.setdefault(worker_id, []).append(name)
        if damaged is not None:
            lose_copy(state, damaged, worker_id)


def _products_settled(state: ManagerState, entry: TaskEntry) -> None:
    """A task has ended for good: who waits for a product that it did not make fails, products that nobody wants go."""
    for file in entry.products:
        if not file.is_available():
            # Whoever made this entry fail deals with its readers too.
            for reader in file.consumers if entry.error is None else ():
                if reader.state is t.WAITING:
                    fail(state, reader, FileLost(_never_made(entry)), b"")
        elif not file.is_needed():
            lineage.release(state, file)


def finish(state: ManagerState, entry: TaskEntry) -> None:
    """An entry has its outcome: let go of its inputs, tell its handle."""
    if state.notes_wanted:
        state.notes.append(
            TaskMoved(state.now, entry.task_id, entry.attempt, entry.state, t.FINISHED, str(entry.error or "done"))
        )
    entry.state = t.FINISHED
    state.tasks.pop(entry.task_id, None)
    entry.instance = None
    graph = entry.graph
    if graph is not None:
        graph.finished_count += 1
    if entry.products and entry.error is None:
        for file in entry.products:
            file.never_made = not file.is_available()
    if entry.inputs:
        lineage.use_ended(state, entry)
    if entry.handle is not None:
        state.delivered.append(entry)
    if entry.products:
        _products_settled(state, entry)


def _raised(state: ManagerState, entry: TaskEntry, error: bytes) -> None:
    """User code raised: again if retries are left, else that is the outcome."""
    if entry.retries > 0:
        entry.retries -= 1
        _again(state, entry, "raised, retries left")
    else:
        fail(state, entry, RAISED, error)


def _again(state: ManagerState, entry: TaskEntry, cause: str) -> None:
    bundle = entry.bundle
    lineage.wait_again(state, entry, cause)
    if bundle is not None and bundle.remaining == 0:
        _bundle_ended(state, bundle)


def _cut_short(state: ManagerState, entry: TaskEntry, report: messages.Report) -> None:
    """A vertex was ended by one of its limits, or its directory could not be made: it has no value."""
    if entry.retries > 0:
        entry.retries -= 1
        _again(state, entry, "raised, retries left")
    else:
        fail(state, entry, TaskFailed(f"task {entry.task_id} ({entry.kind.name}) was ended: {report.outcome}"), b"")


def _not_run(state: ManagerState, entry: TaskEntry, status: int, text: bytes) -> None:
    """It did not run to its end: no fault of the user's code."""
    if status == messages.LOST:
        entry.losses += 1
        state.counters.lost += 1
        why = text.decode("utf-8", "replace")
        no_room = any(said in why for said in NO_ROOM)
        if no_room:
            _had_no_room(entry)
        if entry.losses > state.tunables.max_losses:
            guess = ""
            if no_room:
                guess = " (is the disk of each worker full?)"
            elif ": " not in why or "was killed by" in why:  # otherwise the text gives a reason of its own
                guess = " (a crash in native code, os._exit, or the kernel's out-of-memory killer)"
            who = f"task {entry.task_id} ({entry.kind.name})"
            error = SlotLost(f"{who} was lost {entry.losses} times: {why}{guess}; it is not tried again")
            fail(state, entry, error, b"")
            return
    elif status == messages.NO_INPUT:
        name = text.decode("utf-8", "replace")
        if _forget_missing(state, entry, name) and entry.losses > state.tunables.max_losses:
            who = f"task {entry.task_id} ({entry.kind.name})"
            why = f"{who} did not find its input {name}, or was lost, {entry.losses} times"
            if name in state.unreadable:
                why = f"{who} cannot have an input: {state.unreadable[name]}"
            else:
                why += "; it is not tried again (is a worker's disk full?)"
            fail(state, entry, FileLost(why), b"")
            return
    _again(state, entry, "lost" if status == messages.LOST else "handed back")


def _forget_missing(state: ManagerState, entry: TaskEntry, name: str) -> bool:
    """A slot did not find an object that we believed to be on its worker: believe the slot. True when that counts as a loss.

    A value of the same bundle that was not made is named by its number: that is no loss.
    """
    instance = entry.instance
    found = [file for file in entry.inputs if file.name == name and name]
    for file in found:
        if instance is not None:
            lose_copy(state, file, instance.worker_id)
    if found:
        entry.losses += 1
        if instance is not None and state.now < instance.worker.copies_from:
            _had_no_room(entry)
    return bool(found)


def _had_no_room(entry: TaskEntry) -> None:
    """The disk of the worker that it was placed on did not take its result, or an input: others are tried first."""
    if entry.instance is not None:
        entry.no_room_at = (entry.no_room_at or set()) | {entry.instance.worker_id}


def lose_copy(state: ManagerState, file: FileEntry, worker_id: int) -> None:
    """A worker does not hold a file any more."""
    worker = state.workers.get(worker_id)
    if worker is not None:
        worker.forget_file(file)
    file.coming = without_worker(file.coming, worker_id)
    if worker_id in file.on_workers:
        file.on_workers = without_worker(file.on_workers, worker_id)
        replication.look_at(state, file)
        if not file.is_available():
            lineage.became_unavailable(state, file)
    if not file.on_workers and not file.coming:
        state.held.pop(file.name, None)


def _bundle_ended(state: ManagerState, bundle: Bundle) -> None:
    """The slot's table is empty now: a kept value that somebody still needs is made again.

    An entry that was taken out of this bundle may have its value kept by another one since.
    """
    for entry in bundle.entries:
        output = entry.output
        if output is not None and output.kept and entry.bundle is bundle:
            output.kept = False
            if not output.is_needed():
                lineage.release(state, output)
            elif not output.is_available():
                lineage.make_again(state, output)


def fail(state: ManagerState, entry: TaskEntry, error: Exception | str | None, value: bytes) -> None:
    """An entry cannot succeed: so cannot those that need its output, nor its graph."""
    pending = [entry]
    ended: list[Bundle] = []
    while pending:
        task = pending.pop()
        if task.state is t.FINISHED:
            continue
        task.error, task.value = error, value
        if error == CANCELLED:
            state.counters.cancelled += 1
        else:
            state.counters.failed += 1
        if task.state is t.NEW:
            task.inputs = ()  # it came in the same event and has not been counted as a reader
        if task.before is not None:
            _revoke(state, task, ended)
        graph = task.graph
        if graph is not None and not graph.failed:
            _give_up(state, graph)
            task.handle = graph.handle
            pending.extend(v for v in graph.vertices if v is not task and v.state is not t.FINISHED)
        elif graph is not None and task is not entry:
            task.handle = None
        finish(state, task)
        for output in outputs_of(task):
            if not output.is_available():
                pending.extend(c for c in output.consumers if c.state is not t.FINISHED)
    for bundle in ended:
        _bundle_ended(state, bundle)


def _give_up(state: ManagerState, graph: GraphEntry) -> None:
    """No vertex of this graph is submitted any more: nobody is to come for its values."""
    graph.failed = True
    for entry in graph.vertices:
        output = entry.output
        if output is not None:
            output.to_come = 0
            if entry.state is t.FINISHED and not output.is_needed():
                lineage.release(state, output)


def _revoke(state: ManagerState, entry: TaskEntry, ended: list[Bundle]) -> None:
    """Take a placed entry away from its worker; its bundle goes into ``ended`` with the last of its entries."""
    instance = entry.instance
    assert instance is not None
    placement.unplace(entry)
    instance.library.offer(instance)
    state.cancels.setdefault(instance.worker_id, []).append((entry.task_id, entry.attempt))
    if entry.bundle is not None and entry.bundle.remaining == 0:
        ended.append(entry.bundle)


def cancelled(state: ManagerState, entries: list[TaskEntry]) -> None:
    """The user gives entries up; what needs them fails too."""
    for entry in entries:
        if entry.state is not t.FINISHED and entry.task_id in state.tasks:
            fail(state, entry, CANCELLED, b"")


def graph_cancelled(state: ManagerState, graph: GraphEntry) -> None:
    """The user gives a graph up: nobody is told."""
    _give_up(state, graph)
    outside: list[TaskEntry] = []
    ended: list[Bundle] = []
    for entry in graph.vertices:
        if entry.state is not t.FINISHED:
            entry.handle = None
            entry.error = CANCELLED
            if entry.state is t.PLACED:
                _revoke(state, entry, ended)
            finish(state, entry)
            state.counters.cancelled += 1
            if entry.output is not None:
                outside.extend(c for c in entry.output.consumers if c.graph is not graph)
    for bundle in ended:
        _bundle_ended(state, bundle)
    for reader in outside:
        fail(state, reader, CANCELLED, b"")


def fail_lost(state: ManagerState) -> None:
    """Files are gone for good: what waits for them fails."""
    files, state.lost_files = state.lost_files, []
    for file in files:
        for reader in file.consumers:
            if reader.state is t.WAITING and not file.is_available():
                maker = file.producer
                why = f"{file.name or 'a value'} is gone, and nothing can make it again"
                if file.never_made and maker is not None:
                    why = _never_made(maker)
                fail(state, reader, FileLost(why), b"")


def taken_back(state: ManagerState, entries: list[TaskEntry]) -> None:
    """A worker leaves on purpose while it holds these placed entries: they run elsewhere, nobody is to blame."""
    for entry in entries:
        placement.unplace(entry)
    for entry in entries:
        if entry.state is t.PLACED:
            _again(state, entry, "handed back")


def worker_lost(state: ManagerState, worker: WorkerEntry, entries: list[TaskEntry]) -> None:
    """A worker left with these placed entries."""
    for entry in entries:
        placement.unplace(entry)
        entry.losses += 1
        state.counters.lost += 1
    for entry in entries:
        if entry.state is not t.PLACED:
            continue
        error: VineError | LostError | None = None
        if entry.losses > state.tunables.max_losses:
            error = WorkerLost(
                f"task {entry.task_id} ({entry.kind.name}) was lost {entry.losses} times with its worker, the last time "
                f"{worker.hello.hostname}; it is not tried again"
            )
            fail(state, entry, error, b"")
        else:
            _again(state, entry, "lost")


def send_cancels(state: ManagerState) -> None:
    """One Cancel for each worker concerned."""
    for worker_id, tasks in state.cancels.items():
        if worker_id in state.workers:
            state.orders.append(orders.SendTo(worker_id, messages.Cancel(tasks)))
    state.cancels = {}
