"""What the manager lets go of when a graph is over: values, lineage, code on workers."""

from __future__ import annotations

from tests.kit.builders import declared
from tests.kit.manager_world import ManagerWorld
from vinecore.manager import events, on_libraries
from vinecore.manager import transitions as t
from vinecore.manager.entries import CodeEntry, GraphEntry, TaskEntry
from vinecore.wire import messages


def finished_chain(world: ManagerWorld, requested: tuple[int, ...] = (1,)) -> tuple[GraphEntry, list[TaskEntry]]:
    """Vertex 1 reads vertex 0; both values are in the worker's store."""
    graph, entries = world.builder.vertices([[], [0]], requested)
    world.builder.kind.mean_us, world.builder.kind.mean_bytes = 10.0, 1e6
    world.do(events.VerticesSubmitted(0.0, graph, entries))
    for entry in entries:
        world.stored(entry)
    return graph, entries


def end(
    world: ManagerWorld, graph: GraphEntry, entries: list[TaskEntry], keep: bool, codes: list[CodeEntry] | None = None
) -> None:
    files = [entry.output for entry in entries if entry.output is not None]
    world.do(events.GraphEnded(0.0, graph, files, keep, [world.builder.piece] if codes is None else codes))


def test_values_of_an_ended_graph_are_unlinked() -> None:
    world = ManagerWorld()
    graph, entries = finished_chain(world)
    end(world, graph, entries[1:], keep=False)
    output = entries[1].output
    assert output is not None and [m.names for m in world.sent(messages.Unlink)] == [[output.name]]
    assert not world.machine.state.held


def test_kept_values_stay_without_their_lineage() -> None:
    world = ManagerWorld()
    graph, entries = finished_chain(world)
    end(world, graph, entries[1:], keep=True)
    first, last = entries[0].output, entries[1].output
    assert first is not None and last is not None
    assert last.is_available() and last.producer is None and not last.consumers
    assert entries[1].inputs == () and entries[1].is_final and first.remakes == 0 and not first.is_available()
    assert world.sent(messages.Unlink) == []
    world.do(events.FileReleased(0.0, [last]))
    assert [m.names for m in world.sent(messages.Unlink)] == [[last.name]] and not world.machine.state.held


def test_kept_values_that_feed_each_other() -> None:
    world = ManagerWorld()
    graph, entries = finished_chain(world, (0, 1))
    end(world, graph, entries, keep=True)
    outputs = [entry.output for entry in entries if entry.output is not None]
    assert all(output.is_available() and output.remakes == 0 for output in outputs)
    world.do(events.FileReleased(0.0, outputs))
    assert not world.machine.state.held


def test_a_value_that_is_being_made_again_stays_part_of_its_graph() -> None:
    world = ManagerWorld()
    graph, entries = finished_chain(world)
    world.do(events.WorkerLeft(0.0, 1, "gone"))
    assert entries[1].state is t.WAITING
    world.join(2)
    end(world, graph, entries[1:], keep=True)
    assert entries[1].output is not None and entries[1].output.producer is entries[1]
    assert not world.machine.state.forgotten, "its code is still needed"


def test_small_pieces_are_forgotten_together() -> None:
    world = ManagerWorld()
    instance = world.builder.library.instances[1]
    graph, entries = finished_chain(world)
    end(world, graph, entries[1:], keep=False)
    assert world.sent(messages.ForgetCode) == [] and instance in world.builder.piece.holders
    others = [CodeEntry(10_000 + number, 1, b"piece") for number in range(on_libraries.FORGET_COUNT)]
    for code in others:
        code.holders[instance] = instance.code_life
    end(world, graph, [], keep=False, codes=others)
    told = [world.builder.piece.code_id, *(code.code_id for code in others)]
    assert [(m.library_id, m.code_ids) for m in world.sent(messages.ForgetCode)] == [(1, told)]
    assert instance not in world.builder.piece.holders
    assert not world.machine.state.forgotten and not world.machine.state.forgotten_bytes


def test_large_pieces_are_forgotten_at_once_with_their_objects() -> None:
    world = ManagerWorld()
    file = declared(7, on_libraries.FORGET_BYTES)
    world.builder.piece.file = file
    graph, entries = world.builder.vertices([[]])
    world.do(events.VerticesSubmitted(0.0, graph, entries))
    world.say(1, messages.Fetched(file.name, file.size_bytes))
    world.answer(entries[0], messages.OK_INLINE, b"v")
    end(world, graph, entries, keep=False)
    assert [m.code_ids for m in world.sent(messages.ForgetCode)] == [[world.builder.piece.code_id]]
    assert [m.names for m in world.sent(messages.Unlink)] == [[file.name]]
    assert not file.at_manager


def test_pieces_that_few_workers_have_are_told_of_later() -> None:
    """What counts is how many each worker has: else thousands of workers would be told of one piece each."""
    world = ManagerWorld(workers=4)
    instance = world.builder.library.instances[1]
    graph, entries = finished_chain(world)
    others = [CodeEntry(10_000 + number, 1, b"piece") for number in range(4 * on_libraries.FORGET_COUNT)]
    for code in others:
        code.holders[instance] = instance.code_life
    end(world, graph, entries[1:], keep=False, codes=others[:-2])
    assert world.sent(messages.ForgetCode) == [] and len(world.machine.state.forgotten) == len(others) - 2
    end(world, graph, [], keep=False, codes=others[-2:])
    assert len(world.sent(messages.ForgetCode)) == 1 and not world.machine.state.forgotten_copies
