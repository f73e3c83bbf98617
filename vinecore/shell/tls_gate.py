"""What stands before TLS on a port: reads the preamble, then upgrades a control link or hands a data link to a thread.

    accepted -> preamble -> control: TLS in the loop -> Link (counts itself from there)
                        '-> data: a thread: TLS, proof -> DataLink

Whoever has not proved himself is counted among the port's strangers at each of these stages, and each has a limit of time.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
from collections.abc import Callable

from vinecore.errors import AuthenticationError, PeerError
from vinecore.shell import transfer
from vinecore.shell.strangers import Stranger, Strangers
from vinecore.shell.stream import Link, name_of
from vinecore.shell.tls import CONTROL_PREAMBLE, DATA_PREAMBLE, GO_AHEAD, Identity
from vinecore.wire.framing import FrameWriter
from vinecore.wire.handshake import HANDSHAKE_TIMEOUT_S, is_in_the_clear, needs_tls

PREAMBLE_BYTES = 4


class TlsGate(asyncio.Protocol):
    """One connection until it is encrypted, and a data link until it has proved itself.

    Parameters:
        identity: key and certificate of this side.
        strangers: of the port.
        secret, kind: what the dialler of a data link must know, and the kind of link that is served.
        serve_data: serves a data link that has proved itself, in a thread of its own.
        make_link: makes the link that goes on with a control connection; None refuses them.
    """

    def __init__(
        self,
        identity: Identity,
        strangers: Strangers,
        secret: bytes | None,
        kind: str,
        serve_data: Callable[[transfer.DataLink], None],
        make_link: Callable[[], Link] | None = None,
    ) -> None:
        self.identity = identity
        self.strangers = strangers
        self.secret = secret
        self.kind = kind
        self.serve_data = serve_data
        self.make_link = make_link
        self.transport: asyncio.Transport | None = None
        self._early = b""
        self._begun = False
        self._stranger: Stranger | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._upgrade: asyncio.Task[None] | None = None
        # A second descriptor of a data link's connection: TLS takes the first one over, and this must be able to end it.
        self._handle: socket.socket | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        peer = transport.get_extra_info("peername")
        self._stranger = self.strangers.take_in(str(peer[0]) if isinstance(peer, tuple) else "", self._end)
        self._timer = asyncio.get_running_loop().call_later(HANDSHAKE_TIMEOUT_S, self._end)

    def data_received(self, data: bytes) -> None:
        if self._begun:
            return
        self._early += data
        if len(self._early) < PREAMBLE_BYTES:
            return
        assert self.transport is not None
        self._begun = True
        if self._early == CONTROL_PREAMBLE and self.make_link is not None:
            self.transport.pause_reading()
            self.transport.write(GO_AHEAD)
            self._upgrade = asyncio.get_running_loop().create_task(self._encrypt(self.make_link()))
        elif self._early == DATA_PREAMBLE:
            self._detach()
        else:
            # A dialler without TLS reads this as a frame and can say what is wrong.
            self.transport.write(FrameWriter().write(needs_tls()))
            self.transport.close()
            if self.make_link is not None and is_in_the_clear(self._early):
                why = "a worker without TLS dialled, and this manager wants it: start vine_worker with --ssl"
                self.make_link().abandon(AuthenticationError(why), name_of(self.transport.get_extra_info("peername")))

    async def _encrypt(self, link: Link) -> None:
        """Upgrade to TLS; from there on the link owns the connection, and is counted in place of the gate."""
        loop = asyncio.get_running_loop()
        assert self.transport is not None
        transport = None
        # An end that comes from this side (one too many) cuts the handshake off without an error.
        try:
            # Of a connection that ended before this began, nobody would tell the handshake: it would wait for its whole limit.
            if not self.transport.is_closing():
                transport = await loop.start_tls(
                    self.transport, link, self.identity.context, server_side=True, ssl_handshake_timeout=HANDSHAKE_TIMEOUT_S
                )
        except (OSError, TimeoutError) as error:
            # Its frames hold the future that holds it: a circle with buffers of 256 KiB for each stranger.
            error.__traceback__ = None
        self._settle()
        self._upgrade = None
        if transport is None:
            link.abandon()
        else:
            link.connection_made(transport)

    def _detach(self) -> None:
        assert self.transport is not None
        sock: socket.socket = self.transport.get_extra_info("socket")
        copy = _duplicate(sock)
        self._handle = _duplicate(sock)
        self.transport.abort()
        loop = asyncio.get_running_loop()
        threading.Thread(target=self._serve, args=(copy, loop), name="vine-transfer", daemon=True).start()

    def _serve(self, sock: socket.socket, loop: asyncio.AbstractEventLoop) -> None:
        """A data link over TLS (a thread of its own)."""
        try:
            link = transfer.accept_tls(sock, self.secret, self.identity, self.kind)
        except (PeerError, OSError):
            return
        finally:
            # The loop may have ended: nobody counts any more then.
            with contextlib.suppress(RuntimeError):
                loop.call_soon_threadsafe(self._settle)
        with contextlib.suppress(PeerError, OSError):
            self.serve_data(link)

    def _end(self) -> None:
        """It was too slow, or one too many."""
        if self._handle is not None:
            with contextlib.suppress(OSError):
                self._handle.shutdown(socket.SHUT_RDWR)
        elif self.transport is not None:
            self.transport.abort()

    def _settle(self) -> None:
        """It is encrypted (a data link: proved too), or gone."""
        if self._timer is not None:
            self._timer.cancel()
        if self._stranger is not None:
            self.strangers.settled(self._stranger)
            self._stranger = None
        if self._handle is not None:
            self._handle.close()
            self._handle = None

    def connection_lost(self, exc: Exception | None) -> None:
        if self._handle is None and self._upgrade is None:
            self._settle()


def _duplicate(sock: socket.socket) -> socket.socket:
    return socket.socket(sock.family, sock.type, sock.proto, fileno=sock.dup().detach())
