"""What the manager's machine may ask of its shell."""

from __future__ import annotations

from vinecore.manager.entries import FileEntry, TaskEntry
from vinecore.model.notes import Note
from vinecore.wire.messages import Record


class SendTo(Record):
    """Send a message to a worker."""

    worker_id: int
    message: object


class Deliver(Record):
    """These entries have their outcome: tell their handles."""

    entries: list[TaskEntry]


class FileHere(Record):
    """A wanted file can be read: inline, among the shell's objects, or at ``path`` on this machine."""

    file: FileEntry
    handle: object
    path: str


class FileFailed(Record):
    """A wanted file cannot be had."""

    file: FileEntry
    handle: object
    reason: str


class ForgetObjects(Record):
    """The shell may drop these objects from its memory."""

    names: list[str]


class EndSplice(Record):
    """Close the links of a splice, if there are any; with ``is_source_gone`` only when its source has begun to send."""

    transfer_id: int
    is_source_gone: bool = False


class CloseWorker(Record):
    """Close the link of a worker."""

    worker_id: int
    reason: str


class Say(Record):
    """One line for the user."""

    text: str


class Emit(Record):
    """Notes for the observers."""

    notes: list[Note]


Order = SendTo | Deliver | FileHere | FileFailed | ForgetObjects | EndSplice | CloseWorker | Say | Emit
