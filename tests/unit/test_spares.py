"""What another worker has read stays with the worker that made it, until nothing can need it: a lost worker costs what it did."""

from __future__ import annotations

import pytest

from tests.kit.manager_world import ManagerWorld
from vinecore.manager import events, lineage
from vinecore.manager import transitions as t
from vinecore.manager.entries import TaskEntry
from vinecore.wire import messages

SIZE = 100_000
DISK_MB = 1000


class Two(ManagerWorld):
    """Two workers of one core that can reach each other."""

    def __init__(self) -> None:
        super().__init__(0)
        self.machine.state.transfer_key = b"k" * 32
        for worker_id in (1, 2):
            hello = messages.Hello("host", 1, 1, 1000, DISK_MB, 0, [], "3", "there", "/objects", [], 5000 + worker_id)
            self.do(events.WorkerJoined(0.0, worker_id, hello))
            self.say(worker_id, messages.LibraryReady(1, 1))

    def on(self, entry: TaskEntry) -> set[int]:
        assert entry.output is not None
        return set(entry.output.on_workers)

    def unlinked(self) -> list[str]:
        return [name for message in self.sent(messages.Unlink) for name in message.names]

    def made_apart(self, size: int = SIZE) -> tuple[TaskEntry, TaskEntry, TaskEntry, list[str]]:
        """One value on each worker, and a third made of both; nobody else wants the first two. The last: what was unlinked."""
        made = [self.builder.call(), self.builder.call()]
        self.submit(*made)
        for call in made:
            self.answer(call, messages.OK_STORED, b"", size)
        both = self.builder.call(*made)
        self.submit(both)
        assert both.instance is not None
        reader = both.instance.worker.worker_id
        away, near = (made[0], made[1]) if self.on(made[1]) == {reader} else (made[1], made[0])
        assert away.output is not None
        self.say(reader, messages.Fetched(away.output.name, size))
        self.do(events.FileReleased(0.0, [call.output for call in made if call.output is not None]))
        self.answer(both, messages.OK_STORED, b"", size)
        return away, near, both, self.unlinked()


def test_a_value_that_another_worker_read_stays_where_it_was_made() -> None:
    world = Two()
    away, near, both, unlinked = world.made_apart()
    (reader,) = world.on(both)
    assert world.on(away) == {3 - reader} and world.on(near) == set()
    assert away.output is not None and near.output is not None
    assert sorted(unlinked) == sorted([away.output.name, f"{world.machine.state.run}-{near.task_id}.1"])
    assert world.machine.state.workers[3 - reader].spare_bytes == SIZE


def test_the_loss_of_a_worker_reruns_what_it_did_and_no_more() -> None:
    world = Two()
    away, near, both, _ = world.made_apart()
    (reader,) = world.on(both)
    end = world.builder.call(both)
    world.submit(end)
    world.do(events.WorkerLeft(0.0, reader, "killed"))
    assert world.machine.state.counters.rerun == 2
    assert near.state is not t.FINISHED and both.state is not t.FINISHED
    assert away.state is t.FINISHED


def test_spares_go_when_nothing_can_need_them() -> None:
    world = Two()
    away, _, both, _ = world.made_apart()
    assert both.output is not None and world.on(away)
    world.do(events.FileReleased(0.0, [both.output]))
    assert world.on(away) == set() and not world.machine.state.held
    assert all(not worker.spares and not worker.spare_bytes for worker in world.machine.state.workers.values())


def test_spares_have_a_limit_and_the_oldest_go_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lineage, "SPARE_SHARE", 1.5 * SIZE / (DISK_MB * 2**20))
    world = Two()
    rounds = [world.made_apart() for _ in range(4)]
    spares = [away for away, *_ in rounds if world.on(away)]
    assert rounds[-1][0] in spares and len(spares) < 4
    assert all(worker.spare_bytes <= 1.5 * SIZE for worker in world.machine.state.workers.values())


def test_a_spare_that_is_needed_again_is_not_dropped_for_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    world = Two()
    rounds = [world.made_apart() for _ in range(4)]
    aways = {next(iter(world.on(away))): away for away, *_ in rounds}
    assert aways
    again = [world.builder.call(away) for away in aways.values()]
    world.submit(*again)
    monkeypatch.setattr(lineage, "SPARE_SHARE", 0.0)
    for worker_id in aways:
        worker = world.machine.state.workers[worker_id]
        lineage._limit_spares(world.machine.state, worker)
        assert not worker.spares
    world.machine.check()
    assert all(world.on(away) == {worker_id} for worker_id, away in aways.items()), "unfinished tasks read them"


def test_a_fetch_from_a_worker_that_is_lost_is_not_waited_for() -> None:
    """A frozen source says nothing, and a thread of the other side waited for it until a limit of its own."""
    world = Two()
    made = [world.builder.call(), world.builder.call()]
    world.submit(*made)
    for call in made:
        world.stored(call)
    both = world.builder.call(*made)
    world.submit(both)
    (fetch,) = world.sent(messages.Fetch)
    assert both.instance is not None
    reader = both.instance.worker.worker_id
    world.do(events.WorkerLeft(0.0, 3 - reader, "nothing was heard of it"))
    assert world.sent(messages.StopFetch) == [messages.StopFetch(fetch.name, *fetch.sources[0])]
    world.say(reader, messages.FetchFailed(fetch.name, "OSError: cut off"))
    assert not world.machine.state.peer_fetches
