"""The worker's machine, event by event: ``orders = machine.handle(event)``."""

from __future__ import annotations

from typing import TypeVar

import msgspec
import pytest

from vinecore.errors import ProtocolError
from vinecore.wire import messages
from vinecore.wire.messages import Call, Result
from vinecore.worker import events, orders
from vinecore.worker.machine import WorkerMachine
from vinecore.worker.on_calls import CATCH_UP_S, CUT_FACTOR, HOIST_LIMIT_S, REVOKE_SETTLE_S, STUCK_S
from vinecore.worker.on_libraries import FORKED_ENDS
from vinecore.worker.state import NOT_REVOKED

M = TypeVar("M")


def call(task_id: int, *inputs: int | str, code_id: int = 1) -> Call:
    return Call(task_id, 1, code_id, -1, b"args", list(inputs), 0, True)


class World:
    """A machine with one library, and what it ordered."""

    def __init__(self, slots: int = 1, max_restarts: int = 3, ready: bool = True) -> None:
        self.machine = WorkerMachine()
        self.now = 100.0
        self.orders: list[object] = []
        self.say(messages.Welcome(1, "r0", 5.0, 20.0))
        self.say(messages.StartLibrary(1, "f", slots, "direct", b"", [], max_restarts, 60.0))
        if ready:
            self.ready()

    def ready(self) -> None:
        self.host(messages.Began(b""))
        for slot_id in [i for o in self.of(orders.OpenSlots) for i in o.slot_ids]:
            self.host(messages.Forked(slot_id, 1000 + slot_id))

    def do(self, event: events.Event) -> list[object]:
        event.now = self.now
        self.orders = list(self.machine.handle(event))
        self.machine.check()
        return self.orders

    def say(self, message: object) -> list[object]:
        return self.do(events.ManagerSaid(0.0, message))

    def host(self, message: object) -> list[object]:
        return self.do(events.HostSaid(0.0, 1, message))

    def run(self, *groups: list[Call], values: list[tuple[int, bytes]] | None = None) -> list[object]:
        return self.say(messages.Run(1, list(groups), values or []))

    def of(self, kind: type[M]) -> list[M]:
        return [o for o in self.orders if isinstance(o, kind)]

    def told(self, kind: type[M]) -> list[M]:
        return [o.message for o in self.of(orders.ToManager) if isinstance(o.message, kind)]

    def results(self) -> list[tuple[int, int]]:
        return [(r.task_id, r.status) for done in self.told(messages.Done) for r in done.results]

    def batches(self) -> list[tuple[int, list[int]]]:
        """(slot, task ids) of what was sent to slots."""
        return [
            (o.slot_id, [c.task_id for group in o.message.groups for c in group])
            for o in self.of(orders.ToSlot)
            if isinstance(o.message, messages.Batch)
        ]

    def answer(self, slot_id: int, *task_ids: int, status: int = messages.OK_INLINE, us: int = 10) -> list[object]:
        return self.do(events.SlotAnswered(0.0, slot_id, [Result(i, 1, status, us, b"v") for i in task_ids]))


def test_a_library_starts_and_tells_when_its_first_slot_is_there() -> None:
    world = World(2, ready=False)
    world.host(messages.Began(b""))
    assert [len(o.slot_ids) for o in world.of(orders.OpenSlots)] == [2]
    world.host(messages.Forked(1, 11))
    assert [m.slots for m in world.told(messages.LibraryReady)] == [2]
    world.host(messages.Forked(2, 12))
    assert not world.told(messages.LibraryReady)


def test_a_call_goes_to_a_slot_and_its_result_to_the_manager() -> None:
    world = World()
    world.run([call(1)])
    assert world.batches() == [(1, [1])]
    world.answer(1, 1)
    assert world.results() == [(1, messages.OK_INLINE)]


def test_code_goes_before_its_first_call_with_what_it_requires() -> None:
    world = World()
    world.say(messages.Code(1, 7, b"f", [], [], False))
    world.say(messages.Code(1, 8, b"piece", [], [7], True))
    world.run([call(1, code_id=8)])
    assert [o.message.code_id for o in world.of(orders.ToSlot) if isinstance(o.message, messages.SlotCode)] == [7, 8]


def test_modules_make_a_new_generation_of_slots() -> None:
    world = World()
    world.say(messages.Code(1, 7, b"f", ["numpy"], [], False))
    assert [o.message.modules for o in world.of(orders.ToHost)] == [["numpy"]]
    world.run([call(1, code_id=7)])
    assert not world.batches()
    world.host(messages.Hoisted(["numpy"], 1))
    assert [o.slot_id for o in world.of(orders.CloseSlot)] == [1]
    world.host(messages.Forked(2, 12))
    assert world.batches() == [(2, [1])]


def test_a_busy_slot_of_the_old_generation_ends_when_it_is_empty() -> None:
    world = World()
    world.run([call(1)])
    world.say(messages.Code(1, 7, b"f", ["numpy"], [], False))
    world.host(messages.Hoisted(["numpy"], 1))
    assert not world.of(orders.CloseSlot)
    world.answer(1, 1)
    assert [o.slot_id for o in world.of(orders.CloseSlot)] == [1]


def test_a_failing_library_reports_its_error() -> None:
    world = World(ready=False)
    world.host(messages.Began(b"tb", "ImportError: no x"))
    assert [(m.error, m.traceback) for m in world.told(messages.LibraryGone)] == [("ImportError: no x", b"tb")]


def test_a_parent_is_started_again_three_times_at_most() -> None:
    world = World()
    for _ in range(2):
        world.do(events.HostGone(0.0, 1, "killed"))
        assert len(world.of(orders.StartHost)) == 1
    world.do(events.HostGone(0.0, 1, "killed"))
    assert not world.of(orders.StartHost)
    assert "ended 3 times in 60 s: killed" in world.told(messages.LibraryGone)[0].error


def test_restarts_outside_the_window_do_not_count() -> None:
    world = World()
    for _ in range(6):
        world.now += 40
        world.do(events.HostGone(0.0, 1, "killed"))
        assert len(world.of(orders.StartHost)) == 1


def test_a_parent_that_ends_before_its_first_slot_is_ready_tells_it_the_next_time() -> None:
    """The manager gives work only to instances that are ready, and would wait for ever."""
    world = World(ready=False)
    world.host(messages.Began(b""))
    world.do(events.HostGone(0.0, 1, "killed"))
    world.ready()
    assert len(world.told(messages.LibraryReady)) == 1
    world.do(events.HostGone(0.0, 1, "killed"))
    world.ready()
    assert not world.told(messages.LibraryReady), "it knows"


def test_a_parent_that_ends_while_it_imports_is_started_again_without_these_modules() -> None:
    """However often that happens; what other code wants is imported as before."""
    world = World(max_restarts=2)
    world.say(messages.Code(1, 5, b"", ["good"], [], False))
    world.host(messages.Hoisted(["good"], 1, ""))
    for number in range(5):
        world.say(messages.Code(1, 10 + number, b"", ["good", f"bad{number}"], [], False))
        assert [o.message.modules for o in world.of(orders.ToHost)] == [[f"bad{number}"]]
        world.do(events.HostGone(0.0, 1, "exited"))
        assert len(world.of(orders.StartHost)) == 1 and not world.told(messages.LibraryGone)
        world.host(messages.Began(b""))
        assert [o.message.modules for o in world.of(orders.ToHost)] == [["good"]]
        world.host(messages.Hoisted(["good"], 1, ""))
    world.say(messages.Code(1, 20, b"", ["bad0", "bad4"], [], False))
    assert not world.of(orders.ToHost)
    world.do(events.HostGone(0.0, 1, "killed"))
    assert len(world.of(orders.StartHost)) == 1, "imports do not count"
    world.do(events.HostGone(0.0, 1, "killed"))
    assert "ended 2 times in 60 s: killed" in world.told(messages.LibraryGone)[0].error


def test_calls_that_need_no_module_of_an_import_do_not_wait_for_it() -> None:
    world = World(2)
    world.say(messages.Code(1, 5, b"", [], [], False))
    world.say(messages.Code(1, 6, b"", ["slow"], [], False))
    world.say(messages.Code(1, 7, b"", [], [6], True))
    assert [o.message.modules for o in world.of(orders.ToHost)] == [] and world.machine.state.libraries[1].hoisting == {"slow"}
    world.run([call(1, code_id=6)], [call(2, code_id=5)], [call(3, code_id=7)], [call(4, code_id=5)])
    assert sorted(ids for _, ids in world.batches()) == [[2], [4]]
    world.run([call(8, code_id=5)])
    assert [ids for _, ids in world.batches()] == [[8]]
    world.host(messages.Hoisted(["slow"], 1, ""))
    started = []
    for slot_id in [i for o in world.of(orders.OpenSlots) for i in o.slot_ids]:
        world.host(messages.Forked(slot_id, 1000 + slot_id))
        started += [ids for _, ids in world.batches()]
    assert started == [[1], [3]]


def test_calls_wait_for_modules_that_are_wanted_next_too() -> None:
    """They would be imported by the slot, which then has no time for others."""
    world = World()
    world.say(messages.Code(1, 5, b"", ["first"], [], False))
    world.say(messages.Code(1, 6, b"", ["second"], [], False))
    world.run([call(1, code_id=6)])
    assert not world.batches()


def test_an_import_that_does_not_end_is_given_up() -> None:
    world = World()
    world.run([call(1)])
    world.say(messages.Code(1, 6, b"", ["endless"], [], False))
    assert world.machine.next_deadline() == world.now + HOIST_LIMIT_S
    world.now += HOIST_LIMIT_S
    world.do(events.Tick(0.0))
    kinds = [type(order) for order in world.orders]
    assert kinds.index(orders.KillSlot) < kinds.index(orders.StopHost) < kinds.index(orders.StartHost)
    assert world.results() == [(1, messages.LOST)] and not world.told(messages.LibraryGone)
    world.run([call(2, code_id=6)])
    world.ready()
    assert not world.of(orders.ToHost) and world.machine.next_deadline() is None
    assert [ids for _, ids in world.batches()] == [[2]]


def test_a_parent_that_ends_again_and_again_is_tried_without_what_it_imported() -> None:
    """A module may end its process a moment after it was imported."""
    world = World(max_restarts=3)
    world.say(messages.Code(1, 5, b"", ["late"], [], False))
    world.host(messages.Hoisted(["late"], 1, ""))
    for _ in range(2):
        world.do(events.HostGone(0.0, 1, "exited"))
        world.host(messages.Began(b""))
        assert [o.message.modules for o in world.of(orders.ToHost)] == [["late"]]
        world.host(messages.Hoisted(["late"], 1, ""))
    world.do(events.HostGone(0.0, 1, "exited"))
    assert len(world.of(orders.StartHost)) == 1 and not world.told(messages.LibraryGone)
    world.ready()
    assert not world.of(orders.ToHost)
    world.do(events.HostGone(0.0, 1, "killed"))
    assert "ended 3 times" in world.told(messages.LibraryGone)[0].error, "now it is given up"


def test_a_dead_parent_loses_only_what_slots_had() -> None:
    world = World()
    world.run([call(1)], [call(2)], [call(3)])
    world.do(events.HostGone(0.0, 1, "killed"))
    assert world.results() == [(1, messages.LOST), (2, messages.HANDED_BACK)]
    world.ready()
    assert [ids for _, ids in world.batches()] == [[3]]


def test_a_dead_slot_blames_the_call_it_had_started() -> None:
    world = World()
    world.run([call(1)], [call(2)])
    world.do(events.SlotGone(0.0, 1, 0))
    assert world.results() == [(1, messages.LOST)]
    slot_id = world.of(orders.OpenSlots)[0].slot_ids[0]
    world.host(messages.Forked(slot_id, 12))
    assert world.batches()[0] == (slot_id, [2])


def test_a_dead_slot_hands_the_rest_of_a_bundle_back() -> None:
    world = World()
    world.run([call(1), call(2), call(3)])
    world.answer(1, 1, status=messages.OK_KEPT)
    world.do(events.SlotGone(0.0, 1, 1))
    assert world.results() == [(2, messages.LOST), (3, messages.HANDED_BACK)]
    assert [(o.names, o.partial) for o in world.of(orders.UnlinkObjects)] == [(["r0-2.1", "r0-3.1"], True)]


def stuck(world: World) -> None:
    """Slot 1 sits in a long call with others behind it, slot 2 is idle."""
    world.run([call(1)], [call(2)], [call(3)], [call(4)])
    assert dict(world.batches()).keys() == {1, 2}
    other = [i for slot, ids in world.batches() if slot == 2 for i in ids]
    for task_id in other:
        world.answer(2, task_id)
    assert len(world.machine.state.slots[1].outstanding) == 2


def test_calls_behind_a_long_one_are_taken_back() -> None:
    world = World(2)
    stuck(world)
    world.now += STUCK_S
    world.do(events.Tick(0.0))
    assert [(o.slot_id, o.sequence) for o in world.of(orders.Revoke)] == [(1, 1)]
    behind = world.machine.state.slots[1].outstanding[1][0].task_id
    world.now += REVOKE_SETTLE_S
    world.do(events.Tick(0.0))
    assert [o.slot_id for o in world.of(orders.ReadClaim)] == [1]
    world.do(events.ClaimRead(0.0, 1, 0))
    assert world.batches() == [(2, [behind])]
    first = world.machine.state.slots[1].outstanding[0][0].task_id
    world.do(events.SlotAnswered(0.0, 1, [Result(first, 1, 0, 5), Result(behind, 1, messages.HANDED_BACK, 0)]))
    assert world.results() == [(first, messages.OK_INLINE)]
    assert [o.sequence for o in world.of(orders.Revoke)] == [NOT_REVOKED]


def test_a_claim_that_is_read_too_early_takes_nothing_back() -> None:
    world = World(2)
    stuck(world)
    world.now += STUCK_S
    world.do(events.Tick(0.0))
    world.now += REVOKE_SETTLE_S / 2
    world.do(events.ClaimRead(0.0, 1, 0))
    assert not world.batches()


def test_what_the_slot_started_meanwhile_stays_there() -> None:
    world = World(2)
    stuck(world)
    world.now += STUCK_S
    world.do(events.Tick(0.0))
    world.now += REVOKE_SETTLE_S
    world.do(events.ClaimRead(0.0, 1, 1))
    assert not world.batches()


def kept(task_id: int, *inputs: int) -> Call:
    """A call whose value stays in the slot for others of its group."""
    return Call(task_id, 1, 1, -1, b"args", list(inputs), 1, False)


def cut(world: World, *calls: Call) -> None:
    """A group whose first call runs for long in slot 1 while slot 2 is idle; what can move has been taken back."""
    world.run(list(calls))
    assert world.batches() == [(1, [c.task_id for c in calls])]
    world.now += STUCK_S
    world.do(events.Tick(0.0))
    world.now += REVOKE_SETTLE_S
    world.do(events.Tick(0.0))
    world.do(events.ClaimRead(0.0, 1, 0))


def test_what_needs_nothing_of_a_long_call_is_handed_back_at_once() -> None:
    world = World(2)
    cut(world, kept(1), kept(2), call(3, 1), kept(4, 2), call(5, 4), call(6, 3))
    assert world.results() == [(i, messages.HANDED_BACK) for i in (2, 4, 5, 6)], "only 3 reads what is made in the slot"
    answers = [Result(1, 1, messages.OK_KEPT, 5), Result(1, 1, messages.WRITTEN_LATER, 0, b"", 100_000)]
    answers += [Result(i, 1, messages.HANDED_BACK, 0) for i in range(2, 7)]
    world.do(events.SlotAnswered(0.0, 1, answers))
    assert world.results() == [(1, messages.OK_KEPT), (1, messages.WRITTEN_LATER), (3, messages.HANDED_BACK)]
    assert world.machine.state.objects == {"r0-1.1": 100_000}
    assert [o.sequence for o in world.of(orders.Revoke)] == [NOT_REVOKED]
    world.run([call(7)])
    assert world.batches() == [(2, [7])], "the slot that had fewer"
    world.run([call(8)])
    assert world.batches() == [(1, [8])]


def test_a_group_that_all_needs_its_long_call_is_left_alone() -> None:
    world = World(2)
    world.run([kept(1), kept(2, 1), call(3, 1, 2)])
    for _ in range(3):
        world.now += STUCK_S
        world.do(events.Tick(0.0))
        assert not world.of(orders.Revoke)
    assert world.machine.next_deadline() is None, "nothing is looked at again before the slot answers"
    world.do(events.SlotAnswered(0.0, 1, [Result(1, 1, messages.OK_KEPT, 5)]))
    world.run([call(4)])
    world.answer(2, 4)
    world.now += STUCK_S
    world.do(events.Tick(0.0))
    assert not world.of(orders.Revoke), "3 reads what 1 made, which is in the slot"


def test_a_group_is_cut_only_behind_a_call_that_is_long_for_its_kind() -> None:
    """What stays in the slot would have to be written. Whole groups behind it are taken back sooner."""
    world = World(2)
    world.run([call(1)])
    world.answer(1, 1, us=1900)
    world.run([call(2), call(3)], *[[call(i)] for i in range(4, 8)])
    (long,) = [slot for slot in world.machine.state.slots.values() if slot.outstanding[0][0].task_id == 2]
    assert [c.task_id for c, _ in long.outstanding] == [2, 3, 4]
    idle = 3 - long.slot_id
    world.answer(idle, 5, 6, us=1900)
    world.answer(idle, 7, us=1900)
    world.now += STUCK_S
    world.do(events.Tick(0.0))
    assert [o.sequence - long.first for o in world.of(orders.Revoke)] == [2], "the groups"
    world.now += REVOKE_SETTLE_S / 2
    world.do(events.Tick(0.0))
    world.now += REVOKE_SETTLE_S / 2
    world.do(events.ClaimRead(0.0, long.slot_id, long.first))
    assert world.batches() == [(idle, [4])]
    assert world.now >= long.progress_at + CUT_FACTOR * 1900e-6
    world.answer(idle, 4, us=1900)
    assert [o.sequence - long.first for o in world.of(orders.Revoke)] == [1], "the rest of the group"
    world.now += REVOKE_SETTLE_S
    world.do(events.ClaimRead(0.0, long.slot_id, long.first))
    assert world.results() == [(3, messages.HANDED_BACK)] and not world.batches()
    for _ in range(3):
        world.now += REVOKE_SETTLE_S
        world.do(events.Tick(0.0))
        assert not world.orders, "there is nothing left to take"


def test_a_slot_that_dies_after_its_group_was_cut_reports_nothing_twice() -> None:
    world = World(2)
    cut(world, kept(1), kept(2), call(3, 1), call(4, 2))
    assert world.results() == [(2, messages.HANDED_BACK), (4, messages.HANDED_BACK)]
    world.do(events.SlotGone(0.0, 1, 0))
    assert world.results() == [(1, messages.LOST), (3, messages.HANDED_BACK)]


def test_a_parent_that_dies_after_a_group_was_cut_reports_nothing_twice() -> None:
    world = World(2)
    cut(world, kept(1), kept(2), call(3, 1), call(4, 2))
    world.do(events.HostGone(0.0, 1, "killed"))
    assert world.results() == [(1, messages.LOST), (3, messages.HANDED_BACK)]


def test_a_cancelled_call_of_a_group_that_was_cut_is_nobodys() -> None:
    world = World(2)
    cut(world, kept(1), kept(2), call(3, 1), call(4, 2))
    world.say(messages.Cancel([(2, 1), (4, 1)]))
    assert not world.of(orders.ReadClaim), "they are elsewhere"


def test_tiny_calls_go_first_to_the_slot_that_was_held_up() -> None:
    """Where there is little to do for all, the slots would never come to equal shares again."""
    world = World(2)
    world.run([call(1)])
    world.answer(1, 1, us=1)
    world.run([call(2)])
    assert world.batches() == [(2, [2])]
    number = 3
    world.now += CATCH_UP_S * 1.01
    for _ in range(4):
        world.run([call(i) for i in range(number, number + 256)])
        ((slot, ids),) = world.batches()
        assert slot == 1, "the other sleeps"
        world.answer(1, *ids, us=1)
        number += 256
    world.answer(2, 2, us=1)
    for turn in range(2):
        world.run(*[[call(i) for i in range(start, start + 256)] for start in (number, number + 256)])
        assert [slot for slot, _ in world.batches()] == [2, 2], turn
        for slot, ids in world.batches():
            world.answer(slot, *ids, us=1)
        number += 512
    world.run(*[[call(i) for i in range(start, start + 256)] for start in (number, number + 256)])
    assert sorted(slot for slot, _ in world.batches()) == [1, 2], "even"


def test_a_cancelled_call_that_runs_is_killed_and_nobody_is_blamed() -> None:
    world = World()
    world.run([call(1)], [call(2)])
    world.say(messages.Cancel([(1, 1)]))
    world.do(events.ClaimRead(0.0, 1, 0))
    assert [o.slot_id for o in world.of(orders.KillSlot)] == [1]
    world.do(events.SlotGone(0.0, 1, 1))  # it had moved on before the signal came
    assert not world.results()


def test_a_cancelled_call_that_has_not_started_is_watched() -> None:
    world = World()
    world.run([call(1)])
    world.say(messages.Cancel([(1, 1)]))
    world.do(events.ClaimRead(0.0, 1, NOT_REVOKED))
    assert not world.of(orders.KillSlot)
    assert world.machine.next_deadline() is not None
    world.now += REVOKE_SETTLE_S
    world.do(events.Tick(0.0))
    world.do(events.ClaimRead(0.0, 1, 0))
    assert world.of(orders.KillSlot)


def test_queued_calls_are_handed_back_newest_first() -> None:
    world = World()
    world.run(*[[call(i)] for i in range(1, 7)])
    world.say(messages.HandBack(2, 1))
    assert world.results() == [(6, messages.HANDED_BACK), (5, messages.HANDED_BACK)]


def test_a_fetch_under_way_is_stopped_and_no_other() -> None:
    world = World()
    world.say(messages.Fetch("r0-1.1", 10, [("h", 7)]))
    world.say(messages.StopFetch("r0-2.1", "h", 7))
    assert not world.of(orders.StopFetch)
    world.say(messages.StopFetch("r0-1.1", "h", 7))
    assert [(order.name, order.source) for order in world.of(orders.StopFetch)] == [("r0-1.1", ("h", 7))]


def test_a_group_waits_for_its_object() -> None:
    world = World()
    world.say(messages.Fetch("a", 10))
    world.say(messages.Fetch("a", 10))
    assert not world.of(orders.FetchObject)
    world.run([call(1, "a")], [call(2)])
    assert world.batches() == [(1, [2])]
    world.do(events.ObjectArrived(0.0, "a", 10))
    assert world.told(messages.Fetched) and world.batches() == [(1, [1])]


def test_an_object_that_fails_lets_its_group_find_out() -> None:
    world = World()
    world.say(messages.Fetch("a", 10))
    world.run([call(1, "a")])
    world.do(events.ObjectFailed(0.0, "a", "refused"))
    assert [m.reason for m in world.told(messages.FetchFailed)] == ["refused"]
    assert world.batches() == [(1, [1])]


def test_code_that_cannot_be_fetched_loses_the_call_that_needs_it() -> None:
    world = World()
    world.say(messages.Fetch("c", 10))
    world.say(messages.Code(1, 7, b"", [], [], False, "c"))
    world.run([call(1, code_id=7), call(2, code_id=7)])
    world.do(events.ObjectFailed(0.0, "c", "refused"))
    assert world.results() == [(1, messages.LOST), (2, messages.HANDED_BACK)] and not world.batches()
    world.run([call(3, code_id=7)])
    assert world.results() == [(3, messages.HANDED_BACK)]


def test_an_object_dropped_on_its_way_does_not_stay() -> None:
    world = World()
    world.say(messages.Fetch("a", 10))
    world.say(messages.Unlink(["a"]))
    world.do(events.ObjectArrived(0.0, "a", 10))
    assert [o.names for o in world.of(orders.UnlinkObjects)] == [["a"]]
    assert "a" not in world.machine.state.objects


def test_a_library_waits_for_its_payload() -> None:
    world = World()
    world.say(messages.Fetch("p", 10))
    world.say(messages.StartLibrary(2, "g", 1, "direct", b"", [], 2, 60.0, "p"))
    assert not world.of(orders.StartHost)
    world.do(events.ObjectFailed(0.0, "p", "refused"))
    assert world.of(orders.FetchObject)
    world.do(events.ObjectArrived(0.0, "p", 10))
    assert [o.library_id for o in world.of(orders.StartHost)] == [2]


def test_a_payload_that_cannot_be_fetched_fails_the_library() -> None:
    world = World()
    world.say(messages.Fetch("p", 10))
    world.say(messages.StartLibrary(2, "g", 1, "direct", b"", [], 1, 60.0, "p"))
    world.do(events.ObjectFailed(0.0, "p", "refused"))
    assert "refused" in world.told(messages.LibraryGone)[0].error


def test_stopping_a_library_hands_everything_back() -> None:
    world = World()
    world.run(*[[call(i)] for i in range(1, 5)])
    world.say(messages.StopLibrary(1))
    assert {s for _, s in world.results()} == {messages.HANDED_BACK} and len(world.results()) == 4
    assert world.told(messages.LibraryGone)[0].error == ""
    world.run([call(9)])
    assert world.results() == [(9, messages.HANDED_BACK)]


def test_batches_stay_below_the_frame_limit() -> None:
    world = World()
    world.run([call(1)])
    world.answer(1, 1, us=1)
    calls = [Call(i, 1, 1, -1, b"x" * 65536, [], 0, True) for i in range(2, 202)]
    world.run(*[[c] for c in calls])
    sizes = [len(messages.encode(o.message)) for o in world.of(orders.ToSlot)]
    assert sizes and max(sizes) < messages.BATCH_LIMIT_BYTES + 70_000


def test_a_silent_manager_is_left() -> None:
    world = World()
    world.now += 41
    world.do(events.Tick(0.0))
    assert "silent for 40 s" in world.of(orders.LeaveManager)[0].reason


def test_messages_before_the_welcome_are_refused() -> None:
    with pytest.raises(ProtocolError, match="before its welcome"):
        WorkerMachine().handle(events.ManagerSaid(1.0, messages.Fetch("a", 1)))


def test_calls_that_a_slot_has_not_started_are_handed_back_once_that_is_sure() -> None:
    world = World()
    world.machine.state.libraries[1].mean_us = 10.0
    world.run([call(1)], [call(2)], [call(3)], [call(4)])
    held = {task_id for _, batch in world.batches() for task_id in batch}
    assert held == {1, 2, 3, 4}, "two slots hold all of it"
    world.say(messages.HandBack(1, 1))
    assert world.results() == []
    assert world.of(orders.Revoke)
    world.now += REVOKE_SETTLE_S
    world.do(events.Tick(0.0))
    slot_id = world.of(orders.ReadClaim)[-1].slot_id
    world.do(events.ClaimRead(0.0, slot_id, 0))
    (answer,) = world.results()
    assert answer[1] == messages.HANDED_BACK


# ---------------------------------------------------------------- slots that are replaced


def start(world: World, **options: object) -> None:
    """Start library 2 and make its slots known."""
    world.say(msgspec.structs.replace(messages.StartLibrary(2, "g", 1, "direct", b"", [], 3, 60.0), **options))


def host2(world: World, message: object) -> list[object]:
    return world.do(events.HostSaid(0.0, 2, message))


def opened(world: World) -> list[int]:
    return [i for o in world.of(orders.OpenSlots) for i in o.slot_ids]


def test_a_slot_gets_no_more_calls_than_its_limit_and_the_next_one_waits_for_its_end() -> None:
    world = World()
    start(world, max_calls=2)
    host2(world, messages.Began(b""))
    (first,) = opened(world)
    host2(world, messages.Forked(first, 21))
    world.say(messages.Run(2, [[call(i)] for i in range(1, 4)], []))
    assert world.batches() == [(first, [1]), (first, [2])]
    (second,) = opened(world)
    host2(world, messages.Forked(second, 22))
    world.answer(first, 1)
    assert not world.batches()
    world.answer(first, 2)
    assert [o.slot_id for o in world.of(orders.CloseSlot)] == [first] and world.batches() == [(second, [3])]


def test_a_tired_slot_is_replaced_when_it_is_empty() -> None:
    world = World()
    world.run([call(1)])
    world.do(events.SlotTired(0.0, 1, 700))
    assert opened(world) == [2] and not world.of(orders.CloseSlot)
    world.do(events.SlotTired(0.0, 1, 700))
    assert not opened(world)
    world.host(messages.Forked(2, 12))
    world.run([call(2)])
    assert not world.batches()
    world.answer(1, 1)
    assert [o.slot_id for o in world.of(orders.CloseSlot)] == [1] and world.batches() == [(2, [2])]


def test_a_retiring_slot_that_dies_is_not_replaced_twice() -> None:
    world = World()
    world.run([call(1)])
    world.do(events.SlotTired(0.0, 1, 700))
    world.host(messages.Forked(2, 12))
    world.do(events.SlotGone(0.0, 1, 0, "was killed by SIGKILL"))
    assert not opened(world) and world.results() == [(1, messages.LOST)]


def test_spawned_slots_that_never_get_to_a_call_fail_the_library() -> None:
    world = World()
    start(world)
    host2(world, messages.Began(b"", "", "it has threads"))
    for number in range(3):
        (slot,) = opened(world)
        host2(world, messages.Forked(slot, 20 + number))
        if number == 0:
            assert [m.note for m in world.told(messages.LibraryReady)] == ["it has threads"]
            world.say(messages.Run(2, [[call(1)]], []))
        world.do(events.SlotGone(0.0, slot, NOT_REVOKED, "ended with exit code 1: ImportError: no x"))
    assert world.results() == [(1, messages.HANDED_BACK)]
    (gone,) = world.told(messages.LibraryGone)
    assert "ended 3 times in 60 s before their first call: its process ended with exit code 1: ImportError: no x" in gone.error


def test_some_forked_slots_may_be_killed_before_their_first_call() -> None:
    world = World()
    for _ in range(FORKED_ENDS - 1):
        world.do(events.SlotGone(0.0, max(world.machine.state.slots), NOT_REVOKED, "was killed by SIGKILL"))
        assert len(opened(world)) == 1
    assert not world.told(messages.LibraryGone)


def test_forked_slots_that_never_get_to_a_call_fail_the_library() -> None:
    world = World()
    world.run([call(1)])
    for number in range(FORKED_ENDS):
        assert not world.told(messages.LibraryGone)
        world.do(events.SlotGone(0.0, max(world.machine.state.slots), NOT_REVOKED, "ended with exit code 3"))
        if number + 1 < FORKED_ENDS:
            world.host(messages.Forked(max(world.machine.state.slots), 20 + number))
    assert world.results() == [(1, messages.HANDED_BACK)]
    (gone,) = world.told(messages.LibraryGone)
    assert f"ended {FORKED_ENDS} times in 60 s before their first call: its process ended with exit code 3" in gone.error


def test_the_manager_hears_when_modules_forbid_forks() -> None:
    world = World()
    world.say(messages.Code(1, 7, b"f", ["grpc"], [], False))
    world.host(messages.Hoisted(["grpc"], 3, "it has threads"))
    world.host(messages.Forked(opened(world)[0] if opened(world) else 2, 12))
    assert [m.note for m in world.told(messages.LibraryReady)] == ["it has threads"]


def test_a_library_waits_for_all_of_its_files() -> None:
    world = World()
    for name in ("p", "a", "b"):
        world.say(messages.Fetch(name, 5))
    start(world, payload_name="p", mounts=[messages.Mount("a", "x"), messages.Mount("b", "y")])
    for name in ("b", "p"):
        world.do(events.ObjectArrived(0.0, name, 5))
        assert not world.of(orders.StartHost)
    world.do(events.ObjectArrived(0.0, "a", 5))
    assert [o.library_id for o in world.of(orders.StartHost)] == [2]


def test_a_library_whose_file_cannot_be_had_fails_and_names_it() -> None:
    world = World()
    world.say(messages.Fetch("a", 5))
    world.say(messages.Fetch("b", 5))
    start(world, mounts=[messages.Mount("a", "x"), messages.Mount("b", "y")], max_restarts=1)
    world.do(events.ObjectFailed(0.0, "a", "no such file"))
    assert [m.error for m in world.told(messages.LibraryGone)] == [
        "the input 'x' of library 'g' could not be fetched: no such file"
    ]
    world.do(events.ObjectArrived(0.0, "b", 5))
    assert not world.of(orders.StartHost)


def test_a_slot_that_catches_up_stops_at_its_limit() -> None:
    """It used to be given empty batches without end."""
    world = World()
    start(world, max_calls=300, slots=2)
    host2(world, messages.Began(b""))
    one, two = opened(world)
    for number, slot in enumerate((one, two)):
        host2(world, messages.Forked(slot, 20 + number))
    library = world.machine.state.libraries[2]
    library.mean_us = 1.0
    library.slots[one].had = 2000
    world.say(messages.Run(2, [[call(i)] for i in range(1, 1001)], []))
    assert sum(len(tasks) for slot, tasks in world.batches() if slot == two) == 300
    assert library.slots[two].draining and library.queued_calls + 300 + library.slots[one].sent == 1000


def test_a_payload_whose_fetch_had_failed_before_is_fetched_again() -> None:
    """The failure was found out between the manager's two messages: the library was started without its payload."""
    world = World()
    world.say(messages.Fetch("p", 10))
    world.do(events.ObjectFailed(0.0, "p", "refused"))
    world.say(messages.StartLibrary(2, "g", 1, "direct", b"", [], 2, 60.0, "p"))
    assert world.of(orders.FetchObject) and not world.of(orders.StartHost)
    world.do(events.ObjectArrived(0.0, "p", 10))
    assert [o.library_id for o in world.of(orders.StartHost)] == [2]


def boxed(task_id: int) -> Call:
    box = messages.Sandbox([], [messages.Product("out", f"r0-{task_id}.1.0")], [])
    return Call(task_id, 1, 1, -1, b"", [], 0, True, False, box)


def test_what_slots_of_a_stopped_library_wrote_is_removed() -> None:
    world = World()
    world.run([boxed(1)])
    world.say(messages.StopLibrary(1))
    assert [o.names for o in world.of(orders.UnlinkObjects)] == [["r0-1.1", "r0-1.1.0"]]
    kinds = [type(o) for o in world.orders]
    assert kinds.index(orders.StopHost) < kinds.index(orders.UnlinkObjects), "the slot could write again"


def test_what_a_dead_slot_wrote_is_removed_with_its_products() -> None:
    world = World()
    world.run([boxed(1)])
    world.do(events.SlotGone(0.0, 1, 0))
    assert [o.names for o in world.of(orders.UnlinkObjects)] == [["r0-1.1", "r0-1.1.0"]]


def test_an_input_that_a_slot_missed_is_not_believed_to_be_here() -> None:
    """It was said to be here whenever the manager sent it again, and missing whenever a slot looked."""
    world = World()
    world.say(messages.Fetch("a", 10))
    world.do(events.ObjectArrived(0.0, "a", 10))
    world.run([call(1, "a")])
    world.do(events.SlotAnswered(0.0, 1, [Result(1, 1, messages.NO_INPUT, 0, b"a")]))
    assert "a" not in world.machine.state.objects and [o.names for o in world.of(orders.UnlinkObjects)] == [["a"]]
    world.say(messages.Fetch("a", 10))
    assert world.of(orders.FetchObject)


def test_damage_by_a_cancelled_call_is_told() -> None:
    world = World()
    world.say(messages.Fetch("a", 10))
    world.do(events.ObjectArrived(0.0, "a", 10))
    world.run([boxed(1)])
    world.say(messages.Cancel([(1, 1)]))
    report = messages.Report(0, b"", [], [], ["a"])
    world.do(events.SlotAnswered(0.0, 1, [Result(1, 1, messages.OK_INLINE, 5, b"", 0, report)]))
    assert not world.results() and [m.names for m in world.told(messages.Removed)] == [["a"]]
    assert "a" not in world.machine.state.objects
