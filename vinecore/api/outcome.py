"""The exception that an entry's outcome stands for, decoded in the caller's thread."""

from __future__ import annotations

from concurrent.futures import CancelledError

from vinecore.errors import LibraryFailed, TaskFailed
from vinecore.manager.state import CANCELLED, RAISED, TaskEntry
from vinecore.runtime.payload import decode_error


def failure_of(entry: TaskEntry) -> BaseException | None:
    """The exception of an entry that has its outcome; None when it succeeded."""
    error = entry.error
    if isinstance(error, LibraryFailed) and entry.value:
        return decode_error(entry.value)  # what was raised while its library was loaded
    if error is None or isinstance(error, BaseException):
        return error
    if error == RAISED:
        return decode_error(entry.value or b"")
    if error == CANCELLED:
        return CancelledError()
    return TaskFailed(error)
