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
# The rest of a bundle is asked for after this time at the latest, longer than a bundle was to take; lower: more values that could
# stay in a slot are written, and travel.
CUT_LIMIT_S = 0.25
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
    # The next look would otherwise follow at once, where many answer at any time.
    soonest = state.now + EVEN_OUT_PAUSE_S * len(library.instances)
    for instance in list(islice(library.piled.values(), EVEN_OUT_LOOKS if room else 0)):
        waiting, patience_s = _behind(instance)
        if waiting == 0:
            instance.is_piled = False
            del library.piled[instance.worker_id]
            continue
        library.piled.move_to_end(instance.worker_id)
        if not instance.worker.takes_work():
            continue
        due = max(instance.progress_at + patience_s, instance.asked_at + ASK_AGAIN_S)
        if state.now < due:
            dues.append(max(due, soonest))
            continue
        if room <= 0:
            break  # asking more of them would only move work to and fro
        instance.asked_at = state.now
        share = _calls_of_slot(state, instance.mean_us)
        asked = min(waiting, room * share, MOST_PER_SLOT)
        room -= -(-asked // share)
        state.orders.append(orders.SendTo(instance.worker_id, messages.HandBack(asked, library.library_id)))
        dues.append(state.now + ASK_AGAIN_S)
    return dues


def _behind(instance: Instance) -> tuple[int, float]:
    """Calls, or groups, that wait behind what runs there, and how long that may take before they are asked for."""
    groups = instance.groups_out - instance.slots
    if groups > 0:
        return groups, near.STUCK_S
    # Nothing but bundles, perhaps: what is left of them is cut there.
    return instance.outstanding - instance.groups_out, max(near.STUCK_S, min(near.long_s(instance), CUT_LIMIT_S))


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
