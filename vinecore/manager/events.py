"""What can happen to the manager. Every event carries the time, since the machine has no clock."""

from __future__ import annotations

from dataclasses import dataclass

from vinecore.manager.state import FileEntry, GraphEntry, LibraryEntry, TaskEntry
from vinecore.wire import messages


@dataclass(slots=True)
class TasksSubmitted:
    """Entries, in order; from now on they belong to the machine."""

    now: float
    entries: list[TaskEntry]


@dataclass(slots=True)
class VerticesSubmitted:
    """The next vertices of a graph, in post-order."""

    now: float
    graph: GraphEntry
    entries: list[TaskEntry]


@dataclass(slots=True)
class TasksCancelled:
    """The user gives these up; unknown or finished ones are ignored."""

    now: float
    entries: list[TaskEntry]


@dataclass(slots=True)
class GraphCancelled:
    """The user gives a whole graph up."""

    now: float
    graph: GraphEntry


@dataclass(slots=True)
class LibraryInstalled:
    """A library may be used from now on."""

    now: float
    library: LibraryEntry


@dataclass(slots=True)
class LibraryRemoved:
    """A library is not to be used any more; its waiting calls fail."""

    now: float
    library: LibraryEntry


@dataclass(slots=True)
class FileReleased:
    """References from outside to these files ended."""

    now: float
    files: list[FileEntry]


@dataclass(slots=True)
class FilePruned:
    """Copies of a file on workers are not wanted; it may be made again."""

    now: float
    file: FileEntry


@dataclass(slots=True)
class FileWanted:
    """Somebody wants the bytes of a file at the manager; answered by the order FileHere, or FileFailed."""

    now: float
    file: FileEntry
    handle: object


@dataclass(slots=True)
class UploadArrived:
    """A worker brought an object; the shell holds its bytes."""

    now: float
    transfer_id: int
    size_bytes: int


@dataclass(slots=True)
class WorkerJoined:
    """A worker passed the handshake and said hello."""

    now: float
    worker_id: int
    hello: messages.Hello


@dataclass(slots=True)
class WorkerSaid:
    """A message of a worker."""

    now: float
    worker_id: int
    message: object


@dataclass(slots=True)
class WorkerLeft:
    """The link of a worker ended."""

    now: float
    worker_id: int
    reason: str


@dataclass(slots=True)
class Tick:
    """A deadline passed."""

    now: float


Event = (
    TasksSubmitted
    | VerticesSubmitted
    | TasksCancelled
    | GraphCancelled
    | LibraryInstalled
    | LibraryRemoved
    | FileReleased
    | FilePruned
    | FileWanted
    | UploadArrived
    | WorkerJoined
    | WorkerSaid
    | WorkerLeft
    | Tick
)
