"""Files: wanted at the manager, fetched by workers, released, lost."""

from __future__ import annotations

from vinecore.manager import lineage, on_tasks, orders, placement, replication, splices, transfers
from vinecore.manager import transitions as t
from vinecore.manager.entries import FileEntry, WorkerEntry
from vinecore.manager.state import ManagerState, Relay
from vinecore.manager.worker_sets import with_worker, without_worker
from vinecore.wire import messages

# How a worker's reason begins when the source does not have the object, or has damaged bytes.
NOT_THERE = "FileLost"


def wanted(state: ManagerState, file: FileEntry, handle: object, gone: str = "") -> None:
    """Somebody wants the bytes here: say where they are, bring them, or make them again first.

    ``gone``: a path that was said before, where they are not: the worker whose copy that should be has lost it.
    """
    if gone and file.on_workers:
        for worker_id in list(file.on_workers):
            if gone == f"{state.workers[worker_id].hello.store}/{file.name}":
                state.unlinks.setdefault(worker_id, []).append(file.name)
                on_tasks.lose_copy(state, file, worker_id)
    if file.data is not None or file.at_manager:
        state.orders.append(orders.FileHere(file, handle, ""))
        return
    if file.on_workers:
        for worker_id in file.on_workers:
            hello = state.workers[worker_id].hello
            if hello.machine == state.machine and handle is not None and not state.never_map:
                state.orders.append(orders.FileHere(file, handle, f"{hello.store}/{file.name}"))
                return
        placement.bring_here(state, file)
        state.wanted_here[file.name].append(handle)
        return
    producer = file.producer
    is_over = producer is not None and producer.state is t.FINISHED and (producer.is_final or producer.error is not None)
    if producer is None or is_over or file.never_made or not file.is_needed():
        why = "it was released" if not file.is_needed() else "the task ended without it" if file.never_made else "nothing made it"
        if producer is not None and producer.error is not None:
            why = f"the task that makes it failed: {producer.error}"
        state.orders.append(orders.FileFailed(file, handle, f"{why}, and no copy of it is left"))
        return
    # It is being made (again): asked for once more when it is there.
    state.wanted_later.append((file, handle))
    lineage.make_again(state, file)


def bring_home(state: ManagerState) -> None:
    """Bring new values to the manager, for graphs that asked for that."""
    files, state.bring_home = state.bring_home, []
    for file in files:
        if file.on_workers and not file.at_manager and file.is_needed():
            placement.bring_here(state, file)


def look_again(state: ManagerState) -> None:
    """Files that were wanted before they existed."""
    waiting, state.wanted_later = state.wanted_later, []
    for file, handle in waiting:
        producer = file.producer
        if file.is_available() or producer is None or (producer.state is t.FINISHED and not file.kept):
            wanted(state, file, handle)
        else:
            state.wanted_later.append((file, handle))


def arrived(state: ManagerState, transfer_id: int) -> None:
    """A worker brought an object: it is at the manager now."""
    relay = state.relays.pop(transfer_id, None)
    if relay is None:
        return
    file = relay.file
    handles = state.wanted_here.pop(relay.name, [])
    if not file.is_needed() or relay.name != file.name or file.data is not None or file.at_manager:
        # Released meanwhile, or made again under another name: these bytes are of no use.
        state.orders.append(orders.ForgetObjects([relay.name]))
        placement.unpark(state, relay.name)
        for handle in handles:
            wanted(state, file, handle)
        return
    was_lost = not file.is_available()
    file.at_manager = True
    for handle in handles:
        state.orders.append(orders.FileHere(file, handle, ""))
    if was_lost:
        lineage.became_available(state, file)
    placement.unpark(state, relay.name)


def upload_failed(state: ManagerState, worker: WorkerEntry, message: messages.UploadFailed) -> None:
    """The object was not there: believe the worker, try another copy or make it again."""
    relay = state.relays.pop(message.transfer_id, None)
    if relay is not None:
        _relay_failed(state, relay)
        return
    splice = state.splices.get(message.transfer_id)
    if splice is not None and splice.source_id == worker.worker_id:
        if message.reason.startswith(NOT_THERE) and splice.file.name == splice.name:
            _drop_bad_copy(state, splice.file, worker.worker_id)
        splices.source_failed(state, splice)


def _drop_bad_copy(state: ManagerState, file: FileEntry, worker_id: int) -> None:
    on_tasks.lose_copy(state, file, worker_id)
    state.unlinks.setdefault(worker_id, []).append(file.name)


def relays_lost(state: ManagerState, worker_id: int) -> None:
    """A worker left with these transfers under way."""
    for transfer_id in [i for i, relay in state.relays.items() if relay.worker_id == worker_id]:
        _relay_failed(state, state.relays.pop(transfer_id))


def _relay_failed(state: ManagerState, relay: Relay) -> None:
    file = relay.file
    handles = state.wanted_here.pop(relay.name, [])
    if file.name == relay.name:
        _drop_bad_copy(state, file, relay.worker_id)
    placement.unpark(state, relay.name)
    for handle in handles:
        wanted(state, file, handle)


def fetched(state: ManagerState, worker: WorkerEntry, message: messages.Fetched) -> None:
    """A worker has an object that it was told to fetch, or tried again for the start of a library."""
    transfers.ended(state, message.name, worker.worker_id)
    splices.ended(state, message.name, worker.worker_id)
    file = worker.held.get(message.name) or _needed_by_library(state, worker, message.name)
    if file is not None and worker.worker_id in file.coming:
        file.coming = without_worker(file.coming, worker.worker_id)
        was_lost = not file.is_available()
        file.on_workers = with_worker(file.on_workers, worker.worker_id)
        replication.look_at(state, file)
        if was_lost:
            lineage.became_available(state, file)


def _needed_by_library(state: ManagerState, worker: WorkerEntry, name: str) -> FileEntry | None:
    """The file of a library that a worker fetched once more by itself; what nobody needs there is dropped."""
    for instance in worker.instances.values():
        library = instance.library
        for file in (library.file, *(file for file, _, _ in library.setup.mounts)):
            if file is not None and file.name == name and file.is_needed():
                file.coming = with_worker(file.coming, worker.worker_id)
                state.held[name] = file
                worker.hold(file)
                return file
    state.unlinks.setdefault(worker.worker_id, []).append(name)
    return None


def fetch_failed(state: ManagerState, worker: WorkerEntry, message: messages.FetchFailed) -> None:
    """A worker could not fetch an object; its calls find it missing and come back."""
    splice = state.splices_to.get((message.name, worker.worker_id))
    passed_on_by = 0 if splice is None else splice.source_id
    splices.ended(state, message.name, worker.worker_id)
    named = transfers.ended(state, message.name, worker.worker_id)
    # Where no source is named it was this worker's own disk: nobody else is to blame.
    transfers.not_reached(state, worker, [named[number] for number in message.unreached if 0 <= number < len(named)])
    file = state.held.get(message.name)
    lacking = [named[number] for number in message.absent if 0 <= number < len(named)]
    if passed_on_by and message.reason.startswith(NOT_THERE):
        lacking.append(passed_on_by)
    for source_id in lacking:
        # It may have vanished there without a word.
        state.unlinks.setdefault(source_id, []).append(message.name)
        if file is not None:
            on_tasks.lose_copy(state, file, source_id)
    if file is None:
        return
    if file.at_manager and not named and message.reason.startswith(NOT_THERE):
        state.unreadable[file.name] = message.reason.removeprefix(f"{NOT_THERE}: ")
    file.coming = without_worker(file.coming, worker.worker_id)
    if not message.unreached and not lacking:
        worker.copies_from = state.now + replication.PAUSE_S
    replication.look_at(state, file)
    if worker.worker_id not in file.on_workers:
        worker.forget_file(file)
    if not file.on_workers and not file.coming:
        state.held.pop(file.name, None)
    # If it was code: whatever needs it next must send it again.
    for instance in worker.instances.values():
        instance.code_life += 1
        instance.known_code = None


def lost_copy(state: ManagerState, worker_id: int, name: str) -> None:
    """An object vanished from a worker's store."""
    file = state.held.get(name)
    if file is not None:
        on_tasks.lose_copy(state, file, worker_id)


def released(state: ManagerState, files: list[FileEntry]) -> None:
    """References from outside ended."""
    for file in files:
        file.holds -= 1
        if not file.is_needed():
            lineage.release(state, file)


def graph_ended(state: ManagerState, files: list[FileEntry], keep: bool) -> None:
    """The values of a graph were read: they are let go of, or kept without what made them."""
    if not keep:
        released(state, files)
        return
    for file in files:
        lineage.cut(state, file)


def pruned(state: ManagerState, file: FileEntry) -> None:
    """Drop the copies on workers; needed again, it is made again."""
    had = file.is_available()
    lineage.drop_copies(state, file)
    if had and not file.is_available():
        lineage.became_unavailable(state, file)


def send_unlinks(state: ManagerState) -> None:
    """One Unlink for each worker concerned."""
    for worker_id, names in state.unlinks.items():
        if worker_id in state.workers:
            state.orders.append(orders.SendTo(worker_id, messages.Unlink(names)))
    state.unlinks = {}
