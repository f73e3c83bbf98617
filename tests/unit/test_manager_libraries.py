"""Libraries in the manager's machine: those that take long to start."""

from __future__ import annotations

from tests.kit.builders import RUN, Builder, hello
from vinecore.manager import events, orders
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
