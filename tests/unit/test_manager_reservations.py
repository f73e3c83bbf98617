"""A worker is kept for what asks for more than is free: others wait for no more than that needs, and it waits not for ever."""

from __future__ import annotations

from itertools import pairwise

import msgspec

from tests.kit.builders import Builder, hello
from tests.kit.manager_world import ManagerWorld
from vinecore.manager import events, reserving
from vinecore.manager import transitions as t
from vinecore.manager.entries import Kind, LibraryEntry, Shape, TaskEntry
from vinecore.model.resources import Resources
from vinecore.wire import messages


def kind_of(library: LibraryEntry, **request: float) -> Kind:
    """Long calls that ask for this."""
    kind = Kind("call", Shape(library, Resources(**request)))
    kind.mean_us = 1e6
    return kind


def wait(world: ManagerWorld, seconds: float = 2 * reserving.RESERVE_S, step: float = reserving.RESERVE_S) -> None:
    """Time passes, and nothing ends."""
    for _ in range(round(seconds / step)):
        world.now += step
        for worker_id in world.machine.state.workers:
            world.say(worker_id, messages.Pong())
        world.do(events.Tick(0.0))


def kept_in(world: ManagerWorld) -> int:
    """The worker that is kept; 0: none is."""
    reserved = world.machine.state.reserved
    return 0 if reserved is None else reserved.worker_id


def busy(world: ManagerWorld, kind: Kind, count: int) -> list[TaskEntry]:
    """Calls that are running."""
    entries = [world.builder.call(kind=kind) for _ in range(count)]
    world.submit(*entries)
    assert all(entry.state is t.PLACED for entry in entries)
    return entries


def with_gpu(cores: int) -> ManagerWorld:
    world = ManagerWorld(0)
    world.do(events.WorkerJoined(0.0, 1, msgspec.structs.replace(hello(cores), gpus=1)))
    world.say(1, messages.LibraryReady(1, cores))
    return world


def second_library(world: ManagerWorld, slots: int) -> Builder:
    """Another one, up on all workers; its tasks are numbered from 1000 on."""
    other = Builder(slots=slots, library_id=2)
    world.do(events.LibraryInstalled(0.0, other.library))
    waker = other.call()
    waker.task_id = 999
    world.submit(waker)
    for worker_id in world.machine.state.workers:
        world.say(worker_id, messages.LibraryReady(2, slots))
    world.answer(waker, messages.OK_INLINE)
    return other


def call_of(builder: Builder, kind: Kind, task_id: int) -> TaskEntry:
    entry = builder.call(kind=kind)
    entry.task_id = task_id
    return entry


def test_what_takes_nothing_that_is_lacking_goes_on() -> None:
    """A gpu was lacking, and the cores idled."""
    world = with_gpu(4)
    library = world.builder.library
    other_gpu, gpu, cpu = kind_of(library, cores=0, gpus=1), kind_of(library, cores=1, gpus=1), kind_of(library, cores=1)
    busy(world, other_gpu, 1)
    running = busy(world, cpu, 3)
    wanted = world.builder.call(kind=gpu)
    later = [world.builder.call(kind=cpu) for _ in range(4)]
    world.submit(wanted, *later)
    wait(world)
    world.answer(running[0], messages.OK_INLINE)
    world.do(events.Tick(0.0))
    taken = [entry for entry in later if entry.state is t.PLACED]
    assert wanted.state is t.READY and len(taken) == 1
    wait(world)
    assert kept_in(world) == 1, "its core is not given away, too"
    for entry in running[1:]:
        world.answer(entry, messages.OK_INLINE)
    world.do(events.Tick(0.0))
    assert world.machine.state.workers[1].committed.cores == 3


def test_nothing_is_kept_where_one_of_its_like_must_end() -> None:
    """What that gives back is enough: no core idles while gpu tasks queue."""
    world = with_gpu(4)
    library = world.builder.library
    gpus = [world.builder.call(kind=kind_of(library, cores=2, gpus=1))]
    gpus += [world.builder.call(kind=gpus[0].kind) for _ in range(3)]
    cpus = [world.builder.call(kind=kind_of(library, cores=1))]
    cpus += [world.builder.call(kind=cpus[0].kind) for _ in range(8)]
    world.submit(*gpus, *cpus)
    for _ in range(4):
        wait(world)
        reserved = world.machine.state.reserved
        assert reserved is None or reserved.shape is cpus[0].kind.shape
        assert world.machine.state.workers[1].committed.cores == 4
        world.answer(next(entry for entry in cpus if entry.state is t.PLACED), messages.OK_INLINE)
    world.answer(gpus[0], messages.OK_INLINE)
    assert gpus[1].state is t.PLACED


def test_nothing_is_kept_where_earlier_ones_go_on_and_leave_no_room() -> None:
    """It was not its turn there, and cores idled for it meanwhile."""
    world = ManagerWorld(1, 4)
    library = world.builder.library
    large = kind_of(library, cores=0, memory=800)
    queue = [world.builder.call(kind=large) for _ in range(4)]
    middle = world.builder.call(kind=kind_of(library, cores=1, memory=500))
    later = [world.builder.call(kind=kind_of(library, cores=4)) for _ in range(2)]
    world.submit(*queue, middle, *later)
    assert [entry.state for entry in (queue[0], queue[1], middle, later[0], later[1])] == [
        t.PLACED,
        t.READY,
        t.READY,
        t.PLACED,
        t.READY,
    ]
    wait(world)
    world.answer(later[0], messages.OK_INLINE)
    assert later[1].state is t.PLACED and middle.state is t.READY
    for entry in queue:
        world.answer(entry, messages.OK_INLINE)
    world.answer(later[1], messages.OK_INLINE)
    assert middle.state is t.PLACED


def test_nothing_is_kept_for_one_that_waits_for_a_slot_of_its_library() -> None:
    """It fits what is free, and those that have the slot are not like it."""
    world = ManagerWorld(1, 4)
    other = second_library(world, 1)
    kinds = [kind_of(other.library, cores=1), kind_of(other.library, cores=0, memory=1), kind_of(other.library, cores=2)]
    queue = [call_of(other, kind, 10 + number) for number, kind in enumerate(kinds)]
    world.submit(*queue)
    assert [entry.state for entry in queue] == [t.PLACED, t.PLACED, t.READY]
    wait(world)
    small = kind_of(world.builder.library, cores=1)
    later = [call_of(world.builder, small, 100 + number) for number in range(3)]
    world.submit(*later)
    assert kept_in(world) == 0 and all(entry.state is t.PLACED for entry in later)


def test_a_queue_for_one_slot_holds_up_no_other_library() -> None:
    world = ManagerWorld(1, 4)
    other = second_library(world, 1)
    kind, small = kind_of(other.library, cores=1), kind_of(world.builder.library, cores=1)
    queue = [call_of(other, kind, 10 + number) for number in range(5)]
    later = [call_of(world.builder, small, 100 + number) for number in range(6)]
    world.submit(*queue, *later)
    for _ in range(6):
        wait(world)
        world.answer(next(entry for entry in later if entry.state is t.PLACED), messages.OK_INLINE)
    assert all(entry.state is t.FINISHED for entry in later)


def drained(world: ManagerWorld, running: list[TaskEntry], wanted: TaskEntry, small: Kind, rounds: int) -> int:
    """Rounds until it is placed, while more small calls are always there and each takes two rounds."""
    began: dict[int, int] = {}
    for number in range(rounds):
        if wanted.state is not t.READY:
            return number
        while sum(entry.state is t.READY for entry in running) < 8:
            later = world.builder.call(kind=small)
            later.task_id += 10_000
            world.submit(later)
            running.append(later)
        wait(world, reserving.RESERVE_S)
        for entry in [entry for entry in running if entry.state is t.PLACED]:
            if number >= began.setdefault(entry.task_id, number) + 2:
                world.answer(entry, messages.OK_INLINE)
        running[:] = [entry for entry in running if entry.state is not t.FINISHED]
    return rounds


def test_another_worker_is_kept_when_its_library_is_gone_there() -> None:
    world = ManagerWorld(2, 4)
    other = second_library(world, 4)
    small = kind_of(world.builder.library, cores=1)
    running = busy(world, small, 8)
    wanted = call_of(other, kind_of(other.library, cores=4), 5000)
    world.submit(wanted)
    wait(world)
    assert kept_in(world) == 1
    world.say(1, messages.LibraryGone(2, "crashed"))
    assert kept_in(world) == 2
    assert drained(world, running, wanted, small, 10) < 10


def test_another_worker_is_kept_when_its_disk_is_too_small_there() -> None:
    world = ManagerWorld(2, 4)
    running = busy(world, kind_of(world.builder.library, cores=1), 8)
    wanted = world.builder.call(kind=kind_of(world.builder.library, cores=4))
    world.submit(wanted)
    wait(world)
    assert kept_in(world) == 1
    wanted.no_room_at = {1}
    world.answer(running[0], messages.OK_INLINE)
    assert kept_in(world) == 2


def test_one_that_no_worker_can_hold_is_not_in_the_way_of_the_next() -> None:
    world = ManagerWorld(2, 4)
    small = kind_of(world.builder.library, cores=1)
    running = busy(world, small, 8)
    for cores in (8, 9):
        world.submit(world.builder.call(kind=kind_of(world.builder.library, cores=cores)))
    wanted = world.builder.call(kind=kind_of(world.builder.library, cores=4))
    world.submit(wanted)
    assert drained(world, running, wanted, small, 20) < 20


def test_a_queue_that_goes_on_before_it_is_not_in_its_way() -> None:
    """Each of that queue was first for less than RESERVE_S: the time began anew with each."""
    world = with_gpu(4)
    library = world.builder.library
    early, late = kind_of(library, cores=1, gpus=1), kind_of(library, cores=1)
    queue = [world.builder.call(kind=early) for _ in range(12)]
    world.submit(*queue, *(running := [world.builder.call(kind=late) for _ in range(3)]))
    wanted = world.builder.call(kind=kind_of(library, cores=3))
    world.submit(wanted, *[world.builder.call(kind=late) for _ in range(9)])
    for _ in range(6):
        wait(world, reserving.RESERVE_S / 2, reserving.RESERVE_S / 2)
        world.answer(next(entry for entry in queue if entry.state is t.PLACED), messages.OK_INLINE)
    reserved = world.machine.state.reserved
    assert reserved is not None and (reserved.worker_id, reserved.task_id) == (1, wanted.task_id)
    for entry in running:
        world.answer(entry, messages.OK_INLINE)
    assert wanted.state is t.PLACED


def long_at(world: ManagerWorld, running: list[TaskEntry], *worker_ids: int) -> None:
    """One of the calls on each of these workers never ends: it is not in the list any more."""
    for worker_id in worker_ids:
        running.remove(next(entry for entry in running if entry.instance is not None and entry.instance.worker_id == worker_id))


def test_a_worker_with_a_call_that_never_ends_is_not_kept_for_ever() -> None:
    world = ManagerWorld(3, 4)
    small = kind_of(world.builder.library, cores=1)
    running = busy(world, small, 12)
    long_at(world, running, 1, 2)
    wanted = world.builder.call(kind=kind_of(world.builder.library, cores=4))
    world.submit(wanted)
    wait(world)
    assert kept_in(world) == 1
    assert drained(world, running, wanted, small, 60) < 60
    assert wanted.instance is not None and wanted.instance.worker_id == 3


def test_a_worker_is_kept_for_longer_each_time() -> None:
    """So it is once kept for as long as the longest call takes."""
    world = ManagerWorld(2, 4)
    small = kind_of(world.builder.library, cores=1)
    busy(world, small, 8)
    world.submit(world.builder.call(kind=kind_of(world.builder.library, cores=4)))
    wait(world)
    changes = [(world.now, kept_in(world))]
    for _ in range(100):
        wait(world, 1.0)
        if kept_in(world) != changes[-1][1]:
            changes.append((world.now, kept_in(world)))
    spans = [after[0] - before[0] for before, after in pairwise(changes)]
    assert [worker_id for _, worker_id in changes] == [1, 2, 1, 2, 1]
    assert spans[1:] == [2 * reserving.HOLD_S, 4 * reserving.HOLD_S, 8 * reserving.HOLD_S]


def kept_and_waiting(workers: int) -> tuple[ManagerWorld, list[TaskEntry], TaskEntry, TaskEntry]:
    """One-core tasks run on all cores, a worker is kept for one of four, and a one-core task comes behind that."""
    world = ManagerWorld(workers, 4)
    small = kind_of(world.builder.library, cores=1)
    running = busy(world, small, 4 * workers)
    wanted = world.builder.call(kind=kind_of(world.builder.library, cores=4))
    later = world.builder.call(kind=small)
    world.submit(wanted, later)
    wait(world)
    return world, running, wanted, later


def test_who_waits_for_a_kept_worker_is_told() -> None:
    world, running, wanted, later = kept_and_waiting(1)
    world.answer(running[0], messages.OK_INLINE)
    why = f"worker 1 is kept for task {wanted.task_id}, which comes first and asks for more than is free there"
    assert world.machine.story(later.task_id)[0].endswith(f"is ready and waits: {why}")
    assert world.machine.story(wanted.task_id)[0].endswith("worker 1 is kept for it until enough has ended there")


def test_who_waits_for_others_beside_a_kept_worker_is_told_of_both() -> None:
    world, running, _, later = kept_and_waiting(2)
    world.answer(next(e for e in running if e.instance is not None and e.instance.worker_id == 1), messages.OK_INLINE)
    assert "is free there; 1 more that could run it is busy with other tasks" in world.machine.story(later.task_id)[0]


def test_requests_that_no_worker_can_hold_are_in_nobodys_way() -> None:
    """Eight different ones hid all that came after them, also those that only a closed worker could hold."""
    world = ManagerWorld(1, 4)
    library = world.builder.library
    world.do(events.WorkerJoined(0.0, 2, hello(64, name="closed")))
    world.say(2, messages.LibraryReady(1, 64))
    world.do(events.HostsChanged(0.0, block="closed", until=1e9))
    running = busy(world, kind_of(library, cores=1), 4)
    world.submit(*[world.builder.call(kind=kind_of(library, cores=40 + 5 * number)) for number in range(reserving.SHAPES + 2)])
    wanted = world.builder.call(kind=kind_of(library, cores=4))
    later = [world.builder.call(kind=running[0].kind) for _ in range(4)]
    world.submit(wanted, *later)
    wait(world, 4 * reserving.RESERVE_S)
    assert kept_in(world) == 1
    for entry in running:
        world.answer(entry, messages.OK_INLINE)
    assert wanted.state is t.PLACED
