"""Libraries in the manager's machine: those that fail, and those that take long to start."""

from __future__ import annotations

from tests.kit.builders import RUN, Builder, hello
from tests.kit.manager_world import ManagerWorld
from vinecore.errors import LibraryFailed
from vinecore.manager import events, orders
from vinecore.manager import transitions as t
from vinecore.manager.machine import ManagerMachine
from vinecore.wire import messages

SLOW = messages.LibrarySlow(1, 60.0, "running its context function make")


def says(machine: ManagerMachine, worker_id: int, message: object) -> list[str]:
    said = machine.handle(events.WorkerSaid(1.0, worker_id, message))
    machine.check()
    return [order.text for order in said if isinstance(order, orders.Say)]


def test_a_library_that_takes_long_to_start_is_told_of_once_while_calls_wait_for_it() -> None:
    builder, machine = Builder(), ManagerMachine(RUN)
    builder.library.eager = True
    for worker_id in (1, 2):
        machine.handle(events.WorkerJoined(0.0, worker_id, hello(2)))
    machine.handle(events.LibraryInstalled(0.0, builder.library))
    assert not says(machine, 1, SLOW), "nothing waits for it"
    machine.handle(events.TasksSubmitted(0.5, [builder.call(), builder.call()]))
    assert says(machine, 2, SLOW) == [
        f"library 'library1' has been starting for 60 s on worker {hello(2).hostname}; "
        "it is running its context function make; 2 calls wait for it"
    ]
    assert not says(machine, 1, SLOW)


def test_a_library_that_is_slow_on_one_worker_and_works_on_another_is_not_told_of() -> None:
    builder, machine = Builder(), ManagerMachine(RUN)
    builder.library.eager = True
    for worker_id in (1, 2):
        machine.handle(events.WorkerJoined(0.0, worker_id, hello(1)))
    machine.handle(events.LibraryInstalled(0.0, builder.library))
    machine.handle(events.WorkerSaid(0.5, 1, messages.LibraryReady(1, 1)))
    machine.handle(events.TasksSubmitted(0.5, [builder.call() for _ in range(20)]))
    assert not says(machine, 2, SLOW)


def test_a_library_that_fails_everywhere_fails_its_calls_with_the_remote_error() -> None:
    world = ManagerWorld(2)
    calls = [world.builder.call(), world.builder.call()]
    world.submit(*calls)
    world.say(1, messages.LibraryGone(1, "ImportError: no x", b"tb"))
    assert not world.delivered()
    world.say(2, messages.LibraryGone(1, "ImportError: no x", b"tb"))
    assert set(world.delivered()) == set(calls) and {(str(c.error), c.value) for c in calls} == {
        ("library 'library1' cannot be started on any worker: ImportError: no x", b"tb")
    }
    assert all(isinstance(c.error, LibraryFailed) for c in calls)
    late = world.builder.call()
    world.submit(late)
    assert isinstance(late.error, LibraryFailed) and late.value == b"tb"


def test_calls_of_an_instance_that_ended_without_a_word_run_elsewhere() -> None:
    world = ManagerWorld(2)
    call = world.builder.call()
    world.submit(call)
    assert call.instance is not None
    first = call.instance.worker.worker_id
    world.say(first, messages.LibraryGone(1, ""))
    assert call.instance.worker.worker_id == 3 - first and call.attempt == 2
    assert not world.machine.state.workers[first].placed()
    world.answer(call, messages.OK_INLINE, b"42")
    assert world.delivered() == [call] and call.value == b"42"


def test_a_new_worker_gets_a_library_that_failed_elsewhere() -> None:
    world = ManagerWorld()
    world.say(1, messages.LibraryGone(1, "bad", b""))
    world.join(2)
    call = world.builder.call()
    world.submit(call)
    assert call.instance is not None and call.instance.worker.worker_id == 2


def test_a_library_that_failed_everywhere_is_started_again_when_its_window_is_over() -> None:
    world = ManagerWorld(2)
    for worker_id in (1, 2):
        world.say(worker_id, messages.LibraryGone(1, "bad", b""))
    soon = world.builder.call()
    world.now += 59
    world.submit(soon)
    assert isinstance(soon.error, LibraryFailed) and not world.sent(messages.StartLibrary)
    late = world.builder.call()
    world.now += 2
    world.submit(late)
    assert len(world.sent(messages.StartLibrary)) == 2 and late.state is t.READY
    world.say(1, messages.LibraryReady(1, 2))
    assert late.instance is not None and late.instance.worker.worker_id == 1
    assert world.sent(messages.Code) and world.sent(messages.Run)
    world.answer(late, messages.OK_INLINE, b"v")
    assert late.error is None


def test_a_library_that_fails_on_one_worker_is_tried_there_once_in_each_window() -> None:
    world = ManagerWorld(2)
    world.say(1, messages.LibraryGone(1, "bad", b""))
    starts = []
    for second in range(200):
        call = world.builder.call()
        world.submit(call)
        if world.sent(messages.StartLibrary):
            starts.append(second)
            world.say(1, messages.LibraryGone(1, "bad", b""))
        assert call.instance is not None and call.instance.worker.worker_id == 2
        world.answer(call, messages.OK_INLINE, b"v")
        world.now += 1
        world.say(1, messages.Pong())
    assert starts == [60, 120, 180]


def test_a_library_that_is_always_being_tried_on_one_of_two_workers_fails_its_calls() -> None:
    """It takes longer to fail than the time after which it is tried again: the calls waited for ever."""
    world = ManagerWorld(0)
    window = world.machine.state.tunables.library_restart_window
    gone = messages.LibraryGone(1, "no licence")
    world.do(events.WorkerJoined(0.0, 1, hello(1)))
    call, late = world.builder.call(), world.builder.call()
    world.submit(call)
    world.now += window / 2
    world.do(events.WorkerJoined(0.0, 2, hello(1)))
    world.now += window / 2
    world.say(1, gone)
    assert not world.delivered()
    world.now += window + 1
    world.do(events.Tick(0.0))
    assert [o.worker_id for o in world.of(orders.SendTo) if isinstance(o.message, messages.StartLibrary)] == [1]
    world.say(2, gone)
    assert world.delivered() == [call] and isinstance(call.error, LibraryFailed)
    world.submit(late)
    assert not world.delivered(), "this one has seen no failure yet"
    world.now += window + 1
    world.do(events.Tick(0.0))
    world.say(1, gone)
    assert not world.delivered()
    world.say(2, messages.LibraryReady(1, 1))
    assert late.state is t.PLACED


def test_a_worker_with_fewer_slots_than_it_should_have_is_told_of_once_and_gets_less_work() -> None:
    world = ManagerWorld(2, cores=4)
    world.say(1, messages.LibraryReady(1, 1, "", "3 of its 4 slots could not be started"))
    assert [o.text for o in world.of(orders.Say)] == [
        f"library 'library1' goes on with 1 slot on worker {hello(4).hostname}: 3 of its 4 slots could not be started"
    ]
    world.say(2, messages.LibraryReady(1, 2, "", "2 of its 4 slots could not be started"))
    assert not world.of(orders.Say)
    library = world.builder.library
    assert library.slots_up == 3 and {i.worker_id: i.slots for i in library.instances.values()} == {1: 1, 2: 2}
    calls = [world.builder.call() for _ in range(100)]
    world.submit(*calls)
    for slots in (-1, 10**9):
        world.say(1, messages.LibraryReady(1, slots))
        assert library.instances[1].slots == 1, "no worker has so many"
    world.say(1, messages.LibraryReady(1, 4))
    assert library.slots_up == 6
    world.say(1, messages.LibraryReady(1, 1))
    assert library.instances[1].is_piled, "it has more than it can work on"


def test_a_worker_that_has_no_slot_for_a_while_gets_no_calls() -> None:
    world = ManagerWorld(2)
    library = world.builder.library
    world.say(1, messages.LibraryReady(1, 0))
    world.submit(*[world.builder.call() for _ in range(4)])
    first, second = (library.instances[worker_id] for worker_id in (1, 2))
    assert not first.outstanding and second.outstanding and library.slots_up == second.slots
    assert not says(world.machine, 1, SLOW), "they have somewhere to go"
    world.say(2, messages.LibraryReady(1, 0))
    assert says(world.machine, 2, SLOW), "now they have not"
    world.say(1, messages.LibraryReady(1, 1))
    assert first.outstanding
    assert not world.delivered()


def test_a_removed_library_fails_its_calls() -> None:
    world = ManagerWorld()
    call = world.builder.call()
    world.submit(call)
    world.do(events.LibraryRemoved(0.0, world.builder.library))
    assert isinstance(call.error, LibraryFailed) and world.sent(messages.StopLibrary)
    late = world.builder.call(call)
    world.submit(late)
    assert isinstance(late.error, LibraryFailed)
