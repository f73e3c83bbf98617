"""Calls at the worker: queues, batches for slots, answers, slots that die.

Work goes to slots in batches of about ``BATCH_US`` by measured time, so that a tiny call costs little and a long one never
waits behind another while a slot idles. What was sent and not started can be taken back: ``on_claims.py``.
"""

from __future__ import annotations

import math
from collections import deque
from itertools import compress
from operator import not_

from vinecore.errors import ProtocolError
from vinecore.wire import messages
from vinecore.wire.messages import Call, Result
from vinecore.worker import orders
from vinecore.worker.state import NOT_REVOKED, CodeHere, Group, WorkerLibrary, WorkerSlot, WorkerState

# Time of work sent to a slot at once; higher: fewer messages for tiny calls, more to take back when one is long after all.
BATCH_US = 6000.0
# Calls in one batch; bounds a frame and the work that is lost with a slot.
BATCH_COUNT = 256
# A batch is cut behind the call that exceeds this; bounds a frame, which must stay far below CONTROL_FRAME_LIMIT_BYTES.
BATCH_BYTES = messages.BATCH_LIMIT_BYTES
# Calls longer than this are sent one at a time: the gap between them no longer matters.
LONG_CALL_US = 3000.0
# Calls that a slot catches up at most, where others had more of them; bounds for how long it is preferred.
CATCH_UP_COUNT = 16_384
# Only a slot that has answered within this time is preferred: what goes to one that is stuck has to be taken back again.
CATCH_UP_S = 0.005
# Groups at the front of a queue that are looked at for some which need not wait for an import; higher: more work for each answer.
HOIST_LOOKS = 64
# An import by a parent that takes longer is given up: slots import these modules themselves. Lower: heavy stacks on slow file
# systems are imported once for each slot; higher: one that never ends holds up the first calls of a library longer.
HOIST_LIMIT_S = 60.0
# Weight of a new measurement in the mean.
MEAN_WEIGHT = 0.2
# A batch's mean counts as at most this many means: one long call does not make all batches small.
OUTLIER_FACTOR = 10.0


def run_came(state: WorkerState, message: messages.Run) -> None:
    """Queue new groups; those whose objects are not here wait aside."""
    library = state.libraries.get(message.library_id)
    if library is None or library.stopping:
        for calls in message.groups:
            for call in calls:
                state.results.append(Result(call.task_id, call.attempt, messages.HANDED_BACK, 0))
        return
    values = dict(message.values) if message.values else None
    for calls in message.groups:
        group = Group(calls, values)
        if library.has_code_objects and not _has_code(state, library, group):
            # Sent before the manager heard that the fetch failed; it sends the code again.
            for call in calls:
                state.results.append(Result(call.task_id, call.attempt, messages.HANDED_BACK, 0))
            continue
        missing = _missing(state, library, group) if state.fetching else None
        if missing:
            group.missing = missing
            for name in missing:
                state.fetching[name].append((library, group))
        else:
            library.queue.append(group)
            library.queued_calls += len(calls)
    feed(state, library)


def _missing(state: WorkerState, library: WorkerLibrary, group: Group) -> set[str]:
    """Names of objects on their way that this group needs."""
    names: set[str] = set()
    for call in group.calls:
        for ref in refs_of(call):
            if isinstance(ref, str) and ref in state.fetching:
                names.add(ref)
        names.update(name for name in _code_names(library, call.code_id) if name in state.fetching)
    return names


def _has_code(state: WorkerState, library: WorkerLibrary, group: Group) -> bool:
    """Whether all code of a group is here or on its way."""
    return all(
        name in state.objects or name in state.fetching for call in group.calls for name in _code_names(library, call.code_id)
    )


def _code_names(library: WorkerLibrary, code_id: int) -> set[str]:
    """Objects that hold this code or what it names."""
    return {code.message.name for code in _codes_of(library, code_id) if code.message.name}


def _codes_of(library: WorkerLibrary, code_id: int) -> list[CodeHere]:
    """This code and what it names, as far as it is here."""
    found: list[CodeHere] = []
    pending, seen = [code_id], {code_id}
    while pending:
        code = library.codes.get(pending.pop())
        if code is not None:
            found.append(code)
            fresh = [required for required in code.message.requires if required not in seen]
            seen.update(fresh)
            pending.extend(fresh)
    return found


def object_settled(state: WorkerState, name: str, error: str) -> None:
    """An object came (or will not): groups that waited for it go on; a missing input is found missing by the slot.

    Without its code a group cannot go to a slot at all: its first call is lost, the others are handed back.
    """
    for library, group in state.fetching.pop(name, ()):
        if group.missing is None:
            continue
        if error and any(name in _code_names(library, call.code_id) for call in group.calls):
            for waiting in state.fetching.values():
                waiting[:] = [(other, queued) for other, queued in waiting if queued is not group]
            _give_back(state, group, f"the object {name} with its code could not be fetched: {error}")
            continue
        group.missing.discard(name)
        if not group.missing:
            group.missing = None
            library.queue.append(group)
            library.queued_calls += len(group.calls)
            feed(state, library)


def _give_back(state: WorkerState, group: Group, why: str) -> None:
    """Report a group that no slot has: the first call bears the blame, so that the number of tries is bounded."""
    group.missing = None
    status, text = messages.LOST, why.encode()
    for call in group.calls:
        state.results.append(Result(call.task_id, call.attempt, status, 0, text))
        status, text = messages.HANDED_BACK, b""


def refs_of(call: Call) -> list[int | str]:
    """Everything that a call reads: its inputs, and what is mounted in its sandbox."""
    if call.sandbox is None:
        return call.inputs
    return call.inputs + [mount.source for mount in call.sandbox.mounts]


def feed(state: WorkerState, library: WorkerLibrary) -> None:
    """Give slots work while both are there."""
    if not library.queue or not library.began:
        return
    if not library.hoisting:
        _share_out(state, library)
        return
    # What needs modules that the parent is importing waits for slots that have them; the rest does not wait for that.
    front = [library.queue.popleft() for _ in range(min(HOIST_LOOKS, len(library.queue)))]
    modules = library.hoisting | library.wanted_modules
    wants = [_wants(library, group, modules) for group in front]
    behind, library.queue = library.queue, deque(compress(front, map(not_, wants)))
    if library.queue:
        _share_out(state, library)
    library.queue.extend(compress(front, wants))
    library.queue.extend(behind)


def _wants(library: WorkerLibrary, group: Group, modules: set[str]) -> bool:
    """Whether the code of a group, or what that names, imports one of these."""
    return any(not modules.isdisjoint(code.message.modules) for call in group.calls for code in _codes_of(library, call.code_id))


def _share_out(state: WorkerState, library: WorkerLibrary) -> None:
    mean = library.mean_us
    slots = [s for s in library.slots.values() if s.is_ready and not s.draining and s.revoked_from == NOT_REVOKED]
    if library.retiring:
        # Those that retire still work: the ones in their place would be too many. The same of slots whose work is taken back.
        slots.sort(key=lambda s: not s.outstanding)
        busy = sum(bool(s.outstanding) and (s.draining or s.revoked_from != NOT_REVOKED) for s in library.slots.values())
        slots = slots[: max(0, library.spec.slots - busy)]
    if not slots:
        return
    count = 1 if mean == 0.0 or mean > LONG_CALL_US else max(1, min(BATCH_COUNT, math.ceil(BATCH_US / mean)))
    # A slot with this many calls or more gets no further batch yet.
    enough = 1 if mean > LONG_CALL_US else count
    if len(slots) > 1:
        # Of slots that hold equally much the one that had least so far: work that trickles in spreads over all of them.
        slots.sort(key=lambda s: (len(s.outstanding), s.had))
        if count == BATCH_COUNT:
            _catch_up(state, library, slots)
    # Twice, slot by slot: one batch runs while the next waits in the socket, but no slot gets its second before all have one.
    for _ in range(2):
        for slot in slots:
            if not library.queue:
                return
            held = len(slot.outstanding)
            if slot.draining:
                continue
            if held >= (enough if mean > LONG_CALL_US else 2 * enough):
                continue
            share = max(1, -(-library.queued_calls // len(slots)))
            if held and 2 * share < count:
                # Fragments breed: what they free comes back as fragments. A slot that has work can wait for more.
                continue
            _send_batch(state, library, slot, min(count, share))


def _catch_up(state: WorkerState, library: WorkerLibrary, slots: list[WorkerSlot]) -> None:
    """Tiny calls go first to the slot that had fewest, if it is behind: where slots mostly wait for work it would stay so.

    The others may have nothing to do meanwhile, for the time of two batches.
    """
    most = max(slot.had for slot in slots)
    behind = min(slots, key=lambda slot: slot.had)
    behind.had = max(behind.had, most - CATCH_UP_COUNT)
    if behind.outstanding and state.now - behind.progress_at > CATCH_UP_S:
        return
    while library.queue and most - behind.had > BATCH_COUNT and len(behind.outstanding) < 2 * BATCH_COUNT:
        if behind.draining:
            return  # it has had all the calls that it may have
        _send_batch(state, library, behind, BATCH_COUNT)


def _send_batch(state: WorkerState, library: WorkerLibrary, slot: WorkerSlot, count: int) -> None:
    """Move groups of about ``count`` calls to a slot, with the code and the inline inputs that it lacks.

    A group is one unit: a slot with a limit on its calls may exceed it by what is left of its last group.
    """
    most = library.spec.max_calls
    if most:
        count = min(count, most - slot.sent)
    batch = messages.Batch(slot.sent, [], [])
    values: dict[int, bytes] = {}
    taken = 0
    outstanding = slot.outstanding
    size = 0
    while library.queue and taken < count and size < messages.BATCH_LIMIT_BYTES:
        group = library.queue.popleft()
        calls = group.calls
        for call in calls:
            if call.code_id not in slot.codes:
                _send_code(state, library, slot, call.code_id)
            outstanding.append((call, group))
            size += len(call.payload)
            if call.sandbox is not None:
                size += messages.sandbox_bytes(call.sandbox)
        if group.values is not None:
            size += _collect_values(group, values)
        batch.groups.append(calls)
        taken += len(calls)
    if not outstanding or len(outstanding) == taken:
        slot.progress_at = state.now
    slot.sent += taken
    slot.had += taken
    library.queued_calls -= taken
    if values:
        batch.values = list(values.items())
    state.orders.append(orders.ToSlot(slot.slot_id, batch))
    if most and slot.sent >= most:
        retire(state, library, slot)


def _collect_values(group: Group, into: dict[int, bytes]) -> int:
    """Add the inline inputs of a group; returns how many bytes came on top."""
    have = group.values
    assert have is not None
    size = 0
    for call in group.calls:
        for ref in refs_of(call):
            if isinstance(ref, int) and ref in have and ref not in into:
                into[ref] = have[ref]
                size += len(have[ref])
    return size


def _send_code(state: WorkerState, library: WorkerLibrary, slot: WorkerSlot, code_id: int) -> None:
    slot.codes.add(code_id)
    code = library.codes.get(code_id)
    if code is None:  # part of the library itself, or forgotten: the slot says so
        return
    for required in code.message.requires:
        if required not in slot.codes:
            _send_code(state, library, slot, required)
    message = code.message
    code_for_slot = messages.SlotCode(code_id, message.payload, message.is_piece, message.name, message.requires)
    state.orders.append(orders.ToSlot(slot.slot_id, code_for_slot))


def slot_answered(state: WorkerState, slot_id: int, results: list[Result]) -> None:
    """Close the books of answered calls and pass their results on.

    Raises:
        ProtocolError: these are not the calls that it was given, or not in that order.
    """
    slot = state.slots.get(slot_id)
    if slot is None:
        return
    library = state.libraries[slot.library_id]
    outstanding, out = slot.outstanding, state.results
    total, measured, later, is_doubtful = 0, 0, messages.WRITTEN_LATER, False
    for result in results:
        if result.status == later:
            # Of a call that was answered before: its group was cut.
            if result.size_bytes and state.welcome is not None:
                state.objects[f"{state.welcome.run}-{result.task_id}.{result.attempt}"] = result.size_bytes
            out.append(result)
            continue
        if not outstanding or outstanding[0][0].task_id != result.task_id:
            raise ProtocolError(f"a slot answered task {result.task_id}, which is not what it runs")
        call, group = outstanding.popleft()
        sequence = slot.first
        slot.first = sequence + 1
        if sequence >= slot.taken or sequence in slot.returned:
            continue
        if sequence in slot.cancelled:
            slot.cancelled.discard(sequence)
            if result.status == messages.OK_STORED or result.report is not None:
                _unlink_results(state, [call], False)
            if result.report is not None and result.report.damaged:
                _forget_damaged(state, result.report)
                state.orders.append(orders.ToManager(messages.Removed(result.report.damaged)))
            continue
        if result.status == messages.HANDED_BACK and len(group.calls) == 1:
            library.queue.appendleft(group)
            library.queued_calls += 1
            continue
        if result.status == messages.OK_STORED and state.welcome is not None:
            state.objects[f"{state.welcome.run}-{result.task_id}.{result.attempt}"] = result.size_bytes
        if result.report is not None:
            state.objects.update((name, size) for name, size, content in result.report.products if size and not content)
            _forget_damaged(state, result.report)
            is_doubtful = is_doubtful or result.report.exit_code != 0 or bool(result.report.missing)
        out.append(result)
        if result.status >= messages.RAISED:
            is_doubtful = True
            if result.status == messages.NO_INPUT:
                _forget_missed(state, result.value.decode("utf-8", "replace"))
        if result.status <= messages.RAISED:
            total += result.duration_us
            measured += 1
    if is_doubtful:
        state.orders.append(orders.LookAtStore())
    if measured:
        _measure(library, total / measured)
    slot.progress_at = state.now
    if not outstanding:
        _emptied(state, slot)
    feed(state, library)


def _measure(library: WorkerLibrary, mean: float) -> None:
    known = library.mean_us
    library.mean_us = known + MEAN_WEIGHT * (min(mean, OUTLIER_FACTOR * known) - known) if known else mean
    if library.mean_us <= 0.0:
        library.mean_us = 0.1


def _forget_missed(state: WorkerState, name: str) -> None:
    """A slot has looked, and the manager will believe it: a copy that came since then would have no owner."""
    if state.objects.pop(name, None) is not None:
        state.orders.append(orders.UnlinkObjects([name]))


def _emptied(state: WorkerState, slot: WorkerSlot) -> None:
    """A slot has answered everything: nothing is revoked there any more, and it ends if it was to."""
    if slot.taken != NOT_REVOKED or slot.revoked_from != NOT_REVOKED:
        slot.taken = slot.revoked_from = NOT_REVOKED
        slot.is_revoking = False
        slot.cancelled.clear()
        slot.returned.clear()
        state.orders.append(orders.Revoke(slot.slot_id, NOT_REVOKED))
    if slot.draining:
        close_slot(state, slot)


def _forget_damaged(state: WorkerState, report: messages.Report) -> None:
    """The slot has dropped what its call wrote into."""
    for name in report.damaged:
        state.objects.pop(name, None)


def slot_gone(state: WorkerState, slot_id: int, started: int, how: str, is_replaced: bool) -> None:
    """A slot died: blame the call it had started, run the others elsewhere, fork a new one."""
    slot = state.slots.pop(slot_id)
    library = state.libraries[slot.library_id]
    del library.slots[slot_id]
    library.answered += slot.first
    library.retiring -= slot.retiring
    again: list[Group] = []
    ours = slot.is_killed or started in slot.cancelled
    # What it wrote and could not report any more has no owner.
    _unlink_results(state, [call for _, call, _ in slot.held()], True)
    for number, call, group in slot.held():
        if number in slot.cancelled:
            continue
        if number == started and not ours:
            state.results.append(Result(call.task_id, call.attempt, messages.LOST, 0, f"its process {how or 'died'}".encode()))
        elif len(group.calls) == 1:
            again.append(group)
        else:
            # What a bundle made before is gone with the slot: the manager decides what to run again.
            state.results.append(Result(call.task_id, call.attempt, messages.HANDED_BACK, 0))
    for group in reversed(again):
        library.queue.appendleft(group)
        library.queued_calls += 1
    if is_replaced and not slot.draining and not library.stopping and library.began:
        open_slots(state, library, 1)
    feed(state, library)


def lose_slots(state: WorkerState, library: WorkerLibrary, why: str) -> None:
    """All slots of a library died with their parent: the oldest call of each bears the blame, the others are handed back."""
    for slot in library.slots.values():
        for number, call, _ in slot.held():
            if number not in slot.cancelled:
                status, text = (messages.LOST, why.encode()) if number == slot.first else (messages.HANDED_BACK, b"")
                state.results.append(Result(call.task_id, call.attempt, status, 0, text))


def unlink_unreported(state: WorkerState, library: WorkerLibrary) -> None:
    """Slots ended with calls that they had not answered: what these wrote has no owner."""
    for slot in library.slots.values():
        _unlink_results(state, [call for _, call, _ in slot.held()], True)


def _unlink_results(state: WorkerState, calls: list[Call], is_dead: bool) -> None:
    """Remove results and products that nobody is told of, if they were written. ``is_dead``: perhaps only in part."""
    if calls and state.welcome is not None:
        names = [f"{state.welcome.run}-{call.task_id}.{call.attempt}" for call in calls]
        names += [product.name for call in calls if call.sandbox is not None for product in call.sandbox.products]
        state.orders.append(orders.UnlinkObjects(names, is_dead))


def close_slot(state: WorkerState, slot: WorkerSlot) -> None:
    """Let an idle slot end that takes no more work."""
    library = state.libraries[slot.library_id]
    del state.slots[slot.slot_id]
    del library.slots[slot.slot_id]
    library.answered += slot.first
    library.retiring -= slot.retiring
    if slot.pid:
        library.closing.add(slot.slot_id)
    state.orders.append(orders.CloseSlot(slot.slot_id))


def slot_tired(state: WorkerState, slot_id: int) -> None:
    """A slot's memory has grown too much: it is replaced."""
    slot = state.slots.get(slot_id)
    if slot is not None and not slot.draining:
        library = state.libraries[slot.library_id]
        retire(state, library, slot)
        feed(state, library)


def retire(state: WorkerState, library: WorkerLibrary, slot: WorkerSlot) -> None:
    """Give a slot no more calls and open another in its place, which works when this one has ended."""
    slot.draining = slot.retiring = True
    library.retiring += 1
    if not slot.outstanding:
        close_slot(state, slot)
    open_slots(state, library, 1)


def open_slots(state: WorkerState, library: WorkerLibrary, count: int) -> None:
    """Ask for new slots of the current generation."""
    ids = []
    most = max((slot.had for slot in library.slots.values()), default=0)
    for _ in range(count):
        slot = WorkerSlot(state.next_slot_id, library.library_id, library.generation)
        slot.had = most
        state.next_slot_id += 1
        state.slots[slot.slot_id] = library.slots[slot.slot_id] = slot
        ids.append(slot.slot_id)
    state.orders.append(orders.OpenSlots(library.library_id, ids))


def cancel(state: WorkerState, tasks: list[tuple[int, int]]) -> None:
    """Give up calls: queued ones vanish, a running one is killed with its slot; nothing is reported."""
    wanted = set(tasks)
    for library in state.libraries.values():
        kept = []
        for group in library.queue:
            calls = [c for c in group.calls if (c.task_id, c.attempt) not in wanted]
            library.queued_calls -= len(group.calls) - len(calls)
            group.calls = calls
            if calls:
                kept.append(group)
        library.queue.clear()
        library.queue.extend(kept)
        for slot in library.slots.values():
            numbers = {number for number, call, _ in slot.held() if (call.task_id, call.attempt) in wanted}
            if numbers:
                slot.cancelled |= numbers
                state.orders.append(orders.ReadClaim(slot.slot_id))
    for waiting in state.fetching.values():
        for _, group in waiting:
            group.calls = [c for c in group.calls if (c.task_id, c.attempt) not in wanted]
        waiting[:] = [(library, group) for library, group in waiting if group.calls]


def outstanding_calls(library: WorkerLibrary) -> list[Call]:
    """Every call of a library that has not been answered, queued ones included."""
    calls = [call for group in library.queue for call in group.calls]
    for slot in library.slots.values():
        calls.extend(call for _, call, _ in slot.held())
    return calls
