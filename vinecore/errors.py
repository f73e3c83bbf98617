"""Every error this project raises, drawn as a tree.

VineError
├── UsageError               the caller asked for something that cannot be (also a ValueError)
│   ├── InputMissing         a local input file does not exist or cannot be read
│   ├── RangeError           a range begins above its end (also a TypeError)
│   ├── UnpicklableError     an argument, function or result cannot be sent, or a result not rebuilt here (also a TypeError)
│   └── MissingKeyError      a requested graph key is not in the graph (also a KeyError)
├── TaskFailed               the user's code failed in a way that cannot be raised as itself
│   └── RemoteError          the exception could not be rebuilt here; carries its text and traceback
├── PeerError                the other side of a link broke the rules
│   ├── ProtocolError        bytes that are no legal frame or message at this point
│   ├── AuthenticationError  wrong or missing secret, replayed or reflected proof
│   └── VersionError         the other side speaks another protocol version
├── LostError                something went away: says what, who held it, where to look
│   ├── WorkerLost           the worker's link ended while it held work or the only copy of data
│   ├── SlotLost             the process that ran the call died (signal or exit code is named)
│   ├── LibraryFailed        a library could not be started on a worker
│   ├── FileLost             no source of a file is left
│   └── LoopDied             the manager's loop ended; every waiting call fails with its reason
└── InvariantError           our own promise is broken: carries the story of what led to it

User exceptions are raised as themselves; ``RemoteTraceback`` is their ``__cause__`` and carries the remote text.
Every class survives pickling, which a test checks by walking this module.
"""

from __future__ import annotations

from typing import NoReturn


class VineError(Exception):
    """Root of everything raised on purpose by vinecore and daskvine."""


class UsageError(VineError, ValueError):
    """The caller asked for something that cannot be; the text names the thing and the fix."""


class InputMissing(UsageError):
    """A local input file does not exist or cannot be read; its task comes back with the result "input missing"."""


class RangeError(UsageError, TypeError):
    """A range of ports begins above its end: a TypeError as in TaskVine, and a UsageError like every other wrong port."""


class UnpicklableError(UsageError, TypeError):
    """An argument, function or result cannot be pickled, or a result not unpickled; the text names the object or the call."""


class MissingKeyError(UsageError, KeyError):
    """A requested key is not in the graph."""

    def __str__(self) -> str:
        # KeyError shows the repr of its argument, which hides line breaks of the message.
        return str(self.args[0]) if self.args else ""


class TaskFailed(VineError):
    """The user's code failed in a way that cannot be raised as itself."""


class RemoteError(TaskFailed):
    """An exception that could not be rebuilt in this process; its text and traceback are in the message."""


class PeerError(VineError):
    """The other side of a link broke the rules; that link is closed."""


class ProtocolError(PeerError):
    """Bytes that are not a legal frame or message at this point."""


class AuthenticationError(PeerError):
    """The other side could not prove that it knows the secret, or we do not have one."""


class VersionError(PeerError):
    """The other side speaks another protocol version."""


class LostError(VineError):
    """Something that was counted on went away."""


class WorkerLost(LostError):
    """A worker left while it ran the task, more often than the task may be retried."""


class SlotLost(LostError):
    """The process that ran the call died, more often than the call may be retried."""


class LibraryFailed(LostError):
    """A library could not be started."""


class FileLost(LostError):
    """No source of a file is left and nothing can make it again."""


class LoopDied(LostError):
    """The manager's loop thread ended."""


class InvariantError(VineError):
    """One of our own promises is broken."""


class RemoteTraceback(Exception):
    """The text of a traceback in another process, shown as the cause of a user's exception."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.text = text

    def __str__(self) -> str:
        return self.text


def unreachable(value: NoReturn) -> NoReturn:
    """End of a match over a closed union: mypy proves it is never called."""
    raise InvariantError(f"unhandled {value!r}")
