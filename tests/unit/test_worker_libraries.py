"""Libraries in the worker's machine: parents, modules, slots that are replaced, files."""

from __future__ import annotations

import pytest

from tests.kit.worker_world import WorkerWorld, call, host2, opened, start
from vinecore.wire import messages
from vinecore.worker import events, orders
from vinecore.worker.on_calls import HOIST_LIMIT_S
from vinecore.worker.on_libraries import LOAD_LIMIT_S, SLOW_START_S


def test_a_library_starts_and_tells_when_its_first_slot_is_there() -> None:
    world = WorkerWorld(2, ready=False)
    world.host(messages.Began(b""))
    assert [len(o.slot_ids) for o in world.of(orders.OpenSlots)] == [2]
    world.host(messages.Forked(1, 11))
    assert [m.slots for m in world.told(messages.LibraryReady)] == [2]
    world.host(messages.Forked(2, 12))
    assert not world.told(messages.LibraryReady)


def test_modules_make_a_new_generation_of_slots() -> None:
    world = WorkerWorld()
    world.say(messages.Code(1, 7, b"f", ["numpy"], [], False))
    assert [o.message.modules for o in world.of(orders.ToHost)] == [["numpy"]]
    world.run([call(1, code_id=7)])
    assert not world.batches()
    world.host(messages.Hoisted(["numpy"], 1))
    assert [o.slot_id for o in world.of(orders.CloseSlot)] == [1]
    world.host(messages.Forked(2, 12))
    assert world.batches() == [(2, [1])]


def test_a_busy_slot_of_the_old_generation_ends_when_it_is_empty() -> None:
    world = WorkerWorld()
    world.run([call(1)])
    world.say(messages.Code(1, 7, b"f", ["numpy"], [], False))
    world.host(messages.Hoisted(["numpy"], 1))
    assert not world.of(orders.CloseSlot)
    world.answer(1, 1)
    assert [o.slot_id for o in world.of(orders.CloseSlot)] == [1]


def test_a_failing_library_reports_its_error() -> None:
    world = WorkerWorld(ready=False)
    world.host(messages.Began(b"tb", "ImportError: no x"))
    assert [(m.error, m.traceback) for m in world.told(messages.LibraryGone)] == [("ImportError: no x", b"tb")]


def test_a_parent_is_started_again_three_times_at_most() -> None:
    world = WorkerWorld()
    for _ in range(2):
        world.do(events.HostGone(0.0, 1, "killed"))
        assert len(world.of(orders.StartHost)) == 1
    world.do(events.HostGone(0.0, 1, "killed"))
    assert not world.of(orders.StartHost)
    assert "ended 3 times in 60 s: killed" in world.told(messages.LibraryGone)[0].error


def test_restarts_outside_the_window_do_not_count() -> None:
    world = WorkerWorld()
    for _ in range(6):
        world.now += 40
        world.do(events.HostGone(0.0, 1, "killed"))
        assert len(world.of(orders.StartHost)) == 1
        world.ready()


def test_a_parent_that_takes_long_to_fail_is_not_started_for_ever() -> None:
    """Its calls waited without end: no three starts were within the window."""
    world = WorkerWorld()
    for _ in range(3):  # the first was ready
        world.now += 100
        world.do(events.HostGone(0.0, 1, "ended with exit code 9"))
        assert len(world.of(orders.StartHost)) == 1
    world.now += 100
    world.do(events.HostGone(0.0, 1, "ended with exit code 9"))
    assert [m.error for m in world.told(messages.LibraryGone)] == [
        "library 'f' ended 3 times before it was ready: ended with exit code 9"
    ]


def test_a_start_that_is_ready_ends_a_row_of_failures() -> None:
    world = WorkerWorld()
    for _ in range(3):
        for _ in range(3):
            world.now += 100
            world.do(events.HostGone(0.0, 1, "killed"))
        world.ready()


def test_a_parent_that_fails_slowly_is_tried_without_what_it_imported() -> None:
    """As one that fails fast: the last try is without; what ended because of an import does not count."""
    world = loading_world("late")
    world.now += 100
    world.do(events.HostGone(0.0, 1, "exited"))
    for _ in range(2):
        world.now += 100
        world.do(events.HostGone(0.0, 1, "exited"))
        told = [m.error for m in world.told(messages.LibraryGone)]
        if not told:
            assert [o.without for o in world.of(orders.StartHost)] == [frozenset(["late"])]
    assert told and "ended 2 times before it was ready: exited (importing late had ended its process before" in told[0]


def test_a_parent_that_ends_before_its_first_slot_is_ready_tells_it_the_next_time() -> None:
    """The manager gives work only to instances that are ready, and would wait for ever."""
    world = WorkerWorld(ready=False)
    world.host(messages.Began(b""))
    world.do(events.HostGone(0.0, 1, "killed"))
    world.ready()
    assert len(world.told(messages.LibraryReady)) == 1
    world.do(events.HostGone(0.0, 1, "killed"))
    world.ready()
    assert not world.told(messages.LibraryReady), "it knows"


def test_a_parent_that_ends_while_it_imports_is_started_again_without_these_modules() -> None:
    """However often that happens; what other code wants is imported as before."""
    world = WorkerWorld(max_restarts=2)
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
    world = WorkerWorld(2)
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
    world = WorkerWorld()
    world.say(messages.Code(1, 5, b"", ["first"], [], False))
    world.say(messages.Code(1, 6, b"", ["second"], [], False))
    world.run([call(1, code_id=6)])
    assert not world.batches()


def test_an_import_that_does_not_end_is_given_up() -> None:
    world = WorkerWorld()
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
    world = WorkerWorld(max_restarts=3)
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


def loading_world(*modules: str) -> WorkerWorld:
    """A library with functions of its own that has started."""
    world = WorkerWorld()
    world.say(messages.StopLibrary(1))
    world.say(messages.StartLibrary(1, "f", 1, "direct", b"code", list(modules), 2, 60.0))
    assert [o.without for o in world.of(orders.StartHost)] == [frozenset()]
    return world


def test_a_module_that_was_only_found_is_left_out_when_its_import_ends_the_parent() -> None:
    """One by one, without end to the number of them; what the parent dies of afterwards counts as before."""
    world = loading_world("bad0", "bad1", "bad2", "good")
    for number in range(3):
        world.host(messages.Loading(messages.FOUND, f"bad{number}"))
        world.do(events.HostGone(0.0, 1, "exited"))
        assert [o.without for o in world.of(orders.StartHost)] == [frozenset(f"bad{i}" for i in range(number + 1))]
    world.host(messages.Loading(messages.FOUND, "good"))
    world.ready()
    world.run([call(1)])
    assert [ids for _, ids in world.batches()] == [[1]] and world.machine.next_deadline() is None


def test_what_a_parent_did_when_it_ended_is_named() -> None:
    world = loading_world("bad", "good")
    world.host(messages.Loading(messages.FOUND, "bad"))
    world.do(events.HostGone(0.0, 1, "exited"))
    world.host(messages.Loading(messages.UNPICKLE))
    world.do(events.HostGone(0.0, 1, "exited"))
    assert [o.without for o in world.of(orders.StartHost)] == [frozenset(["bad"])]
    world.host(messages.Loading(messages.UNPICKLE))
    world.do(events.HostGone(0.0, 1, "exited"))
    assert [o.without for o in world.of(orders.StartHost)] == [frozenset(["bad", "good"])], "the last try"
    world.host(messages.Loading(messages.UNPICKLE))
    world.do(events.HostGone(0.0, 1, "exited"))
    error = world.told(messages.LibraryGone)[0].error
    assert "ended 2 times in 60 s: exited while unpickling its functions (importing bad, good had ended" in error


def test_a_module_that_was_only_found_is_left_out_when_its_import_does_not_end() -> None:
    world = loading_world("endless")
    world.now += 1
    world.host(messages.Loading(messages.FOUND, "endless"))
    world.now += HOIST_LIMIT_S - 1
    world.do(events.Tick(0.0))
    assert not world.of(orders.StopHost) and world.machine.next_deadline() == world.now + 1
    world.now += 1
    world.do(events.Tick(0.0))
    kinds = [type(order) for order in world.orders]
    assert kinds.index(orders.StopHost) < kinds.index(orders.StartHost)
    assert [o.without for o in world.of(orders.StartHost)] == [frozenset(["endless"])]
    world.ready()
    assert world.machine.next_deadline() is None


@pytest.mark.parametrize(
    ("step", "text"),
    [
        (messages.Loading(messages.NAMED, "endless"), "importing 'endless' (from its hoisting_modules)"),
        (messages.Loading(messages.UNPICKLE), "unpickling its functions"),
    ],
)
def test_a_library_whose_own_loading_does_not_end_fails_and_says_where(step: messages.Loading, text: str) -> None:
    world = loading_world()
    world.host(step)
    world.now += LOAD_LIMIT_S
    world.do(events.Tick(0.0))
    assert [m.error for m in world.told(messages.LibraryGone)] == [f"{text} had not ended after {LOAD_LIMIT_S:g} s"]
    assert world.of(orders.StopHost) and not world.of(orders.StartHost) and world.machine.next_deadline() is None


def test_a_context_may_take_as_long_as_it_likes_but_is_told_of_once() -> None:
    world = loading_world()
    world.host(messages.Loading(messages.CONTEXT, "make"))
    assert world.machine.next_deadline() == world.now + SLOW_START_S
    world.now += SLOW_START_S
    world.do(events.Tick(0.0))
    assert world.told(messages.LibrarySlow) == [messages.LibrarySlow(1, SLOW_START_S, "running its context function make")]
    assert world.machine.next_deadline() is None
    world.now += 100 * LOAD_LIMIT_S
    world.say(messages.Ping())
    world.do(events.Tick(0.0))
    assert not world.orders
    world.ready()
    assert world.told(messages.LibraryReady)


def test_a_dead_parent_loses_only_what_slots_had() -> None:
    world = WorkerWorld()
    world.run([call(1)], [call(2)], [call(3)])
    world.do(events.HostGone(0.0, 1, "killed"))
    assert world.results() == [(1, messages.LOST), (2, messages.HANDED_BACK)]
    world.ready()
    assert [ids for _, ids in world.batches()] == [[3]]


# ---------------------------------------------------------------- slots that are replaced


def test_a_slot_gets_no_more_calls_than_its_limit_and_the_next_one_waits_for_its_end() -> None:
    world = WorkerWorld()
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
    world = WorkerWorld()
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
    world = WorkerWorld()
    world.run([call(1)])
    world.do(events.SlotTired(0.0, 1, 700))
    world.host(messages.Forked(2, 12))
    world.do(events.SlotGone(0.0, 1, 0, "was killed by SIGKILL"))
    assert not opened(world) and world.results() == [(1, messages.LOST)]


def test_the_manager_hears_when_modules_forbid_forks() -> None:
    world = WorkerWorld()
    world.say(messages.Code(1, 7, b"f", ["grpc"], [], False))
    world.host(messages.Hoisted(["grpc"], 3, "it has threads"))
    world.host(messages.Forked(2, 12))
    world.do(events.SlotReady(0.0, 2))
    assert [m.note for m in world.told(messages.LibraryReady)] == ["it has threads"]


def test_a_library_waits_for_all_of_its_files() -> None:
    world = WorkerWorld()
    for name in ("p", "a", "b"):
        world.say(messages.Fetch(name, 5))
    start(world, payload_name="p", mounts=[messages.Mount("a", "x"), messages.Mount("b", "y")])
    for name in ("b", "p"):
        world.do(events.ObjectArrived(0.0, name, 5))
        assert not world.of(orders.StartHost)
    world.do(events.ObjectArrived(0.0, "a", 5))
    assert [o.library_id for o in world.of(orders.StartHost)] == [2]


def test_a_library_whose_file_cannot_be_had_fails_and_names_it() -> None:
    world = WorkerWorld()
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
    world = WorkerWorld()
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
    world = WorkerWorld()
    world.say(messages.Fetch("p", 10))
    world.do(events.ObjectFailed(0.0, "p", "refused"))
    world.say(messages.StartLibrary(2, "g", 1, "direct", b"", [], 2, 60.0, "p"))
    assert world.of(orders.FetchObject) and not world.of(orders.StartHost)
    world.do(events.ObjectArrived(0.0, "p", 10))
    assert [o.library_id for o in world.of(orders.StartHost)] == [2]
