"""Work that was sent to one worker, and waits there behind long calls, is asked back while others idle (``HandBack``).

    tick --even_out--> HandBack to instances that have not answered for long --> Results HANDED_BACK --> common line

Groups behind those that run are asked for soon, the rest of a bundle once its vertex runs for much longer than usual. What comes
back does not go behind the same call again (``near.is_held_up``).
"""

from __future__ import annotations

from itertools import islice

from vinecore.manager import near, orders
from vinecore.manager.entries import Instance, LibraryEntry
from vinecore.manager.placement import MOST_PER_SLOT
from vinecore.manager.state import ManagerState
from vinecore.wire import messages

# Pause before an instance is asked again; higher: later balance where it could not give anything at first.
ASK_AGAIN_S = 0.1
# One that gave nothing since it answered is asked ever less often: after this share of the time until then, at most so long.
PATIENCE_SHARE = 0.25
ASK_AGAIN_LIMIT_S = 1.0
# The rest of a bundle is asked for after this time at the latest, longer than a bundle was to take; lower: more values that could
# stay in a slot are written, and travel.
CUT_LIMIT_S = 0.25
# More work than this for each slot, by measured time, is asked for without waiting for a long call; lower: more is moved that
# would have had its turn soon.
BACKLOG_S = 0.5
# Busy instances looked at, and free slots counted, at most; and seconds between two looks for each instance of a library.
EVEN_OUT_LOOKS = 256
EVEN_OUT_PAUSE_S = 1e-5


def even_out(state: ManagerState) -> float | None:
    """Ask instances for work that waits behind long calls while others of their library idle; returns when to look again."""
    if len(state.workers) < 2:
        return None
    dues = [due for library in state.libraries.values() if library.piled for due in _even_out(state, library)]
    return min(dues, default=None)


def _even_out(state: ManagerState, library: LibraryEntry) -> list[float]:
    """The same for one library; when to look at those again that are not asked yet, or were asked."""
    library.line_up()
    room = _free_slots(library)
    dues: list[float] = []
    bundles: list[Instance] = []
    # The next look would otherwise follow at once, where many answer at any time.
    soonest = state.now + EVEN_OUT_PAUSE_S * len(library.instances)
    for instance in list(islice(library.piled.values(), EVEN_OUT_LOOKS if room else 0)):
        waiting, patience_s = _behind(instance)
        if waiting == 0:
            instance.is_piled = False
            del library.piled[instance.worker_id]
            continue
        due = max(instance.progress_at + patience_s, _ask_again_at(instance))
        if instance.worker.takes_work() and state.now >= due:
            if room <= 0:
                break  # asking more of them would only move work to and fro; the next look begins with this one
            if instance.groups_out > instance.slots:
                room -= _ask(state, instance, waiting, room)
                dues.append(state.now + ASK_AGAIN_S)
            else:
                bundles.append(instance)
        elif instance.worker.takes_work():
            dues.append(max(due, soonest))
        library.piled.move_to_end(instance.worker_id)
    # Behind those that have whole groups to give: these may have nothing that can be cut off.
    for instance in bundles:
        if room <= 0:
            library.piled.move_to_end(instance.worker_id, last=False)
            continue
        room -= _ask(state, instance, _behind(instance)[0], room)
        dues.append(state.now + ASK_AGAIN_S)
    return dues


def _ask_again_at(instance: Instance) -> float:
    """When it may be asked again."""
    pause_s = ASK_AGAIN_S
    if _is_silent(instance):
        pause_s = max(pause_s, min(PATIENCE_SHARE * (instance.asked_at - instance.progress_at), ASK_AGAIN_LIMIT_S))
    return instance.asked_at + pause_s


def _is_silent(instance: Instance) -> bool:
    """It was asked for what waits there, and gave nothing."""
    return instance.asked_at > max(instance.progress_at, instance.gave_at)


def _ask(state: ManagerState, instance: Instance, waiting: int, room: int) -> int:
    """Ask for as much as free slots can take; returns how many of them that needs. One that gave nothing keeps none of them."""
    share = _calls_of_slot(state, instance.mean_us)
    asked = min(waiting, room * share)
    needed = 0 if _is_silent(instance) else -(-asked // share)
    if _is_much(instance):
        # Into the common line, for those too whose slots get free later.
        asked = max(asked, instance.outstanding - instance.slots * share)
    asked = min(asked, MOST_PER_SLOT)
    instance.asked_at = state.now
    state.orders.append(orders.SendTo(instance.worker_id, messages.HandBack(asked, instance.library.library_id)))
    return needed


def _behind(instance: Instance) -> tuple[int, float]:
    """Calls that wait behind what runs there, and how long that may take before they are asked for."""
    if instance.groups_out > instance.slots:
        return instance.outstanding - instance.slots, 0.0 if _is_much(instance) else near.STUCK_S
    # Nothing but bundles, perhaps: what is left of them is cut there.
    return instance.outstanding - instance.groups_out, max(near.STUCK_S, min(near.long_s(instance), CUT_LIMIT_S))


def _is_much(instance: Instance) -> bool:
    """Calls turned out longer than they were thought to be when they were placed there: its answers come in time all the same."""
    is_piled = instance.groups_out > instance.slots
    return is_piled and instance.outstanding * instance.mean_us > BACKLOG_S * 1e6 * instance.slots


def _calls_of_slot(state: ManagerState, mean_us: float) -> int:
    """Calls of such a length that one slot may have."""
    return max(1, min(MOST_PER_SLOT, int(state.tunables.pipeline_ms * 1000.0 / mean_us))) if mean_us else 1


def _free_slots(library: LibraryEntry) -> int:
    """Slots that nothing runs in, counted until there are enough of them."""
    room = 0
    for instance in library.idle.values():
        if instance.is_open:
            room += max(0, instance.slots - instance.groups_out)
            if room >= EVEN_OUT_LOOKS:
                break
    return room
