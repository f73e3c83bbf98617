"""The process that outlives a killed worker by a moment: it ends what the worker's calls had started, and removes its directory.

    worker --fork, fork--> guard, waiting for the end of a connection that only the worker holds
    worker leaves ------> one byte: nothing is left to do
    worker killed ------> the end without the byte: every process with the worker's mark in its environment is ended

A worker that is killed cannot clean up. Its slots end with their parent (the kernel sees to that), but not what calls started,
daemons with a session of their own among it: that is found by the variable ``VINE_WORKER_MARK``, which all of it inherits. A
worker that itself was started by a call (of a manager inside a call, say) adds its own mark to those that it has inherited.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
from collections.abc import Callable

from vinecore.shell.descendants import end_processes

# In the environment of everything that runs on behalf of a worker's calls: the marks of that worker and of those above it.
VARIABLE = "VINE_WORKER_MARK"
_BETWEEN = ":"
_ALL_IS_WELL = b"."
# A dismissed guard is gone within this time, unless somebody has stopped it.
_LEAVE_S = 1.0


def marks_with(mark: str) -> str:
    """What the variable is for processes of the worker with this mark: it comes after those that the worker has inherited."""
    above = os.environ.get(VARIABLE)
    return f"{above}{_BETWEEN}{mark}" if above else mark


class WorkerGuard:
    """The worker's side. Make it before there are threads: it forks.

    Parameters:
        mark: what marked processes have in ``VINE_WORKER_MARK``, among others; no other worker has the same.
        clean: removes what the worker has left of files; called in the guard, when no marked process is left.
        kept_fds: stay open in the guard, so that what they stand for is locked, and known, until all is clean.
    """

    def __init__(self, mark: str, clean: Callable[[], None], kept_fds: list[int]) -> None:
        self._ours, theirs = socket.socketpair()
        wanted = mark.encode()
        # Twice: the worker takes note of the ends of its children, and the guard is to be nobody's child.
        between = os.fork()
        if between == 0:
            # Whatever happens: no exception may get out of here, to where a copy of the worker would clean up in its place.
            try:
                if os.fork() == 0:
                    _watch(theirs.fileno(), wanted, clean, kept_fds)
            finally:
                os._exit(0)
        os.waitpid(between, 0)
        theirs.close()

    def dismiss(self) -> None:
        """The worker has cleaned up by itself: returns when the guard has ended too."""
        self._ours.settimeout(_LEAVE_S)
        with contextlib.suppress(OSError):
            self._ours.sendall(_ALL_IS_WELL)
            self._ours.recv(1)
        self._ours.close()


def _watch(connection: int, mark: bytes, clean: Callable[[], None], kept_fds: list[int]) -> None:
    """Wait for the worker's end, in a session of our own: what kills the worker's group must not reach this."""
    # First: the worker's own way to take these is of no use here.
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
    os.setsid()
    os.dup2(connection, 0)
    nothing = os.open(os.devnull, os.O_RDWR)
    os.dup2(nothing, 1)
    os.dup2(nothing, 2)
    first = 3
    for kept in sorted(kept_fds):
        os.closerange(first, kept)
        first = kept + 1
    os.closerange(first, os.sysconf("SC_OPEN_MAX"))
    if os.read(0, 1) != _ALL_IS_WELL:
        for _ in end_processes(lambda: _open_marked(mark)):
            pass
        clean()


def _open_marked(mark: bytes) -> dict[int, int]:
    """Handles of every process of this user that carries the mark."""
    found = {}
    for name in os.listdir("/proc"):
        if name.isdigit() and (handle := _opened(int(name), mark)) is not None:
            found[int(name)] = handle
    return found


def _opened(pid: int, mark: bytes) -> int | None:
    """A handle of the process if it carries the mark; it names the process even after its number is free for others."""
    if pid == os.getpid():
        return None
    try:
        handle = os.pidfd_open(pid)
    except OSError:
        return None
    try:
        with open(f"/proc/{pid}/environ", "rb") as file:
            if _has_mark(file.read(), mark):
                return handle
    except OSError:
        pass  # somebody else's, or it has just ended
    os.close(handle)
    return None


def _has_mark(environment: bytes, mark: bytes) -> bool:
    """Whether the mark is among those of a process."""
    name = f"{VARIABLE}=".encode()
    for entry in environment.split(b"\0"):
        if entry.startswith(name):
            return mark in entry.removeprefix(name).split(_BETWEEN.encode())
    return False
