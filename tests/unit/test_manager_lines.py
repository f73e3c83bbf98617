"""Whatever waits in a line of an instance waits for nothing that only those before it lack."""

from __future__ import annotations

import pytest

from tests.kit.builders import hello
from tests.kit.manager_world import ManagerWorld
from vinecore.manager import events, near
from vinecore.manager import transitions as t
from vinecore.manager.entries import Kind, Shape, TaskEntry
from vinecore.model.resources import Resources
from vinecore.wire import messages


def two_workers(cores: int) -> tuple[ManagerWorld, TaskEntry]:
    """Both on hosts of their own, and a task whose large value is on worker 1."""
    world = ManagerWorld(0)
    for worker_id, name in ((1, "first"), (2, "second")):
        world.do(events.WorkerJoined(0.0, worker_id, hello(cores, name=name)))
        world.say(worker_id, messages.LibraryReady(1, cores))
    world.do(events.HostsChanged(0.0, block="second", until=1e9))
    maker = world.builder.call()
    world.submit(maker)
    world.stored(maker)
    return world, maker


def kind_of(world: ManagerWorld, **request: float) -> Kind:
    """Long calls that ask for this."""
    kind = Kind("asks", Shape(world.builder.library, Resources(**request)))  # type: ignore[arg-type]
    kind.mean_us = 1e6
    return kind


def at(entry: TaskEntry) -> int:
    """The worker where it is placed; 0: nowhere."""
    return entry.instance.worker_id if entry.state is t.PLACED and entry.instance is not None else 0


@pytest.mark.parametrize("is_near", [True, False])
def test_a_request_that_lacks_something_is_in_nobodys_way(is_near: bool) -> None:
    """Its inputs were on a worker that had no room for it, and slots there idled beside calls that ask for nothing."""
    world, maker = two_workers(cores=4)
    running = world.builder.call(kind=kind_of(world, cores=1))
    world.submit(running)
    large = world.builder.call(maker, kind=kind_of(world, cores=4))
    small = world.builder.call(*([maker] if is_near else []))
    world.submit(large, small)
    assert (at(running), at(large), at(small)) == (1, 0, 1)
    world.answer(running, messages.OK_INLINE)
    assert at(large) == 1


def test_what_fits_is_taken_over_behind_what_does_not() -> None:
    """A worker with a free slot looked at the first one only."""
    world, maker = two_workers(cores=2)
    long = [world.builder.call(kind=kind_of(world)) for _ in range(3)]
    world.submit(*long)
    large, small = world.builder.call(maker, kind=kind_of(world, cores=2)), world.builder.call(maker)
    world.submit(large, small)
    other = world.builder.call(kind=kind_of(world, cores=1))
    world.submit(other)
    world.do(events.HostsChanged(0.0, unblock_all=True))
    assert (at(other), at(large), at(small)) == (2, 0, 0)
    world.now += 2 * near.STUCK_S
    world.do(events.Tick(0.0))
    assert (at(large), at(small)) == (0, 2)


def test_slots_that_come_back_find_no_more_than_the_worker_has() -> None:
    """What waited behind the slots that were left ran in those that came back, beside the others."""
    world = ManagerWorld(1, cores=4)
    world.say(1, messages.LibraryReady(1, 2, lacks="no memory"))
    kind = Kind("asks", Shape(world.builder.library, Resources(cores=2), True))
    kind.mean_us = 10.0
    entries = [world.builder.call(kind=kind) for _ in range(8)]
    world.submit(*entries)
    assert sum(at(entry) for entry in entries) == 2
    world.say(1, messages.LibraryReady(1, 4))
    for entry in entries:
        assert at(entry) == 1
        world.answer(entry, messages.OK_INLINE)


def test_an_instance_that_is_gone_is_not_offered_when_its_host_is_let_in_again() -> None:
    world, _ = two_workers(cores=2)
    library = world.builder.library
    world.say(2, messages.LibraryGone(1, "it cannot be loaded"))
    world.do(events.HostsChanged(0.0, unblock_all=True))
    assert library.latest is not library.instances[2] and 2 not in library.hungry
    world.do(events.HostsChanged(0.0, drain="second"))
    world.do(events.HostsChanged(0.0, drain="second", drain_on=False))
    assert library.latest is not library.instances[2] and 2 not in library.hungry
