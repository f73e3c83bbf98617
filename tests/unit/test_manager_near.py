"""Entries that wait for one instance: kept together with what is read with them, taken over by those that have nothing else."""

from __future__ import annotations

from tests.kit.builders import declared
from tests.kit.manager_world import ManagerWorld, graph_in
from vinecore.manager import events, near
from vinecore.manager import transitions as t
from vinecore.manager.entries import FileEntry, TaskEntry
from vinecore.wire import messages

# Leaves first, so that the order of submission does not keep together what is read together.
EIGHT_LEAVES = [*([] for _ in range(8)), [0, 2, 4, 6], [1, 3, 5, 7], [8, 9]]


def slow_world(workers: int, cores: int = 1, mean_bytes: float = 1e6) -> ManagerWorld:
    """Calls take a second, so none leave in bundles."""
    world = ManagerWorld(workers, cores)
    world.builder.kind.mean_us, world.builder.kind.mean_bytes = 1e6, mean_bytes
    for instance in world.builder.library.instances.values():
        instance.mean_us = 1e6
    return world


def at(entry: TaskEntry) -> int:
    """The worker where it is placed; 0: nowhere."""
    return entry.instance.worker_id if entry.instance is not None else 0


def kept_at(world: ManagerWorld, worker_id: int) -> list[TaskEntry]:
    """What is in the line of an instance, and of no other."""
    instance = world.builder.library.instances[worker_id]
    tasks = world.machine.state.tasks.values()
    return [e for e in tasks if e.state is t.READY and e.queue is not None and e.queue is instance.local]


def fetches_until_root(world: ManagerWorld) -> int:
    """Fetches ordered by all that happens to ``EIGHT_LEAVES`` up to the last but one level."""
    _, entries = graph_in(world, EIGHT_LEAVES)
    count = 0
    for _ in range(len(entries)):
        placed = next((e for e in entries[:-1] if e.state is t.PLACED), None)
        if placed is None:
            break
        world.stored(placed)
        if entries[-1].state is not t.PLACED:
            count += len(world.sent(messages.Fetch))
    assert all(e.state is t.FINISHED for e in entries[:-1])
    return count


def test_values_that_are_read_together_are_made_on_one_worker() -> None:
    assert fetches_until_root(slow_world(2)) == 0


def test_small_values_keep_nothing_together() -> None:
    world = slow_world(2, mean_bytes=0.0)
    _, entries = graph_in(world, EIGHT_LEAVES)
    assert [at(e) for e in entries[:4]] == [1, 2, 1, 2]
    assert not kept_at(world, 1) and not kept_at(world, 2)


def test_nothing_is_kept_while_others_would_have_nothing() -> None:
    world = slow_world(12)
    _, entries = graph_in(world, [*([] for _ in range(12)), [0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11], [12, 13, 14]])
    assert sorted(at(e) for e in entries[:12]) == list(range(1, 13))


def test_a_worker_that_has_nothing_else_takes_what_was_kept() -> None:
    world = slow_world(2)
    world.machine.state.tunables.wait_for_workers = 3  # so all of it is there when work begins
    _, leaves = graph_in(world, [[], [], [], [], [0, 1, 2, 3]])
    call = world.builder.call()
    world.submit(call)
    world.machine.state.tunables.wait_for_workers = 0
    world.do(events.Tick(0.0))
    keeper, other = at(leaves[0]), at(call)
    assert {keeper, other} == {1, 2} and at(leaves[1]) == keeper and kept_at(world, keeper) == leaves[2:4]
    world.answer(call, messages.OK_INLINE, b"")
    assert at(leaves[3]) == other and kept_at(world, keeper) == [leaves[2]], "the one whose turn would have come last"
    world.stored(leaves[3])
    assert at(leaves[2]) == other and not kept_at(world, keeper)


def test_a_free_slot_beside_busy_ones_takes_only_what_needs_nothing_from_there() -> None:
    world = slow_world(2, cores=2)
    state, library = world.machine.state, world.builder.library
    calls = [world.builder.call() for _ in range(6)]
    world.submit(*calls)
    full, other = library.instances[1], library.instances[2]
    here = [call for call in calls if at(call) == 2]
    for call in here[:2]:
        world.answer(call, messages.OK_INLINE, b"")
    assert full.outstanding == 3 and other.outstanding == 1
    leaf, reader = world.builder.call(), world.builder.call(declared(-1))  # type: ignore[arg-type]
    for entry in (leaf, reader):
        entry.state = t.READY
        near.line_up(state, entry, full)
    assert near.to_take_over(library, other, world.now, bool) is None, "the reader's turn comes last, and its input is there"
    assert near.to_take_over(library, other, world.now + 1, bool) == (full, leaf), "both would wait behind long calls there"
    full.local.remove(reader)  # type: ignore[union-attr]
    assert near.to_take_over(library, other, world.now, bool) == (full, leaf)
    full.local.remove(leaf)  # type: ignore[union-attr]
    near.line_up(state, reader, full)
    world.answer(here[2], messages.OK_INLINE, b"")
    assert at(reader) == 2, "nothing runs there, so it was taken over at once"


def test_a_higher_priority_beats_what_is_kept() -> None:
    world = slow_world(2)
    _, entries = graph_in(world, EIGHT_LEAVES)
    running = next(e for e in entries if at(e) == 1)
    assert kept_at(world, 1)
    urgent = world.builder.call()
    urgent.priority = 5.0
    world.submit(urgent)
    world.stored(running)
    assert at(urgent) == 1


def test_what_is_kept_for_a_lost_worker_runs_elsewhere() -> None:
    world = slow_world(2)
    _, entries = graph_in(world, EIGHT_LEAVES)
    assert kept_at(world, 1)
    world.do(events.WorkerLeft(0.0, 1, "gone"))
    for _ in range(20):
        placed = next((e for e in entries if e.state is t.PLACED), None)
        if placed is None:
            break
        world.stored(placed)
    assert entries[-1].state is t.FINISHED


def test_what_a_worker_gives_back_is_not_put_behind_the_same_long_call_again() -> None:
    world = slow_world(2, cores=2)
    calls = [world.builder.call() for _ in range(5)]
    world.submit(*calls[:3])
    made = next(call for call in calls if at(call) == 1)
    world.stored(made)
    world.submit(*calls[3:])
    reader = world.builder.call(made)
    world.submit(reader)
    assert at(reader) == 1, "its input is there"
    busy, other = (world.builder.library.instances[worker_id] for worker_id in (1, 2))
    began = busy.progress_at
    world.answer(next(call for call in calls if at(call) == 2), messages.OK_INLINE)
    assert busy.outstanding == 3 and other.outstanding == 1
    world.now += 1.0
    world.answer(reader, messages.HANDED_BACK)
    assert at(reader) == 2 and busy.progress_at == began


def test_what_waits_behind_a_long_call_is_not_passed_by_what_came_later() -> None:
    """It waited for its worker until nothing was ready for others any more."""
    world = slow_world(2)
    library = world.builder.library
    made = world.builder.call()
    made.output = FileEntry(made.task_id)
    made.output.producer, made.output.holds = made, 1
    world.submit(made)
    keeper = at(made)
    world.stored(made)
    calls = [world.builder.call() for _ in range(4)]
    world.submit(*calls)
    first, second = (world.builder.call(made) for _ in range(2))
    later = [world.builder.call() for _ in range(4)]
    world.submit(first, second, *later)
    assert kept_at(world, keeper) == [first, second]
    other = next(call for call in calls if call.state is t.PLACED and at(call) != keeper)
    world.now += near.STUCK_S * 2
    placed = []
    for _ in range(4):
        world.answer(other, messages.OK_INLINE, b"")
        other = next(e for e in (*calls, first, second, *later) if e.state is t.PLACED and at(e) != keeper)
        placed.append(other)
        world.now += near.STUCK_S * 2
    assert placed.index(first) < placed.index(second) and not {*placed[: placed.index(second)]} & {*later}
    assert library.instances[keeper].outstanding
