"""The small world's clock, its links, and the truth about what tasks do. Everything follows from the network's seed."""

from __future__ import annotations

import hashlib
import heapq
import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

from vinecore.wire import messages


class Violation(AssertionError):
    """A machine broke a rule that only the world can see."""


@dataclass
class Spec:
    """What a task does when it runs."""

    duration_s: float = 0.0
    size_bytes: int = 8
    raises: int = 0
    kills: int = 0
    raised: int = 0
    # In a sandbox: times that only the child dies, that the slot dies before it has told of the end, that it writes into what it
    # mounts; products that it never makes.
    child_kills: int = 0
    late_kills: int = 0
    damages: int = 0
    leaves_out: frozenset[int] = frozenset()
    product_sizes: tuple[int, ...] = ()
    # Times that one of its limits ends it, in a sandbox; and did.
    limits: int = 0
    limited: int = 0


@dataclass
class Faults:
    """How bad the world is. Delays in seconds, the rest are chances."""

    delay_s: float = 0.0
    fetch_fails: float = 0.0
    upload_fails: float = 0.0
    library_fails: float = 0.0
    # A Done that comes a second time, later.
    duplicates: float = 0.0
    # A transfer between workers that breaks in the middle.
    peer_breaks: float = 0.0


def product_value(task_id: int, number: int, inputs: list[bytes], size: int) -> bytes:
    """What a task leaves in its sandbox under its ``number``-th product."""
    return digest(task_id, inputs) + b".%d" % number if size else b""


def digest(task_id: int, inputs: list[bytes]) -> bytes:
    """The value of a task."""
    return hashlib.blake2b(b"%d:" % task_id + b",".join(inputs), digest_size=8).digest()


class Network:
    """The clock, what is under way, and the truth about tasks."""

    def __init__(self, seed: int = 0, faults: Faults | None = None) -> None:
        self.rng = random.Random(seed)
        self.faults = faults or Faults()
        self.now = 1000.0
        self._heap: list[tuple[float, int, Callable[..., None], tuple[object, ...]]] = []
        self._count = 0
        self.specs: dict[int, Spec] = {}
        self.executions: Counter[int] = Counter()
        self.runs: Counter[tuple[int, int, int]] = Counter()
        self.frames: Counter[str] = Counter()
        self.revocations = 0
        self.written_later = 0

    def spec(self, task_id: int) -> Spec:
        return self.specs.setdefault(task_id, Spec())

    def later(self, delay_s: float, function: Callable[..., None], *args: object) -> None:
        self._count += 1
        heapq.heappush(self._heap, (self.now + delay_s, self._count, function, args))

    def delay(self) -> float:
        return self.rng.random() * self.faults.delay_s

    def step(self) -> bool:
        """Do the next thing; False when nothing is left."""
        if not self._heap:
            return False
        at, _, function, args = heapq.heappop(self._heap)
        self.now = max(self.now, at)
        function(*args)
        return True

    def run(self, seconds: float, done: Callable[[], bool] | None = None) -> bool:
        """Let time pass; True as soon as ``done()``, False when the time is over first."""
        end = self.now + seconds
        while self._heap and self._heap[0][0] <= end:
            if done is not None and done():
                return True
            self.step()
        self.now = end
        return done() if done is not None else True


class Wire:
    """One direction of one link: in order, delayed, encoded and decoded; what is under way when it is cut is lost."""

    def __init__(self, network: Network, decode: Callable[[bytes], object], deliver: Callable[[object], None]) -> None:
        self.network, self.decode, self.deliver = network, decode, deliver
        self.last = 0.0
        self.cut = False
        self.duplicable = False

    def send(self, message: object, delay_s: float | None = None) -> None:
        if self.cut:
            return
        network = self.network
        data = messages.encode(message)
        if len(data) > messages.CONTROL_FRAME_LIMIT_BYTES:
            raise Violation(f"a {type(message).__name__} of {len(data)} bytes is above the frame limit")
        network.frames[type(message).__name__] += 1
        at = max(self.last, network.now + (network.delay() if delay_s is None else delay_s))
        self.last = at
        network.later(at - network.now, self._arrive, data)
        may_repeat = network.faults.duplicates > 0 and self.duplicable and isinstance(message, messages.Done)
        if may_repeat and network.rng.random() < network.faults.duplicates:
            network.later(at - network.now + network.rng.random() * 0.2, self._arrive, data)

    def _arrive(self, data: bytes) -> None:
        if not self.cut:
            self.deliver(self.decode(data))
