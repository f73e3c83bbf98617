"""A framed link over a socket pair to a child process, read and written by the loop's selector directly.

It is the worker's half: children block. Descriptors can ride along with a message (SCM_RIGHTS), in order.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections import deque
from collections.abc import Callable

from vinecore.errors import ProtocolError
from vinecore.shell.own_words import STDERR, say
from vinecore.wire.framing import FrameReader, FrameWriter
from vinecore.wire.messages import CONTROL_FRAME_LIMIT_BYTES

# One read takes this much at most, into one buffer: a fresh one for every read costs more than the copy out. All links read in
# the loop's thread and leave nothing there: each with a buffer of its own, a thousand slots would fill 256 MB.
RECEIVE_BYTES = 256 * 1024
_buffer = memoryview(bytearray(RECEIVE_BYTES))
# Sockets of slots hold a batch and its results without blocking either side.
SOCKET_BUFFER_BYTES = 1 << 20
# Reads that empty a socket whose other end has died; somebody who lives on with it may write for ever.
_LAST_READS = 4 * SOCKET_BUFFER_BYTES // RECEIVE_BYTES


class LocalLink:
    """Non-blocking end of a socket pair.

    Parameters:
        on_payloads: called with the payloads that arrived together.
        on_closed: called once when the other end is gone.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        sock: socket.socket,
        on_payloads: Callable[[list[bytes]], None],
        on_closed: Callable[[], None],
    ) -> None:
        self.loop = loop
        self.sock = sock
        self.on_payloads = on_payloads
        self.on_closed = on_closed
        self.reader = FrameReader(CONTROL_FRAME_LIMIT_BYTES)
        self.writer = FrameWriter()
        self.closed = False
        self._waiting: deque[tuple[memoryview, tuple[int, ...]]] = deque()
        sock.setblocking(False)
        loop.add_reader(sock.fileno(), self._readable)

    def _readable(self) -> bool:
        """Read once; False when nothing more can come now."""
        try:
            size_bytes = self.sock.recv_into(_buffer)
        except (BlockingIOError, InterruptedError):
            return False
        except OSError:
            size_bytes = 0
        if not size_bytes:
            self.close()
            self.on_closed()
            return False
        try:
            payloads = self.reader.feed(_buffer[:size_bytes])
            if payloads:
                self.on_payloads(payloads)
        except ProtocolError as error:
            # User code has written into the socket, or forked a second writer: nothing that follows can be believed.
            say(STDERR, f"vine_worker: a process of a library is ended, for what it sent cannot be read: {error}")
            self.close()
            self.on_closed()
        return not self.closed

    def read_rest(self) -> None:
        """Read what a process left that is dead, though its end of the socket is not closed: a child of its may have that."""
        for _ in range(_LAST_READS):
            if self.closed or not self._readable():
                return

    def send(self, payload: bytes, descriptors: tuple[int, ...] = ()) -> None:
        """Send a message now, or as soon as the socket takes it; the caller may close its descriptors at once."""
        data = memoryview(self.writer.write(payload))
        if self.closed:
            return
        if self._waiting:
            self._waiting.append((data, _copies(descriptors)))
            return
        sent = self._try(data, descriptors)
        if sent < len(data):
            self._waiting.append((data[sent:], _copies(descriptors) if sent == 0 else ()))
            self.loop.add_writer(self.sock.fileno(), self._writable)

    def _try(self, data: memoryview, descriptors: tuple[int, ...]) -> int:
        try:
            if descriptors:
                return socket.send_fds(self.sock, [data], list(descriptors))
            return self.sock.send(data)
        except (BlockingIOError, InterruptedError):
            return 0
        except OSError:
            # The reader sees the end of the link and reports it; what is written meanwhile is lost with it.
            return len(data)

    def _writable(self) -> None:
        while self._waiting:
            data, descriptors = self._waiting[0]
            sent = self._try(data, descriptors)
            if not sent:
                return
            _close(descriptors)
            if sent < len(data):
                self._waiting[0] = (data[sent:], ())
                return
            self._waiting.popleft()
        self.loop.remove_writer(self.sock.fileno())

    def close(self) -> None:
        """Stop reading and close; safe to call twice."""
        if not self.closed:
            self.closed = True
            self.loop.remove_reader(self.sock.fileno())
            self.loop.remove_writer(self.sock.fileno())
            for _, descriptors in self._waiting:
                _close(descriptors)
            self._waiting.clear()
            self.sock.close()


def _copies(descriptors: tuple[int, ...]) -> tuple[int, ...]:
    """For a message that has to wait: the numbers of those that were given may be others' by then."""
    return tuple(map(os.dup, descriptors))


def _close(descriptors: tuple[int, ...]) -> None:
    for descriptor in descriptors:
        os.close(descriptor)
