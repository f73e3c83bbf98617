"""Somebody who dials a port with plain sockets: an honest dialler as far as a test wants, and then not any more."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable

from vinecore.shell import tls
from vinecore.wire import messages
from vinecore.wire.framing import FrameReader, FrameWriter
from vinecore.wire.handshake import BEFORE_AUTH_LIMIT_BYTES, Dialer

LIMIT_S = 30.0


def dial(port: int, source: str = "", preamble: bytes = b"", limit_s: float = LIMIT_S) -> tuple[socket.socket, bytes]:
    """A connection to a port of this machine, encrypted when a preamble is given; and what binds a proof to that channel."""
    sock = socket.create_connection(("127.0.0.1", port), limit_s, (source, 0) if source else None)
    try:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if not preamble:
            return sock, b""
        sock.sendall(preamble)
        assert sock.recv(1) == tls.GO_AHEAD
        encrypted = tls.client_context().wrap_socket(sock)
        return encrypted, tls.binding_of(encrypted.getpeercert(True))
    except BaseException:
        sock.close()
        raise


def preamble_of(kind: str) -> bytes:
    """How a link of this kind begins where links are encrypted."""
    return tls.CONTROL_PREAMBLE if kind == "worker" else tls.DATA_PREAMBLE


class Rogue:
    """Somebody who knows the secret, and so gets past the handshake."""

    def __init__(self, port: int, secret: bytes | None, kind: str = "worker", encrypted: bool = False) -> None:
        # Everything that was sent and received, for who wants to send it again.
        self.sent = self.received = b""
        self.sock, binding = dial(port, preamble=preamble_of(kind) if encrypted else b"")
        try:
            self.reader, self.writer = FrameReader(BEFORE_AUTH_LIMIT_BYTES), FrameWriter()
            self._shake(Dialer(secret, os.urandom(32), kind, binding))
        except BaseException:
            self.sock.close()
            raise

    def _shake(self, dialer: Dialer) -> None:
        self.write(dialer.start())
        while not dialer.done:
            answer = dialer.receive(self.frame())
            if answer is not None:
                self.write(answer)
        self.reader.rekey(dialer.receive_key, messages.CONTROL_FRAME_LIMIT_BYTES)
        self.writer.rekey(dialer.send_key)

    def frame(self) -> bytes:
        """The next payload from the other side."""
        self.sock.settimeout(LIMIT_S)
        while (payload := self.reader.next_frame()) is None:
            data = self.sock.recv(65536)
            assert data, "the other side closed the link"
            self.received += data
            self.reader.push(data)
        return payload

    def write(self, payload: bytes) -> None:
        self.raw(self.writer.write(payload))

    def raw(self, data: bytes) -> None:
        self.sent += data
        self.sock.sendall(data)

    def send(self, message: object) -> None:
        self.write(messages.encode(message))

    def receive(self, decode: Callable[[bytes], object] = messages.decode_from_manager) -> object:
        return decode(self.frame())

    def join(self) -> messages.Welcome:
        """Become a worker."""
        self.send(HELLO)
        welcome = self.receive()
        assert isinstance(welcome, messages.Welcome)
        return welcome

    def __enter__(self) -> Rogue:
        return self

    def __exit__(self, *error: object) -> None:
        self.sock.close()


HELLO = messages.Hello("rogue", 1, 1, 100, 100, 0, [], "3.11.0", "another machine", "/nowhere", [])


def rest_of(sock: socket.socket, limit_s: float = LIMIT_S) -> bytes:
    """What still comes until the other side closes; it must close in time.

    Raises:
        AssertionError: it kept the connection open.
    """
    sock.settimeout(limit_s)
    data = b""
    try:
        while piece := sock.recv(65536):
            data += piece
    except TimeoutError:
        raise AssertionError(f"the connection was kept open for {limit_s} s; it sent {data[:200]!r}") from None
    except OSError:
        pass  # an abrupt end is an end
    return data
