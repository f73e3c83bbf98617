"""Values that are brought home at the end, from workers that send them, send them slowly, or say nothing, by a clock of ours."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import pytest

from tests.kit.builders import Builder
from vinecore.api import homecoming, waiting
from vinecore.errors import FileLost
from vinecore.manager.entries import FileEntry, TaskEntry
from vinecore.manager.events import FileWanted, WorkerSaid
from vinecore.manager.state import Relay
from vinecore.manager.worker_sets import without_worker
from vinecore.model.config import Tunables
from vinecore.wire.messages import UploadFailed

FROZEN, FROZEN_TOO, SLOW, SOUND = 1, 2, 3, 4
# Looks, a second each, until a slow one has sent what it was asked for; bytes come all the time.
SLOW_LOOKS = 200


class World:
    """An engine, its loop and the clock, which goes on by a second with each look at it."""

    def __init__(self) -> None:
        self.now = 0.0
        self.loop = self.machine = self.state = self
        self.tunables = Tunables()
        self.tunables.set("keepalive-interval", 0)
        self.workers = {SOUND, SLOW, FROZEN, FROZEN_TOO}
        self.thread = self
        self.received_bytes = 0
        self.asked: list[FileEntry] = []
        self.coming: list[tuple[float, FileWanted]] = []
        self.relays: dict[int, Relay] = {}
        self.handles: dict[int, FileWanted] = {}
        self.lines: list[str] = []
        self.say = self.lines.append

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

    def post(self, item: Any) -> None:
        if callable(item):
            item()
        else:
            self.asked.append(item.file)
            self.ask(item)

    def call_in_loop(self, function: Callable[[], Any]) -> Any:
        return function()

    def ask(self, event: FileWanted) -> None:
        """One worker, that of the lowest number, as the manager does."""
        worker_id = min(event.file.on_workers)
        if worker_id == SOUND:
            self.arrive(event)
            return
        number = len(self.handles)
        self.handles[number] = event
        self.relays[number] = Relay(number, event.file, worker_id, event.file.name)
        if worker_id == SLOW:
            self.coming.append((self.now + SLOW_LOOKS, event))

    def handle_now(self, event: WorkerSaid) -> None:
        """An upload that failed: that copy is gone, and the next worker is asked."""
        failed = event.message
        assert isinstance(failed, UploadFailed)
        relay = self.relays.pop(failed.transfer_id)
        assert relay.worker_id == event.worker_id
        relay.file.on_workers = without_worker(relay.file.on_workers, relay.worker_id)
        self.ask(self.handles[failed.transfer_id])

    def arrive(self, event: FileWanted) -> None:
        self.received_bytes += 1
        for number in [number for number, relay in self.relays.items() if relay.file is event.file]:
            del self.relays[number]
        event.file.data = b"value"
        event.handle.here(event.file, "")  # type: ignore[attr-defined]


class Holder:
    """What a future or task is to the end of its manager."""

    def __init__(self, builder: Builder, *worker_ids: int) -> None:
        self._home: Any = None
        self.entry = builder.call()
        self.entry.output = FileEntry(self.entry.task_id)
        self.entry.output.on_workers = tuple(worker_ids)

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
    return f"the result of f is lost: no worker that has it sent anything for {seconds:g} s, when the manager was closed"


LOST = lost_after(homecoming.STILL_S)


def test_a_worker_that_sends_nothing_is_given_up(world: World) -> None:
    """Without keepalive its silence ends no link: the end of the manager waited for it for ever."""
    assert brought(world, (FROZEN,), (SOUND,)) == [LOST, ""]


def test_it_costs_the_values_of_no_other_worker_and_is_waited_for_once(world: World) -> None:
    many = 3 * homecoming.AHEAD_COUNT
    assert brought(world, *[(FROZEN,)] * many, *[(SOUND,)] * many) == [LOST] * many + [""] * many
    assert sum(file.on_workers == (FROZEN,) for file in world.asked) == homecoming.AHEAD_COUNT


def test_a_value_that_is_here_says_nothing_about_its_worker(world: World) -> None:
    """Those that came while a silent worker was waited for were taken for its silence: the live worker was given up with it."""
    ahead = homecoming.AHEAD_COUNT - 1
    holders = [(FROZEN,), *[(SOUND,)] * ahead, *[(FROZEN,), (SOUND,)] * homecoming.AHEAD_COUNT]
    assert brought(world, *holders) == [LOST if one == (FROZEN,) else "" for one in holders]


def test_another_copy_is_asked_for(world: World) -> None:
    many = 3 * homecoming.AHEAD_COUNT
    assert not any(brought(world, *[(FROZEN, SOUND), (SOUND,)] * many))
    assert world.now < 2 * homecoming.STILL_S + 20 * many, "it is waited for once"


def test_another_copy_has_time_to_come(world: World) -> None:
    assert brought(world, (FROZEN, SLOW), (FROZEN,), (FROZEN, FROZEN_TOO, SOUND)) == ["", LOST, ""]
    assert world.now > SLOW_LOOKS


def test_a_value_of_which_all_copies_are_silent(world: World) -> None:
    many = 3 * homecoming.AHEAD_COUNT
    holders = [(FROZEN, FROZEN_TOO), (FROZEN_TOO,), (FROZEN,), (SOUND,), (FROZEN, FROZEN_TOO, SOUND)] * many
    assert brought(world, *holders) == [LOST, LOST, LOST, "", ""] * many


def test_the_user_is_told_once(world: World) -> None:
    brought(world, *[(SOUND,)] * 2)
    assert not world.lines
    brought(world, (FROZEN,), (FROZEN_TOO,), (SOUND,))
    (line,) = world.lines
    begin, end = "the end waits for large results that are still held, now for that of f, for ", "; Ctrl-C leaves without them"
    assert line.startswith(begin) and line.endswith(f" s more and longer if bytes come{end}")
    assert 0 < int(line.removeprefix(begin).split()[0]) < homecoming.STILL_S


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
