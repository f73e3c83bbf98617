"""Which vertices leave together, by proposal alone and as placed."""

from __future__ import annotations

from tests.kit.builders import Builder, hello
from vinecore.manager import bundles, events
from vinecore.manager.entries import Kind, TaskEntry
from vinecore.manager.machine import ManagerMachine
from vinecore.model.config import Tunables
from vinecore.wire import messages

RUN = "r0"


def placed(
    builder: Builder, edges: list[list[int]], cores: int = 1, requested: tuple[int, ...] = ()
) -> list[list[messages.Call]]:
    """Groups of the first Run that a graph causes on one ready worker."""
    machine = ManagerMachine(RUN)
    machine.handle(events.LibraryInstalled(1.0, builder.library))
    machine.handle(events.WorkerJoined(1.0, 1, hello(cores)))
    machine.handle(events.WorkerSaid(1.0, 1, messages.LibraryReady(builder.library.library_id, cores)))
    graph, entries = builder.vertices(edges, requested)
    orders = machine.handle(events.VerticesSubmitted(1.0, graph, entries))
    machine.check()
    runs = [o.message for o in orders if isinstance(getattr(o, "message", None), messages.Run)]
    return [group for run in runs for group in run.groups]


def submitted(builder: Builder, edges: list[list[int]], kinds: list[Kind] | None = None) -> list[TaskEntry]:
    """Vertices in a machine without workers: nothing is placed."""
    machine = ManagerMachine(RUN)
    graph, entries = builder.vertices(edges, (), kinds)
    machine.handle(events.VerticesSubmitted(1.0, graph, entries))
    return entries


def test_unknown_durations_go_in_small_bundles() -> None:
    groups = placed(Builder(), [[] for _ in range(200)] + [list(range(200))])
    assert max(len(group) for group in groups) <= 16


def test_measured_short_ones_fill_the_time() -> None:
    builder = Builder()
    builder.kind.mean_us = 1000.0
    entries = submitted(builder, [[] for _ in range(500)])
    assert len(bundles.bundle_for(entries[0], 1, 1, Tunables())) == 25


def test_no_slot_is_starved() -> None:
    builder = Builder()
    builder.kind.mean_us = 10.0
    entries = submitted(builder, [[] for _ in range(64)])
    assert len(bundles.bundle_for(entries[0], 8, 1, Tunables())) <= 64 // 8


def test_a_vertex_joins_behind_its_inputs() -> None:
    builder = Builder()
    builder.kind.mean_us = 10.0
    entries = submitted(builder, [[], [], [0, 1], [], [2, 3]])
    chosen = bundles.bundle_for(entries[0], 0, 1, Tunables())
    order = [e.task_id for e in chosen]
    for entry in chosen:
        for file in entry.inputs:
            assert order.index(file.value_id) < order.index(entry.task_id)


def test_inputs_on_another_worker_keep_a_vertex_out() -> None:
    builder = Builder()
    builder.kind.mean_us = 10.0
    entries = submitted(builder, [[], [], [0]] + [[] for _ in range(20)])
    output = entries[0].output
    assert output is not None
    output.on_workers = (7,)
    assert entries[2] not in bundles.bundle_for(entries[1], 1, 1, Tunables())
    assert entries[2] in bundles.bundle_for(entries[1], 1, 7, Tunables())


def test_large_values_make_longer_bundles() -> None:
    builder = Builder()
    builder.kind.mean_us, builder.kind.mean_bytes = 10_000.0, 1e6
    entries = submitted(builder, [[] for _ in range(100)])
    large = len(bundles.bundle_for(entries[0], 1, 1, Tunables()))
    builder.kind.mean_bytes = 0.0
    small = len(bundles.bundle_for(entries[0], 1, 1, Tunables()))
    assert (large, small) == (20, 2)


def test_values_that_only_members_read_are_kept() -> None:
    builder = Builder()
    builder.kind.mean_us = 10.0
    groups = placed(builder, [[], [], [0, 1], [], [], [3, 4], [2, 5], *([[]] * 10)], requested=(6, *range(7, 17)))
    calls = {call.index: call for group in groups for call in group}
    assert not calls[0].publish and calls[0].uses == 1
    assert calls[6].publish


def test_one_input_read_twice_counts_twice() -> None:
    builder = Builder()
    builder.kind.mean_us = 10.0
    groups = placed(builder, [[], [0, 0], *([[]] * 10)], requested=(1,))
    calls = {call.index: call for group in groups for call in group}
    assert calls[0].uses == 2 and not calls[0].publish
    assert len({(c.task_id, c.attempt) for group in groups for c in group}) == sum(len(group) for group in groups)
