"""The queue of what is ready, one for each shape."""

from __future__ import annotations

import math
from collections import deque
from heapq import heappop, heappush
from itertools import islice
from typing import Any, Generic, Protocol, TypeVar

from vinecore.manager import transitions as t


class Queued(Protocol):
    """What the queue must see of an entry."""

    task_id: int
    priority: float
    state: str
    # The queue that it is in, if any.
    queue: ReadyQueue[Any] | None


E = TypeVar("E", bound=Queued)


class ReadyQueue(Generic[E]):
    """Ready entries of one shape: priority first, then order of submission.

    Entries that are no longer READY, or went to another queue, are dropped when met. In-order arrivals cost an append, others a
    heap push.
    """

    __slots__ = ("_gone", "_heap", "_line", "_pushed")

    def __init__(self) -> None:
        self._line: deque[E] = deque()
        # The third number only tells apart an entry from an older, stale place of the same entry.
        self._heap: list[tuple[float, int, int, E]] = []
        self._pushed = 0
        # Places whose entries were moved to another queue.
        self._gone = 0

    def push(self, entry: E) -> None:
        entry.queue = self
        line = self._line
        if not line or (line[-1].priority >= entry.priority and line[-1].task_id < entry.task_id):
            line.append(entry)
        else:
            self._pushed += 1
            heappush(self._heap, (-entry.priority, entry.task_id, self._pushed, entry))

    def pop(self) -> E | None:
        """Take the first entry that is still ready."""
        line, heap = self._line, self._heap
        while True:
            if heap and (not line or (heap[0][0], heap[0][1]) < (-line[0].priority, line[0].task_id)):
                entry = heappop(heap)[3]
            elif line:
                entry = line.popleft()
            else:
                self._gone = 0
                return None
            if entry.queue is self and entry.state is t.READY:
                entry.queue = None
                return entry
            if self._gone:
                self._gone -= 1

    def first(self) -> E | None:
        """The first entry that is still ready; it stays here."""
        line, heap = self._line, self._heap
        while line or heap:
            is_in_line = not heap or (bool(line) and (heap[0][0], heap[0][1]) >= (-line[0].priority, line[0].task_id))
            entry = line[0] if is_in_line else heap[0][3]
            if entry.queue is self and entry.state is t.READY:
                return entry
            if is_in_line:
                line.popleft()
            else:
                heappop(heap)
            if self._gone:
                self._gone -= 1
        self._gone = 0
        return None

    def last(self) -> E | None:
        """An entry that is still ready and whose turn comes late; it stays here."""
        line, heap = self._line, self._heap
        while line or heap:
            entry = line[-1] if line else heap[-1][3]
            if entry.queue is self and entry.state is t.READY:
                return entry
            if line:
                line.pop()
            else:
                heap.pop()
            if self._gone:
                self._gone -= 1
        self._gone = 0
        return None

    def some(self, most: int) -> list[E]:
        """Entries that are still ready, so many of each part at most, the first ones mostly; they stay here."""
        places = [*islice(self._line, most), *(place[3] for place in islice(self._heap, most))]
        return [entry for entry in places if entry.queue is self and entry.state is t.READY]

    def remove(self, entry: E) -> None:
        """Take an entry that is here, wherever it stands: its place is dropped when met."""
        entry.queue = None
        self._gone += 1

    def urgency(self) -> float:
        """Upper bound of the priorities here; minus infinity: nothing is."""
        line, heap = self._line, self._heap
        highest = line[0].priority if line else -math.inf
        return max(highest, -heap[0][0]) if heap else highest

    def drain(self) -> list[E]:
        """Take everything that is still ready, in order."""
        out = []
        while (entry := self.pop()) is not None:
            out.append(entry)
        return out

    def __len__(self) -> int:
        """Upper bound: stale entries are counted until they are met."""
        return len(self._line) + len(self._heap) - self._gone
