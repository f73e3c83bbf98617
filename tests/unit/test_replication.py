"""``temp-replica-count``: how many workers hold each temp, and what that is good for."""

from __future__ import annotations

import pytest

from tests.kit.builders import hello
from tests.kit.manager_world import ManagerWorld
from vinecore.manager import events, orders, replication
from vinecore.manager.entries import TaskEntry
from vinecore.manager.replication import PAUSE_S, SPLICES_AT_ONCE, TRIES
from vinecore.manager.transfers import INDIRECT_S
from vinecore.wire import messages

SIZE = 100_000


class Fleet(ManagerWorld):
    """Workers of one core that can reach each other; ``copies`` of each temp are wanted."""

    def __init__(self, copies: int, *disks_mb: int) -> None:
        super().__init__(0)
        # Copies that were ordered when the latest worker came.
        self.joined_fetches: list[tuple[int, str]] = []
        self.machine.state.transfer_key = b"k" * 32
        self.machine.state.tunables.temp_replica_count = copies
        for worker_id, disk_mb in enumerate(disks_mb, 1):
            self.joins(worker_id, disk_mb)

    def joins(self, worker_id: int, disk_mb: int = 1000) -> None:
        self.do(events.WorkerJoined(0.0, worker_id, hello(1, disk_mb=disk_mb, peer_port=5000 + worker_id)))
        copies = self.fetches()
        self.say(worker_id, messages.LibraryReady(1, 1))
        self.joined_fetches = copies

    def fetches(self) -> list[tuple[int, str]]:
        return [
            (order.worker_id, order.message.name) for order in self.of(orders.SendTo) if isinstance(order.message, messages.Fetch)
        ]

    def make(self, size: int = SIZE) -> tuple[TaskEntry, int]:
        """A value in the store of a worker: its task and that worker."""
        call = self.builder.call()
        self.submit(call)
        assert call.instance is not None
        maker = call.instance.worker.worker_id
        self.answer(call, messages.OK_STORED, b"", size)
        return call, maker

    def copies_of(self, call: TaskEntry) -> set[int]:
        assert call.output is not None
        return set(call.output.on_workers)


@pytest.mark.parametrize("copies", [1, 2, 3])
def test_a_temp_is_copied_until_so_many_workers_hold_it(copies: int) -> None:
    world = Fleet(copies, 1000, 1000, 1000, 1000)
    call, _ = world.make()
    assert call.output is not None
    for _ in range(5):
        for worker_id, name in world.fetches():
            assert name == call.output.name
            world.say(worker_id, messages.Fetched(name, SIZE))
    assert len(world.copies_of(call)) == copies and not world.fetches()
    assert not world.machine.state.scarce


def test_the_copy_goes_where_most_disk_is_free() -> None:
    world = Fleet(2, 10, 500, 10, 10)
    _call, maker = world.make()
    if maker == 2:
        _, maker = world.make()
    assert [worker_id for worker_id, _ in world.fetches()] == [2]


def test_no_copy_where_it_does_not_fit() -> None:
    world = Fleet(2, 1000, 1, 1)
    while True:
        call, maker = world.make(5 * 2**20)
        if maker == 1:
            break
        world.do(events.FileReleased(0.0, [call.output] if call.output is not None else []))
    assert world.copies_of(call) == {1} and not world.fetches()


def test_a_new_worker_gets_what_lacked_a_place() -> None:
    world = Fleet(2, 1000)
    call, _ = world.make()
    assert not world.fetches() and world.machine.state.scarce
    world.joins(2)
    assert call.output is not None and world.joined_fetches == [(2, call.output.name)]


def test_a_lost_copy_is_replaced_and_nothing_runs_again() -> None:
    world = Fleet(2, 1000, 1000, 1000)
    call, maker = world.make()
    ((second, name),) = world.fetches()
    world.say(second, messages.Fetched(name, SIZE))
    reader = world.builder.call(call)
    world.do(events.WorkerLeft(0.0, maker, "killed"))
    ((third, again),) = world.fetches()
    assert again == name and third not in (maker, second)
    world.submit(reader)
    assert world.machine.state.counters.rerun == 0


def test_a_value_that_is_small_the_second_time_leaves_no_copy_of_the_first_on_its_way() -> None:
    world = Fleet(2, 1000, 1000)
    call, maker = world.make()
    assert call.output is not None
    ((second, name),) = world.fetches()
    world.submit(world.builder.call(call))
    world.say(maker, messages.Removed([name]))
    assert call.attempt == 2 and call.output.coming == (second,)
    world.answer(call, messages.OK_INLINE, b"small")
    assert call.output.data == b"small" and not call.output.coming
    assert name in [name for message in world.sent(messages.Unlink) for name in message.names]
    world.say(second, messages.Fetched(name, SIZE))
    assert not call.output.on_workers and not world.machine.state.held
    assert name in [name for message in world.sent(messages.Unlink) for name in message.names]


def test_a_failed_copy_is_tried_elsewhere() -> None:
    world = Fleet(2, 1000, 1000, 1000)
    _, maker = world.make()
    ((second, name),) = world.fetches()
    world.say(second, messages.FetchFailed(name, "OSError: refused", unreached=[0]))
    ((third, again),) = world.fetches()
    assert again == name and third not in (maker, second)


def test_a_worker_that_cannot_take_copies_is_left_alone_for_a_while() -> None:
    world = Fleet(2, 1000, 1000)
    _, maker = world.make()
    ((second, name),) = world.fetches()
    world.say(second, messages.FetchFailed(name, "OSError: no space left on device"))
    assert not world.fetches()
    world.now += PAUSE_S - 1.0
    world.do(events.Tick(0.0))
    assert not world.fetches()
    world.now += 2.0
    world.do(events.Tick(0.0))
    assert world.fetches() == [(second, name)] and second != maker


def test_what_nobody_needs_is_not_copied() -> None:
    world = Fleet(2, 1000)
    call, _ = world.make()
    assert call.output is not None
    world.do(events.FileReleased(0.0, [call.output]))
    world.joins(2)
    assert not world.joined_fetches and not world.machine.state.scarce


def test_a_source_serves_no_more_copies_than_transfers_are_allowed() -> None:
    world = Fleet(2, 1000, 1000)
    world.machine.state.tunables.worker_source_max_transfers = 1
    made = []
    while len(made) < 3:
        call, maker = world.make()
        if maker == 1:
            made.append(call)
        under_way = [key for key in world.machine.state.peer_fetches if world.machine.state.peer_fetches[key] == 1]
        assert len(under_way) <= 1
    for _ in range(10):
        for name, worker_id in list(world.machine.state.peer_fetches):
            world.say(worker_id, messages.Fetched(name, SIZE))
    assert all(len(world.copies_of(call)) == 2 for call in made)


def test_values_that_cannot_be_copied_hold_up_no_others() -> None:
    world = Fleet(2)
    # Nobody reaches the first worker: its values pass through the manager, a few at a time.
    for worker_id, port in ((1, 0), (2, 5002), (3, 5003)):
        world.do(events.WorkerJoined(0.0, worker_id, hello(1, peer_port=port)))
        if worker_id == 1:
            world.say(1, messages.LibraryReady(1, 1))
            for _ in range(TRIES + SPLICES_AT_ONCE + 8):
                world.make()
    world.say(2, messages.LibraryReady(1, 1))
    world.do(events.WorkerDrained(0.0, 1))
    state = world.machine.state
    call, maker = world.make()
    for _ in range(4):
        world.do(events.Tick(0.0))
    assert maker == 2 and len(state.splices) >= SPLICES_AT_ONCE
    assert call.output is not None and (call.output.name, 3) in state.peer_fetches


def test_nothing_is_looked_at_while_nothing_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    world = Fleet(2, 1000)
    for _ in range(5):
        world.make()
    looked: list[str] = []
    copy = replication._copy
    monkeypatch.setattr(replication, "_copy", lambda state, file: looked.append(file.name) or copy(state, file))
    world.submit(world.builder.call())
    assert not looked
    world.joins(2)
    assert len(looked) >= 5


def test_values_of_workers_that_cannot_be_reached_are_copied_through_the_manager() -> None:
    world = Fleet(2)
    for worker_id in (1, 2):
        world.do(events.WorkerJoined(0.0, worker_id, hello(1)))
        world.say(worker_id, messages.LibraryReady(1, 1))
    call, maker = world.make()
    assert call.output is not None
    ((destination, name),) = world.fetches()
    assert destination == 3 - maker and name == call.output.name and world.machine.state.splices_to
    world.say(destination, messages.Fetched(name, SIZE))
    assert world.copies_of(call) == {1, 2} and not world.machine.state.splices


NO_ROOM = "OSError: [Errno 28] No space left on device"


def test_a_leaving_worker_hands_over_to_the_next_when_one_cannot_take_it_and_to_the_manager_last() -> None:
    world = Fleet(1, 1000, 1000, 1000)
    call, maker = world.make()
    assert call.output is not None
    others = [worker_id for worker_id in (1, 2, 3) if worker_id != maker]
    world.say(maker, messages.Goodbye("SIGTERM"))
    tried = []
    for _ in range(5):
        for worker_id, name in world.fetches():
            tried.append(worker_id)
            world.now += 0.001
            world.say(worker_id, messages.FetchFailed(name, NO_ROOM))
    assert tried == others
    (upload,) = world.sent(messages.Upload)
    world.do(events.UploadArrived(0.0, upload.transfer_id, SIZE))
    assert call.output.at_manager and world.sent(messages.Release)


def test_a_leaving_worker_hands_nothing_to_one_without_room() -> None:
    world = Fleet(1, 1000)
    call, maker = world.make(5 * 2**20)
    world.joins(2, 1)
    world.joins(3, 1000)
    world.say(maker, messages.Goodbye("SIGTERM"))
    assert call.output is not None and world.fetches() == [(3, call.output.name)]


def test_a_link_that_broke_once_is_used_again_later() -> None:
    world = Fleet(1, 1000, 1000)
    made, maker = world.make()
    assert made.output is not None
    other = 3 - maker
    worker = world.machine.state.workers[other]

    def sources_of_next_fetch() -> int:
        """Peers that the other worker is told to ask for a value of the first one."""
        value, at = world.make()
        while at != maker:
            value, at = world.make()
        world.do(events.WorkerDrained(0.0, maker))
        ((destination, name),) = [(to, name) for to, name in world.fetches() if value.output and name == value.output.name]
        assert destination == other
        (fetch,) = [message for message in world.sent(messages.Fetch) if message.name == name]
        world.do(events.HostsChanged(0.0, drain="host", drain_on=False))
        return len(fetch.sources)

    assert sources_of_next_fetch() == 1
    broken = next(name for name, to in world.machine.state.peer_fetches if to == other)
    world.say(other, messages.FetchFailed(broken, "OSError: reset", unreached=[0]))
    assert set(worker.unreachable) == {maker}
    assert sources_of_next_fetch() == 0
    world.now += INDIRECT_S + 1
    assert sources_of_next_fetch() == 1
    broken = next(name for name, to in world.machine.state.peer_fetches if to == other)
    world.say(other, messages.FetchFailed(broken, "OSError: reset", unreached=[0]))
    assert list(worker.unreachable.values()) == [world.now + INDIRECT_S]


def test_two_workers_that_leave_do_not_count_on_each_other() -> None:
    """Both held the only copies, each took the other for the one that stays, and both were released."""
    world = Fleet(1, 1000, 1000, 1000)
    call, maker = world.make()
    assert call.output is not None
    world.do(events.WorkerDrained(0.0, maker))
    ((destination, name),) = world.fetches()
    world.do(events.WorkerDrained(0.0, destination))
    world.say(destination, messages.Fetched(name, SIZE))
    released = [o.worker_id for o in world.of(orders.SendTo) if isinstance(o.message, messages.Release)]
    third = ({1, 2, 3} - {maker, destination}).pop()
    assert released == [] and world.fetches() == [(third, name)]
    world.say(third, messages.Fetched(name, SIZE))
    released = [o.worker_id for o in world.of(orders.SendTo) if isinstance(o.message, messages.Release)]
    # The other one had nothing of its own when it began to leave, and was released then.
    assert released == [maker] and third in world.copies_of(call)
