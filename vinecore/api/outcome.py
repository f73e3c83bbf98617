"""What an entry's outcome stands for, in the caller's thread: its value, or its exception."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import CancelledError
from typing import Any

from vinecore.errors import LibraryFailed, ProtocolError, TaskFailed, UnpicklableError
from vinecore.manager.entries import CANCELLED, RAISED, TaskEntry
from vinecore.runtime.error_texts import describe
from vinecore.runtime.payload import decode
from vinecore.runtime.raised import decode_error

# As the interpreter itself finds it, whatever a class says.
_cause_of: Callable[[BaseException], BaseException | None] = BaseException.__dict__["__cause__"].__get__


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


def rebuilt(data: Any, name: str) -> Any:
    """The value of a call with this name, from the bytes that came back.

    Raises:
        UnpicklableError: unpickling raised; that is its cause.
    """
    try:
        return decode(data)
    except BaseException as error:
        blame_result(error, name)
        raise


def blame_result(error: BaseException, name: str) -> None:
    """Raise what says that a result could not be unpickled, unless the error says nothing of the result.

    Whatever the user's classes raise counts, SystemExit too: a value that ends the program that asks for it helps nobody.

    Raises:
        UnpicklableError: from the error.
    """
    # Not isinstance, which asks for an attribute of the error.
    if issubclass(type(error), KeyboardInterrupt | MemoryError | ProtocolError):
        return
    text = f"the result of {name or 'the call'} came back, but could not be rebuilt here: {describe(error)}"
    raise UnpicklableError(text) from error


def remote_text_of(error: BaseException) -> str:
    """The remote traceback that an exception came with; empty when it came with none. Its class is not asked."""
    cause = _cause_of(error)
    return "" if cause is None else str(cause)


def text_of(error: BaseException | None) -> str:
    """What an exception says; its class may do anything when it is asked."""
    try:
        return str(error)
    except (Exception, SystemExit):
        # As tracebacks show it.
        return "<exception str() failed>"
