"""A manager's machine alone, with one library: say what users and workers say, look at what it orders."""

from __future__ import annotations

from typing import TypeVar

from tests.kit.builders import RUN, Builder, hello
from vinecore.manager import events, orders
from vinecore.manager.entries import GraphEntry, TaskEntry
from vinecore.manager.machine import ManagerMachine
from vinecore.model.resources import Resources
from vinecore.wire import messages
from vinecore.wire.messages import Result

M = TypeVar("M")


class ManagerWorld:
    """A machine, its library, and what it ordered."""

    def __init__(self, workers: int = 1, cores: int = 2, request: Resources | None = None) -> None:
        self.builder = Builder(request=request)
        self.machine = ManagerMachine(RUN)
        self.machine.state.address = "HOST PORT"
        self.now = 100.0
        self.orders: list[object] = []
        self.do(events.LibraryInstalled(0.0, self.builder.library))
        for worker_id in range(1, workers + 1):
            self.join(worker_id, cores)

    def do(self, event: events.Event) -> list[object]:
        event.now = self.now
        self.orders = list(self.machine.handle(event))
        self.machine.check()
        return self.orders

    def join(self, worker_id: int, cores: int = 2) -> None:
        self.do(events.WorkerJoined(0.0, worker_id, hello(cores)))
        self.say(worker_id, messages.LibraryReady(1, cores))

    def say(self, worker_id: int, message: object) -> list[object]:
        return self.do(events.WorkerSaid(0.0, worker_id, message))

    def submit(self, *entries: TaskEntry) -> list[object]:
        return self.do(events.TasksSubmitted(0.0, list(entries)))

    def answer(self, entry: TaskEntry, status: int, value: bytes = b"", size: int = 0, attempt: int = 0) -> list[object]:
        assert entry.instance is not None
        worker_id = entry.instance.worker.worker_id
        return self.say(worker_id, messages.Done([Result(entry.task_id, attempt or entry.attempt, status, 5, value, size)]))

    def sent(self, kind: type[M]) -> list[M]:
        return [o.message for o in self.orders if isinstance(o, orders.SendTo) and isinstance(o.message, kind)]

    def of(self, kind: type[M]) -> list[M]:
        return [o for o in self.orders if isinstance(o, kind)]

    def delivered(self) -> list[TaskEntry]:
        return [entry for o in self.of(orders.Deliver) for entry in o.entries]

    def stored(self, entry: TaskEntry) -> None:
        self.answer(entry, messages.OK_STORED, b"", 100_000)


def graph_in(world: ManagerWorld, edges: list[list[int]]) -> tuple[GraphEntry, list[TaskEntry]]:
    graph, entries = world.builder.vertices(edges)
    world.do(events.VerticesSubmitted(0.0, graph, entries))
    return graph, entries
