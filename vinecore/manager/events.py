"""What can happen to the manager. Every event carries the time, since the machine has no clock."""

from __future__ import annotations

from vinecore.manager.entries import CodeEntry, FileEntry, GraphEntry, LibraryEntry, TaskEntry
from vinecore.wire import messages
from vinecore.wire.messages import Record


class TasksSubmitted(Record):
    """Entries, in order; from now on they belong to the machine."""

    now: float
    entries: list[TaskEntry]


class VerticesSubmitted(Record):
    """The next vertices of a graph, in post-order."""

    now: float
    graph: GraphEntry
    entries: list[TaskEntry]


class TasksCancelled(Record):
    """The user gives these up; unknown or finished ones are ignored."""

    now: float
    entries: list[TaskEntry]


class GraphCancelled(Record):
    """The user gives a whole graph up."""

    now: float
    graph: GraphEntry


class LibraryInstalled(Record):
    """A library may be used from now on."""

    now: float
    library: LibraryEntry


class LibraryRemoved(Record):
    """A library is not to be used any more; its waiting calls fail."""

    now: float
    library: LibraryEntry


class FileReleased(Record):
    """References from outside to these files ended."""

    now: float
    files: list[FileEntry]


class GraphEnded(Record):
    """The caller of a graph has its values, or gave it up: nothing of it runs again.

    files: its requested values. keep: they stay held, as data that nothing can make again. codes: its pieces, which may be
    forgotten.
    """

    now: float
    graph: GraphEntry
    files: list[FileEntry]
    keep: bool
    codes: list[CodeEntry]


class CodesUnused(Record):
    """The user's process holds these functions no more."""

    now: float
    codes: list[CodeEntry]


class FilePruned(Record):
    """Copies of a file on workers are not wanted; it may be made again."""

    now: float
    file: FileEntry


class FileWanted(Record):
    """Somebody wants the bytes of a file at the manager; answered by the order FileHere, or FileFailed.

    ``gone``: the path of the last answer, where the file was not.
    """

    now: float
    file: FileEntry
    handle: object
    gone: str = ""


class UploadArrived(Record):
    """A worker brought an object; the shell holds its bytes."""

    now: float
    transfer_id: int
    size_bytes: int


class SpliceOpened(Record):
    """The destination of a splice has dialled and waits for the bytes."""

    now: float
    transfer_id: int


class WorkerJoined(Record):
    """A worker passed the handshake and said hello."""

    now: float
    worker_id: int
    hello: messages.Hello
    host: str = ""


class WorkerSaid(Record):
    """A message of a worker."""

    now: float
    worker_id: int
    message: object


class WorkerRefused(Record):
    """Somebody dialled as a worker, and was not let in: another secret, another version, one of them without TLS."""

    now: float
    who: str
    why: str


class WorkerLeft(Record):
    """The link of a worker ended."""

    now: float
    worker_id: int
    reason: str


class HostsChanged(Record):
    """Hosts to drain (or not), to block for a while, or to unblock. ``until`` is in the machine's time."""

    now: float
    drain: str = ""
    drain_on: bool = True
    block: str = ""
    until: float = 0.0
    unblock: str | None = None
    unblock_all: bool = False


class WorkerDrained(Record):
    """A worker is to end as soon as it is empty."""

    now: float
    worker_id: int


class Tick(Record):
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
    | GraphEnded
    | FilePruned
    | FileWanted
    | UploadArrived
    | SpliceOpened
    | WorkerJoined
    | WorkerSaid
    | WorkerRefused
    | WorkerLeft
    | HostsChanged
    | WorkerDrained
    | CodesUnused
    | Tick
)
