"""Slots in the worker's machine: those that load their library themselves, cannot start, or end before their first call."""

from __future__ import annotations

import pytest

from tests.kit.worker_world import WorkerWorld, call, host2, opened, start
from vinecore.wire import messages
from vinecore.worker import events
from vinecore.worker.on_libraries import FORKED_ENDS, REFILL_S, SLOW_START_S
from vinecore.worker.state import NOT_REVOKED


def test_spawned_slots_that_never_get_to_a_call_fail_the_library() -> None:
    world = WorkerWorld()
    start(world)
    host2(world, messages.Began(b"", "", "it has threads"))
    for number in range(3):
        (slot,) = opened(world)
        host2(world, messages.Forked(slot, 20 + number))
        if number == 0:
            assert not world.told(messages.LibraryReady), "what can be said of it is known when it has loaded the library"
            world.say(messages.Run(2, [[call(1)]], []))
        world.do(events.SlotGone(0.0, slot, NOT_REVOKED, "ended with exit code 1: ImportError: no x"))
    assert world.results() == [(1, messages.HANDED_BACK)]
    (gone,) = world.told(messages.LibraryGone)
    assert "ended 3 times before they were ready: its process ended with exit code 1: ImportError: no x" in gone.error


def loading_slots(slots: int = 1, **options: object) -> tuple[WorkerWorld, list[int]]:
    """Library 2 has a program: its slots are forked, and load it."""
    world = WorkerWorld()
    start(world, program="./program", slots=slots, **options)
    host2(world, messages.Began(b""))
    ids = opened(world)
    for slot_id in ids:
        host2(world, messages.Forked(slot_id, 20 + slot_id))
        assert not world.orders
    return world, ids


def ready(world: WorkerWorld, slot_id: int) -> None:
    world.do(events.SlotReady(0.0, slot_id))


def run2(world: WorkerWorld, *ids: int) -> None:
    world.say(messages.Run(2, [[call(i)] for i in ids], []))


def test_a_slot_that_loads_its_library_itself_is_given_nothing_before_it_is_ready() -> None:
    """One that hung while it did so had a call that could have run in the other."""
    world, (one, two) = loading_slots(2)
    ready(world, two)
    assert [m.slots for m in world.told(messages.LibraryReady)] == [2], "one is enough"
    run2(world, 1, 2)
    assert world.batches() == [(two, [1]), (two, [2])]
    world.answer(two, 1, us=10**6)
    run2(world, 3)
    assert not world.batches()
    ready(world, one)
    assert world.batches() == [(one, [3])] and not world.told(messages.LibraryReady)
    ready(world, one)
    assert not world.orders


def test_a_library_none_of_whose_slots_gets_ready_is_told_of() -> None:
    world, (slot,) = loading_slots()
    assert world.machine.next_deadline() == world.now + SLOW_START_S
    world.now += SLOW_START_S
    world.do(events.Tick(0.0))
    doing = "waiting for its program to say that it is ready"
    assert world.told(messages.LibrarySlow) == [messages.LibrarySlow(2, SLOW_START_S, doing)]
    ready(world, slot)
    assert world.told(messages.LibraryReady) and world.machine.next_deadline() is None


def test_slots_that_take_long_to_fail_are_not_started_for_ever() -> None:
    world, (slot,) = loading_slots()
    run2(world, 1)
    for number in range(1, 4):
        assert not world.told(messages.LibraryGone)
        world.now += 100
        world.do(events.SlotGone(0.0, slot, NOT_REVOKED, "ended with exit code 1: no licence"))
        if number < 3:
            (slot,) = opened(world)
    (gone,) = world.told(messages.LibraryGone)
    assert gone.error == (
        "slots of library 'g' ended 3 times before they were ready: its process ended with exit code 1: no licence"
    )


def test_programs_that_end_while_they_idle_are_no_failed_starts() -> None:
    """They may have been killed from outside, all of them, or have a limit on their idle time."""
    world, slots = loading_slots(2)
    for slot in slots:
        ready(world, slot)
    for _ in range(20):
        world.now += 1
        world.do(events.SlotGone(0.0, slots.pop(0), NOT_REVOKED, "ended with exit code 0"))
        assert not world.told(messages.LibraryGone)
        slots += opened(world)
        ready(world, slots[-1])


def test_programs_that_end_with_calls_that_they_have_not_begun_may_do_so_some_times() -> None:
    """That one has ended is seen when it is given a call: all of them may have, and so may those in their place."""
    world, slots = loading_slots(2)
    for slot in slots:
        ready(world, slot)
    run2(world, 1)
    for number in range(18):
        world.now += 100
        (slot,) = (slot for slot, held in world.machine.state.slots.items() if held.outstanding)
        if number % 6 == 5:
            world.answer(slot, 1 + number // 6)  # this ends the row
            run2(world, 2 + number // 6)
        else:
            world.do(events.SlotGone(0.0, slot, NOT_REVOKED, "ended with exit code 0"))
            ready(world, opened(world)[0])
        assert (not world.told(messages.LibraryGone) and not world.results()) or number % 6 == 5


@pytest.mark.parametrize("waits", [True, False])
def test_programs_that_end_as_soon_as_they_are_ready_fail_the_library(waits: bool) -> None:
    world, slots = loading_slots(2)
    for number in range(1, 7):
        for slot in slots:
            ready(world, slot)
        if number == 1 and waits:
            run2(world, 1)
        slot = next((slot for slot, held in world.machine.state.slots.items() if held.outstanding), slots[0])
        world.do(events.SlotGone(0.0, slot, NOT_REVOKED, "ended with exit code 0"))
        slots = opened(world)
        assert bool(slots) == (number < 6)
    (gone,) = world.told(messages.LibraryGone)
    assert gone.error == "slots of library 'g' ended 6 times without answering a call: its process ended with exit code 0"
    assert world.results() == ([(1, messages.HANDED_BACK)] if waits else [])


def test_programs_that_end_as_soon_as_they_are_ready_take_none_along_that_works() -> None:
    world, (one, two) = loading_slots(2)
    ready(world, one)
    run2(world, 1)
    for number in range(1, 7):
        ready(world, two)
        world.do(events.SlotGone(0.0, two, NOT_REVOKED, "ended with exit code 0"))
        assert not world.told(messages.LibraryGone) and not world.results()
        if number < 6:
            (two,) = opened(world)
    assert not opened(world) and [m.slots for m in world.told(messages.LibraryReady)] == [1]
    world.answer(one, 1)
    world.now += REFILL_S
    world.do(events.Tick(0.0))
    (two,) = opened(world)
    ready(world, two)
    assert [m.slots for m in world.told(messages.LibraryReady)] == [2]


def fail_slot(world: WorkerWorld, slot_id: int) -> list[int]:
    """A slot cannot start; those that are tried in its place."""
    world.do(events.SlotGone(0.0, slot_id, NOT_REVOKED, "ended with exit code 1: all licences are in use"))
    return opened(world)


def test_a_slot_that_cannot_start_takes_no_other_along() -> None:
    """One had the licence; the other failed three times, and with it the library."""
    world, (one, two) = loading_slots(2)
    ready(world, one)
    run2(world, 1, 2)
    for _ in range(2):
        (two,) = fail_slot(world, two)
    assert not fail_slot(world, two)
    lacks = "1 of its 2 slots could not be started, the last one's process ended with exit code 1: all licences are in use"
    assert world.told(messages.LibraryReady) == [messages.LibraryReady(2, 1, "", lacks)]
    assert not world.told(messages.LibraryGone) and world.machine.next_deadline() == world.now + REFILL_S
    world.answer(one, 1, 2)
    for _ in range(2):
        world.now += REFILL_S
        world.do(events.Tick(0.0))
        (two,) = opened(world)
        assert not fail_slot(world, two) and not world.told(messages.LibraryReady), "nothing new"
    world.now += REFILL_S
    world.do(events.Tick(0.0))
    (two,) = opened(world)
    ready(world, two)
    assert world.told(messages.LibraryReady) == [messages.LibraryReady(2, 2)] and world.machine.next_deadline() is None


def test_slots_that_cannot_start_wait_for_one_that_may() -> None:
    """Who has the licence may take longer to be ready than the other to fail three times."""
    world, (one, two) = loading_slots(2)
    for _ in range(2):
        (two,) = fail_slot(world, two)
    assert not fail_slot(world, two) and not world.told(messages.LibraryReady) and not world.told(messages.LibraryGone)
    ready(world, one)
    assert [(m.slots, bool(m.lacks)) for m in world.told(messages.LibraryReady)] == [(1, True)]
    # In its place comes one that is tried as often as any.
    run2(world, 1)
    world.do(events.SlotGone(0.0, one, 0, "was killed by SIGKILL"))
    (one,) = opened(world)
    for _ in range(2):
        (one,) = fail_slot(world, one)
    assert not fail_slot(world, one) and world.told(messages.LibraryGone), "none is left"


def test_a_slot_that_cannot_replace_one_that_retires_waits_for_its_end() -> None:
    """It needs what that one has until then. It failed three times, and the library with the call that ran."""
    world, (one,) = loading_slots(max_calls=1)
    ready(world, one)
    run2(world, 1, 2)
    (two,) = opened(world)
    host2(world, messages.Forked(two, 32))
    for _ in range(2):
        (two,) = fail_slot(world, two)
    assert not fail_slot(world, two) and not world.told(messages.LibraryReady) and not world.results()
    world.answer(one, 1)
    assert world.results() == [(1, messages.OK_INLINE)] and not opened(world), "its process has not ended yet"
    host2(world, messages.SlotExited(one, 21, 0))
    # From here on there is no other.
    (two,) = opened(world)
    for _ in range(2):
        (two,) = fail_slot(world, two)
    assert not fail_slot(world, two) and world.told(messages.LibraryGone)


def test_starts_that_began_before_a_slot_had_ended_do_not_count() -> None:
    world, (one,) = loading_slots(max_calls=1)
    ready(world, one)
    run2(world, 1)
    (two,) = opened(world)
    for _ in range(2):
        (two,) = fail_slot(world, two)
    world.do(events.SlotGone(0.0, one, 0, "was killed by SIGKILL"))
    (two,) = fail_slot(world, two)
    ready(world, two)
    assert not world.told(messages.LibraryGone)


def test_calls_do_not_wait_for_ever_for_a_slot_that_is_replaced() -> None:
    """Others may have time for them. What comes in its place may take as long as it likes."""
    world, (one,) = loading_slots()
    ready(world, one)
    run2(world, 1, 2)
    world.do(events.SlotGone(0.0, one, 0, "was killed by SIGKILL"))
    (two,) = opened(world)
    assert world.results() == [(1, messages.LOST)] and world.machine.next_deadline() == world.now + SLOW_START_S
    world.now += SLOW_START_S
    world.do(events.Tick(0.0))
    assert [m.slots for m in world.told(messages.LibraryReady)] == [0] and world.told(messages.LibrarySlow)
    assert world.results() == [(2, messages.HANDED_BACK)] and world.machine.next_deadline() is None
    ready(world, two)
    assert [m.slots for m in world.told(messages.LibraryReady)] == [1]


def test_forked_slots_that_cannot_be_made_take_no_other_along() -> None:
    world = WorkerWorld()
    start(world, slots=2)
    host2(world, messages.Began(b""))
    one, two = opened(world)
    host2(world, messages.Forked(one, 21))
    for _ in range(2):
        (two,) = fail_slot(world, two)
    assert not fail_slot(world, two) and [m.slots for m in world.told(messages.LibraryReady)] == [1]
    world.now += REFILL_S
    world.do(events.Tick(0.0))
    (two,) = opened(world)
    host2(world, messages.Forked(two, 22))
    assert [m.slots for m in world.told(messages.LibraryReady)] == [2]


def test_slots_none_of_which_can_start_fail_the_library() -> None:
    world, slots = loading_slots(3)
    for number in range(5):
        assert not world.told(messages.LibraryGone)
        slots += fail_slot(world, slots.pop(0))
        assert len(slots) == min(3, 4 - number)
    assert "ended 5 times before they were ready" in world.told(messages.LibraryGone)[0].error


def test_a_new_generation_has_all_slots_again() -> None:
    world = WorkerWorld()
    world.say(messages.StopLibrary(1))
    world.say(messages.StartLibrary(1, "f", 2, "direct", b"", [], 1, 60.0))
    world.host(messages.Began(b"", "", "it has threads"))
    one, two = opened(world)
    ready(world, one)
    fail_slot(world, two)
    assert world.machine.next_deadline() == world.now + REFILL_S
    world.say(messages.Code(1, 7, b"f", ["numpy"], [], False))
    world.host(messages.Hoisted(["numpy"], 1, "it has threads"))
    assert len(opened(world)) == 2 and world.machine.next_deadline() is None
    ready(world, max(world.machine.state.slots))
    assert [m.slots for m in world.told(messages.LibraryReady)] == [2]


def test_what_a_slow_library_does_in_slots_of_its_own_is_told() -> None:
    world = WorkerWorld()
    start(world)
    host2(world, messages.Began(b"", "", "it has threads"))
    world.now += SLOW_START_S
    world.do(events.Tick(0.0))
    assert [m.doing for m in world.told(messages.LibrarySlow)] == ["loading its functions in processes of their own"]


def test_some_forked_slots_may_be_killed_before_their_first_call() -> None:
    world = WorkerWorld()
    for _ in range(FORKED_ENDS - 1):
        world.do(events.SlotGone(0.0, max(world.machine.state.slots), NOT_REVOKED, "was killed by SIGKILL"))
        (slot,) = opened(world)
        world.host(messages.Forked(slot, 10 + slot))
    assert not world.told(messages.LibraryGone)


def test_forked_slots_that_never_get_to_a_call_fail_the_library() -> None:
    world = WorkerWorld()
    world.run([call(1)])
    for number in range(FORKED_ENDS):
        assert not world.told(messages.LibraryGone)
        world.do(events.SlotGone(0.0, max(world.machine.state.slots), NOT_REVOKED, "ended with exit code 3"))
        if number + 1 < FORKED_ENDS:
            world.host(messages.Forked(max(world.machine.state.slots), 20 + number))
    assert world.results() == [(1, messages.HANDED_BACK)]
    (gone,) = world.told(messages.LibraryGone)
    assert f"ended {FORKED_ENDS} times in 60 s before their first call: its process ended with exit code 3" in gone.error
