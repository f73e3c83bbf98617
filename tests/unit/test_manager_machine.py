"""Calls, graphs and files in the manager's machine, event by event: ``orders = machine.handle(event)``."""

from __future__ import annotations

import pytest

from tests.kit.builders import RUN, Builder, declared, hello
from tests.kit.manager_world import ManagerWorld, graph_in
from vinecore.errors import FileLost, ProtocolError, SlotLost, TaskFailed, WorkerLost
from vinecore.manager import events, orders, reserving
from vinecore.manager import transitions as t
from vinecore.manager.entries import CANCELLED, RAISED, Kind, Shape, TaskEntry
from vinecore.manager.ready import ReadyQueue
from vinecore.model.resources import Resources
from vinecore.wire import messages
from vinecore.wire.messages import Result


def test_a_call_is_placed_answered_and_delivered() -> None:
    world = ManagerWorld()
    call = world.builder.call()
    world.submit(call)
    assert [g[0].task_id for run in world.sent(messages.Run) for g in run.groups] == [call.task_id]
    world.answer(call, messages.OK_INLINE, b"v")
    assert world.delivered() == [call] and call.value == b"v" and not world.machine.state.tasks


def test_answers_of_an_older_attempt_are_dropped() -> None:
    world = ManagerWorld()
    call = world.builder.call()
    world.submit(call)
    world.answer(call, messages.HANDED_BACK)
    assert call.attempt == 2
    world.answer(call, messages.OK_INLINE, b"old", attempt=1)
    assert call.state is t.PLACED and not world.delivered()


def test_an_object_that_nobody_waits_for_is_unlinked() -> None:
    world = ManagerWorld()
    call = world.builder.call()
    world.submit(call)
    world.do(events.TasksCancelled(0.0, [call]))
    world.say(1, messages.Done([Result(call.task_id, 1, messages.OK_STORED, 5, b"", 100_000)]))
    assert [m.names for m in world.sent(messages.Unlink)] == [[f"{RUN}-{call.task_id}.1"]]


def test_retries_are_used_up_then_the_error_is_the_outcome() -> None:
    world = ManagerWorld()
    call = world.builder.call(retries=1)
    world.submit(call)
    world.answer(call, messages.RAISED, b"first")
    assert call.state is t.PLACED and not world.delivered()
    world.answer(call, messages.RAISED, b"second")
    assert world.delivered() == [call] and call.error == RAISED and call.value == b"second"


def test_a_lost_slot_counts_and_the_limit_names_the_reason() -> None:
    world = ManagerWorld()
    world.machine.state.tunables.max_losses = 2
    call = world.builder.call()
    world.submit(call)
    for _ in range(3):
        assert not world.delivered()
        world.answer(call, messages.LOST, b"killed by SIGSEGV")
    assert isinstance(call.error, SlotLost)
    assert f"task {call.task_id} (f) was lost 3 times: killed by SIGSEGV" in str(call.error)


def test_a_lost_worker_moves_its_calls_then_fails_them() -> None:
    world = ManagerWorld(2)
    world.machine.state.tunables.max_losses = 1
    call = world.builder.call()
    world.submit(call)
    assert call.instance is not None
    first = call.instance.worker.worker_id
    world.do(events.WorkerLeft(0.0, first, "gone"))
    assert call.instance is not None and call.instance.worker.worker_id != first
    world.do(events.WorkerLeft(0.0, 3 - first, "gone"))
    assert isinstance(call.error, WorkerLost) and "host" in str(call.error)


def test_an_error_spreads_to_dependents_only() -> None:
    world = ManagerWorld()
    bad = world.builder.call()
    child = world.builder.call(bad)
    grandchild = world.builder.call(child)
    other = world.builder.call()
    world.submit(bad, child, grandchild, other)
    world.answer(bad, messages.RAISED, b"e")
    assert set(world.delivered()) == {bad, child, grandchild}
    assert {(e.error, e.value) for e in (bad, child, grandchild)} == {(RAISED, b"e")}
    assert other.state is t.PLACED


def test_a_dependent_that_comes_after_the_failure_fails() -> None:
    world = ManagerWorld()
    bad = world.builder.call()
    world.submit(bad)
    world.answer(bad, messages.RAISED, b"e")
    late = world.builder.call(bad)
    world.submit(late)
    assert world.delivered() == [late] and late.value == b"e"


def test_a_failed_vertex_ends_its_graph_and_is_told_once() -> None:
    world = ManagerWorld()
    graph, entries = graph_in(world, [[], [], [0, 1]])
    world.answer(entries[0], messages.RAISED, b"e")
    assert world.delivered() == [entries[0]] and entries[0].handle is graph.handle
    assert all(e.state is t.FINISHED for e in entries)
    assert {task for m in world.sent(messages.Cancel) for task, _ in m.tasks} <= {e.task_id for e in entries[1:]}


def test_a_cancelled_graph_tells_nobody() -> None:
    world = ManagerWorld()
    graph, _ = graph_in(world, [[], [], [0, 1]])
    world.do(events.GraphCancelled(0.0, graph))
    assert not world.delivered() and not world.machine.state.tasks
    assert world.sent(messages.Cancel)


def test_cancel_in_each_state() -> None:
    world = ManagerWorld()
    placed = world.builder.call()
    waiting = world.builder.call(placed)
    world.submit(placed, waiting)
    world.do(events.TasksCancelled(0.0, [waiting]))
    assert waiting.error == CANCELLED and not world.sent(messages.Cancel)
    world.do(events.TasksCancelled(0.0, [placed]))
    assert placed.error == CANCELLED
    assert [m.tasks for m in world.sent(messages.Cancel)] == [[(placed.task_id, 1)]]
    world.do(events.TasksCancelled(0.0, [placed]))
    assert not world.delivered()
    reader = world.builder.call(placed)
    world.submit(reader)
    assert reader.error == CANCELLED
    counters = world.machine.state.counters
    assert (counters.cancelled, counters.failed) == (3, 0)
    alone = ManagerWorld(0)
    ready = alone.builder.call()
    alone.submit(ready)
    alone.do(events.TasksCancelled(0.0, [ready]))
    assert ready.error == CANCELLED


def test_handed_back_calls_run_again_and_count_no_loss() -> None:
    world = ManagerWorld()
    call = world.builder.call()
    world.submit(call)
    world.answer(call, messages.HANDED_BACK)
    assert call.attempt == 2 and call.losses == 0


def test_no_worker_is_over_committed() -> None:
    world = ManagerWorld(cores=4, request=Resources(cores=2))
    calls = [world.builder.call() for _ in range(5)]
    world.submit(*calls)
    assert sum(c.state is t.PLACED for c in calls) == 2
    world.answer(next(c for c in calls if c.state is t.PLACED), messages.OK_INLINE, b"")
    assert sum(c.state is t.PLACED for c in calls) == 2


def test_local_entries_of_a_failed_instance_run_elsewhere() -> None:
    world = ManagerWorld(2, cores=1)
    made = world.builder.call()
    world.submit(made)
    assert made.instance is not None
    holder = made.instance.worker.worker_id
    world.stored(made)
    world.builder.kind.mean_us = 1e6
    for instance in world.builder.library.instances.values():
        instance.mean_us = 1e6
    world.submit(*[world.builder.call() for _ in range(4)])
    near = world.builder.call(made)
    world.submit(near)
    assert near.state is t.READY
    world.say(holder, messages.LibraryGone(1, "bad", b""))
    assert not world.builder.library.instances[holder].local
    assert near in [e for e in world.machine.state.tasks.values() if e.state is t.READY]


def test_an_unneeded_object_is_unlinked_with_its_last_reader() -> None:
    world = ManagerWorld()
    made = world.builder.call()
    reader = world.builder.call(made)
    world.submit(made, reader)
    world.stored(made)
    assert made.output is not None
    world.do(events.FileReleased(0.0, [made.output]))
    assert not world.sent(messages.Unlink)
    world.answer(reader, messages.OK_INLINE, b"")
    assert [m.names for m in world.sent(messages.Unlink)] == [[f"{RUN}-{made.task_id}.1"]]


def test_an_input_elsewhere_comes_through_the_manager() -> None:
    world = ManagerWorld(2, cores=1)
    one, two = world.builder.call(), world.builder.call()
    world.submit(one, two)
    world.stored(one)
    world.stored(two)
    both = world.builder.call(one, two)
    world.submit(both)
    (fetch,) = world.sent(messages.Fetch)
    assert both.state is t.PLACED and not world.sent(messages.Upload)
    world.do(events.SpliceOpened(0.0, fetch.transfer_id))
    assert [(m.transfer_id, m.name) for m in world.sent(messages.Upload)] == [(fetch.transfer_id, fetch.name)]


def test_a_lost_value_is_made_again_through_its_lineage() -> None:
    world = ManagerWorld()
    root = world.builder.call()
    middle = world.builder.call(root)
    world.submit(root, middle)
    world.stored(root)
    world.stored(middle)
    assert root.output is not None and middle.output is not None
    world.do(events.FileReleased(0.0, [root.output]))
    assert not root.output.is_available()
    world.join(2)
    world.do(events.WorkerLeft(0.0, 1, "gone"))
    assert root.state is t.PLACED and middle.state is t.WAITING
    world.answer(root, messages.OK_STORED, b"", 100_000)
    assert middle.state is t.PLACED and middle.output.name == f"{RUN}-{middle.task_id}.1"
    world.answer(middle, messages.OK_STORED, b"", 100_000)
    assert middle.output.name == f"{RUN}-{middle.task_id}.2" and not world.delivered()


def test_inline_inputs_stay_while_a_reader_may_run_again() -> None:
    world = ManagerWorld()
    root = world.builder.call()
    reader = world.builder.call(root)
    world.submit(root, reader)
    world.answer(root, messages.OK_INLINE, b"small")
    world.stored(reader)
    assert root.output is not None and reader.output is not None
    world.do(events.FileReleased(0.0, [root.output]))
    assert root.output.data == b"small"
    world.do(events.FileReleased(0.0, [reader.output]))
    assert root.output.data is None


def test_a_kept_value_that_is_needed_is_made_again() -> None:
    world = ManagerWorld(cores=1)
    world.builder.kind.mean_us = 10.0
    _, entries = graph_in(world, [[], [0], *([[]] * 6)])
    made, reader = entries[0], entries[1]
    assert made.bundle is not None and made.bundle is reader.bundle
    members = made.bundle.entries
    world.answer(made, messages.OK_KEPT)
    for entry in members[1:]:
        world.answer(entry, messages.HANDED_BACK)
    assert made.attempt == 2 and made.state is t.PLACED


@pytest.mark.parametrize("size", [0, 100_000])
def test_a_kept_value_that_is_written_later_is_not_made_again(size: int) -> None:
    """The rest of a bundle was handed back: what reads a kept value gets it, and it can be lost like any other."""
    world = ManagerWorld(cores=1)
    world.builder.kind.mean_us = 10.0
    _, entries = graph_in(world, [[], [0], *([[]] * 6)])
    made, reader = entries[0], entries[1]
    assert made.bundle is not None and made.bundle is reader.bundle and made.output is not None
    for entry in made.bundle.entries[2:]:
        world.answer(entry, messages.HANDED_BACK)
    world.answer(made, messages.OK_KEPT)
    later = messages.Result(made.task_id, 1, messages.WRITTEN_LATER, 0, b"" if size else b"v", size)
    back = messages.Result(reader.task_id, 1, messages.HANDED_BACK, 0)
    world.do(events.WorkerSaid(0.0, 1, messages.Done([later, back, later])))
    assert made.state is t.FINISHED and made.attempt == 1 and made.output.is_available()
    assert reader.state in (t.READY, t.PLACED)
    assert not [name for order in world.sent(messages.Unlink) for name in order.names], "the second one is a duplicate"


def test_a_value_that_nobody_waits_for_any_more_is_not_kept_when_it_is_written_later() -> None:
    world = ManagerWorld()
    world.say(1, messages.Done([messages.Result(77, 1, messages.WRITTEN_LATER, 0, b"", 100_000)]))
    assert [name for order in world.sent(messages.Unlink) for name in order.names] == [f"{RUN}-77.1"]


def test_a_missing_object_is_believed_and_counted() -> None:
    world = ManagerWorld()
    file = declared(1)
    file.holds = 1
    world.machine.state.tunables.max_losses = 2
    call = world.builder.call(file)
    world.submit(call)
    for _ in range(3):
        assert call.state is t.PLACED
        world.say(1, messages.FetchFailed(file.name, "no space"))
        world.answer(call, messages.NO_INPUT, file.name.encode())
    assert isinstance(call.error, FileLost) and file.name in str(call.error)


def test_an_input_that_another_task_spoilt_counts_as_no_loss() -> None:
    """However many tasks before it in its slot wrote into the file: each costs a fresh copy, and no try."""
    world = ManagerWorld()
    file = declared(1)
    file.holds = 1
    world.machine.state.tunables.max_losses = 2
    call = world.builder.call(file)
    world.submit(call)
    for _ in range(9):
        assert call.state is t.PLACED
        world.answer(call, messages.SPOILT_INPUT, file.name.encode())
    world.answer(call, messages.OK_INLINE)
    assert call.error is None and call.losses == 0 and call.attempt == 10


def test_a_vertex_that_a_limit_ended_has_no_value() -> None:
    world = ManagerWorld(cores=2)
    graph, entries = world.builder.vertices([[], [0]])
    for entry in entries:
        entry.sandbox = messages.Sandbox([], [], [])
    entries[0].retries = 1
    world.do(events.VerticesSubmitted(0.0, graph, entries))
    report = messages.Report(9, b"", [], [], [], "max wall time")
    for attempt in (1, 2):
        assert entries[0].attempt == attempt and entries[1].attempt == 0, "it runs alone, whatever reads it"
        world.do(events.WorkerSaid(0.0, 1, messages.Done([messages.Result(entries[0].task_id, attempt, 0, 5, b"", 0, report)])))
    assert world.delivered() == [entries[0]] and isinstance(entries[0].error, TaskFailed)


def test_wanted_bytes_come_home_or_are_refused() -> None:
    world = ManagerWorld()
    call = world.builder.call()
    world.submit(call)
    world.stored(call)
    assert call.output is not None
    world.do(events.FileWanted(0.0, call.output, "me"))
    upload = world.sent(messages.Upload)[0]
    world.do(events.UploadArrived(0.0, upload.transfer_id, 100_000))
    assert [(o.handle, o.path) for o in world.of(orders.FileHere)] == [("me", "")]
    world.do(events.FileReleased(0.0, [call.output]))
    assert [o.names for o in world.of(orders.ForgetObjects)] == [[upload.name]]
    world.do(events.FileWanted(0.0, call.output, "me"))
    assert "released" in world.of(orders.FileFailed)[0].reason


def test_a_late_upload_of_an_older_attempt_is_dropped() -> None:
    world = ManagerWorld(2)
    call = world.builder.call()
    world.submit(call)
    world.stored(call)
    assert call.output is not None
    world.do(events.FileWanted(0.0, call.output, "me"))
    old = world.sent(messages.Upload)[0]
    world.say(min(call.output.on_workers), messages.Removed([old.name]))
    world.stored(call)
    world.do(events.UploadArrived(0.0, old.transfer_id, 100_000))
    assert world.of(orders.ForgetObjects)[0].names == [old.name]
    again = world.sent(messages.Upload)[0]
    assert again.name == call.output.name != old.name


def test_a_failed_upload_of_an_older_attempt_leaves_the_new_copy() -> None:
    world = ManagerWorld()
    call = world.builder.call()
    world.submit(call)
    world.stored(call)
    assert call.output is not None
    world.do(events.FileWanted(0.0, call.output, "me"))
    old = world.sent(messages.Upload)[0]
    world.say(1, messages.Removed([old.name]))
    world.stored(call)
    world.say(1, messages.UploadFailed(old.transfer_id, old.name, "not here"))
    assert call.output.on_workers == (1,) and call.attempt == 2
    assert [m.name for m in world.sent(messages.Upload)] == [call.output.name]


def test_large_arguments_leave_in_several_frames() -> None:
    world = ManagerWorld(cores=64)
    calls = [world.builder.call() for _ in range(128)]
    for call in calls:
        call.payload = b"x" * messages.INLINE_LIMIT_BYTES
    world.submit(*calls)
    runs = world.sent(messages.Run)
    assert len(runs) > 1
    assert all(len(messages.encode(run)) < messages.BATCH_LIMIT_BYTES + 2 * messages.INLINE_LIMIT_BYTES for run in runs)


def test_code_is_sent_once_for_each_instance() -> None:
    world = ManagerWorld(2)
    world.submit(world.builder.call(), world.builder.call(), world.builder.call())
    first = len(world.sent(messages.Code))
    world.submit(world.builder.call())
    assert first == 2 and not world.sent(messages.Code)


def test_an_illegal_message_leaves_the_tables_alone() -> None:
    world = ManagerWorld()
    with pytest.raises(ProtocolError, match="Hello"):
        world.say(1, hello())
    world.machine.check()


def test_a_queue_takes_an_entry_twice_and_yields_it_once() -> None:
    builder = Builder()
    entries = [builder.call() for _ in range(3)]
    queue: ReadyQueue[TaskEntry] = ReadyQueue()
    for entry in [entries[2], entries[0], entries[0], entries[1]]:
        entry.state = t.READY
        queue.push(entry)
    assert [queue.pop() for _ in range(4)] == [*entries, None]


def test_priority_beats_order() -> None:
    world = ManagerWorld(0)
    low, high = world.builder.call(), world.builder.call()
    high.priority = 5.0
    world.submit(low, high)
    world.join(1, 1)
    assert high.attempt == 1 and world.sent(messages.Run)[0].groups[0][0].task_id == high.task_id


def test_priority_beats_order_among_tasks_with_different_requests() -> None:
    world = ManagerWorld(1, 1)
    plain = [world.builder.call() for _ in range(5)]
    world.submit(*plain)
    other = Kind("g", Shape(world.builder.library, Resources(cores=1)))
    high = world.builder.call(kind=other)
    high.priority = 5.0
    world.submit(high)
    assert high.state is t.READY
    world.answer(plain[0], messages.OK_INLINE)
    assert high.state is t.PLACED


def test_order_holds_among_tasks_with_different_requests() -> None:
    """Else those of one request wait as long as there are others."""
    world = ManagerWorld(1, 1)
    (instance,) = world.builder.library.instances.values()
    world.builder.kind.mean_us = instance.mean_us = 1e6  # so none are sent in advance but one
    early = [world.builder.call() for _ in range(3)]
    other = world.builder.call(kind=Kind("g", Shape(world.builder.library, Resources(cores=1))))
    late = [world.builder.call() for _ in range(5)]
    world.submit(*early, other, *late)
    for call in early[:2]:
        assert other.state is t.READY
        world.answer(call, messages.OK_INLINE)
    assert other.state is t.PLACED and late[0].state is t.READY


@pytest.mark.parametrize(
    ("event", "why"),
    [
        (events.WorkerDrained(0.0, 1), "the manager shut it down"),
        (events.HostsChanged(0.0, drain="host"), "it was drained"),
    ],
)
def test_a_worker_that_is_to_leave_is_told_why(event: events.Event, why: str) -> None:
    world = ManagerWorld(1)
    world.do(event)
    assert world.sent(messages.Release) == [messages.Release(True, why)]


def test_one_that_asks_for_more_is_not_passed_for_ever() -> None:
    """Whatever ended made room for something later that asked for less."""
    world = ManagerWorld(1, 4)
    world.builder.library.slots = 4
    small, large = (Kind(f"k{cores}", Shape(world.builder.library, Resources(cores=cores))) for cores in (1, 4))
    small.mean_us = large.mean_us = 1e6
    running = [world.builder.call(kind=small) for _ in range(4)]
    wanted = world.builder.call(kind=large)
    world.submit(*running, wanted)
    steps = 0
    while wanted.state is t.READY and steps < 12:
        steps += 1
        later = world.builder.call(kind=small)
        world.submit(later)
        world.now += reserving.RESERVE_S / 4
        ended = next(entry for entry in running if entry.state is t.PLACED)
        world.answer(ended, messages.OK_INLINE)
        running.append(later)
    assert wanted.state is t.PLACED and steps > 4
    waiting = [entry for entry in running if entry.state is t.READY]
    assert (waiting and world.machine.state.reserved is None) or not world.machine.state.reserved.worker_id
    world.answer(wanted, messages.OK_INLINE)
    assert all(entry.state is t.PLACED for entry in waiting[:4])


def test_nothing_is_kept_for_one_that_was_cancelled() -> None:
    world = ManagerWorld(1, 4)
    small, large = (Kind(f"k{cores}", Shape(world.builder.library, Resources(cores=cores))) for cores in (1, 4))
    small.mean_us = large.mean_us = 1e6
    running = [world.builder.call(kind=small) for _ in range(4)]
    wanted, later = world.builder.call(kind=large), world.builder.call(kind=small)
    world.submit(*running, wanted, later)
    for _ in range(2):
        world.now += reserving.RESERVE_S
        world.do(events.Tick(0.0))
    assert world.machine.state.reserved is not None and world.machine.state.reserved.worker_id == 1
    world.answer(running[0], messages.OK_INLINE)
    assert later.state is t.READY
    world.do(events.TasksCancelled(0.0, [wanted]))
    assert later.state is t.PLACED


def test_nothing_is_kept_for_one_that_fits_nowhere_at_all() -> None:
    world = ManagerWorld(2, 4)
    small, large = (Kind(f"k{cores}", Shape(world.builder.library, Resources(cores=cores))) for cores in (1, 8))
    small.mean_us = large.mean_us = 1e6
    running = [world.builder.call(kind=small) for _ in range(12)]
    world.submit(world.builder.call(kind=large), *running)
    for _ in range(12):
        world.now += reserving.RESERVE_S
        world.answer(next(entry for entry in running if entry.state is t.PLACED), messages.OK_INLINE)
        reserved = world.machine.state.reserved
        assert reserved is None or (reserved.worker_id == 0 and world.now - reserved.since < 2 * reserving.RESERVE_S)
    assert all(entry.state is t.FINISHED for entry in running)


def test_a_value_that_came_back_in_another_size_is_counted_as_what_workers_hold() -> None:
    """It was made again, and the copy that was on its way arrived first: from then on its worker was said to hold too much."""
    world = ManagerWorld(0)
    for worker_id in (1, 2):
        world.do(events.WorkerJoined(0.0, worker_id, hello(2, name=f"host{worker_id}")))
        world.say(worker_id, messages.LibraryReady(1, 2))
    maker = world.builder.call()
    world.do(events.HostsChanged(0.0, block="host2", until=1e9))
    world.submit(maker)
    world.stored(maker)
    world.do(events.HostsChanged(0.0, block="host1", until=1e9, unblock="host2"))
    world.submit(world.builder.call(maker))
    output = maker.output
    assert output is not None and output.coming == (2,)
    world.do(events.WorkerLeft(0.0, 1, "gone"))
    assert maker.state is t.PLACED
    world.say(2, messages.Fetched(output.name, 100_000))
    world.answer(maker, messages.OK_INLINE, b"v")
    assert world.machine.state.workers[2].held_bytes == 100_000


@pytest.mark.parametrize("said_goodbye", [True, False])
def test_a_worker_that_leaves_gets_no_work_when_the_draining_of_its_host_ends(said_goodbye: bool) -> None:
    """It was given calls, and took them along."""
    world = ManagerWorld(1)
    if said_goodbye:
        world.submit(maker := world.builder.call())
        world.stored(maker)
        world.say(1, messages.Goodbye("idle"))
        assert world.machine.state.drains, "it alone has the value"
    else:
        world.do(events.HostsChanged(0.0, drain="host"))
        assert world.sent(messages.Release)
    world.do(events.HostsChanged(0.0, drain="host", drain_on=False))
    call = world.builder.call()
    world.submit(call)
    assert call.state is t.READY and bool(world.machine.state.drains) is said_goodbye
