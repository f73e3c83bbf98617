"""What stands before TLS on a port: reads the preamble, then upgrades a control link or hands a data link to a thread."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Callable

from vinecore.shell.stream import Link
from vinecore.shell.tls import CONTROL_PREAMBLE, DATA_PREAMBLE, GO_AHEAD, Identity
from vinecore.wire.framing import FrameWriter
from vinecore.wire.handshake import HANDSHAKE_TIMEOUT_S, needs_tls

PREAMBLE_BYTES = 4


class TlsGate(asyncio.Protocol):
    """One connection until it is encrypted.

    Parameters:
        identity: key and certificate of this side.
        make_link: makes the link that goes on with a control connection; None refuses them.
        serve_data: serves a data connection, in a thread of its own; it gets the plain socket.
        on_closed: called once when the connection ended before it was encrypted.
    """

    def __init__(
        self,
        identity: Identity,
        make_link: Callable[[], Link] | None,
        serve_data: Callable[[socket.socket], None],
        on_closed: Callable[[TlsGate], None],
    ) -> None:
        self.identity = identity
        self.make_link = make_link
        self.serve_data = serve_data
        self.on_closed = on_closed
        self.transport: asyncio.Transport | None = None
        self._early = b""
        self._done = False
        self._timer: asyncio.TimerHandle | None = None
        self._upgrade: asyncio.Task[None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        self._timer = asyncio.get_running_loop().call_later(HANDSHAKE_TIMEOUT_S, self.close)

    def data_received(self, data: bytes) -> None:
        if self._done:
            return
        self._early += data
        if len(self._early) < PREAMBLE_BYTES:
            return
        assert self.transport is not None
        if self._early == CONTROL_PREAMBLE and self.make_link is not None:
            self._settle()
            self.transport.pause_reading()
            self.transport.write(GO_AHEAD)
            self._upgrade = asyncio.get_running_loop().create_task(self._encrypt(self.make_link()))
        elif self._early == DATA_PREAMBLE:
            self._settle()
            self._detach()
        else:
            # A dialler without TLS reads this as a frame and can say what is wrong.
            self.transport.write(FrameWriter().write(needs_tls()))
            self.close()

    async def _encrypt(self, link: Link) -> None:
        """Upgrade to TLS; from there on the link owns the connection."""
        loop = asyncio.get_running_loop()
        assert self.transport is not None
        try:
            transport = await loop.start_tls(
                self.transport, link, self.identity.context, server_side=True, ssl_handshake_timeout=HANDSHAKE_TIMEOUT_S
            )
        except (OSError, TimeoutError):
            link.abandon()
            return
        if transport is None:
            link.abandon()
            return
        link.connection_made(transport)

    def _detach(self) -> None:
        assert self.transport is not None
        sock: socket.socket = self.transport.get_extra_info("socket")
        copy = socket.socket(sock.family, sock.type, sock.proto, fileno=sock.dup().detach())
        self.transport.abort()
        threading.Thread(target=self.serve_data, args=(copy,), name="vine-transfer", daemon=True).start()

    def _settle(self) -> None:
        self._done = True
        if self._timer is not None:
            self._timer.cancel()
        self.on_closed(self)

    def close(self) -> None:
        """End it; safe to call twice."""
        if self.transport is not None:
            self.transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        if not self._done:
            self._settle()
