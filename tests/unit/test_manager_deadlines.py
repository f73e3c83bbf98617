"""Tasks with an end by the calendar (``set_time_end``) as the manager's machine sees them: those that wait end in time too."""

from __future__ import annotations

import pytest

from tests.kit.manager_world import ManagerWorld
from tests.unit.test_manager_products import boxed, end
from vinecore.manager import events
from vinecore.manager import transitions as t
from vinecore.manager.entries import TaskEntry
from vinecore.manager.on_tasks import EXPIRED_S, EXPIRING_LEAST
from vinecore.wire import messages

END_S = 1000.0
IN_S = 10.0


def ending(world: ManagerWorld) -> TaskEntry:
    world.machine.state.epoch_offset_s = END_S - world.now - IN_S
    entry = boxed(world)
    assert entry.sandbox is not None
    entry.sandbox.end_at_s = END_S
    return entry


def tick(world: ManagerWorld, seconds: float) -> None:
    """So much time goes by."""
    world.now += seconds
    world.do(events.Tick(0.0))


def is_expired(entry: TaskEntry) -> bool:
    return entry.state is t.FINISHED and entry.report is not None and entry.report.outcome == "max end time"


@pytest.mark.parametrize("workers", [0, 1])
def test_one_that_waits_ends_in_time(workers: int) -> None:
    """For a worker, or behind others."""
    world = ManagerWorld(workers, cores=1)
    world.submit(*[boxed(world) for _ in range(3)])
    entry = ending(world)
    world.submit(entry)
    assert entry.state is t.READY
    tick(world, IN_S - 0.01)
    assert entry.state is t.READY
    assert (world.machine.next_deadline() or 1e9) <= world.now + 0.01
    tick(world, 0.01)
    assert is_expired(entry) and world.delivered() == [entry]
    assert not world.machine.state.expiring


def test_one_whose_input_is_not_there_ends_in_time_and_so_do_its_readers() -> None:
    world = ManagerWorld(1, cores=1)
    maker = boxed(world)
    entry = ending(world)
    entry.inputs += maker.products
    reader = boxed(world, *entry.products)
    world.submit(maker, entry, reader)
    assert entry.state is t.WAITING
    tick(world, IN_S)
    assert is_expired(entry) and entry.report is not None and entry.report.exit_code == 9
    assert reader.state is t.FINISHED and "ended by its limit (max end time) without making" in str(reader.error)
    assert maker.state is t.PLACED and not maker.products[0].uses


def test_one_that_runs_is_ended_by_its_worker_and_given_up_when_that_says_nothing() -> None:
    world = ManagerWorld(1, cores=1)
    entry = ending(world)
    world.submit(entry)
    assert entry.state is t.PLACED
    tick(world, IN_S)
    assert entry.state is t.PLACED and not world.sent(messages.Cancel)
    tick(world, EXPIRED_S)
    assert is_expired(entry) and [m.tasks for m in world.sent(messages.Cancel)] == [[(entry.task_id, entry.attempt)]]


def test_one_that_was_done_in_time_is_left_alone() -> None:
    world = ManagerWorld(1, cores=1)
    entry = ending(world)
    world.submit(entry)
    end(world, entry)
    tick(world, 2 * IN_S)
    assert entry.report is not None and entry.report.outcome == "" and not world.machine.state.expiring


def test_ends_of_tasks_that_are_done_are_forgotten() -> None:
    """A program whose tasks have an end far away used to remember one for each of them, until then."""
    world = ManagerWorld(1, cores=1)
    world.submit(*[boxed(world) for _ in range(3)])
    waiting = ending(world)
    world.submit(waiting)
    for _ in range(5 * EXPIRING_LEAST):
        entry = ending(world)
        world.submit(entry)
        world.do(events.TasksCancelled(0.0, [entry]))
    assert len(world.machine.state.expiring) < 2 * EXPIRING_LEAST
    tick(world, IN_S)
    assert is_expired(waiting)
