"""Libraries at the worker: starting parents, hoisting modules, generations of slots, bounded restarts.

A new generation of slots is forked when code names modules that the parent had not imported before its slots were forked; the old
slots drain. Libraries with a context of their own are never re-forked: their slots may hold state. A parent that ends while it
imports such modules is started again without them: the calls that need them import them in their slot, and end that at worst.

A library with functions of its own says what it does while it loads them. Modules that were only found in its functions are left
out in the same way when the parent ends, or hangs, while it imports them; what the user named must be there for it to start.
"""

from __future__ import annotations

import math

from vinecore.wire import messages
from vinecore.worker import on_calls, orders
from vinecore.worker.state import NOT_REVOKED, CodeHere, WorkerLibrary, WorkerState

# Forked slots that end before their first call, within the window, until their library is given up. More than for those that load
# it themselves: what can fail then has worked in the parent, and all slots may be killed at once from outside, twice.
FORKED_ENDS = 20
# A slot that loads the library itself, was ready and ends within this time without a call is no idle one that was ended. Lower:
# more of those that end as soon as they are started are started for ever.
QUICK_END_S = 1.0
# Slots that could not be started beside others are tried again after this time; lower: what they need (a licence, a port) is
# found sooner when it is free, and their programs say more often that it is not.
REFILL_S = 60.0
# A module that the user named, or the functions, that take longer to be there: the library fails. Lower: heavy stacks that many
# workers read from one slow file system at once are not waited for; higher: an import that never ends is found out later.
LOAD_LIMIT_S = 300.0
# A library that has been starting for so long is told of, if calls wait for it.
SLOW_START_S = 60.0
_LIMITS_S = {
    messages.FOUND: on_calls.HOIST_LIMIT_S,
    messages.NAMED: LOAD_LIMIT_S,
    messages.UNPICKLE: LOAD_LIMIT_S,
}


def start_library(state: WorkerState, message: messages.StartLibrary) -> None:
    """Start an instance; its slots are forked when its code is loaded."""
    if message.library_id in state.libraries:
        return
    library = state.libraries[message.library_id] = WorkerLibrary(message)
    library.restarts.append(state.now)
    needed = {message.payload_name, *(mount.source for mount in message.mounts if isinstance(mount.source, str))}
    library.missing = {name for name in needed if name and name not in state.objects}
    for name in sorted(library.missing):
        if name not in state.fetching:
            # That it could not be fetched was found out before this message came.
            state.fetching[name] = []
            state.orders.append(orders.FetchObject(name, 0))
        state.late_starts.setdefault(name, []).append(message.library_id)
    if not library.missing:
        _start_host(state, library)


def _start_host(state: WorkerState, library: WorkerLibrary) -> None:
    """Start its parent; if it was to be told that this takes long, that stays so."""
    if not library.start_began:
        library.start_began = state.now
        library.slow_at = state.now + SLOW_START_S
    _plan_look(library)
    state.orders.append(orders.StartHost(library.library_id, library.spec, frozenset(library.deadly)))


def _plan_look(library: WorkerLibrary) -> None:
    """Note when something that is under way will have taken too long."""
    dues = [library.slow_at] if library.slow_at else []
    if library.hoisting:
        dues.append(library.hoist_began + on_calls.HOIST_LIMIT_S)
    if library.refill_at:
        dues.append(library.refill_at)
    if library.step is not None and library.step.step in _LIMITS_S:
        dues.append(library.step_began + _LIMITS_S[library.step.step])
    library.look_at = min(dues, default=0.0)


def may_fetch_again(state: WorkerState, name: str) -> bool:
    """Whether libraries wait for an object that could not be fetched, and may be started once more."""
    waiting = [state.libraries[i] for i in state.late_starts.get(name, ()) if i in state.libraries]
    again = [library for library in waiting if len(library.restarts) < library.spec.max_restarts]
    for library in again:
        library.restarts.append(state.now)
    return bool(again)


def payload_settled(state: WorkerState, name: str, error: str) -> None:
    """An object that libraries need for their start came, or will not."""
    for library_id in state.late_starts.pop(name, ()):
        library = state.libraries.get(library_id)
        if library is None:
            continue
        if error:
            _forget(state, library)
            paths = [mount.path for mount in library.spec.mounts if mount.source == name]
            what = f"the input {paths[0]!r}" if paths else "the payload"
            why = f"{what} of library {library.spec.name!r} could not be fetched: {error}"
            state.orders.append(orders.ToManager(messages.LibraryGone(library_id, why)))
            continue
        library.missing.discard(name)
        if not library.missing:
            _start_host(state, library)


def stop_library(state: WorkerState, library_id: int) -> None:
    """End an instance at the manager's wish; what it held is handed back."""
    library = state.libraries.get(library_id)
    if library is None:
        return
    library.stopping = True
    for call in on_calls.outstanding_calls(library):
        state.results.append(messages.Result(call.task_id, call.attempt, messages.HANDED_BACK, 0))
    state.orders.append(orders.StopHost(library_id))
    _forget(state, library)
    state.orders.append(orders.ToManager(messages.LibraryGone(library_id, "")))


def _forget(state: WorkerState, library: WorkerLibrary) -> None:
    """Close the books of an instance whose processes are gone."""
    on_calls.unlink_unreported(state, library)
    for slot_id in list(library.slots):
        del library.slots[slot_id]
        del state.slots[slot_id]
    for waiting in state.fetching.values():
        waiting[:] = [(lib, group) for lib, group in waiting if lib is not library]
    del state.libraries[library.library_id]


def code_came(state: WorkerState, message: messages.Code) -> None:
    """Keep code; when it wants modules that slots do not have, import them first (a new generation of slots)."""
    library = state.libraries.get(message.library_id)
    if library is None:
        return
    library.codes[message.code_id] = CodeHere(message)
    library.has_code_objects = library.has_code_objects or bool(message.name)
    fresh = set(message.modules) - library.hoisted - library.hoisting - library.deadly
    if fresh and not library.spec.payload and not library.spec.payload_name:
        library.wanted_modules |= fresh
        _hoist(state, library)


def _hoist(state: WorkerState, library: WorkerLibrary) -> None:
    """Ask the parent for the wanted modules, one request at a time; no call that needs them starts meanwhile."""
    if not library.began or library.hoisting or not library.wanted_modules:
        return
    library.hoisting, library.wanted_modules = library.wanted_modules, set()
    library.hoist_began = state.now
    _plan_look(library)
    state.orders.append(orders.ToHost(library.library_id, messages.Hoist(sorted(library.hoisting))))


def forget_code(state: WorkerState, message: messages.ForgetCode) -> None:
    """Free code here and in the slots."""
    library = state.libraries.get(message.library_id)
    if library is None:
        return
    for code_id in message.code_ids:
        library.codes.pop(code_id, None)
    for slot in library.slots.values():
        known = [code_id for code_id in message.code_ids if code_id in slot.codes]
        if known:
            slot.codes.difference_update(known)
            state.orders.append(orders.ToSlot(slot.slot_id, messages.SlotForget(known)))


def host_said(state: WorkerState, library_id: int, message: object) -> None:
    """Progress of a library's parent."""
    library = state.libraries.get(library_id)
    if library is None:
        return
    if isinstance(message, messages.Loading):
        library.step, library.step_began = message, state.now
        _plan_look(library)
    elif isinstance(message, messages.Began):
        if message.error:
            _fail(state, library, message.text, message.error)
            return
        library.began = True
        library.step = None
        _plan_look(library)
        library.unsafe = message.unsafe
        if library.wanted_modules:
            _hoist(state, library)
        else:
            on_calls.open_slots(state, library, library.spec.slots)
    elif isinstance(message, messages.Hoisted):
        if message.unsafe and not library.unsafe:
            library.ready_told = False  # to be told again, with the reason
        library.unsafe = message.unsafe
        _hoisted(state, library)
    elif isinstance(message, messages.Forked):
        slot = state.slots.get(message.slot_id)
        if slot is not None:
            slot.pid = message.pid
            if not _loads_itself(library):
                slot_ready(state, message.slot_id)
    elif isinstance(message, messages.SlotExited) and message.slot_id in library.closing:
        library.closing.remove(message.slot_id)
        _slot_ended(state, library)


def _loads_itself(library: WorkerLibrary) -> bool:
    """Whether each of its slots loads it, and says when it has done so: until then a slot is given nothing."""
    return bool(library.unsafe or library.spec.program)


def slot_ready(state: WorkerState, slot_id: int) -> None:
    """A slot takes calls: the first one makes its library ready. What it loads itself may take as long as it likes."""
    slot = state.slots.get(slot_id)
    if slot is None or slot.is_ready:
        return
    library = state.libraries[slot.library_id]
    slot.is_ready = library.was_ready = True
    slot.ready_at = state.now
    library.failed_slots = 0
    library.start_began = library.slow_at = 0.0
    _plan_look(library)
    _tell_ready(state, library)
    on_calls.feed(state, library)


def _fail(state: WorkerState, library: WorkerLibrary, why: str, error: bytes = b"") -> None:
    """End an instance that cannot load what it needs."""
    _forget(state, library)
    state.orders.append(orders.StopHost(library.library_id))
    _tell_gone(state, library, why, error)


def _tell_gone(state: WorkerState, library: WorkerLibrary, why: str, error: bytes = b"") -> None:
    if library.deadly:
        names = ", ".join(sorted(library.deadly))
        why = f"{why} (importing {names} had ended its process before, or had not ended)"
    state.orders.append(orders.ToManager(messages.LibraryGone(library.library_id, why, error)))


def _hoisted(state: WorkerState, library: WorkerLibrary) -> None:
    """Modules are there (or cannot be imported, which calls will find out): fork slots that have them."""
    library.hoisted |= library.hoisting
    library.hoisting = set()
    if library.wanted_modules:
        _plan_look(library)
        _hoist(state, library)
        return
    library.generation += 1
    library.lacking, library.refill_at = 0, 0.0
    _plan_look(library)
    for slot in list(library.slots.values()):
        if not slot.draining:
            slot.draining = True
            if not slot.outstanding:
                on_calls.close_slot(state, slot)
    on_calls.open_slots(state, library, library.spec.slots)


def _tell_ready(state: WorkerState, library: WorkerLibrary) -> None:
    if not library.ready_told or library.told_lacking != library.lacking:
        library.ready_told, library.told_lacking = True, library.lacking
        slots, lacks = library.spec.slots - library.lacking, library.lacks if library.lacking else ""
        state.orders.append(orders.ToManager(messages.LibraryReady(library.library_id, slots, library.unsafe, lacks)))


def _await_slots(state: WorkerState, library: WorkerLibrary) -> None:
    """Note since when none of its slots takes calls, if that is so."""
    if library.began and not library.start_began and not any(s.is_ready and not s.draining for s in library.slots.values()):
        library.start_began = state.now
        library.slow_at = state.now + SLOW_START_S
        _plan_look(library)


def _tell_none(state: WorkerState, library: WorkerLibrary) -> None:
    """It was ready, and what comes in the place of its slots takes long: what waits here may run elsewhere."""
    library.told_lacking = library.spec.slots
    state.orders.append(orders.ToManager(messages.LibraryReady(library.library_id, 0, library.unsafe)))
    for group in library.queue:
        state.results.extend(messages.Result(call.task_id, call.attempt, messages.HANDED_BACK, 0) for call in group.calls)
    library.queue.clear()
    library.queued_calls = 0
    # What is said next counts the calls that wait.
    if state.results:
        state.orders.append(orders.ToManager(messages.Done(state.results)))
        state.results = []


def slot_gone(state: WorkerState, slot_id: int, started: int, how: str) -> None:
    """A slot died. Those of a library must not die before their first call again and again."""
    slot = state.slots.get(slot_id)
    if slot is None:
        return
    library = state.libraries[slot.library_id]
    # Another one may have what this one did not get (a licence, a port, a process), or get it yet; one that takes no more calls
    # may have it until it has ended.
    others = [other for other in library.slots.values() if other is not slot]
    goes_on = bool(others or library.closing)
    if started != NOT_REVOKED:
        why = ""
    elif not slot.is_ready:
        why = _start_failed(library)
    elif _loads_itself(library):
        why = _ended_idle(library, bool(slot.outstanding) or state.now < slot.ready_at + QUICK_END_S)
        # One that works is none of those.
        goes_on = any(other.outstanding for other in others)
    else:
        why = _ended_early(state, library)
    on_calls.slot_gone(state, slot_id, started, how, not why)
    if slot.draining:
        _slot_ended(state, library)
    elif why and goes_on:
        _go_on_with_fewer(state, library, any(other.is_ready and not other.draining for other in others), how)
    elif why:
        _give_up(state, library, f"slots of library {library.spec.name!r} ended {why}: its process {how or 'died'}")
        return
    _await_slots(state, library)


def _start_failed(library: WorkerLibrary) -> str:
    """A slot ended while it loaded the library itself, or could not be made. When that was so too often: how often, for people.

    However long each took: a program that waits for its licence, and ends without it, may take longer than any window.
    """
    library.failed_slots += 1
    return f"{library.failed_slots} times before they were ready" if library.failed_slots >= library.spec.max_restarts else ""


def _go_on_with_fewer(state: WorkerState, library: WorkerLibrary, is_ready: bool, how: str) -> None:
    library.lacking += 1
    spec = library.spec
    library.lacks = f"{library.lacking} of its {spec.slots} slots could not be started, the last one's process {how or 'died'}"
    library.refill_at = state.now + REFILL_S
    _plan_look(library)
    if is_ready:
        library.failed_slots = 0
        _tell_ready(state, library)


def _slot_ended(state: WorkerState, library: WorkerLibrary) -> None:
    """One that took no more calls: what it had (a licence, a port) is free now. Starts that failed until then do not count."""
    library.failed_slots = 0
    if library.lacking:
        _refill(state, library)
    _await_slots(state, library)


def _refill(state: WorkerState, library: WorkerLibrary) -> None:
    """Try those again that could not be started, each once; as often as at the beginning if there is no other."""
    count, library.lacking, library.refill_at = library.lacking, 0, 0.0
    library.failed_slots = max(library.failed_slots, library.spec.max_restarts - 1) if library.slots else 0
    _plan_look(library)
    on_calls.open_slots(state, library, count)


def _ended_idle(library: WorkerLibrary, is_odd: bool) -> str:
    """The same of one that was ready. Idle programs may end when they like, but not all of them before they answer a call.

    ``is_odd``: it had a call, or ended at once. All slots may be killed from outside, twice.
    """
    spec = library.spec
    answered = library.answered + sum(slot.first for slot in library.slots.values())
    if answered != library.answered_then:
        library.answered_then, library.idle_ends = answered, 0
    library.idle_ends += is_odd
    too_many = library.idle_ends > max(spec.max_restarts, 2 * spec.slots + 1)
    return f"{library.idle_ends} times without answering a call" if too_many else ""


def _ended_early(state: WorkerState, library: WorkerLibrary) -> str:
    """The same of a forked one."""
    spec, ends = library.spec, library.early_ends
    most = max(FORKED_ENDS, spec.max_restarts, 2 * spec.slots + 1)
    while ends and ends[0] < state.now - spec.restart_window_s:
        ends.popleft()
    ends.append(state.now)
    return f"{len(ends)} times in {spec.restart_window_s:g} s before their first call" if len(ends) >= most else ""


def _give_up(state: WorkerState, library: WorkerLibrary, why: str) -> None:
    """End an instance whose slots do not stay; its calls may run elsewhere."""
    for call in on_calls.outstanding_calls(library):
        state.results.append(messages.Result(call.task_id, call.attempt, messages.HANDED_BACK, 0))
    state.orders.append(orders.StopHost(library.library_id))
    _forget(state, library)
    state.orders.append(orders.ToManager(messages.LibraryGone(library.library_id, why)))


def look_at_imports(state: WorkerState) -> None:
    """A parent that loads or imports for too long is ended, and started again without the modules that were only found."""
    for library in list(state.libraries.values()):
        if not library.look_at or state.now < library.look_at:
            continue
        step = library.step
        if library.slow_at and state.now >= library.slow_at:
            library.slow_at = 0.0
            if library.ready_told:
                _tell_none(state, library)
            slow = messages.LibrarySlow(library.library_id, state.now - library.start_began, _doing(library))
            state.orders.append(orders.ToManager(slow))
        if library.refill_at and state.now >= library.refill_at:
            _refill(state, library)
        if library.hoisting and state.now >= library.hoist_began + on_calls.HOIST_LIMIT_S:
            _end_parent(state, library, f"importing {', '.join(sorted(library.hoisting))}", on_calls.HOIST_LIMIT_S)
        elif step is not None and state.now >= library.step_began + _LIMITS_S.get(step.step, math.inf):
            limit_s = _LIMITS_S[step.step]
            if step.step == messages.FOUND:
                _end_parent(state, library, step.text(), limit_s)
            else:
                _fail(state, library, f"{step.text()} had not ended after {limit_s:g} s")
        else:
            _plan_look(library)


def _doing(library: WorkerLibrary) -> str:
    """What a library that is not ready does, for people."""
    if library.hoisting:
        return f"importing {', '.join(sorted(library.hoisting))}"
    if library.began and library.spec.program:
        return "waiting for its program to say that it is ready"
    if library.began:
        return "loading its functions in processes of their own" if library.unsafe else "forking its slots"
    return library.step.text() if library.step is not None else "starting its process"


def _end_parent(state: WorkerState, library: WorkerLibrary, doing: str, limit_s: float) -> None:
    # At once, and before the books are closed: a slot could write results that nobody owns.
    for slot_id in library.slots:
        state.orders.append(orders.KillSlot(slot_id))
    state.orders.append(orders.StopHost(library.library_id))
    host_gone(state, library.library_id, f"its process was ended: {doing} took {limit_s:g} s")


def host_gone(state: WorkerState, library_id: int, text: str) -> None:
    """A parent died, its slots with it: start it again, unless it does so too often.

    That is within a window, however well it began; and in a row, however long each took, when none got a slot ready.
    """
    library = state.libraries.get(library_id)
    if library is None:
        return
    spec = library.spec
    starts = library.restarts
    while starts and starts[0] < state.now - spec.restart_window_s:
        starts.popleft()
    on_calls.lose_slots(state, library, text)
    codes, queue, queued_calls = library.codes, library.queue, library.queued_calls
    staged = [(name, group) for name, waiting in state.fetching.items() for owner, group in waiting if owner is library]
    _forget(state, library)
    failed = 0 if library.was_ready else library.failed_starts + 1
    too_many = len(starts) >= spec.max_restarts
    is_last = too_many or failed >= spec.max_restarts
    # That can happen as often as there are modules, and no more. One may also take effect a moment later (by a thread that it
    # started): before the library is given up, it is tried without any.
    suspects = _suspects(library, is_last)
    ended_by_import = bool(suspects)
    if is_last and not ended_by_import:
        where = f" while {library.step.text()}" if library.step is not None and library.step.step != messages.INIT else ""
        often = f"{len(starts)} times in {spec.restart_window_s:g} s" if too_many else f"{failed} times before it was ready"
        _tell_gone(state, library, f"library {spec.name!r} ended {often}: {text}{where}")
        return
    again = state.libraries[library_id] = WorkerLibrary(spec)
    again.codes, again.has_code_objects = codes, library.has_code_objects
    # What no slot had is not lost: it waits for the new parent.
    again.queue, again.queued_calls = queue, queued_calls
    for name, group in staged:
        state.fetching[name].append((again, group))
    again.ready_told, again.told_lacking = library.ready_told, library.told_lacking
    again.deadly = library.deadly | suspects
    for code in codes.values():
        again.wanted_modules |= set(code.message.modules) - again.hoisted - again.deadly
    if spec.payload or spec.payload_name:
        again.wanted_modules = set()
    again.restarts.extend(starts if ended_by_import else [*starts, state.now])
    again.failed_starts = max(0, failed - 1) if ended_by_import else failed
    again.start_began, again.slow_at = library.start_began, library.slow_at
    _start_host(state, again)


def _suspects(library: WorkerLibrary, is_last: bool) -> set[str]:
    """Modules whose import may have ended a parent; ``is_last``: it is not started again unless there are some."""
    if library.hoisting:
        return library.hoisting
    if library.step is not None and library.step.step == messages.FOUND:
        return {library.step.name}
    if not is_last:
        return set()
    spec = library.spec
    found = set(spec.modules) if spec.payload or spec.payload_name else library.hoisted - set(spec.modules)
    return found - library.deadly
