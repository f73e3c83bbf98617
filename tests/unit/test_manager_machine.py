"""The manager's machine, event by event: ``orders = machine.handle(event)``."""

from __future__ import annotations

from typing import TypeVar

import pytest

from tests.kit.builders import RUN, Builder, declared, hello
from vinecore.errors import FileLost, LibraryFailed, ProtocolError, SlotLost, TaskFailed, UsageError, WorkerLost
from vinecore.manager import events, orders
from vinecore.manager import transitions as t
from vinecore.manager.machine import ManagerMachine
from vinecore.manager.ready import ReadyQueue
from vinecore.manager.state import CANCELLED, RAISED, FileEntry, GraphEntry, Kind, Shape, TaskEntry
from vinecore.model.resources import Resources
from vinecore.wire import messages
from vinecore.wire.messages import Result

M = TypeVar("M")


class World:
    """A machine, its library, and what it ordered."""

    def __init__(self, workers: int = 1, cores: int = 2, request: Resources | None = None) -> None:
        self.builder = Builder(request=request)
        self.machine = ManagerMachine(RUN)
        self.machine.state.address = "HOST PORT"
        self.now = 100.0
        self.orders: list[object] = []
        self.do(events.LibraryInstalled(0.0, self.builder.library))
        for worker_id in range(1, workers + 1):
            self.join(worker_id, cores)

    def do(self, event: events.Event) -> list[object]:
        event.now = self.now
        self.orders = list(self.machine.handle(event))
        self.machine.check()
        return self.orders

    def join(self, worker_id: int, cores: int = 2) -> None:
        self.do(events.WorkerJoined(0.0, worker_id, hello(cores)))
        self.say(worker_id, messages.LibraryReady(1, cores))

    def say(self, worker_id: int, message: object) -> list[object]:
        return self.do(events.WorkerSaid(0.0, worker_id, message))

    def submit(self, *entries: TaskEntry) -> list[object]:
        return self.do(events.TasksSubmitted(0.0, list(entries)))

    def answer(self, entry: TaskEntry, status: int, value: bytes = b"", size: int = 0, attempt: int = 0) -> list[object]:
        assert entry.instance is not None
        worker_id = entry.instance.worker.worker_id
        return self.say(worker_id, messages.Done([Result(entry.task_id, attempt or entry.attempt, status, 5, value, size)]))

    def sent(self, kind: type[M]) -> list[M]:
        return [o.message for o in self.orders if isinstance(o, orders.SendTo) and isinstance(o.message, kind)]

    def of(self, kind: type[M]) -> list[M]:
        return [o for o in self.orders if isinstance(o, kind)]

    def delivered(self) -> list[TaskEntry]:
        return [entry for o in self.of(orders.Deliver) for entry in o.entries]

    def stored(self, entry: TaskEntry) -> None:
        self.answer(entry, messages.OK_STORED, b"", 100_000)


def test_a_call_is_placed_answered_and_delivered() -> None:
    world = World()
    call = world.builder.call()
    world.submit(call)
    assert [g[0].task_id for run in world.sent(messages.Run) for g in run.groups] == [call.task_id]
    world.answer(call, messages.OK_INLINE, b"v")
    assert world.delivered() == [call] and call.value == b"v" and not world.machine.state.tasks


def test_answers_of_an_older_attempt_are_dropped() -> None:
    world = World()
    call = world.builder.call()
    world.submit(call)
    world.answer(call, messages.HANDED_BACK)
    assert call.attempt == 2
    world.answer(call, messages.OK_INLINE, b"old", attempt=1)
    assert call.state is t.PLACED and not world.delivered()


def test_an_object_that_nobody_waits_for_is_unlinked() -> None:
    world = World()
    call = world.builder.call()
    world.submit(call)
    world.do(events.TasksCancelled(0.0, [call]))
    world.say(1, messages.Done([Result(call.task_id, 1, messages.OK_STORED, 5, b"", 100_000)]))
    assert [m.names for m in world.sent(messages.Unlink)] == [[f"{RUN}-{call.task_id}.1"]]


def test_retries_are_used_up_then_the_error_is_the_outcome() -> None:
    world = World()
    call = world.builder.call(retries=1)
    world.submit(call)
    world.answer(call, messages.RAISED, b"first")
    assert call.state is t.PLACED and not world.delivered()
    world.answer(call, messages.RAISED, b"second")
    assert world.delivered() == [call] and call.error == RAISED and call.value == b"second"


def test_a_lost_slot_counts_and_the_limit_names_the_reason() -> None:
    world = World()
    world.machine.state.tunables.max_losses = 2
    call = world.builder.call()
    world.submit(call)
    for _ in range(3):
        assert not world.delivered()
        world.answer(call, messages.LOST, b"killed by SIGSEGV")
    assert isinstance(call.error, SlotLost)
    assert f"task {call.task_id} (f) was lost 3 times: killed by SIGSEGV" in str(call.error)


def test_a_lost_worker_moves_its_calls_then_fails_them() -> None:
    world = World(2)
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
    world = World()
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
    world = World()
    bad = world.builder.call()
    world.submit(bad)
    world.answer(bad, messages.RAISED, b"e")
    late = world.builder.call(bad)
    world.submit(late)
    assert world.delivered() == [late] and late.value == b"e"


def graph_in(world: World, edges: list[list[int]]) -> tuple[GraphEntry, list[TaskEntry]]:
    graph, entries = world.builder.vertices(edges)
    world.do(events.VerticesSubmitted(0.0, graph, entries))
    return graph, entries


def test_a_failed_vertex_ends_its_graph_and_is_told_once() -> None:
    world = World()
    graph, entries = graph_in(world, [[], [], [0, 1]])
    world.answer(entries[0], messages.RAISED, b"e")
    assert world.delivered() == [entries[0]] and entries[0].handle is graph.handle
    assert all(e.state is t.FINISHED for e in entries)
    assert {task for m in world.sent(messages.Cancel) for task, _ in m.tasks} <= {e.task_id for e in entries[1:]}


def test_a_cancelled_graph_tells_nobody() -> None:
    world = World()
    graph, _ = graph_in(world, [[], [], [0, 1]])
    world.do(events.GraphCancelled(0.0, graph))
    assert not world.delivered() and not world.machine.state.tasks
    assert world.sent(messages.Cancel)


def test_cancel_in_each_state() -> None:
    world = World()
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
    alone = World(0)
    ready = alone.builder.call()
    alone.submit(ready)
    alone.do(events.TasksCancelled(0.0, [ready]))
    assert ready.error == CANCELLED


def test_handed_back_calls_run_again_and_count_no_loss() -> None:
    world = World()
    call = world.builder.call()
    world.submit(call)
    world.answer(call, messages.HANDED_BACK)
    assert call.attempt == 2 and call.losses == 0


def test_a_silent_worker_is_pinged_then_removed() -> None:
    world = World()
    call = world.builder.call()
    world.submit(call)
    world.now += 6
    world.do(events.Tick(0.0))
    assert world.sent(messages.Ping)
    world.now += 15
    world.do(events.Tick(0.0))
    assert [o.worker_id for o in world.of(orders.CloseWorker)] == [1]
    assert call.state is t.READY


def test_workers_are_told_of_another_keepalive() -> None:
    """They leave a manager that is silent for longer than they believe it may be."""
    world = World(workers=2)
    tunables = world.machine.state.tunables
    world.do(events.Tick(0.0))
    assert not world.sent(messages.Keepalive), "the welcome says it"
    tunables.set("keepalive-timeout", 900)
    tunables.set("keepalive-interval", 120)
    due = world.machine.next_deadline()
    assert due is not None and due <= world.now
    world.do(events.Tick(0.0))
    assert world.sent(messages.Keepalive) == [messages.Keepalive(120, 900)] * 2
    world.do(events.Tick(0.0))
    assert not world.sent(messages.Keepalive)
    world.do(events.WorkerJoined(0.0, 3, hello(2)))
    (welcome,) = world.sent(messages.Welcome)
    assert (welcome.keepalive_interval_s, welcome.keepalive_timeout_s) == (120, 900)


def test_a_task_that_only_waits_is_looked_at_each_second() -> None:
    """Whoever makes its input may never come: the line about that must not wait for the next keepalive."""
    world = World()
    file = FileEntry(-5, "temp")
    file.promised = True
    world.submit(world.builder.call(file))
    due = world.machine.next_deadline()
    assert due is not None and due <= world.now + 1
    world.do(events.Tick(0.0))
    world.now += 5
    world.do(events.Tick(0.0))
    assert ["no submitted task makes" in o.text for o in world.of(orders.Say)] == [True]


def test_no_worker_is_told_once_after_five_seconds() -> None:
    world = World(0)
    world.submit(world.builder.call())
    due = world.machine.next_deadline()
    assert due == world.now + 5
    world.now += 4
    world.do(events.Tick(0.0))
    assert not world.of(orders.Say)
    world.now += 1
    world.do(events.Tick(0.0))
    assert [o.text for o in world.of(orders.Say)] == [
        "1 tasks wait and no worker is connected; start one with:  vine_worker HOST PORT"
    ]
    world.now += 60
    world.do(events.Tick(0.0))
    assert not world.of(orders.Say)


def test_the_next_stall_is_told_again() -> None:
    world = World(0)
    call = world.builder.call()
    world.submit(call)
    for _ in range(2):
        world.now += 10
        world.do(events.Tick(0.0))
    world.do(events.TasksCancelled(0.0, [call]))
    world.submit(world.builder.call())
    world.now += 6
    world.do(events.Tick(0.0))
    assert len(world.of(orders.Say)) == 1


def test_work_that_fits_nowhere_names_what_is_missing() -> None:
    world = World(request=Resources(cores=64))
    world.submit(world.builder.call())
    said = []
    for _ in range(8):
        world.now += 1
        world.do(events.Tick(0.0))
        said += world.of(orders.Say)
    assert len(said) == 1 and "64 cores (it has 2)" in said[0].text


def said_at(world: World, seconds: int) -> list[tuple[float, str]]:
    """What is told while the clock goes from deadline to deadline, with the seconds since the start."""
    start, said = world.now, []
    while (due := world.machine.next_deadline()) is not None and due <= start + seconds:
        world.now = max(world.now, due)
        world.do(events.Tick(0.0))
        said += [(world.now - start, order.text) for order in world.of(orders.Say)]
        for worker_id in world.machine.state.workers:
            world.say(worker_id, messages.Pong())
    world.now = start + seconds
    return said


def asking(world: World, **amounts: float) -> TaskEntry:
    return world.builder.call(kind=Kind("f", Shape(world.builder.library, Resources(**amounts))))


def test_each_different_request_that_fits_nowhere_is_told_once_and_in_time() -> None:
    world = World()
    many, much = asking(world, cores=64), asking(world, memory=10**8)
    world.submit(many)
    ((told, text),) = said_at(world, 20)
    assert told <= 6 and "64 cores" in text
    good = world.builder.call()
    world.submit(good)
    world.answer(good, messages.OK_INLINE, b"v")
    world.submit(much, asking(world, gpus=1))
    said = said_at(world, 60)
    assert len(said) == 2 and all(told <= 6 for told, _ in said), said
    assert "1e+08 MB memory" in said[0][1] and "1 gpus" in said[1][1]
    world.do(events.TasksCancelled(0.0, [many, much]))
    said_at(world, 2)
    world.submit(world.builder.call(kind=many.kind))
    ((told, text),) = said_at(world, 20)
    assert told <= 6 and "64 cores" in text


def test_where_no_other_worker_can_come_every_impossible_request_fails_in_time() -> None:
    world = World()
    world.machine.state.address = ""
    first = asking(world, cores=64)
    requests = [first, world.builder.call(kind=first.kind), asking(world, memory=10**8), world.builder.call(kind=first.kind)]
    for call in requests:
        good = world.builder.call()
        world.submit(call, good)
        said = said_at(world, 3)
        world.answer(good, messages.OK_INLINE, b"v")
        said += said_at(world, 4)
        assert len(said) == 1 and isinstance(call.error, UsageError), (call, said)


BLOCKED = "on blocked hosts (host); unblock_host() lets them work"


def test_workers_that_are_all_blocked_are_told_and_so_are_those_that_all_drain() -> None:
    world = World(2)
    world.do(events.HostsChanged(0.0, block="host", until=1e9))
    call = world.builder.call()
    world.submit(call, world.builder.call())
    ((told, text),) = said_at(world, 30)
    assert told <= 6 and text == f"2 tasks wait; all 2 workers are {BLOCKED}"
    assert world.machine.story(call.task_id)[0] == f"task {call.task_id} (f) is ready and waits: all 2 workers are {BLOCKED}"
    world.do(events.HostsChanged(0.0, unblock_all=True))
    assert call.state is t.PLACED and not world.machine.stuck_reason()
    world.do(events.HostsChanged(0.0, drain="host"))
    world.submit(world.builder.call(), world.builder.call(), world.builder.call(), world.builder.call())
    assert "all 2 workers are draining or leaving (host)" in world.machine.stuck_reason()
    assert not said_at(world, 3)
    assert len(said_at(world, 4)) == 1


def test_a_request_that_only_blocked_workers_could_fulfil_is_told() -> None:
    world = World(1)
    world.do(events.WorkerJoined(0.0, 2, hello(8, name="large")))
    world.say(2, messages.LibraryReady(1, 8))
    world.do(events.HostsChanged(0.0, block="large", until=1e9))
    call = asking(world, cores=8)
    world.submit(call)
    ((_, text),) = said_at(world, 8)
    assert text == "1 tasks wait; all 1 workers that are large enough are on blocked hosts (large); unblock_host() lets them work"
    assert "blocked hosts (large)" in world.machine.story(call.task_id)[0]


def test_where_a_task_is_can_be_said_in_words() -> None:
    world = World(1, cores=1)
    placed, much = world.builder.call(), asking(world, cores=64)
    late = world.builder.call(placed)
    world.submit(placed, late, much)
    assert (
        world.machine.story(placed.task_id)[0] == f"task {placed.task_id} (f) runs on worker 1 (host), or is next in line there"
    )
    first, second = world.machine.story(late.task_id)[:2]
    assert first == f"task {late.task_id} (f) waits for 1 of its 1 inputs"
    assert second == f"  the value of task {placed.task_id} (f), which is running"
    assert "no worker is large enough" in world.machine.story(much.task_id)[0]
    more = [world.builder.call() for _ in range(4)]
    world.submit(*more)
    assert "busy with other tasks" in world.machine.story(more[-1].task_id)[0]
    assert world.machine.story(999) == ["task 999 has ended, or was never submitted here"]
    alone = World(0)
    ready = alone.builder.call()
    alone.submit(ready)
    assert alone.machine.story(ready.task_id)[0] == f"task {ready.task_id} (f) is ready and waits: no worker is connected"


def test_no_worker_is_over_committed() -> None:
    world = World(cores=4, request=Resources(cores=2))
    calls = [world.builder.call() for _ in range(5)]
    world.submit(*calls)
    assert sum(c.state is t.PLACED for c in calls) == 2
    world.answer(next(c for c in calls if c.state is t.PLACED), messages.OK_INLINE, b"")
    assert sum(c.state is t.PLACED for c in calls) == 2


def test_a_library_that_fails_everywhere_fails_its_calls_with_the_remote_error() -> None:
    world = World(2)
    calls = [world.builder.call(), world.builder.call()]
    world.submit(*calls)
    world.say(1, messages.LibraryGone(1, "ImportError: no x", b"tb"))
    assert not world.delivered()
    world.say(2, messages.LibraryGone(1, "ImportError: no x", b"tb"))
    assert set(world.delivered()) == set(calls) and {(str(c.error), c.value) for c in calls} == {
        ("library 'library1' cannot be started on any worker: ImportError: no x", b"tb")
    }
    assert all(isinstance(c.error, LibraryFailed) for c in calls)
    late = world.builder.call()
    world.submit(late)
    assert isinstance(late.error, LibraryFailed) and late.value == b"tb"


def test_a_new_worker_gets_a_library_that_failed_elsewhere() -> None:
    world = World()
    world.say(1, messages.LibraryGone(1, "bad", b""))
    world.join(2)
    call = world.builder.call()
    world.submit(call)
    assert call.instance is not None and call.instance.worker.worker_id == 2


def test_a_library_that_failed_everywhere_is_started_again_when_its_window_is_over() -> None:
    world = World(2)
    for worker_id in (1, 2):
        world.say(worker_id, messages.LibraryGone(1, "bad", b""))
    soon = world.builder.call()
    world.now += 59
    world.submit(soon)
    assert isinstance(soon.error, LibraryFailed) and not world.sent(messages.StartLibrary)
    late = world.builder.call()
    world.now += 2
    world.submit(late)
    assert len(world.sent(messages.StartLibrary)) == 2 and late.state is t.READY
    world.say(1, messages.LibraryReady(1, 2))
    assert late.instance is not None and late.instance.worker.worker_id == 1
    assert world.sent(messages.Code) and world.sent(messages.Run)
    world.answer(late, messages.OK_INLINE, b"v")
    assert late.error is None


def test_a_library_that_fails_on_one_worker_is_tried_there_once_in_each_window() -> None:
    world = World(2)
    world.say(1, messages.LibraryGone(1, "bad", b""))
    starts = []
    for second in range(200):
        call = world.builder.call()
        world.submit(call)
        if world.sent(messages.StartLibrary):
            starts.append(second)
            world.say(1, messages.LibraryGone(1, "bad", b""))
        assert call.instance is not None and call.instance.worker.worker_id == 2
        world.answer(call, messages.OK_INLINE, b"v")
        world.now += 1
        world.say(1, messages.Pong())
    assert starts == [60, 120, 180]


def test_a_removed_library_fails_its_calls() -> None:
    world = World()
    call = world.builder.call()
    world.submit(call)
    world.do(events.LibraryRemoved(0.0, world.builder.library))
    assert isinstance(call.error, LibraryFailed) and world.sent(messages.StopLibrary)
    late = world.builder.call(call)
    world.submit(late)
    assert isinstance(late.error, LibraryFailed)


def test_local_entries_of_a_failed_instance_run_elsewhere() -> None:
    world = World(2, cores=1)
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
    assert len(world.builder.library.instances[holder].local) == 0
    assert near in [e for e in world.machine.state.tasks.values() if e.state is t.READY]


def test_an_unneeded_object_is_unlinked_with_its_last_reader() -> None:
    world = World()
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
    world = World(2, cores=1)
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
    world = World()
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
    world = World()
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
    world = World(cores=1)
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
    world = World(cores=1)
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
    world = World()
    world.say(1, messages.Done([messages.Result(77, 1, messages.WRITTEN_LATER, 0, b"", 100_000)]))
    assert [name for order in world.sent(messages.Unlink) for name in order.names] == [f"{RUN}-77.1"]


def test_a_missing_object_is_believed_and_counted() -> None:
    world = World()
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
    world = World()
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
    world = World(cores=2)
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
    world = World()
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
    world = World(2)
    call = world.builder.call()
    world.submit(call)
    world.stored(call)
    assert call.output is not None
    world.do(events.FileWanted(0.0, call.output, "me"))
    old = world.sent(messages.Upload)[0]
    world.say(min(call.output.on_workers or ()), messages.Removed([old.name]))
    world.stored(call)
    world.do(events.UploadArrived(0.0, old.transfer_id, 100_000))
    assert world.of(orders.ForgetObjects)[0].names == [old.name]
    again = world.sent(messages.Upload)[0]
    assert again.name == call.output.name != old.name


def test_a_failed_upload_of_an_older_attempt_leaves_the_new_copy() -> None:
    world = World()
    call = world.builder.call()
    world.submit(call)
    world.stored(call)
    assert call.output is not None
    world.do(events.FileWanted(0.0, call.output, "me"))
    old = world.sent(messages.Upload)[0]
    world.say(1, messages.Removed([old.name]))
    world.stored(call)
    world.say(1, messages.UploadFailed(old.transfer_id, old.name, "not here"))
    assert call.output.on_workers == {1} and call.attempt == 2
    assert [m.name for m in world.sent(messages.Upload)] == [call.output.name]


def test_large_arguments_leave_in_several_frames() -> None:
    world = World(cores=64)
    calls = [world.builder.call() for _ in range(128)]
    for call in calls:
        call.payload = b"x" * messages.INLINE_LIMIT_BYTES
    world.submit(*calls)
    runs = world.sent(messages.Run)
    assert len(runs) > 1
    assert all(len(messages.encode(run)) < messages.BATCH_LIMIT_BYTES + 2 * messages.INLINE_LIMIT_BYTES for run in runs)


def test_code_is_sent_once_for_each_instance() -> None:
    world = World(2)
    world.submit(world.builder.call(), world.builder.call(), world.builder.call())
    first = len(world.sent(messages.Code))
    world.submit(world.builder.call())
    assert first == 2 and not world.sent(messages.Code)


def test_an_illegal_message_leaves_the_tables_alone() -> None:
    world = World()
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
    world = World(0)
    low, high = world.builder.call(), world.builder.call()
    high.priority = 5.0
    world.submit(low, high)
    world.join(1, 1)
    assert high.attempt == 1 and world.sent(messages.Run)[0].groups[0][0].task_id == high.task_id
