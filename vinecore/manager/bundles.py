"""Which ready and soon-ready vertices leave together for one slot (DESIGN 8). Pure: it proposes, ``placement`` applies.

Vertices of a graph are numbered in depth-first post-order, so the vertices that follow a ready one are those whose inputs it
helps to make: a run of consecutive vertices is a forest of subtrees. A vertex may join when each of its inputs is available or
made earlier in the bundle. Where a value is large (or nobody knows yet) and has several consumers, these are drawn in together
with what else they need: a value whose consumers are all in the bundle is never written.
"""

from __future__ import annotations

from vinecore.manager import transitions as t
from vinecore.manager.entries import Shape, TaskEntry
from vinecore.model.config import Tunables

# Vertices looked at for each one that may join; higher: fuller bundles in graphs with many shared inputs, more work.
SCAN_FACTOR = 4
# Calls in one bundle, whatever their time: bounds a frame, and what a lost slot takes along.
MOST = 256
# Consumers drawn in for one value: a value that is read by very many is written anyway.
DRAWN_CONSUMERS = 8


def bundle_for(first: TaskEntry, slots: int, worker_id: int, tunables: Tunables) -> list[TaskEntry]:
    """The vertices that go to one slot with ``first``, in an order in which they can run.

    Parameters:
        first: a ready vertex, already taken from its queue.
        slots: slots of all workers that could take part; none of them is left without a bundle.
        worker_id: where they go; inputs that only other workers hold keep a vertex out.
    """
    graph = first.graph
    assert graph is not None
    most = min(MOST, max(1, graph.unplaced // (2 * max(1, slots))))
    if first.kind.mean_us == 0.0:
        most = min(most, int(tunables.bundle_unknown_count))
    growing = _Bundle(first, most, worker_id, tunables)
    if most == 1:
        return growing.chosen
    vertices = graph.vertices
    growing.draw_consumers(first)
    for position in range(first.order + 1, min(len(vertices), first.order + 1 + SCAN_FACTOR * most)):
        if growing.full:
            break
        entry = vertices[position]
        if (entry.state is t.READY or entry.state is t.WAITING) and entry not in growing.inside and growing.can_join(entry):
            growing.add(entry)
            if not growing.full:
                growing.draw_consumers(entry)
    return growing.chosen


class _Bundle:
    """A bundle being put together."""

    __slots__ = ("chosen", "full", "inside", "known", "most", "shape", "total_us", "tunables", "worker_id")

    def __init__(self, first: TaskEntry, most: int, worker_id: int, tunables: Tunables) -> None:
        self.chosen = [first]
        self.inside = {first}
        self.shape: Shape = first.kind.shape
        self.most = most
        self.worker_id = worker_id
        self.tunables = tunables
        self.total_us = first.kind.mean_us
        self.known = first.kind.mean_us > 0.0
        self.full = most <= 1

    def can_join(self, entry: TaskEntry) -> bool:
        """True when it is of the same shape, had room here, and each input is made by a member, is here or can be fetched."""
        if entry.kind.shape is not self.shape:
            return False
        if entry.no_room_at and self.worker_id in entry.no_room_at:
            return False
        inside, worker_id = self.inside, self.worker_id
        for file in entry.inputs:
            if file.data is not None or file.at_manager or file.producer in inside:
                continue
            if worker_id not in file.on_workers:
                return False
        return True

    def add(self, entry: TaskEntry) -> None:
        """Take it in if the time allows; else the bundle is full."""
        kind = entry.kind
        tunables = self.tunables
        if kind.mean_us == 0.0:
            # Nobody knows how long these run: only what belongs together, until one is measured. Independent ones go one by one,
            # since a bundle is not split when some turn out to be long.
            if len(self.chosen) >= tunables.bundle_unknown_count or entry.state is t.READY:
                self.full = True
                return
        else:
            connected = entry.state is t.WAITING or kind.mean_bytes > tunables.bundle_large_bytes
            limit_ms = tunables.bundle_large_ms if connected else tunables.bundle_ms
            if self.known and self.total_us + kind.mean_us > limit_ms * 1000.0:
                self.full = True
                return
            self.total_us += kind.mean_us
        self.chosen.append(entry)
        self.inside.add(entry)
        if len(self.chosen) >= self.most:
            self.full = True

    def draw_consumers(self, entry: TaskEntry) -> None:
        """Take in the consumers of a large value with what else they need, one level deep; their own values likewise."""
        pending = [entry]
        while pending and not self.full:
            member = pending.pop()
            output = member.output
            kind = member.kind
            small = kind.mean_us > 0.0 and kind.mean_bytes <= self.tunables.bundle_large_bytes
            if output is None or small or not 2 <= len(output.consumers) <= DRAWN_CONSUMERS:
                continue
            for consumer in output.consumers:
                if consumer.state is not t.WAITING or consumer in self.inside or self.full:
                    continue
                needed = self._needed_by(consumer)
                if needed is None or len(self.chosen) + len(needed) >= self.most:
                    continue
                for producer in needed:
                    self.add(producer)
                    pending.append(producer)
                if not self.full and self.can_join(consumer):
                    self.add(consumer)

    def _needed_by(self, consumer: TaskEntry) -> list[TaskEntry] | None:
        """Ready producers that a consumer still needs; None when something else is missing."""
        needed: list[TaskEntry] = []
        for file in consumer.inputs:
            producer = file.producer
            if file.is_available() or producer in self.inside or producer in needed:
                continue
            if producer is None or producer.state is not t.READY or not self.can_join(producer):
                return None
            needed.append(producer)
        return needed
