"""Tasks with requests: every place that may have room is tried, and those that lacked it are not tried again at each event."""

from __future__ import annotations

import pytest

from tests.kit.builders import Builder, declared
from tests.kit.manager_world import ManagerWorld
from vinecore.errors import FileLost
from vinecore.manager import events, placement
from vinecore.manager import transitions as t
from vinecore.manager.entries import Instance, Kind, Shape, TaskEntry
from vinecore.manager.lists import LOG_LEAST
from vinecore.manager.state import ManagerState
from vinecore.model.resources import Resources
from vinecore.wire import messages


def asking(world: ManagerWorld, count: int, **amounts: float) -> list[TaskEntry]:
    kind = Kind("asks", Shape(world.builder.library, Resources(**amounts)))  # type: ignore[arg-type]
    return [world.builder.call(kind=kind) for _ in range(count)]


def placed(entries: list[TaskEntry]) -> list[TaskEntry]:
    return [entry for entry in entries if entry.state is t.PLACED]


def looks_for_answers(workers: int, monkeypatch: pytest.MonkeyPatch) -> int:
    """How often it is looked whether a request fits somewhere, over 20 answers, each of which makes room for one more."""
    world = ManagerWorld(workers, cores=3)  # each has a free core and a free slot all the time
    entries = asking(world, 5 * workers + 40, cores=2)
    world.submit(*entries)
    assert len(placed(entries)) == workers
    count = 0
    right = placement._fits

    def counted(state: ManagerState, instance: Instance, entry: TaskEntry) -> bool:
        nonlocal count
        count += 1
        return right(state, instance, entry)

    monkeypatch.setattr(placement, "_fits", counted)
    for entry in placed(entries)[:20]:
        world.now += 0.001
        world.answer(entry, messages.OK_INLINE)
        assert len(placed(entries)) == workers
    monkeypatch.setattr(placement, "_fits", right)
    return count


def test_an_answer_makes_as_many_looks_with_many_workers_as_with_few(monkeypatch: pytest.MonkeyPatch) -> None:
    assert looks_for_answers(200, monkeypatch) == looks_for_answers(20, monkeypatch)


def test_smaller_requests_find_the_room_that_larger_ones_lacked() -> None:
    world = ManagerWorld(3, cores=3)
    large, small = asking(world, 6, cores=2), asking(world, 3, cores=1)
    world.submit(*large)
    assert len(placed(large)) == 3
    world.submit(*small)
    assert len(placed(small)) == 3
    for entry in small:
        world.answer(entry, messages.OK_INLINE)
    assert len(placed(large)) == 3
    for entry in placed(large):
        world.answer(entry, messages.OK_INLINE)
    assert len(placed(large)) == 3


def test_room_that_another_library_makes_is_found() -> None:
    world = ManagerWorld(3, cores=4)
    other = Builder(request=Resources(cores=3), library_id=2)
    world.do(events.LibraryInstalled(0.0, other.library))
    for worker_id in (1, 2, 3):
        world.say(worker_id, messages.LibraryReady(2, 4))
    first = [other.call() for _ in range(3)]
    world.submit(*first)
    refused = asking(world, 6, cores=2)
    world.submit(*refused)
    assert placed(refused) == []
    for number, entry in enumerate(first, 1):
        world.answer(entry, messages.OK_INLINE)
        assert len(placed(refused)) == 2 * number


def test_requests_that_come_after_instances_were_offered_are_served_by_all() -> None:
    world = ManagerWorld(4, cores=2)
    plain = [world.builder.call() for _ in range(2)]
    world.submit(*plain)
    entries = asking(world, 8, cores=1)
    world.submit(*entries)
    assert len({entry.instance for entry in placed(entries)}) == 4
    for entry in plain:
        world.answer(entry, messages.OK_INLINE)
    assert len(placed(entries)) == 8


def test_workers_that_left_are_forgotten() -> None:
    """However many come and go: the log of offers kept each of them."""
    world = ManagerWorld(1, cores=4)
    world.submit(*asking(world, 1, cores=2))
    library = world.builder.library
    for worker_id in range(2, 1000):
        world.join(worker_id, 4)
        world.do(events.WorkerLeft(0.0, worker_id, "the connection was closed"))
    assert len(library.offers) <= LOG_LEAST + 10


def test_what_fails_with_a_lost_file_leaves_its_room_at_once() -> None:
    world = ManagerWorld(1, cores=2)
    (waiting,) = asking(world, 1, cores=2)
    kind = waiting.kind
    graph, (running, reader) = world.builder.vertices([[], []], kinds=[kind, kind])
    lost = declared(1)
    lost.at_manager = False
    reader.inputs = (lost,)
    world.do(events.VerticesSubmitted(0.0, graph, [running]))
    world.submit(waiting)
    assert (running.state, waiting.state) == (t.PLACED, t.READY)
    world.do(events.VerticesSubmitted(0.0, graph, [reader]))
    assert isinstance(reader.error, FileLost) and waiting.state is t.PLACED


def kind_with(world: ManagerWorld, **amounts: float) -> Kind:
    return Kind("asks", Shape(world.builder.library, Resources(**amounts)))  # type: ignore[arg-type]


def test_priority_holds_between_different_requests() -> None:
    """The first one of a request was followed by all of its like."""
    world = ManagerWorld(0)
    one, two = kind_with(world, cores=1), kind_with(world, cores=2)
    first, middle, *last = (world.builder.call(kind=kind) for kind in (one, two, one, one, one))
    first.priority, middle.priority = 10.0, 5.0
    world.submit(first, *last, middle)
    world.join(1, 4)
    assert placed([first, middle, *last]) == [first, middle, last[0]]


def test_one_that_is_passed_over_holds_up_none_of_its_like() -> None:
    """A worker's disk was full for the first one, and the turn of the others comes after another request's."""
    world = ManagerWorld(2, cores=2)
    one, two = kind_with(world, cores=1), kind_with(world, cores=2)
    burnt = world.builder.call(kind=one)
    burnt.no_room_at = {2}
    busy = [world.builder.call(kind=two) for _ in range(2)]
    world.submit(*busy)
    large, small = world.builder.call(kind=two), world.builder.call(kind=one)
    burnt.priority, large.priority = 2.0, 1.0
    world.submit(burnt, large, small)
    world.submit(world.builder.call(kind=kind_with(world, cores=1, memory=900)))
    half = next(entry for entry in busy if entry.instance is not None and entry.instance.worker_id == 2)
    half.instance.worker.total = Resources(3, 1000, 1000, 0)  # type: ignore[union-attr]
    world.say(2, messages.LibraryReady(1, 1))
    world.say(2, messages.LibraryReady(1, 2))
    assert placed([burnt, large, small]) == [small]
