"""The manager at a reduced size: every outcome told once, and work for each task that does not grow.

Work is counted in lines of the manager that are executed, which is the same on every machine: a loop over all workers, or over
all that waits, shows at once.
"""

from __future__ import annotations

import sys
from types import FrameType
from typing import Any

import pytest

from tests.sim.scale import World
from vinecore.manager import events, orders

WORKERS, TASKS = 200, 5_000


def lines_per_task(workers: int, tasks: int, waiting: int, losses: float = 0.0) -> float:
    """Live one life, check its end, and count."""
    world = World(workers, tasks, waiting, losses)
    handle = world.machine.handle
    count = 0

    def line(_: FrameType, event: str, __: Any) -> Any:
        nonlocal count
        count += event == "line"
        return line

    def call(frame: FrameType, _: str, __: Any) -> Any:
        return line if "/vinecore/manager/" in frame.f_code.co_filename else None

    def counted(event: events.Event) -> list[orders.Order]:
        before = sys.gettrace()
        sys.settrace(call)
        try:
            return handle(event)
        finally:
            sys.settrace(before)

    def started() -> None:
        nonlocal count
        count = 0

    world.on_start = started
    world.machine.handle = counted  # type: ignore[method-assign]
    world.run()
    world.check()
    return count / world.task_count


@pytest.mark.parametrize("losses", [0.0, 0.01])
def test_work_for_a_task_does_not_grow_with_the_fleet(losses: float) -> None:
    small, large = (lines_per_task(workers, TASKS, TASKS, losses) for workers in (WORKERS // 10, WORKERS))
    assert large < 1.2 * small


def test_work_for_a_task_does_not_grow_with_what_waits() -> None:
    small, large = (lines_per_task(WORKERS // 10, TASKS, waiting) for waiting in (TASKS // 5, TASKS))
    assert large < 1.2 * small


def test_a_fleet_that_idles_costs_little() -> None:
    """One small graph on many workers: nobody looks at those who have nothing to do."""
    assert lines_per_task(5 * WORKERS, 1_000, 1_000) < 1.3 * lines_per_task(WORKERS, 1_000, 1_000)


def test_lives_with_losses_end_well() -> None:
    world = World(WORKERS, TASKS, TASKS // 2, losses=0.05, seed=2)
    world.run()
    world.check()
    assert world.crash_count > 5 and world.machine.state.counters.rerun > 0
