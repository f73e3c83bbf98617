"""Lists of the manager that thin themselves out: what they hold ends or leaves without being looked for in them."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Iterator
from typing import Generic, Protocol, TypeVar
from weakref import ref

from vinecore.manager import transitions as t

T = TypeVar("T")

# Offers and weak references are looked through when there are this many more; higher: more memory.
LOG_LEAST = 256
WEAK_LEAST = 64


class Reader(Protocol):
    """What reads a file."""

    is_final: bool


class Offered(Protocol):
    """What may have room: the number of its last offer."""

    offered_at: int
    state: str


class Asking(Protocol):
    """Who looks for room: how many offers it has tried, as idle and as hungry ones."""

    tried: list[int]


R = TypeVar("R", bound=Reader)
N = TypeVar("N", bound=Offered)


class Readers(list[R]):
    """Consumers of one file, when they are many. Those that cannot run again are dropped when they are half of them."""

    __slots__ = ("ended_count",)

    def __init__(self, entries: Iterable[R] = ()) -> None:
        super().__init__(entries)
        self.ended_count = 0

    def without_ended(self) -> Readers[R]:
        """One more has ended; itself, or what is left of it in another list: this one may be iterated over now."""
        self.ended_count += 1
        if 2 * self.ended_count <= len(self):
            return self
        return Readers([other for other in self if not other.is_final])


class Offers(list[N]):
    """Instances in the order in which they were offered, each as often as it was; those who ask read on from where they were."""

    __slots__ = ()

    def log(self, instance: N, instance_count: int, asking: Iterable[Asking]) -> None:
        """It may have room for what it lacked until now."""
        if len(self) >= LOG_LEAST + 2 * instance_count:
            # Offers that were followed by another one of the same instance say nothing, nor do those of instances that are gone.
            valid = [number for number, other in enumerate(self) if other.offered_at == number and other.state is not t.GONE]
            self[:] = [self[number] for number in valid]
            for number, other in enumerate(self):
                other.offered_at = number
            for shape in asking:
                shape.tried = [bisect_left(valid, number) for number in shape.tried]
        instance.offered_at = len(self)
        self.append(instance)


class WeakList(Generic[T]):
    """Things that are in use elsewhere, in the order in which they came; one thread at a time adds to them."""

    __slots__ = ("_refs",)

    def __init__(self) -> None:
        self._refs: list[ref[T]] = []

    def add(self, thing: T) -> None:
        if len(self._refs) % WEAK_LEAST == 0:
            self._refs = [known for known in self._refs if known() is not None]
        self._refs.append(ref(thing))

    def __iter__(self) -> Iterator[T]:
        return iter([thing for known in self._refs if (thing := known()) is not None])

    def __len__(self) -> int:
        """How many are known; some may be gone."""
        return len(self._refs)
