"""What the manager remembers of tasks that have ended for good: nothing, however long what they read stays."""

from __future__ import annotations

import gc
import random
import threading
import weakref

from tests.kit.builders import declared
from tests.kit.manager_world import ManagerWorld
from vinecore.api.code import CodeMethods
from vinecore.manager import entries as entries_room
from vinecore.manager import events
from vinecore.manager.entries import (
    AMOUNTS_LIMIT,
    HOLDERS_LEAST,
    FileEntry,
    Kind,
    LibraryEntry,
    Shape,
    TaskEntry,
    WorkerEntry,
)
from vinecore.manager.lists import WEAK_LEAST
from vinecore.manager.worker_sets import FEW
from vinecore.model.resources import Resources
from vinecore.wire import messages


def alive() -> int:
    return sum(type(thing) is TaskEntry for thing in gc.get_objects())


def run(world: ManagerWorld, *entries: TaskEntry) -> None:
    """Let them all end with a value of their own, whatever order they are placed in."""
    waiting = list(entries)
    while waiting:
        placed = [entry for entry in waiting if entry.instance is not None]
        assert placed, waiting
        for entry in placed:
            world.answer(entry, messages.OK_INLINE, b"x" * 1000)
            waiting.remove(entry)


def test_readers_of_a_file_that_stays_are_forgotten_when_they_have_ended() -> None:
    world = ManagerWorld(cores=4)
    file = declared(1)
    file.holds = 1
    before = alive()
    for count in (1, FEW, 3 * FEW, 100):
        entries = [world.builder.call(file) for _ in range(count)]
        world.submit(*entries)
        run(world, *entries)
        assert not file.consumers
    del entries
    assert alive() - before < 5  # one may still be in the orders of the last event
    assert file.uses == 0


def test_readers_that_end_in_any_order_are_forgotten_and_the_others_are_not() -> None:
    rng = random.Random(5)
    for _ in range(20):
        world = ManagerWorld(cores=4)
        file = declared(1)
        file.holds = 1
        unfinished: list[TaskEntry] = []
        for _ in range(60):
            if rng.random() < 0.6:
                unfinished.append(world.builder.call(file))
                world.submit(unfinished[-1])
            for entry in [entry for entry in unfinished if entry.instance is not None and rng.random() < 0.4]:
                if rng.random() < 0.3:
                    world.answer(entry, messages.RAISED, b"error")
                else:
                    world.answer(entry, messages.OK_INLINE, b"value")
                unfinished.remove(entry)
            assert set(unfinished) <= set(file.consumers)
            assert len(file.consumers) <= 2 * len(unfinished) + 1


def test_a_reader_whose_value_may_be_lost_is_remembered_until_that_is_released() -> None:
    world = ManagerWorld()
    made = world.builder.call()
    world.submit(made)
    reader = world.builder.call(made)
    world.submit(reader)
    world.stored(made)
    world.stored(reader)
    assert made.output is not None and made.output.consumers == (reader,)
    world.do(events.FileReleased(0.0, [reader.output]))  # type: ignore[list-item]
    assert made.output.consumers == () and reader.is_final and not reader.inputs


def test_values_between_vertices_are_gone_when_they_were_read() -> None:
    world = ManagerWorld()
    graph, (first, second, third) = world.builder.vertices([[], [0], [1]])
    world.do(events.VerticesSubmitted(0.0, graph, [first, second, third]))
    output = first.output
    assert output is not None
    world.answer(first, messages.OK_INLINE, b"large")
    assert output.data == b"large" and first.value is None
    world.answer(second, messages.OK_INLINE, b"read")
    assert output.data is None and output.producer is None
    world.answer(third, messages.OK_INLINE, b"asked for")
    assert third.value == b"asked for"


def test_what_has_ended_is_freed_without_the_collector() -> None:
    world = ManagerWorld()
    before = alive()
    gc.disable()
    try:
        for _ in range(10):
            made = world.builder.call()
            reader = world.builder.call(made)
            world.submit(made, reader)
            run(world, made, reader)
            assert made.output is not None
            world.do(events.FileReleased(0.0, [made.output]))
            del made, reader
        world.do(events.Tick(0.0))
        assert alive() == before
    finally:
        gc.enable()


def test_workers_that_left_are_forgotten_with_what_they_held() -> None:
    """What was called on each of them used to keep them, and with them the files that they had, and who made and reads these."""
    world = ManagerWorld(workers=0)
    gc.collect()
    before = sum(type(thing) is FileEntry for thing in gc.get_objects())
    for worker_id in range(1, 100):
        world.join(worker_id)
        file = declared(worker_id)
        file.holds = 1
        reader = world.builder.call(file)
        world.submit(reader)
        world.say(worker_id, messages.Fetched(file.name, file.size_bytes))
        world.answer(reader, messages.OK_INLINE, b"value")
        world.do(events.WorkerLeft(0.0, worker_id, "gone"))
        world.do(events.FileReleased(0.0, [file]))
    del file, reader
    gc.collect()
    things = gc.get_objects()
    assert sum(type(thing) is FileEntry for thing in things) - before < 5
    assert sum(type(thing) is WorkerEntry for thing in things) < 2 * HOLDERS_LEAST
    assert len(world.builder.code.holders) < 2 * HOLDERS_LEAST


def test_requests_that_no_task_has_any_more_are_forgotten() -> None:
    """Each task may have one of its own, for weeks."""
    world = ManagerWorld(2, cores=4)
    library = world.builder.library
    for allocates, most in ((False, WEAK_LEAST), (True, 2 * AMOUNTS_LIMIT + WEAK_LEAST)):
        for number in range(3 * most):
            entry = world.builder.call(kind=Kind("asks", Shape(library, Resources(memory=1 + number / 10_000), allocates)))
            world.submit(entry)
            run(world, entry)
        del entry
        gc.collect()
        assert len(list(library.shapes)) <= most + 20
        assert len(library.shapes) <= most + WEAK_LEAST + 20
        assert all(len(worker.amounts or ()) <= AMOUNTS_LIMIT + 1 for worker in world.machine.state.workers.values())


def test_equal_requests_are_one_as_long_as_they_are_in_use() -> None:
    engine = CodeMethods()
    engine._lock, engine._entries = threading.Lock(), entries_room
    engine._shapes = weakref.WeakValueDictionary()
    engine.python = LibraryEntry(1, "python")
    library = LibraryEntry(2, "library")
    shape = engine.shape_for(library, Resources(cores=1))
    assert engine.shape_for(library, Resources(cores=1)) is shape
    assert engine.shape_for(library, Resources(cores=1), True) is not shape, "another way to ask"
    for number in range(1000):
        engine.shape_for(library, Resources(memory=number))
    gc.collect()
    assert len(engine._shapes) <= 2
