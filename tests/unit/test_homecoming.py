"""Values that are brought home at the end, from workers that send them, send them slowly, or say nothing, by a clock of ours."""

from __future__ import annotations

import weakref
from typing import Any

import pytest

from tests.kit.builders import Builder
from vinecore.api import homecoming, waiting
from vinecore.errors import FileLost
from vinecore.manager.events import FileWanted
from vinecore.manager.state import FileEntry, TaskEntry
from vinecore.model.config import Tunables

FROZEN, SLOW, SOUND = 1, 2, 3
# Looks, a second each, until a slow one has sent what it was asked for; bytes come all the time.
SLOW_LOOKS = 200


class World:
    """An engine, its loop and the clock, which goes on by a second with each look at it."""

    def __init__(self) -> None:
        self.now = 0.0
        self.loop = self.machine = self.state = self
        self.tunables = Tunables()
        self.tunables.set("keepalive-interval", 0)
        self.workers = {SOUND, SLOW, FROZEN}
        self.thread = self
        self.received_bytes = 0
        self.asked: list[FileEntry] = []
        self.coming: list[tuple[float, FileWanted]] = []

    def is_alive(self) -> bool:
        return True

    def monotonic(self) -> float:
        self.now += 1
        for due, event in self.coming[:]:
            self.received_bytes += 1
            if due <= self.now:
                self.coming.remove((due, event))
                self.arrive(event)
        return self.now

    def post(self, event: FileWanted) -> None:
        self.asked.append(event.file)
        worker_id = min(event.file.on_workers or ())
        if worker_id == SOUND:
            self.arrive(event)
        elif worker_id == SLOW:
            self.coming.append((self.now + SLOW_LOOKS, event))

    def arrive(self, event: FileWanted) -> None:
        self.received_bytes += 1
        event.file.data = b"value"
        event.handle.here(event.file, "")  # type: ignore[attr-defined]


class Holder:
    """What a future or task is to the end of its manager."""

    def __init__(self, builder: Builder, *worker_ids: int) -> None:
        self._home: Any = None
        self.entry = builder.call()
        self.entry.output = FileEntry(self.entry.task_id)
        self.entry.output.on_workers = set(worker_ids)

    def _unread(self) -> TaskEntry:
        return self.entry


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    world = World()
    monkeypatch.setattr(homecoming, "time", world)
    monkeypatch.setattr(waiting, "time", world)
    monkeypatch.setattr(homecoming, "LOOK_S", 0)
    return world


def brought(world: World, *holders: tuple[int, ...]) -> list[str]:
    """Why each value, of which these workers have copies, is lost; empty: it came."""
    builder = Builder()
    wanted = [Holder(builder, *worker_ids) for worker_ids in holders]
    homecoming.bring_home(world, [weakref.ref(one) for one in wanted], lambda: "it is the end")  # type: ignore[arg-type]
    assert all(isinstance(one._home, FileLost) or bytes(one._home) == b"value" for one in wanted)
    return [str(one._home) if isinstance(one._home, FileLost) else "" for one in wanted]


def lost_after(seconds: float) -> str:
    return f"the result of f is lost: the worker that has it sent nothing for {seconds:g} s, when the manager was closed"


LOST = lost_after(homecoming.STILL_S)


def test_a_worker_that_sends_nothing_is_given_up(world: World) -> None:
    """Without keepalive its silence ends no link: the end of the manager waited for it for ever."""
    assert brought(world, (FROZEN,), (SOUND,)) == [LOST, ""]


def test_it_costs_the_values_of_no_other_worker_and_is_waited_for_once(world: World) -> None:
    many = 3 * homecoming.AHEAD_COUNT
    assert brought(world, *[(FROZEN,)] * many, *[(SOUND,)] * many) == [LOST] * many + [""] * many
    assert sum(file.on_workers == {FROZEN} for file in world.asked) == homecoming.AHEAD_COUNT


def test_who_may_not_have_been_asked_is_not_given_up(world: World) -> None:
    """Of several that have a value one is asked."""
    many = 3 * homecoming.AHEAD_COUNT
    assert brought(world, (FROZEN, SOUND), *[(SOUND,)] * many) == [LOST] + [""] * many


def test_values_that_keep_coming_are_waited_for(world: World) -> None:
    assert not any(brought(world, *[(SLOW,), (SOUND,)] * 50))
    assert world.now > SLOW_LOOKS > homecoming.STILL_S


def test_bytes_of_others_put_the_end_off_for_as_long_as_they_come(world: World) -> None:
    assert brought(world, (FROZEN,), (SLOW,), (FROZEN,)) == [LOST, "", LOST]


def test_a_keepalive_may_end_the_link_first(world: World) -> None:
    """Then the values are made again, where that is done."""
    world.tunables.set("keepalive-interval", 5)
    assert brought(world, (FROZEN,)) == [LOST]
    world.tunables.set("keepalive-timeout", 100)
    assert brought(world, (FROZEN,)) == [lost_after(150)]
