"""Libraries as the manager sees them: installed, started on workers, ready, failed, removed."""

from __future__ import annotations

from vinecore.errors import LibraryFailed
from vinecore.manager import lineage, near, on_tasks, orders, placement
from vinecore.manager import transitions as t
from vinecore.manager.entries import CodeEntry, GraphEntry, Instance, LibraryEntry, TaskEntry, WorkerEntry
from vinecore.manager.state import ManagerState
from vinecore.model.notes import LibraryMoved
from vinecore.wire import messages

# Pieces of finished graphs are forgotten on workers when each has so many of them, or so many bytes, on the average; higher:
# fewer messages, more memory.
FORGET_COUNT = 32
FORGET_BYTES = 256 * 1024
# And when so many bytes of them have gathered here, wherever they are.
FORGET_TOTAL_BYTES = 16 * 1024 * 1024


def installed(state: ManagerState, library: LibraryEntry) -> None:
    """Calls of this library may come now; it is started where workers are."""
    state.libraries[library.library_id] = library
    for file, _, _ in library.setup.mounts:
        file.holds += 1
    if library.eager:
        placement.ensure_started(state, library)


def forget_codes(state: ManagerState, graph: GraphEntry, codes: list[CodeEntry]) -> None:
    """The pieces of a graph that is over take no more memory on workers; many small ones are told of together."""
    if graph.finished_count < len(graph.vertices):
        return  # some of it runs again for others
    for code in codes:
        if code.file is not None:
            lineage.release(state, code.file)
        code.requires = ()  # none of it runs again: the functions that it names may go before it does
        state.forgotten.append(code)
        size = len(code.payload) if code.file is None else code.file.size_bytes
        state.forgotten_bytes += size
        state.forgotten_copies += len(code.holders)
        state.forgotten_copies_bytes += size * len(code.holders)
    workers = max(1, len(state.workers))
    few = state.forgotten_copies < FORGET_COUNT * workers and state.forgotten_copies_bytes < FORGET_BYTES * workers
    if few and state.forgotten_bytes < FORGET_TOTAL_BYTES:
        return
    gone, state.forgotten = state.forgotten, []
    state.forgotten_bytes = state.forgotten_copies = state.forgotten_copies_bytes = 0
    _tell_forgotten(state, gone)


def drop_codes(state: ManagerState, codes: list[CodeEntry]) -> None:
    """Functions that no caller holds: workers forget those that no unfinished task calls; the others are looked at later.

    The payload stays as long as a task names it: one that has ended is told of it once more when its value is lost.
    """
    candidates = [*state.unused_codes, *codes]
    used = {entry.code for entry in state.tasks.values()}
    used.update(required for entry in state.tasks.values() for required in entry.code.requires)
    state.unused_codes = [code for code in candidates if code in used]
    _tell_forgotten(state, [code for code in candidates if code not in used])


def _tell_forgotten(state: ManagerState, gone: list[CodeEntry]) -> None:
    told: dict[Instance, list[int]] = {}
    for code in gone:
        for instance in code.holders:
            if instance.state is not t.GONE:
                instance.known_code = None
                told.setdefault(instance, []).append(code.code_id)
        code.holders = {}
    for instance, ids in told.items():
        message = messages.ForgetCode(instance.library.library_id, ids)
        state.orders.append(orders.SendTo(instance.worker_id, message))


def start_wanted(state: ManagerState, worker: WorkerEntry) -> None:
    """A worker joined: start what has work, and what every worker gets at once."""
    state.fleet += 1
    for library in state.libraries.values():
        if library.eager or any(len(shape.ready) for shape in library.shapes):
            if library.fleet == state.fleet - 1:
                placement.start_on(state, library, worker)  # all others have it
                library.fleet = state.fleet
            else:
                placement.ensure_started(state, library)


def ready(state: ManagerState, worker: WorkerEntry, message: messages.LibraryReady) -> None:
    """An instance takes calls."""
    instance = worker.instances.get(message.library_id)
    if instance is None:
        return
    if message.note and not instance.library.told_unsafe:
        instance.library.told_unsafe = True
        state.orders.append(orders.Say(_unsafe_text(instance.library, message.note)))
    if message.lacks and not instance.library.told_fewer:
        instance.library.told_fewer = True
        who = f"library {instance.library.name!r} goes on with {message.slots} slot{'s' if message.slots > 1 else ''}"
        state.orders.append(orders.Say(f"{who} on worker {worker.hello.hostname}: {message.lacks}"))
    if instance.state is t.UP and message.slots != instance.slots:
        _resize(state, instance, message.slots)
    if instance.state is not t.STARTING or not message.slots:
        return
    instance.library.failed_on.clear()
    instance.slots = message.slots
    instance.move(t.INSTANCE[instance.state, "ready"])
    instance.library.offer(instance)
    for shape in instance.library.shapes:
        if len(shape.ready):
            state.activate(shape)
    _note(state, instance.library, worker, instance.state, message.note)


def _resize(state: ManagerState, instance: Instance, slots: int) -> None:
    library = instance.library
    if 0 <= slots <= (library.slots or max(1, instance.worker.hello.cores)):
        instance.resize(slots)
        if not slots:
            near.abandon(state, instance)
        for shape in library.shapes:
            if len(shape.ready):
                state.activate(shape)


def _unsafe_text(library: LibraryEntry, why: str) -> str:
    how = (
        "each call loads it anew in a process of its own"
        if library.exec_mode == "fork"
        else "each of its slots loads it by itself"
    )
    return f"library {library.name!r} cannot be forked: {why}; {how}"


def slow(state: ManagerState, worker: WorkerEntry, message: messages.LibrarySlow) -> None:
    """An instance takes long to start: the user hears of it once, if calls have nowhere else to go."""
    instance = worker.instances.get(message.library_id)
    if instance is None or (instance.state is not t.STARTING and instance.slots):
        return
    library = instance.library
    count = sum(len(shape.ready) for shape in library.shapes)
    if library.told_slow or library.slots_up or not count:
        return
    library.told_slow = True
    who = f"library {library.name!r} has been starting for {message.seconds:.0f} s on worker {worker.hello.hostname}"
    waits = f"{count} call{'s wait' if count > 1 else ' waits'} for it"
    state.orders.append(orders.Say(f"{who}; it is {message.doing}; {waits}"))


def gone(state: ManagerState, worker: WorkerEntry, message: messages.LibraryGone) -> None:
    """An instance ended: its calls run elsewhere. With an error it failed here for a while; failed everywhere, its calls fail."""
    instance = worker.instances.get(message.library_id)
    if instance is None or instance.state is t.GONE:
        return
    library = instance.library
    if library.slots_up:
        library.failed_on.clear()
    instance.move(t.GONE)
    near.abandon(state, instance)
    _note(state, library, worker, instance.state, message.error)
    if message.error:
        instance.error, instance.error_data = message.error, message.traceback
        instance.failed_at = state.now
        library.retry_at = min(library.retry_at, state.now + state.tunables.library_restart_window)
        if not library.slots_up:
            library.failed_on.add(worker.worker_id)
    on_tasks.worker_lost(state, worker, instance.placed())
    # Where it takes longer to fail than to be tried again, one of several workers may always be at it.
    if message.error and (_is_gone_everywhere(state, library) or library.failed_on >= state.workers.keys()):
        library.failed_on.clear()
        _fail_calls(state, library, message.error, message.traceback)


def _is_gone_everywhere(state: ManagerState, library: LibraryEntry) -> bool:
    """True when it failed on each connected worker, and there is one."""
    instances = library.instances
    if not instances or library.slots_up or len(instances) != len(state.workers):
        return False
    return all(i.state is t.GONE for i in instances.values())


def fail_hopeless(state: ManagerState) -> None:
    """Ready calls of libraries that failed on every worker fail too, instead of waiting for a worker that may never come."""
    for shape in list(state.active):
        library = shape.library
        if library.removed:
            _fail_removed(state, library)
        elif not library.hungry and library.latest is None and _is_gone_everywhere(state, library):
            last = next(iter(library.instances.values()))
            _fail_calls(state, library, last.error, last.error_data)


def _fail_removed(state: ManagerState, library: LibraryEntry) -> None:
    """Its waiting calls fail, and so do calls that would make a lost value again."""
    for entry in _calls_of(state, library):
        on_tasks.fail(state, entry, LibraryFailed(f"library {library.name!r} was removed while its calls were waiting"), b"")
    for shape in library.shapes:
        shape.ready.drain()


def _fail_calls(state: ManagerState, library: LibraryEntry, error: str, data: bytes) -> None:
    """They never ran. ``data``: what was raised while the library was loaded, which is their outcome then."""
    for entry in _calls_of(state, library):
        on_tasks.fail(state, entry, LibraryFailed(f"library {library.name!r} cannot be started on any worker: {error}"), data)


def _calls_of(state: ManagerState, library: LibraryEntry) -> list[TaskEntry]:
    return [entry for entry in state.tasks.values() if entry.kind.shape.library is library]


def removed(state: ManagerState, library: LibraryEntry) -> None:
    """The user removed a library: its instances end, its waiting calls fail."""
    library.removed = True
    state.libraries.pop(library.library_id, None)
    _fail_removed(state, library)
    for worker_id, instance in library.instances.items():
        instance.worker.instances.pop(library.library_id, None)
        if instance.state is not t.GONE:
            instance.move(t.GONE)
            state.orders.append(orders.SendTo(worker_id, messages.StopLibrary(library.library_id)))
    library.instances.clear()
    files = [file for file, _, _ in library.setup.mounts]
    for file in files if library.file is None else [library.file, *files]:
        file.holds -= 1
        if not file.is_needed():
            lineage.release(state, file)


def _note(state: ManagerState, library: LibraryEntry, worker: WorkerEntry, now_is: str, text: str) -> None:
    if state.notes_wanted:
        state.notes.append(LibraryMoved(state.now, library.name, worker.worker_id, now_is, text))
