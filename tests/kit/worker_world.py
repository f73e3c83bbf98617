"""A worker's machine alone, with one library: say what the manager, slots and parents say, look at what it orders."""

from __future__ import annotations

from typing import TypeVar

import msgspec

from vinecore.wire import messages
from vinecore.wire.messages import Call, Result
from vinecore.worker import events, orders
from vinecore.worker.machine import WorkerMachine

M = TypeVar("M")


def call(task_id: int, *inputs: int | str, code_id: int = 1) -> Call:
    return Call(task_id, 1, code_id, -1, b"args", list(inputs), 0, True)


class WorkerWorld:
    """A machine with one library, and what it ordered."""

    def __init__(self, slots: int = 1, max_restarts: int = 3, ready: bool = True) -> None:
        self.machine = WorkerMachine()
        self.now = 100.0
        self.orders: list[object] = []
        self.say(messages.Welcome(1, "r0", 5.0, 20.0))
        self.say(messages.StartLibrary(1, "f", slots, "direct", b"", [], max_restarts, 60.0))
        if ready:
            self.ready()

    def ready(self) -> None:
        self.host(messages.Began(b""))
        for slot_id in [i for o in self.of(orders.OpenSlots) for i in o.slot_ids]:
            self.host(messages.Forked(slot_id, 1000 + slot_id))

    def do(self, event: events.Event) -> list[object]:
        event.now = self.now
        self.orders = list(self.machine.handle(event))
        self.machine.check()
        return self.orders

    def say(self, message: object) -> list[object]:
        return self.do(events.ManagerSaid(0.0, message))

    def host(self, message: object) -> list[object]:
        return self.do(events.HostSaid(0.0, 1, message))

    def run(self, *groups: list[Call], values: list[tuple[int, bytes]] | None = None) -> list[object]:
        return self.say(messages.Run(1, list(groups), values or []))

    def of(self, kind: type[M]) -> list[M]:
        return [o for o in self.orders if isinstance(o, kind)]

    def told(self, kind: type[M]) -> list[M]:
        return [o.message for o in self.of(orders.ToManager) if isinstance(o.message, kind)]

    def results(self) -> list[tuple[int, int]]:
        return [(r.task_id, r.status) for done in self.told(messages.Done) for r in done.results]

    def batches(self) -> list[tuple[int, list[int]]]:
        """(slot, task ids) of what was sent to slots."""
        return [
            (o.slot_id, [c.task_id for group in o.message.groups for c in group])
            for o in self.of(orders.ToSlot)
            if isinstance(o.message, messages.Batch)
        ]

    def answer(self, slot_id: int, *task_ids: int, status: int = messages.OK_INLINE, us: int = 10) -> list[object]:
        return self.do(events.SlotAnswered(0.0, slot_id, [Result(i, 1, status, us, b"v") for i in task_ids]))


def start(world: WorkerWorld, **options: object) -> None:
    """Start library 2 and make its slots known."""
    world.say(msgspec.structs.replace(messages.StartLibrary(2, "g", 1, "direct", b"", [], 3, 60.0), **options))


def host2(world: WorkerWorld, message: object) -> list[object]:
    return world.do(events.HostSaid(0.0, 2, message))


def opened(world: WorkerWorld) -> list[int]:
    return [i for o in world.of(orders.OpenSlots) for i in o.slot_ids]
