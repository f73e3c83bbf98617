"""Work that a slot has and has not started is taken back: for an idle slot of this worker, or for the manager (``HandBack``).

    hand_back, rebalance --Revoke--> mark in the claim --ReadClaim--> claim_read --> queue, or Results HANDED_BACK

What the slot may have started until it sees the mark is known from its claim (see ``runtime/slot.py``). Whole groups go anywhere;
the rest of the group that runs is cut off only where its call is long, and only what reads nothing that is in that slot.
"""

from __future__ import annotations

from vinecore.wire import messages
from vinecore.wire.messages import Call, Result
from vinecore.worker import orders
from vinecore.worker.on_calls import feed, refs_of
from vinecore.worker.state import NOT_REVOKED, Group, WorkerLibrary, WorkerSlot, WorkerState

# A slot without an answer for this long, while another idles, gives back what it has not started.
STUCK_S = 0.015
# A group is cut behind a call that runs for so many means (and STUCK_S); lower: values are written that could stay in the slot.
CUT_FACTOR = 10.0
# Or for so long, whatever the mean has become: no group was meant to take more in all (``bundle_large_ms``).
CUT_LIMIT_S = 0.25
# After this long a slot has surely seen a revocation, or published what it started before (store buffers drain in microseconds).
REVOKE_SETTLE_S = 0.005


def hand_back(state: WorkerState, library_id: int, count: int) -> None:
    """Return about ``count`` calls that have not started, newest first; what slots hold must be revoked before."""
    library = state.libraries.get(library_id)
    if library is None:
        return
    # Not on top of what was asked for before and was not there: it would be taken from what comes later.
    library.owed = count
    _pay(state, library)
    if library.owed > 0:
        for slot in library.slots.values():
            if not slot.is_revoking and len(slot.outstanding) > 1:
                border = _border(state, library, slot)
                if border is not None:
                    _revoke(state, slot, border)
        if not any(slot.is_revoking for slot in library.slots.values()):
            library.owed = 0


def _pay(state: WorkerState, library: WorkerLibrary) -> None:
    """Hand back queued groups as long as calls are owed to the manager."""
    while library.owed > 0 and library.queue:
        group = library.queue.pop()
        library.queued_calls -= len(group.calls)
        library.owed = max(0, library.owed - len(group.calls))
        for call in group.calls:
            state.results.append(Result(call.task_id, call.attempt, messages.HANDED_BACK, 0))


def rebalance(state: WorkerState) -> float | None:
    """Take back what stuck slots have not started while others idle; returns when to look again."""
    dues: list[float] = []
    for library in state.libraries.values():
        if library.look_at:
            dues.append(library.look_at)
        idle = not library.queue and any(s.is_ready and not s.outstanding and not s.draining for s in library.slots.values())
        if idle and library.retiring:
            # The one in the place of a slot that retires has to wait for its end.
            idle = sum(bool(s.outstanding) for s in library.slots.values()) < library.spec.slots
        for slot in library.slots.values():
            if not slot.outstanding:
                continue
            # While a revocation waits for the claim, that reading serves both. Of what was cancelled: a call that had not
            # started may start now, so look until it has ended.
            if slot.is_revoking or (slot.cancelled and not slot.is_killed):
                if state.now >= slot.revoke_checked_at + REVOKE_SETTLE_S:
                    slot.revoke_checked_at = state.now
                    state.orders.append(orders.ReadClaim(slot.slot_id))
                dues.append(slot.revoke_checked_at + REVOKE_SETTLE_S)
            if idle and not slot.is_revoking and len(slot.outstanding) > 1:
                due = _revoke_if_stuck(state, library, slot)
                if due is not None:
                    dues.append(due)
    return min(dues, default=None)


def _revoke_if_stuck(state: WorkerState, library: WorkerLibrary, slot: WorkerSlot) -> float | None:
    """Revoke whole groups behind a call that runs for long, and the rest of its own group if that runs for very long.

    Returns when to look again; None: not before something happens.
    """
    stuck_at = slot.progress_at + STUCK_S
    border = _border(state, library, slot)
    if border is not None and state.now >= stuck_at:
        _revoke(state, slot, border)
        return state.now + REVOKE_SETTLE_S
    if border is not None:
        return stuck_at
    return _cut_at(library, slot) if slot.uncut != slot.first else None


def _cut_at(library: WorkerLibrary, slot: WorkerSlot) -> float:
    """When the call that runs there is long enough for its group to be cut behind it."""
    return slot.progress_at + max(STUCK_S, min(CUT_FACTOR * library.mean_us / 1e6, CUT_LIMIT_S))


def _border(state: WorkerState, library: WorkerLibrary, slot: WorkerSlot) -> int | None:
    """From where on what a slot has not started may be taken back now; None: there is nothing.

    Behind the call that runs there, if that is long enough and something of its group can go elsewhere, else behind its group.
    """
    if slot.uncut != slot.first and state.now >= _cut_at(library, slot):
        if _movable(slot, slot.first + 1):
            return slot.first + 1
        slot.uncut = slot.first
    return _group_start(slot, slot.first + 1) if slot.taken == NOT_REVOKED else None


def _revoke(state: WorkerState, slot: WorkerSlot, border: int) -> None:
    slot.revoked_from = border
    slot.revoked_at = slot.revoke_checked_at = state.now
    slot.is_revoking = True
    state.orders.append(orders.Revoke(slot.slot_id, border))


def _group_start(slot: WorkerSlot, least: int) -> int | None:
    """The first sequence number >= ``least`` where an outstanding group begins; None when there is none."""
    previous: Group | None = None
    for number, (_, group) in enumerate(slot.outstanding, slot.first):
        if group is not previous and previous is not None and number >= least:
            return number
        previous = group
    return None


def _movable(slot: WorkerSlot, border: int) -> list[tuple[int, Call]]:
    """Calls from ``border`` to the end of its group that read nothing which the group makes before them in this slot.

    What they make for each other does not matter: they are placed one by one again.
    """
    rest: list[tuple[int, Call]] = []
    cut: Group | None = None
    for number, call, group in slot.held():
        if number < border:
            cut = group
        elif group is cut:
            rest.append((number, call))
    if not rest or cut is None:
        return []
    later = {call.task_id for _, call in rest}
    before = {call.task_id for call in cut.calls if call.task_id not in later}
    return [(number, call) for number, call in rest if number not in slot.cancelled and before.isdisjoint(refs_of(call))]


def claim_read(state: WorkerState, slot_id: int, started: int) -> None:
    """The slot has started ``started``: what was cancelled there ends, what was revoked behind it runs elsewhere."""
    slot = state.slots.get(slot_id)
    if slot is None or not slot.outstanding:
        return
    if started == NOT_REVOKED:
        started = slot.first - 1  # it has not started its first call
    if started in slot.cancelled:
        slot.is_killed = True
        state.orders.append(orders.KillSlot(slot_id))
        return
    if slot.revoked_from == NOT_REVOKED:
        if any(number > started for number in slot.cancelled):
            border = _group_start(slot, started + 1)
            if border is not None:
                _revoke(state, slot, border)
        return
    if slot.is_revoking and state.now >= slot.revoked_at + REVOKE_SETTLE_S:
        _take_back(state, slot, max(slot.revoked_from, started + 1))


def _take_back(state: WorkerState, slot: WorkerSlot, border: int) -> None:
    """Queue again the whole groups that begin at or behind ``border``; hand back what can run elsewhere of one that it cuts.

    The slot hands back the others of that group itself, when it gets there: the values that they need are in it until then.
    """
    library = state.libraries[slot.library_id]
    slot.is_revoking = False
    for number, call in _movable(slot, border):
        slot.returned.add(number)
        slot.had -= 1
        library.owed -= 1
        state.results.append(Result(call.task_id, call.attempt, messages.HANDED_BACK, 0))
    start = _group_start(slot, border)
    # When nothing can be taken the mark is past the end: answers clear the revocation in the usual way.
    end = min(slot.taken, slot.sent)
    slot.taken = min(slot.taken, slot.sent if start is None else start)
    taken: list[Group] = []
    for number, (call, group) in enumerate(slot.outstanding, slot.first):
        if not slot.taken <= number < end:
            continue
        if number in slot.cancelled:
            group.calls = [c for c in group.calls if c is not call]
        if not taken or taken[-1] is not group:
            taken.append(group)
    slot.had -= end - slot.taken
    for group in reversed(taken):
        if group.calls:
            library.queue.appendleft(group)
            library.queued_calls += len(group.calls)
    _pay(state, library)
    # What is still owed has started here meanwhile: the manager asks again if it must.
    library.owed = 0
    feed(state, library)
