"""A framed, authenticated link over an asyncio transport.

    transport -> buffer_updated -> FrameReader -> handshake frames | payloads -> on_payloads(link, list of bytes)
    send(payload) -> FrameWriter -> gathered -> flush() -> one write

Nothing is decoded before the handshake is done; until then frames are small and the time is limited. Errors of the operating
system end
here: above this room a link is either alive or reported lost, once, with a reason.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Callable

from vinecore.errors import PeerError
from vinecore.shell.strangers import Stranger, Strangers
from vinecore.wire.framing import FrameReader, FrameWriter
from vinecore.wire.handshake import BEFORE_AUTH_LIMIT_BYTES, HANDSHAKE_TIMEOUT_S, Dialer, Listener
from vinecore.wire.messages import CONTROL_FRAME_LIMIT_BYTES

# One read takes this much at most, into one buffer for the link's life: a fresh one for every read costs more than the copy out.
RECEIVE_BYTES = 256 * 1024


class Link(asyncio.BufferedProtocol):
    """One link of either side; the same class dials and listens.

    Parameters:
        handshake: the sans-IO half of the handshake for this side; or what makes it, given the transport (a dialler over TLS
            knows the certificate only then).
        on_ready: called once when the other side has proved itself.
        on_payloads: called with every list of payloads that arrived together.
        on_lost: called once when the link is gone; the error is None when the other side just closed.
        strangers: where the link is counted until the other side has proved itself (a listener's).
    """

    def __init__(
        self,
        handshake: Dialer | Listener | Callable[[asyncio.Transport], Dialer],
        on_ready: Callable[[Link], None],
        on_payloads: Callable[[Link, list[bytes]], None],
        on_lost: Callable[[Link, Exception | None], None],
        strangers: Strangers | None = None,
    ) -> None:
        self.handshake: Dialer | Listener
        self._make_handshake: Callable[[asyncio.Transport], Dialer] | None = None
        if isinstance(handshake, Dialer | Listener):
            self.handshake = handshake
        else:
            self._make_handshake = handshake
        self.on_ready = on_ready
        self.on_payloads = on_payloads
        self.on_lost = on_lost
        self.reader = FrameReader(BEFORE_AUTH_LIMIT_BYTES)
        self.writer = FrameWriter()
        self.ready = False
        self.lost = False
        self.error: Exception | None = None
        self.peer = ""
        self.transport: asyncio.Transport | None = None
        self._out: list[bytes] = []
        self._early = b""
        # A stranger gets no more memory than its frames may have; see _shake.
        self._buffer = memoryview(bytearray(BEFORE_AUTH_LIMIT_BYTES))
        self._strangers = strangers
        self._stranger: Stranger | None = None
        self._timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        sock = transport.get_extra_info("socket")
        if sock is not None and sock.family in (socket.AF_INET, socket.AF_INET6):
            with contextlib.suppress(OSError):
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        peer = transport.get_extra_info("peername")
        self.peer = name_of(peer)
        self._timer = asyncio.get_running_loop().call_later(HANDSHAKE_TIMEOUT_S, self._too_slow)
        if self._strangers is not None:
            address = str(peer[0]) if isinstance(peer, tuple) else ""
            self._stranger = self._strangers.take_in(address, self._one_too_many)
        if self._make_handshake is not None:
            self.handshake = self._make_handshake(transport)
        first = self.handshake.start()
        if first is not None:
            transport.write(self.writer.write(first))
        if self._early:
            early, self._early = self._early, b""
            self._take(early)

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._buffer

    def buffer_updated(self, nbytes: int) -> None:
        if self.lost:
            return
        self._take(self._buffer[:nbytes])

    def _take(self, data: memoryview | bytes) -> None:
        if self.transport is None:
            # Over TLS the first bytes may be decrypted before the upgrade of the connection has been reported.
            self._early += data
            return
        try:
            if self.ready:
                payloads = self.reader.feed(data)
            else:
                self.reader.push(data)
                if not self._shake():
                    return
                payloads = self.reader.feed(b"")
            if payloads:
                self.on_payloads(self, payloads)
        except PeerError as error:
            self.fail(error)

    def _shake(self) -> bool:
        """Go on with the handshake; True when it is done."""
        assert self.transport is not None
        while not self.ready:
            payload = self.reader.next_frame()
            if payload is None:
                return False
            answer = self.handshake.receive(payload)
            if answer is not None:
                self.transport.write(self.writer.write(answer))
            if self.handshake.done:
                self.reader.rekey(self.handshake.receive_key, CONTROL_FRAME_LIMIT_BYTES)
                self.writer.rekey(self.handshake.send_key)
                self.ready = True
                self._settle()
                self.on_ready(self)
                if not self.lost:
                    self._buffer = memoryview(bytearray(RECEIVE_BYTES))
        return not self.lost

    def _too_slow(self) -> None:
        if not self.ready:
            self.fail(PeerError(f"no complete handshake within {HANDSHAKE_TIMEOUT_S:g} s"))

    def _one_too_many(self) -> None:
        self.fail(PeerError("too many connections had not proved themselves"))

    def _settle(self) -> None:
        """The handshake is over, well or not."""
        if self._timer is not None:
            self._timer.cancel()
        if self._strangers is not None and self._stranger is not None:
            self._strangers.settled(self._stranger)
            # No circle is left: a thousand strangers would stay in memory until it is found.
            self._stranger = None

    def fail(self, error: Exception) -> None:
        """Close the link because of an error of the other side; a refusal is sent first if there is one."""
        self.error = self.error or error
        refusal = getattr(error, "refusal", None)
        if self.transport is not None:
            if refusal and not self.ready:
                self.transport.write(self.writer.write(refusal))
                self.transport.close()
            else:
                self.transport.abort()
        self._report_lost()

    def abandon(self, error: Exception | None = None, peer: str = "") -> None:
        """It never got a connection, or not one that it could use: report it lost."""
        self.error = self.error or error
        self.peer = peer
        self._report_lost()

    def came_last(self, data: bytes) -> bool:
        """Whether what came last began with these bytes."""
        return self._buffer[: len(data)] == data

    def connection_lost(self, exc: Exception | None) -> None:
        self.error = self.error or exc
        self._report_lost()

    def _report_lost(self) -> None:
        self._settle()
        if not self.lost:
            self.lost = True
            self.on_lost(self, self.error)

    def send(self, payload: bytes) -> None:
        """Gather a payload for the next flush."""
        self._out.append(self.writer.write(payload))

    def flush(self) -> None:
        """Write what has gathered, at once."""
        if self._out:
            out, self._out = self._out, []
            # A write that fails is reported in the loop's next turn; asyncio logs those that come before.
            if not self.lost and self.transport is not None and not self.transport.is_closing():
                self.transport.write(out[0] if len(out) == 1 else b"".join(out))

    def close(self) -> None:
        """Write what is left and close."""
        self.flush()
        if self.transport is not None:
            self.transport.close()

    def detach_socket(self) -> tuple[socket.socket, bytes]:
        """Take the connection out of the loop for blocking use; returns it with the bytes read too far."""
        assert self.transport is not None
        sock: socket.socket = self.transport.get_extra_info("socket")
        copy = socket.socket(sock.family, sock.type, sock.proto, fileno=sock.dup().detach())
        leftover = self.reader.leftover()
        self.lost = True
        self.transport.close()
        return copy, leftover


def name_of(peer: object) -> str:
    """The other side of a connection, from what its transport says of it."""
    return f"{peer[0]}:{peer[1]}" if isinstance(peer, tuple) else "a local socket"
