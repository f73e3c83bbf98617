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
from vinecore.shell.kept_links import Requests
from vinecore.shell.store import Store
from vinecore.shell.strangers import ACCEPT_QUEUE, Strangers
from vinecore.shell.stream import Link
from vinecore.shell.tls import Identity
from vinecore.shell.tls_gate import TlsGate
from vinecore.wire import messages
from vinecore.wire.handshake import Listener


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
        self.port = 0
        self._server: asyncio.Server | None = None
        self.strangers = Strangers()
        self.requests = Requests()

    async def start(self, port: int = 0) -> None:
        """Listen on every address; a port that cannot be had only means that peers get objects through the manager."""
        with contextlib.suppress(OSError):
            # One socket for both families: two would get two different free ports.
            if socket.has_dualstack_ipv6():
                listener = socket.create_server(("::", port), family=socket.AF_INET6, dualstack_ipv6=True)
            else:
                listener = socket.create_server(("0.0.0.0", port))
            self._server = await asyncio.get_running_loop().create_server(self._accept, sock=listener)
            listener.listen(ACCEPT_QUEUE)
            self.port = listener.getsockname()[1]

    def close(self) -> None:
        """Stop listening."""
        if self._server is not None:
            self._server.close()
        self.strangers.end_all()

    def _accept(self) -> asyncio.BaseProtocol:
        if self.encrypted:
            if self.identity is None:
                return _Closed()
            return TlsGate(self.identity, self.strangers, self.secret, "peer", self._serve)
        return Link(Listener(self.secret, os.urandom(32)), self._ready, _nothing, _ended, self.strangers)

    def _ready(self, link: Link) -> None:
        if link.handshake.kind != "peer":  # type: ignore[union-attr]
            raise PeerError("only peers may connect here")
        sock, leftover = link.detach_socket()
        sock.setblocking(True)
        data_link = transfer.DataLink(sock, link.reader, link.writer, leftover)
        threading.Thread(target=self._serve, args=(data_link,), name="vine-peer", daemon=True).start()

    def _serve(self, link: transfer.DataLink) -> None:
        """Objects out, one after the other. Errors end the connection: the other side reports them."""
        with contextlib.closing(link), contextlib.suppress(PeerError, OSError):
            request = link.receive()
            while request is not None:
                key = self.key()
                if not isinstance(request, messages.Get) or key is None:
                    return
                check_ticket(key, request.name, request.worker_id, request.expires_s, request.ticket, time.time())
                transfer.send_object(link, request.name, transfer.LocalPath(str(self.store.path(request.name)), is_stored=True))
                request = self.requests.next_of(link)
            if not self.encrypted:
                link.sock.shutdown(socket.SHUT_WR)


class _Closed(asyncio.Protocol):
    """Closes at once."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        transport.close()


def _ended(link: Link, error: Exception | None) -> None:
    """It was no peer, or went to a thread."""


def _nothing(link: Link, payloads: list[bytes]) -> None:
    raise PeerError("a peer sent more than its request")
