"""The manager's machine under arbitrary streams of legal events: ``check()`` after each, and nothing is lost at the end."""

from __future__ import annotations

from collections.abc import Sequence

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.kit.builders import RUN, Builder, declared, hello
from vinecore.manager import events, orders
from vinecore.manager import transitions as t
from vinecore.manager.entries import TaskEntry
from vinecore.manager.machine import ManagerMachine
from vinecore.wire import messages
from vinecore.wire.messages import Result

STATUSES = [
    messages.OK_INLINE,
    messages.OK_STORED,
    messages.RAISED,
    messages.LOST,
    messages.HANDED_BACK,
    messages.SPOILT_INPUT,
]
# (what happens, a number that picks whom)
steps = st.lists(
    st.tuples(
        st.sampled_from(
            ["call", "graph", "apart", "join", "leave", *["answer"] * 3, *["late"] * 2, "cancel", "tick", *["fetched"] * 3]
        ),
        st.integers(0, 999),
    ),
    max_size=60,
)


class Driver:
    """Plays workers that answer what they were sent, in any order and with any outcome."""

    def __init__(self, copies: int = 1) -> None:
        self.builder = Builder()
        self.machine = ManagerMachine(RUN)
        self.machine.state.tunables.temp_replica_count = copies
        self.machine.state.transfer_key = b"k" * 32
        # Objects that workers were told to fetch and have not answered for: (worker, name, size).
        self.fetches: list[tuple[int, str, int]] = []
        self.machine.state.tunables.max_losses = 10**6
        self.now = 1.0
        self.open: dict[tuple[int, int, int], messages.Call] = {}
        self.answered: list[tuple[int, int, int]] = []
        self.calls: list[TaskEntry] = []
        self.delivered: list[int] = []
        self.next_worker = 1
        # What vertices that run apart have in their directories.
        self.mounted = declared(1)
        self.mounted.holds = 1
        self.do(events.LibraryInstalled(0.0, self.builder.library))

    def do(self, event: events.Event) -> None:
        event.now = self.now = self.now + 0.01
        for order in self.machine.handle(event):
            if isinstance(order, orders.SendTo) and isinstance(order.message, messages.Run):
                for group in order.message.groups:
                    for call in group:
                        key = (order.worker_id, call.task_id, call.attempt)
                        assert key not in self.open
                        self.open[key] = call
            elif isinstance(order, orders.SendTo) and isinstance(order.message, messages.Fetch):
                self.fetches.append((order.worker_id, order.message.name, order.message.size_bytes))
            elif isinstance(order, orders.Deliver):
                self.delivered.extend(entry.task_id for entry in order.entries)
        self.machine.check()

    def join(self) -> None:
        worker_id, self.next_worker = self.next_worker, self.next_worker + 1
        # Some have no port, so that objects come to others through the manager.
        self.do(events.WorkerJoined(0.0, worker_id, hello(2, peer_port=5000 + worker_id if worker_id % 4 else 0)))
        self.do(events.WorkerSaid(0.0, worker_id, messages.LibraryReady(1, 2)))

    def answer(self, key: tuple[int, int, int], status: int) -> None:
        call = self.open.pop(key)
        if status <= messages.OK_STORED and not call.publish:
            status = messages.OK_KEPT
        report = None
        if call.sandbox is not None:
            # A limit ends it without a value; whoever answers well at the end is not limited.
            outcome = "max wall time" if status == messages.RAISED else ""
            status = messages.OK_INLINE if outcome else status
            report = messages.Report(9 if outcome else 0, b"printed", [], [], [], outcome)
        size = 100_000 if status == messages.OK_STORED else 0
        self.answered.append(key)
        result = Result(key[1], key[2], status, 7, b"v", size, report)
        self.do(events.WorkerSaid(0.0, key[0], messages.Done([result])))

    def step(self, what: str, number: int) -> None:
        if what == "call":
            inputs = [self.calls[number % len(self.calls)]] if self.calls and number % 2 else []
            self.calls.append(self.builder.call(*inputs, retries=number % 3))
            self.do(events.TasksSubmitted(0.0, [self.calls[-1]]))
        elif what == "graph":
            graph, entries = self.builder.vertices([[], [0], [0, 1], [], [2, 3]])
            self.do(events.VerticesSubmitted(0.0, graph, entries))
        elif what == "apart":
            graph, entries = self.builder.vertices([[], [0], [0, 1], [], [2, 3]])
            for entry in entries:
                entry.sandbox = messages.Sandbox([messages.Mount("", "file")], [], [])
                entry.inputs += (self.mounted,)
                entry.retries = number % 2
            self.do(events.VerticesSubmitted(0.0, graph, entries))
        elif what == "join":
            self.join()
        elif what == "leave" and self.machine.state.workers:
            worker_id = sorted(self.machine.state.workers)[number % len(self.machine.state.workers)]
            self.open = {key: call for key, call in self.open.items() if key[0] != worker_id}
            self.fetches = [fetch for fetch in self.fetches if fetch[0] != worker_id]
            self.do(events.WorkerLeft(0.0, worker_id, "gone"))
        elif what == "answer" and self.open:
            self.answer(sorted(self.open)[number % len(self.open)], STATUSES[number % len(STATUSES)])
        elif what == "late" and self.answered:
            worker_id, task_id, attempt = self.answered[number % len(self.answered)]
            self.do(
                events.WorkerSaid(0.0, worker_id, messages.Done([Result(task_id, attempt, STATUSES[number % 5], 7, b"late", 5)]))
            )
        elif what == "cancel" and self.calls:
            self.do(events.TasksCancelled(0.0, [self.calls[number % len(self.calls)]]))
        elif what == "fetched" and self.fetches:
            self.fetched(self.fetches.pop(number % len(self.fetches)), number)
        elif what == "tick":
            self.do(events.Tick(0.0))

    def fetched(self, fetch: tuple[int, str, int], number: int) -> None:
        worker_id, name, size_bytes = fetch
        reasons = {5: "FileLost: it is not there", 6: "OSError: refused"}
        reason = reasons.get(number % 7)
        message = messages.Fetched(name, size_bytes) if reason is None else messages.FetchFailed(name, reason)
        self.do(events.WorkerSaid(0.0, worker_id, message))

    def finish(self) -> None:
        """Answer everything well until nothing is left."""
        self.join()
        for _ in range(2000):
            state = self.machine.state
            if not state.tasks:
                return
            if self.open:
                self.answer(min(self.open), messages.OK_INLINE)
            else:
                assert state.relays, f"nothing runs and nothing moves: {list(state.tasks.values())[:3]}"
                self.do(events.UploadArrived(0.0, min(state.relays), 100_000))
        raise AssertionError("it does not come to an end")


@settings(max_examples=120, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(st.sampled_from([1, 1, 2, 3]), steps)
def test_every_call_ends_exactly_once(copies: int, stream: Sequence[tuple[str, int]]) -> None:
    driver = Driver(copies)
    driver.join()
    for what, number in stream:
        driver.step(what, number)
    driver.finish()
    assert sorted(i for i in driver.delivered if i in {c.task_id for c in driver.calls}) == sorted(
        c.task_id for c in driver.calls
    )
    assert all(c.state is t.FINISHED and c.value != b"late" for c in driver.calls)
    for worker in driver.machine.state.workers.values():
        assert not worker.placed()
        assert all(i.outstanding == i.groups_out == 0 for i in worker.instances.values())


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.lists(st.integers(-3, 3), min_size=1, max_size=30))
def test_priorities_are_obeyed_whatever_the_order_of_arrival(priorities: list[int]) -> None:
    driver = Driver()
    calls = []
    for priority in priorities:
        call = driver.builder.call()
        call.priority = float(priority)
        calls.append(call)
    driver.do(events.TasksSubmitted(0.0, calls))
    driver.join()
    started: list[int] = []
    while driver.open:
        key = next(iter(driver.open))
        started.append(key[1])
        driver.answer(key, messages.OK_INLINE)
    assert started == [c.task_id for c in sorted(calls, key=lambda c: (-c.priority, c.task_id))]
