"""What tasks leave in their sandboxes, and objects that are not where they should be, as the manager's machine sees them."""

from __future__ import annotations

import pytest

from tests.kit.builders import RUN, Handle, declared, hello
from tests.kit.manager_world import ManagerWorld
from vinecore.errors import FileLost
from vinecore.manager import events, orders, transfers
from vinecore.manager import transitions as t
from vinecore.manager.entries import RAISED, FileEntry, Kind, Shape, TaskEntry
from vinecore.manager.worker_sets import with_worker
from vinecore.model.resources import Resources
from vinecore.wire import messages
from vinecore.wire.messages import Mount, Product, Report, Result, Sandbox


def boxed(world: ManagerWorld, *mounts: FileEntry, products: int = 1, request: Resources | None = None) -> TaskEntry:
    """A command with these inputs and so many products."""
    kind = world.builder.kind if request is None else Kind("box", Shape(world.builder.library, request, True))
    entry = TaskEntry(next(world.builder.ids), kind, world.builder.code, b"", Handle(), mounts)
    entry.sandbox = Sandbox(
        [Mount("", f"in{n}") for n in range(len(mounts))], [Product(f"out{n}", "") for n in range(products)], []
    )
    files = [FileEntry(next(world.builder.ids)) for _ in range(products)]
    for file in files:
        file.producer, file.holds = entry, 1
    entry.products = tuple(files)
    return entry


def end(
    world: ManagerWorld, entry: TaskEntry, made: tuple[int, ...] = (0,), status: int = messages.OK_INLINE, attempt: int = 0
) -> None:
    """The task's end, with the products that it made."""
    attempt = attempt or entry.attempt
    report = Report(0, b"", [(f"{RUN}-{entry.task_id}.{attempt}.{n}", 100, b"") for n in made], [], [])
    worker_id = entry.instance.worker.worker_id if entry.instance is not None else 1
    world.say(worker_id, messages.Done([Result(entry.task_id, attempt, status, 5, b"", 0, report)]))


def test_a_product_that_was_not_made_is_not_made_by_another_run() -> None:
    """Whoever wanted its bytes made the task run again and again, and was never answered."""
    world = ManagerWorld()
    entry = boxed(world, products=2)
    world.submit(entry)
    end(world, entry, made=(0,))
    world.do(events.FileWanted(0.0, entry.products[1], "me"))
    assert [o.handle for o in world.of(orders.FileFailed)] == ["me"] and not world.sent(messages.Run)
    reader = boxed(world, entry.products[1])
    world.submit(reader)
    assert isinstance(reader.error, FileLost) and entry.attempt == 1


def test_a_lost_product_of_a_failed_task_fails_its_readers() -> None:
    """Nothing can make it again: they waited for ever."""
    world = ManagerWorld(workers=2, cores=1)
    entry = boxed(world)
    other = world.builder.call()
    world.submit(entry, other)
    reader = world.builder.call(entry.products[0])
    late = world.builder.call(other, entry.products[0])
    world.submit(reader, late)
    holder = entry.instance
    assert holder is not None
    end(world, entry, status=messages.RAISED)
    assert entry.error == RAISED and late.state is t.WAITING
    world.do(events.WorkerLeft(0.0, holder.worker.worker_id, "gone"))
    assert isinstance(late.error, FileLost)


def test_products_of_a_late_result_are_dropped() -> None:
    world = ManagerWorld(workers=2, cores=1)
    entry = boxed(world)
    world.submit(entry)
    instance = entry.instance
    assert instance is not None
    end(world, entry, made=(0,), attempt=7)
    assert [m.names for m in world.sent(messages.Unlink)] == [[f"{RUN}-{entry.task_id}.7.0"]]


def test_damage_that_a_late_result_tells_of_counts() -> None:
    """The task was cancelled, but what it wrote into is damaged all the same."""
    world = ManagerWorld(workers=2)
    file = declared(1)
    file.holds = 1
    entry = boxed(world, file)
    world.submit(entry)
    world.say(1, messages.Fetched(file.name, 100))
    world.do(events.TasksCancelled(0.0, [entry]))
    report = Report(0, b"", [], [], [file.name])
    world.say(1, messages.Done([Result(entry.task_id, 1, messages.OK_INLINE, 5, b"", 0, report)]))
    assert not file.on_workers


def test_sources_are_judged_one_by_one() -> None:
    """The first of two sources could not be reached, the second did not have it: the first was said to have lost it."""
    world = ManagerWorld(workers=0)
    world.machine.state.transfer_key = b"key"
    for worker_id in (1, 2, 3):
        world.do(events.WorkerJoined(0.0, worker_id, hello(1, name=f"h{worker_id}", peer_port=worker_id), "host"))
        world.say(worker_id, messages.LibraryReady(1, 1))
    state = world.machine.state
    made = world.builder.call()
    world.submit(made)
    world.stored(made)
    file = made.output
    assert file is not None
    for worker_id in (1, 2):
        file.on_workers = with_worker(file.on_workers, worker_id)
        state.workers[worker_id].hold(file)
    for host in ("h1", "h2"):
        world.do(events.HostsChanged(0.0, block=host, until=1e9))
    world.submit(world.builder.call(made))
    first, second = state.peer_fetches[file.name, 3]
    world.say(3, messages.FetchFailed(file.name, "it failed", [1], [0]))
    assert file.on_workers == (first,) and set(state.workers[3].unreachable) == {first}
    assert [o.worker_id for o in world.of(orders.SendTo) if isinstance(o.message, messages.Unlink)] == [second]


def test_a_fetch_that_is_ordered_again_takes_one_place_at_its_source() -> None:
    """Copies were dropped while they were on their way, and wanted again: the source was said to be busy for ever."""
    world = ManagerWorld(workers=0)
    world.machine.state.transfer_key = b"key"
    for worker_id in (1, 2):
        world.do(events.WorkerJoined(0.0, worker_id, hello(1, name=f"h{worker_id}", peer_port=worker_id), "host"))
        world.say(worker_id, messages.LibraryReady(1, 1))
    state = world.machine.state
    file = declared(1)
    file.holds = 1
    for _ in range(2):
        file.on_workers, file.coming = (1,), (2,)
        transfers.fetch(state, file, state.workers[2], [state.workers[1]])
    assert state.workers[1].outgoing == 1
    transfers.ended(state, file.name, 2)
    assert state.workers[1].outgoing == 0


def test_a_payload_that_a_worker_fetched_once_more_is_a_copy() -> None:
    world = ManagerWorld()
    file = declared(5)
    file.holds = 1
    world.builder.library.file = file
    world.say(1, messages.Fetched(file.name, 100))
    assert file.on_workers == (1,)
    world.say(1, messages.Fetched("r0-nobody", 100))
    assert [m.names for m in world.sent(messages.Unlink)] == [["r0-nobody"]]


@pytest.mark.parametrize("first_cores", [1, 2])
def test_only_its_like_waits_behind_a_task_that_asks_for_something(first_cores: int) -> None:
    """Different requests can add up to the same as so many equal ones; together they would take more than there is."""
    world = ManagerWorld(workers=1, cores=4)
    kinds = [Kind("first", Shape(world.builder.library, Resources(memory=100.0 * first_cores), True))]
    kinds += [Kind("other", Shape(world.builder.library, Resources(memory=400.0), True))]
    kinds += [Kind("third", Shape(world.builder.library, Resources(memory=250.0), True))]
    entries = []
    for kind in (kinds[0], kinds[1], kinds[2], kinds[2], kinds[2]):
        kind.mean_us = 100.0
        entries.append(TaskEntry(next(world.builder.ids), kind, world.builder.code, b"", Handle()))
        world.submit(entries[-1])
    instance = world.builder.library.instances[1]
    assert instance.alike is None and entries[-1].state is t.READY
    worker = instance.worker
    assert not worker.committed.missing_in(worker.total)


def test_products_that_are_read_together_are_made_on_one_worker() -> None:
    world = ManagerWorld(workers=2, cores=1)
    one = Resources(cores=1)
    makers = [boxed(world, request=one) for _ in range(8)]
    readers = [boxed(world, *(maker.products[0] for maker in makers[first::2]), request=one) for first in (0, 1)]
    for entry in (*makers, *readers):
        entry.kind = makers[0].kind
    world.machine.state.tunables.wait_for_workers = 3  # so all of it is there when work begins
    world.submit(*makers, *readers)
    world.machine.state.tunables.wait_for_workers = 0
    world.do(events.Tick(0.0))
    fetches = 0
    for worker_id in [1, 1, 2, 2] * 3:
        for entry in [e for e in (*makers, *readers) if e.instance is not None and e.instance.worker_id == worker_id][:1]:
            end(world, entry)
            fetches += len(world.sent(messages.Fetch))
    assert fetches == 0 and all(reader.state is t.FINISHED for reader in readers)


def test_what_waits_for_a_worker_without_room_is_taken_over() -> None:
    """Its slots are free, its cores are not."""
    world = ManagerWorld(workers=2, cores=4)
    makers = [boxed(world, request=Resources(cores=4)) for _ in range(4)]
    reader = boxed(world, *(maker.products[0] for maker in makers), request=Resources(cores=4))
    others = [boxed(world, request=Resources(cores=4)) for _ in range(6)]
    for entry in (*makers, reader, *others):
        entry.kind = makers[0].kind
    world.machine.state.tunables.wait_for_workers = 3  # so all of it is there when work begins
    world.submit(*makers, reader, *others)
    world.machine.state.tunables.wait_for_workers = 0
    world.do(events.Tick(0.0))
    for other in others:
        assert other.state is t.PLACED and [maker.state for maker in makers[1:]] == [t.READY] * 3
        end(world, other)
    assert makers[0].state is t.PLACED and makers[3].state is t.PLACED
