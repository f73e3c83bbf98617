"""Hands objects of the store to other workers, only against a ticket. Connections are accepted by the loop, served in threads."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import threading
import time
from collections.abc import Callable

from vinecore.errors import PeerError
from vinecore.model.ticket import check_ticket
from vinecore.shell import transfer
from vinecore.shell.store import Store
from vinecore.shell.stream import Link
from vinecore.shell.tls import Identity
from vinecore.shell.tls_gate import TlsGate
from vinecore.wire import messages
from vinecore.wire.handshake import PENDING_PER_ADDRESS, Listener


class PeerServer:
    """The open port of a worker.

    Parameters:
        store: what is handed out.
        secret: that peers must know, as for the manager.
        key: returns the transfer key of the run that is served now; None when there is none.
    """

    def __init__(self, store: Store, secret: bytes | None, key: Callable[[], bytes | None]) -> None:
        self.store = store
        self.secret = secret
        self.key = key
        # Key and certificate for TLS; ``encrypted`` without an identity serves nobody: the manager relays then.
        self.identity: Identity | None = None
        self.encrypted = False
        self._gates: set[TlsGate] = set()
        self.port = 0
        self._server: asyncio.Server | None = None
        self._waiting: set[Link] = set()

    async def start(self, port: int = 0) -> None:
        """Listen on every address; a port that cannot be had only means that peers get objects through the manager."""
        with contextlib.suppress(OSError):
            # One socket for both families: two would get two different free ports.
            if socket.has_dualstack_ipv6():
                listener = socket.create_server(("::", port), family=socket.AF_INET6, dualstack_ipv6=True)
            else:
                listener = socket.create_server(("0.0.0.0", port))
            self._server = await asyncio.get_running_loop().create_server(self._accept, sock=listener)
            self.port = listener.getsockname()[1]

    def close(self) -> None:
        """Stop listening."""
        if self._server is not None:
            self._server.close()
        for link in list(self._waiting):
            link.close()

    def _accept(self) -> asyncio.BaseProtocol:
        if self.encrypted:
            if self.identity is None:
                return _Closed()
            gate = TlsGate(self.identity, None, self._serve_tls, self._gates.discard)
            self._gates.add(gate)
            if len(self._gates) > PENDING_PER_ADDRESS:
                next(iter(self._gates)).close()
            return gate
        link = Link(Listener(self.secret, os.urandom(32)), self._ready, _nothing, self._lost)
        self._waiting.add(link)
        if len(self._waiting) > PENDING_PER_ADDRESS:
            # The oldest unfinished handshake goes: a stranger cannot keep peers out.
            next(iter(self._waiting)).fail(PeerError("too many unfinished handshakes"))
        return link

    def _lost(self, link: Link, error: Exception | None) -> None:
        self._waiting.discard(link)

    def _ready(self, link: Link) -> None:
        self._waiting.discard(link)
        if link.handshake.kind != "peer":  # type: ignore[union-attr]
            raise PeerError("only peers may connect here")
        sock, leftover = link.detach_socket()
        sock.setblocking(True)
        data_link = transfer.DataLink(sock, link.reader, link.writer, leftover)
        threading.Thread(target=self._serve, args=(data_link,), name="vine-peer", daemon=True).start()

    def _serve_tls(self, sock: socket.socket) -> None:
        """The same over TLS (a thread of its own)."""
        identity = self.identity
        if identity is None:
            sock.close()
            return
        with contextlib.suppress(PeerError, OSError):
            self._serve(transfer.accept_tls(sock, self.secret, identity, "peer"))

    def _serve(self, link: transfer.DataLink) -> None:
        """One object out. Errors end the connection: the other side reports them."""
        with contextlib.closing(link), contextlib.suppress(PeerError, OSError):
            request = link.receive()
            key = self.key()
            if not isinstance(request, messages.Get) or key is None:
                return
            check_ticket(key, request.name, request.worker_id, request.expires_s, request.ticket, time.time())
            transfer.send_object(link, request.name, transfer.LocalPath(str(self.store.path(request.name))))
            if not self.encrypted:
                link.sock.shutdown(socket.SHUT_WR)


class _Closed(asyncio.Protocol):
    """Closes at once."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        transport.close()


def _nothing(link: Link, payloads: list[bytes]) -> None:
    raise PeerError("a peer sent more than its request")
