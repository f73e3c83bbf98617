"""Data links: connections for objects, with blocking sockets, in transfer threads. Those to peers carry several, one by one.

The worker dials; the first message says whether it brings an object (Put) or asks for one (Get). Headers are framed and keyed;
the bytes behind them are raw and checked against the xxh3 in the header.
"""

from __future__ import annotations

import contextlib
import io
import os
import socket
import ssl
import time
from collections.abc import Callable, Sequence

import xxhash

from vinecore.errors import FileLost, PeerError, ProtocolError
from vinecore.shell.store import Store, file_digest
from vinecore.shell.tls import DATA_PREAMBLE, GO_AHEAD, Identity, binding_of
from vinecore.wire import messages
from vinecore.wire.framing import FrameReader, FrameWriter
from vinecore.wire.handshake import BEFORE_AUTH_LIMIT_BYTES, HANDSHAKE_TIMEOUT_S, Dialer, Listener, refusal_of

RECEIVE_BYTES = 1 << 20
# A transfer without a single byte for this long is given up.
STALL_S = 60.0
# How a link ends that the other side closed without a word: it hears only so many strangers at a time.
UNHEARD = (ConnectionResetError, ConnectionAbortedError, BrokenPipeError, ssl.SSLEOFError)
# A splice may begin late: its source has other objects to send before. Lower: a busy source loses calls; higher: a lost one is
# noticed later (one whose worker is gone is noticed by the manager).
SPLICE_WAIT_S = 300.0


class DataLink:
    """A keyed blocking connection that has passed the handshake."""

    def __init__(self, sock: socket.socket, reader: FrameReader, writer: FrameWriter, leftover: bytes = b"") -> None:
        self.sock = sock
        self.reader = reader
        self.writer = writer
        sock.settimeout(STALL_S)
        if leftover:
            reader.push(leftover)

    def send(self, message: object) -> None:
        self.sock.sendall(self.writer.write(messages.encode(message)))

    def receive(self) -> object:
        """The next message.

        Raises:
            PeerError: the other side sent what is no message of a data link. OSError: it closed, or is silent.
        """
        while True:
            payload = self.reader.next_frame()
            if payload is not None:
                return messages.decode_on_data_link(payload)
            data = self.sock.recv(65536)
            if not data:
                raise ConnectionAbortedError("the data link was closed by the other side")
            self.reader.push(data)

    def receive_bytes(self, size_bytes: int, digest: bytes, take: Callable[[memoryview], object]) -> None:
        """Pass ``size_bytes`` raw bytes to ``take`` in pieces, and verify them.

        Raises:
            PeerError: closed early. FileLost: the bytes are not those that the source once had.
        """
        check = xxhash.xxh3_128()
        left = size_bytes
        early = memoryview(self.reader.leftover())
        buffer = memoryview(bytearray(min(RECEIVE_BYTES, max(size_bytes, 1))))
        while left:
            if early:
                piece, early = early[:left], early[left:]
            else:
                count = self.sock.recv_into(buffer, min(left, len(buffer)))
                if not count:
                    raise PeerError(f"the data link was closed {left} bytes too early")
                piece = buffer[:count]
            check.update(piece)
            take(piece)
            left -= len(piece)
        if check.digest() != digest:
            # Not the link's fault: whoever fetches it from there again gets the same bytes.
            raise FileLost("the bytes of an object do not match their checksum")

    def interrupt(self) -> None:
        """End the connection under the thread that uses it, which then closes it; any thread."""
        with contextlib.suppress(OSError):
            # Of the plain socket: that of TLS would first forget its encryption, under a thread that may be writing.
            socket.socket.shutdown(self.sock, socket.SHUT_RDWR)

    def close(self) -> None:
        self.sock.close()


def dial(
    address: tuple[str, int],
    secret: bytes | None,
    kind: str = "data",
    context: ssl.SSLContext | None = None,
    opened: Callable[[socket.socket], None] | None = None,
) -> DataLink:
    """Open a data link to the manager, or (kind "peer") to another worker; over TLS when a context is given.

    ``opened`` gets the socket before anything is waited for on it: whoever shuts it down ends the wait, from any thread.

    Raises:
        PeerError: the manager refused. OSError: it cannot be reached.
    """
    sock = socket.socket(socket.AF_INET6 if ":" in address[0] else socket.AF_INET)
    try:
        sock.settimeout(HANDSHAKE_TIMEOUT_S)
        if opened is not None:
            opened(sock)
        sock.connect(address)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        binding = b""
        if context is not None:
            sock.sendall(DATA_PREAMBLE)
            go_ahead = sock.recv(1)
            if not go_ahead:
                raise ConnectionAbortedError("the data link was closed before TLS")
            if go_ahead != GO_AHEAD:
                raise ProtocolError("the other side does not speak TLS")
            sock = context.wrap_socket(sock)
            binding = binding_of(sock.getpeercert(True))
        return _shaken(sock, Dialer(secret, os.urandom(32), kind, binding))
    except BaseException:
        sock.close()
        raise


def accept_tls(sock: socket.socket, secret: bytes | None, identity: Identity, kind: str) -> DataLink:
    """The other side of ``dial`` over TLS, after its preamble.

    Raises:
        PeerError: the dialler could not prove itself, or wants another kind of link. OSError: the connection ended.
    """
    try:
        sock.setblocking(True)
        sock.settimeout(HANDSHAKE_TIMEOUT_S)
        sock.sendall(GO_AHEAD)
        sock = identity.context.wrap_socket(sock, server_side=True)
        handshake = Listener(secret, os.urandom(32), identity.binding)
        link = _shaken(sock, handshake)
        if handshake.kind != kind:
            raise PeerError(f"a link of kind {handshake.kind!r} where only {kind!r} is served")
        return link
    except BaseException:
        sock.close()
        raise


def _shaken(sock: socket.socket, handshake: Dialer | Listener) -> DataLink:
    """Go through a handshake with blocking reads, in limited time whatever the pieces in which the other side's bytes come."""
    until = time.monotonic() + HANDSHAKE_TIMEOUT_S
    reader, writer = FrameReader(BEFORE_AUTH_LIMIT_BYTES), FrameWriter()
    first = handshake.start()
    if first is not None:
        sock.sendall(writer.write(first))
    while not handshake.done:
        payload = reader.next_frame()
        if payload is None:
            # Zero would mean not to block.
            sock.settimeout(max(0.001, until - time.monotonic()))
            data = sock.recv(BEFORE_AUTH_LIMIT_BYTES)
            if not data:
                raise ConnectionAbortedError("the data link was closed during the handshake")
            reader.push(data)
            continue
        try:
            answer = handshake.receive(payload)
        except PeerError as error:
            refusal = refusal_of(error)
            if refusal:
                sock.sendall(writer.write(refusal))
            raise
        if answer is not None:
            sock.sendall(writer.write(answer))
    reader.rekey(handshake.receive_key, messages.CONTROL_FRAME_LIMIT_BYTES)
    writer.rekey(handshake.send_key)
    return DataLink(sock, reader, writer)


def fetch(link: DataLink, store: Store, request: messages.Get) -> int:
    """Ask the other side for an object and store it; returns its size in bytes.

    Raises:
        FileLost: it does not have it, or only damaged. PeerError, OSError: the transfer failed.
    """
    return receive_object(link, store, ask(link, request, SPLICE_WAIT_S if request.transfer_id else STALL_S))


def ask(link: DataLink, request: messages.Get, wait_s: float) -> messages.Object:
    """Ask the other side for an object; returns what it says of it, behind which the bytes come.

    Raises:
        FileLost: it does not have it. PeerError, OSError: it did not answer well, or not within ``wait_s``.
    """
    link.send(request)
    link.sock.settimeout(wait_s)
    header = link.receive()
    link.sock.settimeout(STALL_S)
    if isinstance(header, messages.Missing):
        raise FileLost(header.why or f"the other side does not have {request.name}")
    if not isinstance(header, messages.Object) or header.name != request.name:
        raise ProtocolError("the manager answered with something else than the object that was asked for")
    return header


def receive_object(link: DataLink, store: Store, header: messages.Object) -> int:
    """Store the object whose bytes come next; returns its size in bytes.

    Raises:
        FileLost: it is damaged. PeerError, OSError: the transfer failed.
    """
    name = header.name
    aside = store.aside(name)
    try:
        with open(aside, "xb", buffering=0) as file:
            link.receive_bytes(header.size_bytes, header.digest, lambda piece: _write(file, piece))
        aside.rename(store.path(name))
    except BaseException:
        aside.unlink(missing_ok=True)
        raise
    return header.size_bytes


def _write(file: io.FileIO, piece: memoryview) -> None:
    """All of it: a disk with room for a part takes that, and only refuses what comes next."""
    while piece:
        piece = piece[file.write(piece) :]


def upload(link: DataLink, store: Store, worker_id: int, transfer_id: int, name: str) -> None:
    """Bring an object of the store to the manager.

    Raises:
        FileLost: it is not here, or cannot be read. PeerError, OSError: the transfer failed.
    """
    with contextlib.ExitStack() as stack:
        try:
            file = stack.enter_context(open(store.path(name), "rb"))
            size, digest = os.fstat(file.fileno()).st_size, file_digest(file.fileno())
        except OSError as error:
            raise FileLost(f"{name} cannot be read: {error.strerror}") from None
        link.send(messages.Put(worker_id, transfer_id, name, size, digest))
        link.sock.sendfile(file)
    # The manager closes when it has everything: leaving earlier could cut the last bytes.
    while link.sock.recv(4096):
        pass


class LocalPath:
    """An object whose bytes are in a file: one of the user's, or one of a store."""

    __slots__ = ("is_stored", "path")

    def __init__(self, path: str, is_stored: bool = False) -> None:
        self.path = path
        self.is_stored = is_stored


def send_object(link: DataLink, name: str, parts: Sequence[bytes | memoryview] | LocalPath) -> None:
    """Answer a Get with the bytes of an object held in memory or in a local file.

    Raises:
        OSError: the file cannot be read, or the link is gone. PeerError: the file became shorter meanwhile.
    """
    if isinstance(parts, LocalPath):
        try:
            file = open(parts.path, "rb")  # noqa: SIM115 - closed below; a missing file is an answer of its own
        except OSError as error:
            why = f"{parts.path} cannot be read: {error.strerror}; keep it where it is until nothing needs it any more"
            link.send(messages.Missing(name, "" if parts.is_stored else os.fsencode(why).decode(errors="backslashreplace")))
            return
        with file:
            size = os.fstat(file.fileno()).st_size
            link.send(messages.Object(name, size, file_digest(file.fileno())))
            # As much as was announced, whatever is written to it meanwhile: other objects follow over this link.
            if size and link.sock.sendfile(file, 0, size) < size:
                raise PeerError(f"{parts.path} became shorter while it was sent")
        return
    check = xxhash.xxh3_128()
    size = 0
    for part in parts:
        check.update(part)
        size += len(part)
    link.send(messages.Object(name, size, check.digest()))
    for part in parts:
        link.sock.sendall(part)
