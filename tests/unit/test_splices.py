"""Objects that pass through the manager: who is told what, and when, and what follows when one of the two fails."""

from __future__ import annotations

import pytest

from tests.kit.manager_world import ManagerWorld
from vinecore.manager import events, orders, splices
from vinecore.manager import transitions as t
from vinecore.manager.entries import FileEntry, TaskEntry
from vinecore.manager.worker_sets import with_worker
from vinecore.wire import messages


class Passing(ManagerWorld):
    """Workers that cannot reach each other; one value is on one of them and wanted on another."""

    def __init__(self, workers: int = 2) -> None:
        super().__init__(workers, cores=1)
        self.entries = [self.builder.call() for _ in range(workers)]
        self.submit(*self.entries)
        for entry in self.entries:
            self.stored(entry)
        self.reader = self.builder.call(*self.entries[:2])
        self.submit(self.reader)
        (self.fetch,) = self.sent(messages.Fetch)
        assert self.reader.instance is not None
        self.destination = self.reader.instance.worker.worker_id
        self.file = next(file for file in self.files() if file.name == self.fetch.name)
        assert self.file.on_workers
        self.source = min(self.file.on_workers)

    def files(self) -> list[FileEntry]:
        return [entry.output for entry in self.entries if entry.output is not None]

    def open(self, transfer_id: int = 0) -> list[messages.Upload]:
        self.do(events.SpliceOpened(0.0, transfer_id or self.fetch.transfer_id))
        return self.sent(messages.Upload)

    def ended(self) -> list[tuple[int, bool]]:
        return [(order.transfer_id, order.is_source_gone) for order in self.of(orders.EndSplice)]

    def is_clean(self) -> bool:
        state = self.machine.state
        return not (state.splices or state.splices_to or any(w.outgoing for w in state.workers.values()))


def test_the_destination_dials_first_and_says_how_it_ended() -> None:
    world = Passing()
    assert world.fetch.transfer_id and not world.fetch.sources
    assert [(m.transfer_id, m.name) for m in world.open()] == [(world.fetch.transfer_id, world.fetch.name)]
    assert world.machine.state.workers[world.source].outgoing == 1
    world.say(world.destination, messages.Fetched(world.fetch.name, 100_000))
    assert set(world.file.on_workers) == {world.source, world.destination} and not world.file.at_manager
    assert world.is_clean()
    world.answer(world.reader, messages.OK_INLINE, b"")
    assert world.delivered() == [world.reader]


def test_another_source_is_asked_before_the_first_byte() -> None:
    world = Passing(3)
    third = next(i for i in (1, 2, 3) if i not in (world.source, world.destination))
    # A third worker has it too by now.
    entry = world.machine.state.workers[third]
    world.file.on_workers = with_worker(world.file.on_workers, third)
    entry.hold(world.file)
    first = world.open()
    chosen, other = (world.source, third) if world.machine.state.workers[world.source].outgoing else (third, world.source)
    assert len(first) == 1
    world.say(chosen, messages.UploadFailed(world.fetch.transfer_id, world.fetch.name, "ConnectionRefusedError: no"))
    assert [m.transfer_id for m in world.sent(messages.Upload)] == [world.fetch.transfer_id]
    assert (world.machine.state.workers[chosen].outgoing, world.machine.state.workers[other].outgoing) == (0, 1)
    assert chosen in world.file.on_workers, "its link failed, not its copy"
    # And when that fails there is nobody left: the destination is sent away, and says so.
    world.say(other, messages.UploadFailed(world.fetch.transfer_id, world.fetch.name, "ConnectionRefusedError: no"))
    assert not world.sent(messages.Upload) and world.ended() == [(world.fetch.transfer_id, False)]
    world.say(world.destination, messages.FetchFailed(world.fetch.name, "PeerError: closed"))
    assert world.is_clean()


def test_a_source_that_does_not_have_it_loses_its_copy() -> None:
    world = Passing()
    world.open()
    world.say(world.source, messages.UploadFailed(world.fetch.transfer_id, world.fetch.name, "FileLost: cannot be read"))
    assert not world.file.on_workers and world.file.producer is not None
    assert world.file.producer.state is t.PLACED, "it is made again"
    assert world.ended() == [(world.fetch.transfer_id, False)]


def test_damaged_bytes_lose_the_copy_of_the_source() -> None:
    world = Passing()
    world.open()
    world.say(world.destination, messages.FetchFailed(world.fetch.name, "FileLost: the bytes do not match their checksum"))
    assert not world.file.on_workers
    assert [m.names for m in world.sent(messages.Unlink)] == [[world.fetch.name]]
    assert world.is_clean()


def test_a_source_that_leaves_is_cut_off_and_its_object_made_again() -> None:
    world = Passing()
    world.open()
    world.do(events.WorkerLeft(0.0, world.source, "killed"))
    # First what has begun; then the destination, for whom nobody is left.
    assert world.ended() == [(world.fetch.transfer_id, True), (world.fetch.transfer_id, False)]
    world.say(world.destination, messages.FetchFailed(world.fetch.name, "PeerError: closed"))
    assert world.is_clean()
    world.answer(world.reader, messages.NO_INPUT, world.fetch.name.encode())
    remade = next(entry for entry in world.entries if entry.output is world.file)
    assert remade.state is t.PLACED and remade.attempt == 2 and world.reader.state is t.WAITING


def test_a_destination_that_leaves_ends_it() -> None:
    world = Passing()
    world.open()
    world.do(events.WorkerLeft(0.0, world.destination, "killed"))
    assert (world.fetch.transfer_id, False) in world.ended()
    # It runs where the value is now, or fetches what it lacks anew; nothing refers to the old splice.
    assert world.fetch.transfer_id not in world.machine.state.splices
    world.say(world.source, messages.UploadFailed(world.fetch.transfer_id, world.fetch.name, "ConnectionResetError: cut"))
    assert world.file.on_workers == (world.source,)


def test_who_dials_too_late_is_sent_away() -> None:
    world = Passing()
    world.do(events.TasksCancelled(0.0, [world.reader]))
    world.say(world.destination, messages.FetchFailed(world.fetch.name, "it was dropped while it was on its way"))
    assert world.is_clean()
    assert not world.open() and world.ended() == [(world.fetch.transfer_id, False)]
    assert not world.open(12345) and world.ended() == [(12345, False)]


def test_asking_twice_counts_a_source_once() -> None:
    world = Passing()
    world.open()
    world.open()
    assert world.machine.state.workers[world.source].outgoing <= 1
    world.say(world.destination, messages.Fetched(world.fetch.name, 100_000))
    assert world.is_clean()


def test_only_some_pass_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(splices, "AT_ONCE", 1)
    world = ManagerWorld(2, cores=4)
    made = [world.builder.call() for _ in range(8)]
    world.submit(*made)
    for entry in made:
        world.stored(entry)
    on: dict[int, list[TaskEntry]] = {1: [], 2: []}
    for entry in made:
        assert entry.output is not None and entry.output.on_workers
        on[min(entry.output.on_workers)].append(entry)
    readers = [world.builder.call(one, two) for one, two in zip(on[1], on[2], strict=False)]
    assert len(readers) >= 3
    world.submit(*readers)
    fetched = 0
    open_fetches = [(o.worker_id, o.message) for o in world.of(orders.SendTo) if isinstance(o.message, messages.Fetch)]
    while open_fetches:
        assert len(world.machine.state.splices) == len(open_fetches) == 1
        worker_id, fetch = open_fetches.pop()
        world.do(events.SpliceOpened(0.0, fetch.transfer_id))
        world.say(worker_id, messages.Fetched(fetch.name, 100_000))
        fetched += 1
        open_fetches = [(o.worker_id, o.message) for o in world.of(orders.SendTo) if isinstance(o.message, messages.Fetch)]
    assert fetched == len(readers) and all(reader.state is t.PLACED for reader in readers)
    assert not world.machine.state.crowded


def test_an_object_that_comes_home_anyway_is_not_sent_twice() -> None:
    world = ManagerWorld(2, cores=1)
    one, two = world.builder.call(), world.builder.call()
    world.submit(one, two)
    for entry in (one, two):
        world.stored(entry)
        assert entry.output is not None
        world.do(events.FileWanted(0.0, entry.output, "me"))
        (upload,) = world.sent(messages.Upload)
        if entry is one:
            first = upload
    both = world.builder.call(one, two)
    world.submit(both)
    assert both.state is t.READY and not world.machine.state.splices
    world.do(events.UploadArrived(0.0, first.transfer_id, 100_000))
    world.do(events.UploadArrived(0.0, upload.transfer_id, 100_000))
    assert both.state is t.PLACED
    assert [m.transfer_id for m in world.sent(messages.Fetch)] == [0]


def test_a_leaving_worker_hands_over_through_the_manager() -> None:
    world = ManagerWorld(2, cores=1)
    call = world.builder.call()
    world.submit(call)
    world.stored(call)
    assert call.output is not None and call.output.on_workers
    call.output.holds += 1
    leaving = min(call.output.on_workers)
    world.say(leaving, messages.Goodbye("enough"))
    (fetch,) = world.sent(messages.Fetch)
    assert fetch.transfer_id and not world.sent(messages.Upload)
    world.do(events.SpliceOpened(0.0, fetch.transfer_id))
    assert [m.transfer_id for m in world.sent(messages.Upload)] == [fetch.transfer_id]
    world.say(3 - leaving, messages.Fetched(fetch.name, 100_000))
    assert world.sent(messages.Release) and call.output.on_workers
