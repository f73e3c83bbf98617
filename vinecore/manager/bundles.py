"""Which ready and soon-ready vertices leave together for one slot (DESIGN 8). Pure: it proposes, ``placement`` applies.

Vertices of a graph are numbered in depth-first post-order, so the vertices that follow a ready one are those whose inputs it helps to make:
a run of consecutive vertices is a forest of subtrees. A vertex may join when each of its inputs is available or made earlier in the bundle.
"""

from __future__ import annotations

from vinecore.manager import transitions as t
from vinecore.manager.state import TaskEntry
from vinecore.model.config import Tunables

# Vertices looked at for each one that may join; higher: fuller bundles in graphs with many shared inputs, more work.
SCAN_FACTOR = 4
# Calls in one bundle, whatever their time: bounds a frame, and what a lost slot takes along.
MOST = 1000


def bundle_for(first: TaskEntry, slots: int, tunables: Tunables) -> list[TaskEntry]:
    """The vertices that go to one slot with ``first``, in an order in which they can run.

    Parameters:
        first: a ready vertex, already taken from its queue.
        slots: slots of all workers that could take part; none of them is left without a bundle.
    """
    graph = first.graph
    assert graph is not None
    chosen = [first]
    most = min(MOST, max(1, graph.unplaced // (2 * slots)))
    mean = first.kind.mean_us
    if mean == 0.0:
        most = min(most, int(tunables.bundle_unknown_count))
    if most == 1:
        return chosen
    inside = {first}
    limit_us = tunables.bundle_ms * 1000.0
    large_us = tunables.bundle_large_ms * 1000.0
    total_us = mean
    known = mean > 0.0
    vertices = graph.vertices
    shape = first.kind.shape
    for position in range(first.order + 1, min(len(vertices), first.order + 1 + SCAN_FACTOR * most)):
        entry = vertices[position]
        state = entry.state
        if state is not t.READY and state is not t.WAITING:
            continue
        kind = entry.kind
        if kind.shape is not shape:
            continue
        if state is t.WAITING and not _joins(entry, inside):
            continue
        if kind.mean_us == 0.0:
            # Nobody knows how long these run: only short bundles until one is measured.
            if len(chosen) >= tunables.bundle_unknown_count:
                break
        else:
            connected = state is t.WAITING or kind.mean_bytes > tunables.bundle_large_bytes
            if known and total_us + kind.mean_us > (large_us if connected else limit_us):
                break
            total_us += kind.mean_us
        chosen.append(entry)
        inside.add(entry)
        if len(chosen) >= most:
            break
    return chosen


def _joins(entry: TaskEntry, inside: set[TaskEntry]) -> bool:
    """True when each input is available or made by a member."""
    for file in entry.inputs:
        if not file.is_available() and file.producer not in inside:
            return False
    return True
