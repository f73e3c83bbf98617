"""What the manager's machine may ask of its shell."""

from __future__ import annotations

from dataclasses import dataclass

from vinecore.manager.state import FileEntry, TaskEntry
from vinecore.model.notes import Note


@dataclass(slots=True)
class SendTo:
    """Send a message to a worker."""

    worker_id: int
    message: object


@dataclass(slots=True)
class Deliver:
    """These entries have their outcome: tell their handles."""

    entries: list[TaskEntry]


@dataclass(slots=True)
class FileHere:
    """A wanted file can be read: inline, among the shell's objects, or at ``path`` on this machine."""

    file: FileEntry
    handle: object
    path: str


@dataclass(slots=True)
class FileFailed:
    """A wanted file cannot be had."""

    file: FileEntry
    handle: object
    reason: str


@dataclass(slots=True)
class ForgetObjects:
    """The shell may drop these objects from its memory."""

    names: list[str]


@dataclass(slots=True)
class CloseWorker:
    """Close the link of a worker."""

    worker_id: int
    reason: str


@dataclass(slots=True)
class Say:
    """One line for the user."""

    text: str


@dataclass(slots=True)
class Emit:
    """Notes for the observers."""

    notes: list[Note]


Order = SendTo | Deliver | FileHere | FileFailed | ForgetObjects | CloseWorker | Say | Emit
