"""Work behind a call that turns out long goes where a slot is free: what is asked back, and what gets no more."""

from __future__ import annotations

from tests.kit.manager_world import ManagerWorld
from vinecore.manager import events, orders
from vinecore.manager import transitions as t
from vinecore.manager.entries import Instance, TaskEntry
from vinecore.manager.evening import ASK_AGAIN_S, CUT_LIMIT_S
from vinecore.manager.near import STUCK_S, long_s
from vinecore.wire import messages
from vinecore.wire.messages import HandBack, Result

TINY_US = 50.0


def tiny_world() -> tuple[ManagerWorld, Instance]:
    """One worker of one core, whose calls were tiny so far."""
    world = ManagerWorld(1, cores=1)
    instance = world.builder.library.instances[1]
    world.builder.kind.mean_us = instance.mean_us = TINY_US
    return world, instance


def asked_after(world: ManagerWorld, seconds: float) -> list[int]:
    world.now += seconds
    world.do(events.Tick(0.0))
    return [message.count for message in world.sent(HandBack)]


def test_tiny_calls_behind_a_long_one_are_asked_back_together_and_do_not_return() -> None:
    """One was asked back each time: hundreds of them waited for seconds, or went behind the long one again."""
    world, stuck = tiny_world()
    calls = [world.builder.call() for _ in range(300)]
    world.submit(*calls)
    assert stuck.outstanding == 300
    world.join(2, cores=1)
    free = world.builder.library.instances[2]
    free.mean_us = TINY_US
    assert asked_after(world, 2 * STUCK_S) == [299]
    back = [Result(call.task_id, 1, messages.HANDED_BACK, 0) for call in calls[1:]]
    world.say(1, messages.Done(back))
    assert {call.instance for call in calls[1:]} == {free} and stuck.outstanding == 1
    world.submit(world.builder.call(), world.builder.call())
    assert stuck.outstanding == 1
    world.answer(calls[0], messages.OK_INLINE)
    for call in calls[1:]:
        world.answer(call, messages.OK_INLINE)
    world.submit(*[world.builder.call() for _ in range(10)])
    assert stuck.outstanding > 1, "it has answered"


def test_calls_of_which_each_fills_a_slot_are_asked_back_one_for_each_free_slot() -> None:
    world, stuck = tiny_world()
    world.submit(*[world.builder.call() for _ in range(3)])
    assert stuck.outstanding == 3
    stuck.mean_us = 1e5
    world.join(2, cores=1)
    assert asked_after(world, 2 * STUCK_S) == [1]


def test_much_work_is_asked_back_though_it_answers_in_time() -> None:
    """Calls that turned out longer than thought, and none of them long: seconds of work stayed with one worker."""
    world, piled = tiny_world()
    world.submit(*[world.builder.call() for _ in range(300)])
    assert piled.outstanding == 300
    world.join(2, cores=1)
    piled.mean_us = 2e4
    piled.progress_at = world.now + 0.099
    assert asked_after(world, 0.1) == [299], "one waits there, so that the slot need not"


def bundle_alone(world: ManagerWorld) -> list[TaskEntry]:
    """A bundle on worker 1 behind which nothing waits, while worker 2 idles."""
    graph, entries = world.builder.vertices([[] for _ in range(100)])
    world.do(events.VerticesSubmitted(0.0, graph, entries))
    world.join(2, cores=1)
    bundle = entries[0].bundle
    assert bundle is not None and len(bundle.entries) > 20
    for entry in entries:
        if entry.bundle is not bundle and entry.state is t.PLACED:
            world.answer(entry, messages.OK_INLINE)
    return bundle.entries


def test_the_rest_of_a_bundle_is_asked_for_when_its_vertex_is_long() -> None:
    """It stayed where it was, for as long as all of it took, while other workers had nothing to do."""
    world, stuck = tiny_world()
    entries = bundle_alone(world)
    assert stuck.groups_out == 1 and asked_after(world, STUCK_S / 2) == []
    assert asked_after(world, STUCK_S) == [len(entries) - 1]
    world.say(1, messages.Done([Result(entry.task_id, 1, messages.HANDED_BACK, 0) for entry in entries[1:]]))
    assert all(entry.instance is not stuck for entry in entries[1:]) and stuck.outstanding == 1


def test_a_bundle_of_longer_vertices_is_left_alone_for_longer() -> None:
    world, stuck = tiny_world()
    bundle_alone(world)
    stuck.mean_us = 1e5
    assert long_s(stuck) > CUT_LIMIT_S
    assert asked_after(world, 0.8 * CUT_LIMIT_S) == []
    assert asked_after(world, 0.4 * CUT_LIMIT_S) == [1]


def test_nothing_is_asked_for_while_nobody_idles() -> None:
    world, _ = tiny_world()
    world.submit(*[world.builder.call() for _ in range(300)])
    assert asked_after(world, 10.0) == []


def test_a_bundle_that_cannot_be_cut_is_not_in_the_way_of_whole_groups() -> None:
    """It was asked first each time, for all that a free slot can take, and gave nothing."""
    world, stuck = tiny_world()
    graph, entries = world.builder.vertices([[], [0], [1], [2], [3], [4]])
    world.do(events.VerticesSubmitted(0.0, graph, entries))
    assert stuck.groups_out == 1 and stuck.outstanding > 1
    world.join(2, cores=1)
    other = world.builder.library.instances[2]
    other.mean_us = TINY_US
    world.submit(*[world.builder.call() for _ in range(20)])
    world.join(3, cores=1)
    assert stuck.groups_out == 1 or other.groups_out > 1
    asked = set()
    for _ in range(10):
        world.now += ASK_AGAIN_S
        world.do(events.Tick(0.0))
        asked |= {o.worker_id for o in world.of(orders.SendTo) if isinstance(o.message, HandBack)}
    assert asked == {1, 2}


def test_one_that_has_nothing_to_give_is_asked_ever_less_often() -> None:
    world, stuck = tiny_world()
    bundle_alone(world)
    times = [world.now - stuck.progress_at for _ in range(1000) if asked_after(world, 0.01)]
    assert len(times) < 25, "it was asked ten times a second"
    assert times[-1] > 8.0, "it is asked still"


def test_bundles_are_asked_back_by_the_number_of_their_calls() -> None:
    """By that of the bundles one of them came back at a time, ten in a second."""
    world, stuck = tiny_world()
    graph, entries = world.builder.vertices([[] for _ in range(300)])
    world.do(events.VerticesSubmitted(0.0, graph, entries))
    assert 1 < stuck.groups_out < 20 and stuck.outstanding == 300
    world.join(2, cores=1)
    world.builder.library.instances[2].mean_us = TINY_US
    assert asked_after(world, 2 * STUCK_S) == [299]
