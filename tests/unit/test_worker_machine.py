"""Calls in the worker's machine, event by event: ``orders = machine.handle(event)``."""

from __future__ import annotations

import pytest

from tests.kit.worker_world import WorkerWorld, call
from vinecore.errors import ProtocolError
from vinecore.wire import messages
from vinecore.wire.messages import Call, Result
from vinecore.worker import events, orders
from vinecore.worker.machine import DOUBT_S, WorkerMachine
from vinecore.worker.on_calls import CATCH_UP_S
from vinecore.worker.on_claims import CUT_FACTOR, CUT_LIMIT_S, REVOKE_SETTLE_S, STUCK_S
from vinecore.worker.state import NOT_REVOKED


def test_a_call_goes_to_a_slot_and_its_result_to_the_manager() -> None:
    world = WorkerWorld()
    world.run([call(1)])
    assert world.batches() == [(1, [1])]
    world.answer(1, 1)
    assert world.results() == [(1, messages.OK_INLINE)]


def test_code_goes_before_its_first_call_with_what_it_requires() -> None:
    world = WorkerWorld()
    world.say(messages.Code(1, 7, b"f", [], [], False))
    world.say(messages.Code(1, 8, b"piece", [], [7], True))
    world.run([call(1, code_id=8)])
    assert [o.message.code_id for o in world.of(orders.ToSlot) if isinstance(o.message, messages.SlotCode)] == [7, 8]


def test_a_dead_slot_blames_the_call_it_had_started() -> None:
    world = WorkerWorld()
    world.run([call(1)], [call(2)])
    world.do(events.SlotGone(0.0, 1, 0))
    assert world.results() == [(1, messages.LOST)]
    slot_id = world.of(orders.OpenSlots)[0].slot_ids[0]
    world.host(messages.Forked(slot_id, 12))
    assert world.batches()[0] == (slot_id, [2])


def test_a_dead_slot_hands_the_rest_of_a_bundle_back() -> None:
    world = WorkerWorld()
    world.run([call(1), call(2), call(3)])
    world.answer(1, 1, status=messages.OK_KEPT)
    world.do(events.SlotGone(0.0, 1, 1))
    assert world.results() == [(2, messages.LOST), (3, messages.HANDED_BACK)]
    assert [(o.names, o.partial) for o in world.of(orders.UnlinkObjects)] == [(["r0-2.1", "r0-3.1"], True)]


def stuck(world: WorkerWorld) -> None:
    """Slot 1 sits in a long call with others behind it, slot 2 is idle."""
    world.run([call(1)], [call(2)], [call(3)], [call(4)])
    assert dict(world.batches()).keys() == {1, 2}
    other = [i for slot, ids in world.batches() if slot == 2 for i in ids]
    for task_id in other:
        world.answer(2, task_id)
    assert len(world.machine.state.slots[1].outstanding) == 2


def test_calls_behind_a_long_one_are_taken_back() -> None:
    world = WorkerWorld(2)
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
    world = WorkerWorld(2)
    stuck(world)
    world.now += STUCK_S
    world.do(events.Tick(0.0))
    world.now += REVOKE_SETTLE_S / 2
    world.do(events.ClaimRead(0.0, 1, 0))
    assert not world.batches()


def test_what_the_slot_started_meanwhile_stays_there() -> None:
    world = WorkerWorld(2)
    stuck(world)
    world.now += STUCK_S
    world.do(events.Tick(0.0))
    world.now += REVOKE_SETTLE_S
    world.do(events.ClaimRead(0.0, 1, 1))
    assert not world.batches()


def kept(task_id: int, *inputs: int) -> Call:
    """A call whose value stays in the slot for others of its group."""
    return Call(task_id, 1, 1, -1, b"args", list(inputs), 1, False)


def cut(world: WorkerWorld, *calls: Call) -> None:
    """A group whose first call runs for long in slot 1 while slot 2 is idle; what can move has been taken back."""
    world.run(list(calls))
    assert world.batches() == [(1, [c.task_id for c in calls])]
    world.now += STUCK_S
    world.do(events.Tick(0.0))
    world.now += REVOKE_SETTLE_S
    world.do(events.Tick(0.0))
    world.do(events.ClaimRead(0.0, 1, 0))


def test_what_needs_nothing_of_a_long_call_is_handed_back_at_once() -> None:
    world = WorkerWorld(2)
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
    world = WorkerWorld(2)
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
    world = WorkerWorld(2)
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
    world = WorkerWorld(2)
    cut(world, kept(1), kept(2), call(3, 1), call(4, 2))
    assert world.results() == [(2, messages.HANDED_BACK), (4, messages.HANDED_BACK)]
    world.do(events.SlotGone(0.0, 1, 0))
    assert world.results() == [(1, messages.LOST), (3, messages.HANDED_BACK)]


def test_a_parent_that_dies_after_a_group_was_cut_reports_nothing_twice() -> None:
    world = WorkerWorld(2)
    cut(world, kept(1), kept(2), call(3, 1), call(4, 2))
    world.do(events.HostGone(0.0, 1, "killed"))
    assert world.results() == [(1, messages.LOST), (3, messages.HANDED_BACK)]


def test_a_cancelled_call_of_a_group_that_was_cut_is_nobodys() -> None:
    world = WorkerWorld(2)
    cut(world, kept(1), kept(2), call(3, 1), call(4, 2))
    world.say(messages.Cancel([(2, 1), (4, 1)]))
    assert not world.of(orders.ReadClaim), "they are elsewhere"


def test_tiny_calls_go_first_to_the_slot_that_was_held_up() -> None:
    """Where there is little to do for all, the slots would never come to equal shares again."""
    world = WorkerWorld(2)
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
    world = WorkerWorld()
    world.run([call(1)], [call(2)])
    world.say(messages.Cancel([(1, 1)]))
    world.do(events.ClaimRead(0.0, 1, 0))
    assert [o.slot_id for o in world.of(orders.KillSlot)] == [1]
    world.do(events.SlotGone(0.0, 1, 1))  # it had moved on before the signal came
    assert not world.results()


def test_a_cancelled_call_that_has_not_started_is_watched() -> None:
    world = WorkerWorld()
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
    world = WorkerWorld()
    world.run(*[[call(i)] for i in range(1, 7)])
    world.say(messages.HandBack(2, 1))
    assert world.results() == [(6, messages.HANDED_BACK), (5, messages.HANDED_BACK)]


def test_a_fetch_under_way_is_stopped_and_no_other() -> None:
    world = WorkerWorld()
    world.say(messages.Fetch("r0-1.1", 10, [("h", 7)]))
    world.say(messages.StopFetch("r0-2.1", "h", 7))
    assert not world.of(orders.StopFetch)
    world.say(messages.StopFetch("r0-1.1", "h", 7))
    assert [(order.name, order.source) for order in world.of(orders.StopFetch)] == [("r0-1.1", ("h", 7))]


def test_a_group_waits_for_its_object() -> None:
    world = WorkerWorld()
    world.say(messages.Fetch("a", 10))
    world.say(messages.Fetch("a", 10))
    assert not world.of(orders.FetchObject)
    world.run([call(1, "a")], [call(2)])
    assert world.batches() == [(1, [2])]
    world.do(events.ObjectArrived(0.0, "a", 10))
    assert world.told(messages.Fetched) and world.batches() == [(1, [1])]


def test_an_object_that_fails_lets_its_group_find_out() -> None:
    world = WorkerWorld()
    world.say(messages.Fetch("a", 10))
    world.run([call(1, "a")])
    world.do(events.ObjectFailed(0.0, "a", "refused"))
    assert [m.reason for m in world.told(messages.FetchFailed)] == ["refused"]
    assert world.batches() == [(1, [1])]


def test_code_that_cannot_be_fetched_loses_the_call_that_needs_it() -> None:
    world = WorkerWorld()
    world.say(messages.Fetch("c", 10))
    world.say(messages.Code(1, 7, b"", [], [], False, "c"))
    world.run([call(1, code_id=7), call(2, code_id=7)])
    world.do(events.ObjectFailed(0.0, "c", "refused"))
    assert world.results() == [(1, messages.LOST), (2, messages.HANDED_BACK)] and not world.batches()
    world.run([call(3, code_id=7)])
    assert world.results() == [(3, messages.HANDED_BACK)]


def test_an_object_dropped_on_its_way_does_not_stay() -> None:
    world = WorkerWorld()
    world.say(messages.Fetch("a", 10))
    world.say(messages.Unlink(["a"]))
    world.do(events.ObjectArrived(0.0, "a", 10))
    assert [o.names for o in world.of(orders.UnlinkObjects)] == [["a"]]
    assert "a" not in world.machine.state.objects


def test_a_library_waits_for_its_payload() -> None:
    world = WorkerWorld()
    world.say(messages.Fetch("p", 10))
    world.say(messages.StartLibrary(2, "g", 1, "direct", b"", [], 2, 60.0, "p"))
    assert not world.of(orders.StartHost)
    world.do(events.ObjectFailed(0.0, "p", "refused"))
    assert world.of(orders.FetchObject)
    world.do(events.ObjectArrived(0.0, "p", 10))
    assert [o.library_id for o in world.of(orders.StartHost)] == [2]


def test_a_payload_that_cannot_be_fetched_fails_the_library() -> None:
    world = WorkerWorld()
    world.say(messages.Fetch("p", 10))
    world.say(messages.StartLibrary(2, "g", 1, "direct", b"", [], 1, 60.0, "p"))
    world.do(events.ObjectFailed(0.0, "p", "refused"))
    assert "refused" in world.told(messages.LibraryGone)[0].error


def test_stopping_a_library_hands_everything_back() -> None:
    world = WorkerWorld()
    world.run(*[[call(i)] for i in range(1, 5)])
    world.say(messages.StopLibrary(1))
    assert {s for _, s in world.results()} == {messages.HANDED_BACK} and len(world.results()) == 4
    assert world.told(messages.LibraryGone)[0].error == ""
    world.run([call(9)])
    assert world.results() == [(9, messages.HANDED_BACK)]


def test_batches_stay_below_the_frame_limit() -> None:
    world = WorkerWorld()
    world.run([call(1)])
    world.answer(1, 1, us=1)
    calls = [Call(i, 1, 1, -1, b"x" * 65536, [], 0, True) for i in range(2, 202)]
    world.run(*[[c] for c in calls])
    sizes = [len(messages.encode(o.message)) for o in world.of(orders.ToSlot)]
    assert sizes and max(sizes) < messages.BATCH_LIMIT_BYTES + 70_000


@pytest.mark.parametrize(("words", "limit_s"), [((120.0, 900.0), 1800.0), ((0.0, 20.0), None), ((0.5, 2.0), 4.0)])
def test_how_long_a_manager_may_be_silent_can_change(words: tuple[float, float], limit_s: float | None) -> None:
    world = WorkerWorld()
    world.say(messages.Keepalive(*words))
    world.now += limit_s or 1e9
    world.do(events.Tick(0.0))
    assert not world.of(orders.LeaveManager)
    for _ in range(2):
        world.now += DOUBT_S
        world.do(events.Tick(0.0))
    assert len(world.of(orders.LeaveManager)) == (limit_s is not None)


def test_messages_before_the_welcome_are_refused() -> None:
    with pytest.raises(ProtocolError, match="before its welcome"):
        WorkerMachine().handle(events.ManagerSaid(1.0, messages.Fetch("a", 1)))


def test_calls_that_a_slot_has_not_started_are_handed_back_once_that_is_sure() -> None:
    world = WorkerWorld()
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


def settle(world: WorkerWorld, started: int = 0) -> None:
    """What was revoked in slot 1 has been seen by it, which runs its call number ``started``."""
    world.now += REVOKE_SETTLE_S
    world.do(events.ClaimRead(0.0, 1, started))


def test_the_rest_of_a_group_is_handed_back_behind_a_call_that_is_long() -> None:
    world = WorkerWorld()
    world.run([kept(1), call(2), call(3, 1), call(4)])
    world.say(messages.HandBack(3, 1))
    assert not world.of(orders.Revoke), "it has just begun"
    world.now += STUCK_S
    world.say(messages.HandBack(3, 1))
    settle(world)
    assert world.results() == [(2, messages.HANDED_BACK), (4, messages.HANDED_BACK)], "3 needs what the slot makes"


def test_a_group_is_cut_also_where_the_groups_behind_it_were_taken_before() -> None:
    world = WorkerWorld()
    world.machine.state.libraries[1].mean_us = 2000.0
    world.run([call(1), call(2)], [call(3)])
    world.now += STUCK_S
    world.say(messages.HandBack(2, 1))
    settle(world)
    assert world.results() == [(3, messages.HANDED_BACK)]
    world.now += CUT_FACTOR * 2000e-6
    world.say(messages.HandBack(2, 1))
    settle(world)
    assert world.results() == [(2, messages.HANDED_BACK)]


def test_a_group_of_long_calls_is_cut_after_the_time_that_no_group_was_to_take() -> None:
    world = WorkerWorld()
    world.machine.state.libraries[1].mean_us = 2e5
    world.run([call(1), call(2)])
    world.now += 0.9 * CUT_LIMIT_S
    world.say(messages.HandBack(1, 1))
    assert not world.of(orders.Revoke)
    world.now += 0.2 * CUT_LIMIT_S
    world.say(messages.HandBack(1, 1))
    assert world.of(orders.Revoke)


def test_what_could_not_be_given_is_not_owed_for_ever() -> None:
    """Ten requests in vain, and the eleventh took all that had come meanwhile."""
    world = WorkerWorld()
    world.run([kept(1), call(2, 1)])
    world.now += STUCK_S
    for _ in range(10):
        world.say(messages.HandBack(5, 1))
        assert not world.results() and not world.of(orders.Revoke)
    world.machine.state.libraries[1].mean_us = 1e5
    world.run(*[[call(number)] for number in range(3, 23)])
    world.say(messages.HandBack(1, 1))
    assert world.results() == [(22, messages.HANDED_BACK)]


def test_the_rest_of_a_group_counts_as_given() -> None:
    world = WorkerWorld(slots=1)
    world.machine.state.libraries[1].mean_us = 4000.0
    world.run([call(1), call(2), call(3)], [call(4)], [call(5)])
    world.now += CUT_FACTOR * 4000e-6
    library = world.machine.state.libraries[1]
    library.queue.rotate()  # nothing but the bundle is at the slot
    world.say(messages.HandBack(4, 1))
    assert world.results() == [(4, messages.HANDED_BACK), (5, messages.HANDED_BACK)]
    world.run([call(6)])
    settle(world)
    assert world.results() == [(2, messages.HANDED_BACK), (3, messages.HANDED_BACK)]


def boxed(task_id: int) -> Call:
    box = messages.Sandbox([], [messages.Product("out", f"r0-{task_id}.1.0")], [])
    return Call(task_id, 1, 1, -1, b"", [], 0, True, False, box)


def test_what_slots_of_a_stopped_library_wrote_is_removed() -> None:
    world = WorkerWorld()
    world.run([boxed(1)])
    world.say(messages.StopLibrary(1))
    assert [o.names for o in world.of(orders.UnlinkObjects)] == [["r0-1.1", "r0-1.1.0"]]
    kinds = [type(o) for o in world.orders]
    assert kinds.index(orders.StopHost) < kinds.index(orders.UnlinkObjects), "the slot could write again"


def test_what_a_dead_slot_wrote_is_removed_with_its_products() -> None:
    world = WorkerWorld()
    world.run([boxed(1)])
    world.do(events.SlotGone(0.0, 1, 0))
    assert [o.names for o in world.of(orders.UnlinkObjects)] == [["r0-1.1", "r0-1.1.0"]]


def test_an_input_that_a_slot_missed_is_not_believed_to_be_here() -> None:
    """It was said to be here whenever the manager sent it again, and missing whenever a slot looked."""
    world = WorkerWorld()
    world.say(messages.Fetch("a", 10))
    world.do(events.ObjectArrived(0.0, "a", 10))
    world.run([call(1, "a")])
    world.do(events.SlotAnswered(0.0, 1, [Result(1, 1, messages.NO_INPUT, 0, b"a")]))
    assert "a" not in world.machine.state.objects and [o.names for o in world.of(orders.UnlinkObjects)] == [["a"]]
    world.say(messages.Fetch("a", 10))
    assert world.of(orders.FetchObject)


def test_damage_by_a_cancelled_call_is_told() -> None:
    world = WorkerWorld()
    world.say(messages.Fetch("a", 10))
    world.do(events.ObjectArrived(0.0, "a", 10))
    world.run([boxed(1)])
    world.say(messages.Cancel([(1, 1)]))
    report = messages.Report(0, b"", [], [], ["a"])
    world.do(events.SlotAnswered(0.0, 1, [Result(1, 1, messages.OK_INLINE, 5, b"", 0, report)]))
    assert not world.results() and [m.names for m in world.told(messages.Removed)] == [["a"]]
    assert "a" not in world.machine.state.objects


def test_a_silent_manager_is_left_at_the_second_look() -> None:
    world = WorkerWorld()
    world.now += 41
    # Two looks may fall together, with nothing read in between.
    for passed in (0.0, 0.5):
        world.now += passed
        assert not [o for o in world.do(events.Tick(0.0)) if isinstance(o, orders.LeaveManager)]
    world.now += DOUBT_S
    (left,) = world.do(events.Tick(0.0))
    assert left == orders.LeaveManager(False, "the manager was silent for 40 s")


def test_a_manager_that_has_nothing_to_say_is_asked_before_it_is_left() -> None:
    """A worker that answers calls all the while is not asked by its manager, and left it in the middle of its work."""
    world = WorkerWorld()
    for _ in range(3):
        for _ in range(19):
            world.now += 1
            assert not world.do(events.Tick(0.0))
        world.now += 2
        world.do(events.Tick(0.0))
        assert world.told(messages.Ping)
        world.do(events.Tick(0.0))
        assert not world.told(messages.Ping), "once"
        world.say(messages.decode_from_manager(messages.encode(messages.Pong())))
    assert not world.machine.state.leaving


def test_a_worker_that_stood_still_hears_what_was_said_meanwhile() -> None:
    """Its first look comes before its socket is read: pings lie there, and that more silence is allowed now."""
    world = WorkerWorld()
    for message in (messages.Ping(), messages.Keepalive(5.0, 600.0)):
        world.now += 1000
        assert not world.do(events.Tick(0.0))
        world.say(message)
        world.now += 5
        assert not world.do(events.Tick(0.0))
    # What was found once does not count for the next silence.
    world.now += 1201
    assert not world.do(events.Tick(0.0))
    world.now += 5
    assert world.do(events.Tick(0.0)) == [orders.LeaveManager(False, "the manager was silent for 1200 s")]
