"""What a worker says of its own: a line for people, which may get lost, and never holds up or ends the process.

Its standard output may be a pipe that nobody reads (calls print into it too, and a full one takes nothing), or that is closed.
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import stat

STDOUT, STDERR = 1, 2
# A pipe takes so much at once or nothing; longer lines are cut.
_LINE_BYTES = select.PIPE_BUF


def say(stream: int, text: str) -> None:
    """Write a line on the standard output or error (any thread); what cannot be written now is dropped."""
    data = text.encode(errors="backslashreplace")[: _LINE_BYTES - 1] + b"\n"
    with contextlib.suppress(OSError):
        if stat.S_ISFIFO(os.fstat(stream).st_mode):
            _write_to_pipe(stream, data)
        else:
            _write_if_room(stream, data)


def _write_to_pipe(stream: int, data: bytes) -> None:
    """Through a description of our own: others write there too, and not to wait must not become a property of theirs."""
    try:
        fd = os.open(f"/proc/self/fd/{stream}", os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        # Another user made the pipe, say, or no more files may be opened; but not that nobody will ever read it.
        if error.errno != errno.ENXIO:
            _write_if_room(stream, data)
        return
    try:
        os.write(fd, data)
    finally:
        os.close(fd)


def _write_if_room(stream: int, data: bytes) -> None:
    poll = select.poll()
    poll.register(stream, select.POLLOUT)
    # A file always has room. One that hung up fails the write.
    if poll.poll(0):
        os.write(stream, data)
