"""What programs say, passed on to a stream of this process that perhaps nobody reads: whoever says it never waits for long."""

from __future__ import annotations

import os
import select
import stat
import time

# A stream that takes nothing for so long is taken for unread: what comes is dropped until it takes something again. Higher: less
# is lost where the reader is slow, and what says it is held up longer where there is none.
ROOM_WAIT_S = 1.0

# Streams that are taken for unread.
_unread: set[int] = set()


def pass_on(data: bytes, fd: int) -> None:
    """Write to a stream; if nobody reads it, or its disk is full, the rest is dropped."""
    try:
        # Through a description of our own: others write there too, and not to wait must not become a property of theirs.
        own = -1
        if stat.S_ISFIFO(os.fstat(fd).st_mode):
            own = os.open(f"/proc/self/fd/{fd}", os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return
    try:
        _write(data, own if own >= 0 else fd, fd)
    except OSError:
        return
    finally:
        if own >= 0:
            os.close(own)


def _write(data: bytes, out: int, fd: int) -> None:
    poll = select.poll()
    poll.register(out, select.POLLOUT)
    until = time.monotonic() + ROOM_WAIT_S
    while data:
        wait_s = 0.0 if fd in _unread else until - time.monotonic()
        if wait_s < 0 or not poll.poll(wait_s * 1000):
            _unread.add(fd)
            return
        try:
            # A pipe that has room takes as much as this at once.
            data = data[os.write(out, data[: select.PIPE_BUF]) :]
        except BlockingIOError:
            continue  # somebody else was faster
        _unread.discard(fd)
        until = time.monotonic() + ROOM_WAIT_S
