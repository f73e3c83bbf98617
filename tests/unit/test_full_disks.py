"""Workers whose disk is full: what was lost there for lack of room runs elsewhere, and goes back only if nobody else can."""

from __future__ import annotations

from tests.kit.manager_world import ManagerWorld, graph_in
from tests.unit.test_replication import NO_ROOM, Fleet
from vinecore.errors import SlotLost
from vinecore.manager import events
from vinecore.manager import transitions as t
from vinecore.manager.entries import TaskEntry
from vinecore.wire import messages
from vinecore.wire.messages import Result

NOT_WRITTEN = b"its result could not be written: No space left on device"


def place_of(entry: TaskEntry) -> int:
    return entry.instance.worker.worker_id if entry.instance is not None else 0


def test_a_result_that_a_disk_did_not_take_is_made_elsewhere_even_if_that_means_to_wait() -> None:
    world = ManagerWorld(2, cores=1)
    full, other = world.builder.call(), world.builder.call()
    world.submit(full, other)
    world.builder.kind.mean_us = 1e6
    for instance in world.builder.library.instances.values():
        instance.mean_us = 1e6
    more = [world.builder.call() for _ in range(3)]
    world.submit(*more)
    bad = place_of(full)
    world.answer(full, messages.LOST, NOT_WRITTEN)
    for _ in range(100):
        world.now += 0.1
        world.do(events.Tick(0.0))
        for worker_id in (1, 2):
            world.say(worker_id, messages.Pong())
        assert place_of(full) != bad
        placed = [c for c in (other, *more) if c.state is t.PLACED and place_of(c) != bad]
        if placed:
            world.answer(placed[0], messages.OK_INLINE, b"v")
        if full.state is t.PLACED:
            break
    assert place_of(full) == 3 - bad and full.losses == 1


def test_others_use_a_worker_that_had_no_room_for_some() -> None:
    world = ManagerWorld(2, cores=1)
    calls = [world.builder.call() for _ in range(6)]
    world.submit(*calls)
    bad = place_of(calls[0])
    world.answer(calls[0], messages.LOST, NOT_WRITTEN)
    fresh = world.builder.call()
    world.submit(fresh)
    for _ in range(20):
        for call in calls:
            if call.state is t.PLACED and place_of(call) == bad:
                world.answer(call, messages.OK_INLINE, b"v")
    assert calls[0].state is not t.FINISHED and place_of(calls[0]) != bad
    assert fresh.state is t.PLACED


def test_without_any_other_worker_it_goes_back_until_it_is_given_up_as_what_it_is() -> None:
    world = ManagerWorld(1)
    world.machine.state.tunables.max_losses = 2
    call = world.builder.call()
    world.submit(call)
    for _ in range(3):
        assert place_of(call) == 1
        world.answer(call, messages.LOST, NOT_WRITTEN)
    assert isinstance(call.error, SlotLost)
    assert "could not be written" in str(call.error) and "full" in str(call.error) and "native" not in str(call.error)


def test_when_no_disk_has_room_every_worker_is_tried_before_one_again() -> None:
    world = ManagerWorld(3, cores=1)
    call = world.builder.call()
    world.submit(call)
    tried = []
    while call.state is t.PLACED:
        tried.append(place_of(call))
        world.answer(call, messages.LOST, NOT_WRITTEN)
    assert set(tried[:3]) == {1, 2, 3} and len(tried) == 6 and isinstance(call.error, SlotLost)


def test_a_call_goes_away_from_its_inputs_when_the_rest_of_them_does_not_fit_there() -> None:
    world = Fleet(1, 1000, 1000)
    small, large = world.builder.call(), world.builder.call()
    world.submit(small, large)
    source, full = place_of(small), place_of(large)
    world.answer(small, messages.OK_STORED, b"", 100_000)
    world.answer(large, messages.OK_STORED, b"", 10_000_000)
    reader = world.builder.call(small, large)
    world.submit(reader)
    assert place_of(reader) == full and small.output is not None
    world.now += 0.01
    world.say(full, messages.FetchFailed(small.output.name, NO_ROOM))
    missing = Result(reader.task_id, reader.attempt, messages.NO_INPUT, 0, small.output.name.encode())
    world.say(full, messages.Done([missing]))
    assert place_of(reader) == source


def test_a_vertex_is_not_taken_back_in_a_bundle() -> None:
    world = ManagerWorld(2, cores=1)
    world.builder.kind.mean_us = 10.0
    _, entries = graph_in(world, [[] for _ in range(40)] + [list(range(40))])
    lost = next(entry for entry in entries if entry.state is t.PLACED)
    bad = place_of(lost)
    world.answer(lost, messages.LOST, NOT_WRITTEN)
    for _ in range(60):
        placed = next((e for e in entries if e.state is t.PLACED and e is not lost), None)
        if placed is None:
            break
        world.answer(placed, messages.OK_INLINE, b"v")
        assert place_of(lost) != bad
    assert place_of(lost) == 3 - bad
