"""Short ways to build what the manager's machine takes: libraries, kinds, calls, graphs, hellos.

Entries look exactly as the layers above build them: a graph's vertex has an ``output`` whose producer it is, requested ones
are held once, calls name other calls as inputs.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from vinecore.manager.entries import CodeEntry, FileEntry, GraphEntry, Kind, LibraryEntry, Shape, TaskEntry
from vinecore.model.resources import Resources
from vinecore.wire import messages

RUN = "r0"


class Handle:
    """Remembers every entry that was settled, in order."""

    def __init__(self) -> None:
        self.entries: list[TaskEntry] = []

    def settled(self, entry: TaskEntry) -> object:
        self.entries.append(entry)
        return None


class Builder:
    """Hands out entries with fresh ids for one library.

    Parameters:
        slots: of the library; 0: the worker's cores.
        request: what each task asks for.
        library_id: of the library; several builders of one machine need different ones.
    """

    def __init__(self, slots: int = 0, request: Resources | None = None, library_id: int = 1, eager: bool = True) -> None:
        self.library = LibraryEntry(library_id, f"library{library_id}", slots=slots)
        self.library.eager = eager
        self.shape = Shape(self.library, request or Resources())
        self.kind = Kind("f", self.shape)
        self.ids = itertools.count(1 + 1_000_000 * (library_id - 1))
        self.code = CodeEntry(next(self.ids), library_id, b"code")
        self.piece = CodeEntry(next(self.ids), library_id, b"piece", (), (self.code,), True)

    def call(
        self, *inputs: TaskEntry | FileEntry, kind: Kind | None = None, handle: Handle | None = None, **options: int
    ) -> TaskEntry:
        """A call, as ``Engine.submit_code`` builds it."""
        entry = TaskEntry(next(self.ids), kind or self.kind, self.code, b"args", handle or Handle(), **options)
        entry.inputs += tuple(inputs)  # type: ignore[arg-type]
        return entry

    def vertices(
        self, edges: Sequence[Sequence[int]], requested: Sequence[int] = (), kinds: Sequence[Kind] | None = None
    ) -> tuple[GraphEntry, list[TaskEntry]]:
        """A graph in post-order; ``edges[i]`` are the numbers of vertex i's inputs. The last one is requested if none is."""
        graph = GraphEntry(next(self.ids), Handle(), len(edges))
        entries: list[TaskEntry] = []
        wanted = set(requested) or {len(edges) - 1}
        for number, needs in enumerate(edges):
            inputs = tuple(_output(entries[i]) for i in needs)
            handle = graph.handle if number in wanted else None
            entry = TaskEntry(next(self.ids), kinds[number] if kinds else self.kind, self.piece, b"", handle, inputs)
            entry.index = number
            entry.output = FileEntry(entry.task_id)
            entry.output.producer = entry
            entry.output.holds = 1 if number in wanted else 0
            entry.output.to_come = sum(needs.count(number) for needs in edges)
            entries.append(entry)
        return graph, entries


def _output(entry: TaskEntry) -> FileEntry:
    assert entry.output is not None
    return entry.output


def hello(
    cores: int = 2, memory_mb: int = 1000, machine: str = "there", name: str = "host", disk_mb: int = 1000, peer_port: int = 0
) -> messages.Hello:
    """What a worker says of itself. Without a port its peers cannot reach it."""
    return messages.Hello(name, 1, cores, memory_mb, disk_mb, 0, [], "3", machine, "/objects", [], peer_port)


def declared(number: int, size_bytes: int = 100_000) -> FileEntry:
    """A file of the user's, whose bytes the manager's shell holds."""
    file = FileEntry(-number, f"{RUN}-b{number}", size_bytes)
    file.at_manager = True
    return file
