"""The queue of ready entries against a sorted list: whatever is pushed, moved, taken or no longer ready, in any order."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from vinecore.manager import transitions as t
from vinecore.manager.ready import ReadyQueue


class Waiting:
    """What the queue sees of an entry."""

    def __init__(self, task_id: int, priority: float) -> None:
        self.task_id, self.priority = task_id, priority
        self.state = t.READY
        self.queue: ReadyQueue[Waiting] | None = None


STEPS = st.lists(st.tuples(st.sampled_from(["push", "pop", "remove", "first", "last", "end"]), st.integers(0, 9)), max_size=60)


@given(STEPS, st.lists(st.sampled_from([0.0, 1.0, 2.0]), min_size=10, max_size=10))
def test_what_is_ready_comes_once_by_priority_then_order(steps: list[tuple[str, int]], priorities: list[float]) -> None:
    entries = [Waiting(number, priority) for number, priority in enumerate(priorities)]
    queue: ReadyQueue[Waiting] = ReadyQueue()
    here: set[Waiting] = set()
    for step, number in steps:
        entry = entries[number]
        if step == "push":
            entry.state = t.READY
            queue.push(entry)
            here.add(entry)
        elif step == "remove" and entry in here:
            queue.remove(entry)
            here.discard(entry)
        elif step == "end":
            entry.state = t.FINISHED  # the queue is not told
            here.discard(entry)
        elif step == "last":
            late = queue.last()
            assert (late in here) if here else late is None
        elif step == "first":
            assert queue.first() is min(here, key=lambda e: (-e.priority, e.task_id), default=None)
        elif step == "pop":
            expected = min(here, key=lambda e: (-e.priority, e.task_id), default=None)
            assert queue.pop() is expected
            here.discard(expected)  # type: ignore[arg-type]
        assert len(queue) >= len(here), "it counts too little: nobody would look"
        assert all(queue.urgency() >= e.priority for e in here)
        assert {e for e in entries if e.queue is queue and e.state is t.READY} == here
    assert queue.drain() == sorted(here, key=lambda e: (-e.priority, e.task_id))
    assert len(queue) == 0
