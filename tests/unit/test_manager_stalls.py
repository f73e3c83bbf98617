"""Workers that are silent and work that has no place to run, in the manager's machine."""

from __future__ import annotations

import pytest

from tests.kit.builders import hello
from tests.kit.manager_world import ManagerWorld
from vinecore.errors import UsageError
from vinecore.manager import events, orders
from vinecore.manager import transitions as t
from vinecore.manager.entries import FileEntry, Kind, Shape, TaskEntry
from vinecore.model.resources import Resources
from vinecore.wire import messages


def test_a_silent_worker_is_pinged_then_removed() -> None:
    world = ManagerWorld()
    call = world.builder.call()
    world.submit(call)
    world.now += 6
    world.do(events.Tick(0.0))
    assert world.sent(messages.Ping)
    world.now += 15
    world.do(events.Tick(0.0))
    assert [o.worker_id for o in world.of(orders.CloseWorker)] == [1]
    assert call.state is t.READY


def ticked(world: ManagerWorld, seconds: float = 0.0) -> tuple[bool, bool]:
    """Whether a tick that much later asks worker 1, and whether it ends its link."""
    world.now += seconds
    world.do(events.Tick(0.0))
    return bool(world.sent(messages.Ping)), bool(world.of(orders.CloseWorker))


@pytest.mark.parametrize("interval", [0, 5])
def test_silence_that_was_allowed_is_not_held_against_a_worker(interval: float) -> None:
    """Lower tunables made workers that had never been asked lost at once, and their calls with them."""
    world = ManagerWorld()
    call = world.builder.call()
    world.submit(call)
    tunables = world.machine.state.tunables
    tunables.set("keepalive-interval", interval)
    assert ticked(world, 4.6) == (False, False)
    tunables.set("keepalive-interval", 5)
    tunables.set("keepalive-timeout", 2)
    assert ticked(world) == (True, False)
    assert ticked(world, 1.5) == (True, False)
    assert call.state is t.PLACED
    world.say(1, messages.Pong())
    assert ticked(world, 1.1) == (True, False), "asked in time from now on"
    assert ticked(world, 1.1) == (False, True)
    assert call.state is t.READY


def test_a_question_that_came_late_gets_the_whole_timeout() -> None:
    world = ManagerWorld()
    world.machine.state.tunables.set("keepalive-timeout", 2)
    assert ticked(world, 60) == (True, False), "this process stood still: nobody was asked"
    assert ticked(world, 1.9) == (True, False)
    assert ticked(world, 1.1) == (False, True)


def test_a_question_that_has_just_been_asked_may_be_answered_yet() -> None:
    world = ManagerWorld()
    assert ticked(world, 5) == (True, False)
    world.machine.state.tunables.set("keepalive-timeout", 2)
    assert ticked(world, 0.1) == (False, False)
    assert ticked(world, 1.1) == (True, False)
    assert ticked(world, 1.1) == (False, True)


def test_questions_asked_again_do_not_put_off_the_limit() -> None:
    world = ManagerWorld()
    assert ticked(world, 5) == (True, False)
    assert ticked(world, 5) == (True, False)
    world.machine.state.tunables.set("keepalive-timeout", 2)
    assert ticked(world, 1.1) == (False, True), "the first one has waited for more than that"


def test_workers_are_told_of_another_keepalive() -> None:
    """They leave a manager that is silent for longer than they believe it may be."""
    world = ManagerWorld(workers=2)
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
    world = ManagerWorld()
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
    world = ManagerWorld(0)
    world.submit(world.builder.call())
    due = world.machine.next_deadline()
    assert due == world.now + 5
    world.now += 4
    world.do(events.Tick(0.0))
    assert not world.of(orders.Say)
    world.now += 1
    world.do(events.Tick(0.0))
    assert [o.text for o in world.of(orders.Say)] == [
        "1 task waits and no worker is connected; start one with:  vine_worker HOST PORT"
    ]
    world.now += 60
    world.do(events.Tick(0.0))
    assert not world.of(orders.Say)


def test_workers_that_were_not_let_in_are_told_of_while_no_other_is_there() -> None:
    world = ManagerWorld(0)
    world.do(events.WorkerRefused(0.0, "10.0.0.3", "another secret"))
    world.submit(world.builder.call())
    world.now += 5
    world.do(events.Tick(0.0))
    assert [o.text for o in world.of(orders.Say)][1:] == ["a worker was not let in, the latest from 10.0.0.3: another secret"]
    world.do(events.WorkerRefused(0.0, "10.0.0.4", "another version"))
    world.now += 60
    world.do(events.Tick(0.0))
    assert not world.of(orders.Say), "told once"
    assert "2 workers were not let in, the latest from 10.0.0.4: another version" in world.machine.stuck_reason()
    world.join(1, 1)
    world.do(events.WorkerLeft(0.0, 1, "gone"))
    assert "not let in" not in world.machine.stuck_reason()


def test_a_worker_that_is_not_let_in_after_the_notice_is_told_of_too() -> None:
    world = ManagerWorld(0)
    world.submit(world.builder.call())
    world.now += 5
    world.do(events.Tick(0.0))
    assert len(world.of(orders.Say)) == 1
    world.do(events.WorkerRefused(0.0, "10.0.0.3", "another secret"))
    assert world.machine.next_deadline() == world.now + 5
    world.now += 5
    world.do(events.Tick(0.0))
    assert ["not let in" in o.text for o in world.of(orders.Say)] == [True]


def test_the_next_stall_is_told_again() -> None:
    world = ManagerWorld(0)
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
    world = ManagerWorld(request=Resources(cores=64))
    world.submit(world.builder.call())
    said = []
    for _ in range(8):
        world.now += 1
        world.do(events.Tick(0.0))
        said += world.of(orders.Say)
    assert len(said) == 1 and "64 cores (it has 2)" in said[0].text


def said_at(world: ManagerWorld, seconds: int) -> list[tuple[float, str]]:
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


def asking(world: ManagerWorld, **amounts: float) -> TaskEntry:
    return world.builder.call(kind=Kind("f", Shape(world.builder.library, Resources(**amounts))))


def test_each_different_request_that_fits_nowhere_is_told_once_and_in_time() -> None:
    world = ManagerWorld()
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
    world = ManagerWorld()
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
    world = ManagerWorld(2)
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
    world = ManagerWorld(1)
    world.do(events.WorkerJoined(0.0, 2, hello(8, name="large")))
    world.say(2, messages.LibraryReady(1, 8))
    world.do(events.HostsChanged(0.0, block="large", until=1e9))
    call = asking(world, cores=8)
    world.submit(call)
    ((_, text),) = said_at(world, 8)
    assert text == "1 task waits; the only worker that is large enough is on blocked hosts (large); unblock_host() lets them work"
    assert "blocked hosts (large)" in world.machine.story(call.task_id)[0]


def test_where_a_task_is_can_be_said_in_words() -> None:
    world = ManagerWorld(1, cores=1)
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
    alone = ManagerWorld(0)
    ready = alone.builder.call()
    alone.submit(ready)
    assert alone.machine.story(ready.task_id)[0] == f"task {ready.task_id} (f) is ready and waits: no worker is connected"


def test_work_waits_until_enough_workers_have_come_and_not_for_those_that_go() -> None:
    """The loss of one of them stopped everything, without a word."""
    world = ManagerWorld(0)
    state = world.machine.state
    state.tunables.set("wait-for-workers", 2)
    calls = [world.builder.call() for _ in range(3)]
    world.submit(*calls)
    for worker_id in (1, 2):
        assert [call.state for call in calls] == [t.READY] * 3
        if worker_id == 2:
            world.now += state.tunables.no_worker_notice + 1
            world.do(events.Tick(0.0))
            world.now += state.tunables.no_worker_notice + 1
            world.do(events.Tick(0.0))
            (said,) = [o.text for o in world.of(orders.Say)]
            assert said == "3 tasks wait: 1 worker is connected, and work begins with 2 (wait-for-workers)"
        world.do(events.WorkerJoined(0.0, worker_id, hello(1, name=f"h{worker_id}"), "host"))
        world.say(worker_id, messages.LibraryReady(1, 1))
    assert all(call.state is t.PLACED for call in calls)
    world.do(events.WorkerLeft(0.0, 1, "gone"))
    world.answer(calls[1] if calls[1].instance is not None and calls[1].instance.worker_id == 2 else calls[0], messages.OK_INLINE)
    world.do(events.Tick(0.0))
    assert any(call.state is t.PLACED for call in calls), "it goes on with the other one"
    state.tunables.set("wait-for-workers", 3)
    more = world.builder.call()
    world.submit(more)
    assert more.state is t.READY, "a new wish counts anew"


def test_workers_that_came_while_no_work_waited_are_counted() -> None:
    world = ManagerWorld(0)
    world.machine.state.tunables.wait_for_workers = 2
    world.join(1)
    world.join(2)
    world.do(events.WorkerLeft(0.0, 2, "gone"))
    call = world.builder.call()
    world.submit(call)
    assert call.state is t.PLACED
