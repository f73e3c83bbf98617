"""Every port, with and without TLS, against who wants in: replay, reflection, injection, downgrade, wrong role, slowness.

A manager's port takes control and data links, a worker's port its peers. The first test is the control: an honest dialler is
served there, so that a refusal in the others means something.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import pickle
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from daskvine import FuturesExecutor
from tests.kit.rogue import HELLO, LIMIT_S, Rogue, dial, preamble_of, rest_of
from vinecore.errors import PeerError
from vinecore.model.ticket import make_ticket
from vinecore.shell import tls
from vinecore.shell.peer_server import PeerServer
from vinecore.shell.store import Store
from vinecore.wire import hello, messages
from vinecore.wire.framing import FrameReader, FrameWriter
from vinecore.wire.handshake import BEFORE_AUTH_LIMIT_BYTES, HANDSHAKE_TIMEOUT_S, Dialer

ROOT = Path(__file__).parents[2]
KINDS = ("worker", "data", "peer")
SIZE = 300_000


@dataclass
class Port:
    """One kind of link at one port."""

    number: int
    secret: bytes
    kind: str
    encrypted: bool
    request: object
    still_serves: Callable[[], bool]
    refused_count: Callable[[], int]

    def rogue(self, kind: str = "") -> Rogue:
        """A dialler that has proved itself, and says that the link is of this kind."""
        return Rogue(self.number, self.secret, kind or self.kind, self.encrypted)

    def stranger(self) -> tuple[socket.socket, bytes]:
        """A connection that has said nothing of the handshake, and its binding."""
        return dial(self.number, preamble=preamble_of(self.kind) if self.encrypted else b"")

    def ask(self, rogue: Rogue) -> object:
        """Send the request, return the answer."""
        rogue.send(self.request)
        return rogue.receive(messages.decode_from_manager if self.kind == "worker" else messages.decode_on_data_link)


@pytest.fixture(scope="module", params=[False, True], ids=["plain", "tls"])
def ports(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Port]]:
    """The three kinds of links of one run: a manager in this process, a worker in another that holds an object."""
    encrypted: bool = request.param
    if encrypted:
        pytest.importorskip("cryptography", reason="makes the certificates: pip install 'daskvine[tls]'")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CONFIG_HOME", str(tmp_path_factory.mktemp("config")))
        patch.setenv("PYTHONPATH", str(ROOT))
        patch.delenv("VINE_PORT", raising=False)
        with FuturesExecutor(port=0, ssl=encrypted) as ex, worker(ex.port, encrypted):
            value = ex.submit(os.urandom, SIZE)
            assert len(value.result(LIMIT_S)) == SIZE

            def still_serves() -> bool:
                return ex.submit(len, value).result(LIMIT_S) == SIZE and ex.engine.loop.died is None

            def refused() -> int:
                return ex.engine.loop.refused_count

            state, secret = ex.engine.machine.state, ex.engine.secret
            assert secret is not None
            ((name, file),) = [(n, f) for n, f in list(state.held.items()) if f.size_bytes >= SIZE]
            assert file.on_workers
            peer_port = next(iter(state.workers.values())).hello.peer_port
            expires = int(time.time()) + 600
            get = messages.Get(77, name, make_ticket(state.transfer_key, name, 77, expires), expires)
            yield {
                "worker": Port(ex.port, secret, "worker", encrypted, HELLO, still_serves, refused),
                "data": Port(ex.port, secret, "data", encrypted, messages.Get(1, "nothing"), still_serves, refused),
                "peer": Port(peer_port, secret, "peer", encrypted, get, still_serves, refused),
            }


@contextlib.contextmanager
def worker(port: int, encrypted: bool) -> Iterator[None]:
    command = [sys.executable, "-m", "vinecore.cli.worker", "127.0.0.1", str(port), "--cores", "1"]
    process = subprocess.Popen(
        [*command, *(["--ssl"] if encrypted else [])], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        yield
    finally:
        process.terminate()
        process.wait(LIMIT_S)


@pytest.fixture(params=KINDS)
def port(request: pytest.FixtureRequest, ports: dict[str, Port]) -> Iterator[Port]:
    found = ports[request.param]
    yield found
    assert found.still_serves()


def framed(*payloads: bytes) -> bytes:
    writer = FrameWriter()
    return b"".join(map(writer.write, payloads))


def only_handshake(data: bytes) -> list[type]:
    """The kinds of frames in what a port said; nothing but frames of the handshake may be in there."""
    reader = FrameReader(BEFORE_AUTH_LIMIT_BYTES)
    found = [type(hello.decode_from_listener(frame)) for frame in reader.feed(data)]
    assert reader.leftover() == b""
    return found


def test_an_honest_dialler_is_served(port: Port) -> None:
    with port.rogue() as rogue:
        assert type(port.ask(rogue)) in (messages.Welcome, messages.Missing, messages.Object)


def test_a_replayed_session_is_refused(port: Port) -> None:
    with port.rogue() as first:
        port.ask(first)
        session = first.sent
    sock, _ = port.stranger()
    with sock:
        sock.sendall(session)
        assert only_handshake(rest_of(sock)) in ([hello.Challenge, hello.Refuse], [hello.Challenge])


def test_a_reflected_proof_is_refused(port: Port) -> None:
    """What the port says is sent back to it: its challenge, and the proof of its own that it gave another link."""
    opening = hello.encode(hello.Opening(port.kind, "", True, b"n" * 32))
    with port.rogue() as other:
        accept = FrameReader(BEFORE_AUTH_LIMIT_BYTES).feed(other.received[:200])[1]
    message = hello.decode_from_listener(accept)
    assert isinstance(message, hello.Accept)
    for reflected in (None, hello.encode(hello.Proof(message.mac))):
        sock, _ = port.stranger()
        with sock:
            sock.sendall(framed(opening))
            challenge = sock.recv(4096)
            sock.sendall(challenge if reflected is None else framed(reflected))
            assert only_handshake(challenge + rest_of(sock)) == [hello.Challenge, hello.Refuse]


def test_frames_that_are_not_of_this_link_end_it(port: Port) -> None:
    """Injected without the key, taken from another link, sent back to where they came from."""
    payload = messages.encode(port.request)
    with port.rogue() as other:
        of_another_link = other.writer.write(payload)
        forged = of_another_link[:-16] + bytes(16)
    for frame in (forged, of_another_link, framed(payload), framed(payload) + bytes(16)):
        with port.rogue() as rogue:
            rogue.raw(frame)
            # A frame without its tag is not complete.
            with contextlib.suppress(OSError):
                rogue.sock.shutdown(socket.SHUT_WR) if not port.encrypted else rogue.raw(bytes(16))
            assert rest_of(rogue.sock) == b"", "it was answered"
    with port.rogue() as rogue:
        begin = len(rogue.received)
        port.ask(rogue)
        back = rogue.received[begin:]
        # The link of an object may be at its end already.
        with contextlib.suppress(OSError):
            rogue.raw(back)
        rest_of(rogue.sock)


def test_a_downgrade_is_refused(port: Port) -> None:
    """No wish for a secret, no secret, another version, and no encryption where there is some (or the other way round)."""
    for frames in (
        framed(hello.encode(hello.Opening(port.kind, "", False, b"n" * 32)), hello.encode(hello.Proof(b""))),
        framed(hello.encode(hello.Opening(port.kind, "", True, b"n" * 32)), hello.encode(hello.Proof(b""))),
        framed(hello.encode(hello.Opening(port.kind, "", True, b"n" * 32), version=0)),
        framed(Dialer(None, b"n" * 32, port.kind).start()),
    ):
        sock, _ = port.stranger()
        with sock:
            sock.sendall(frames)
            assert only_handshake(rest_of(sock))[-1:] == [hello.Refuse]
    with contextlib.closing(dial(port.number)[0]) as sock:
        other_way = preamble_of(port.kind) + bytes(100) if not port.encrypted else framed(messages.encode(port.request))
        sock.sendall(other_way)
        said = rest_of(sock)
        # To who does not speak TLS the refusal is said in the clear.
        assert only_handshake(said) == ([hello.Refuse] if port.encrypted else [])


def test_a_proof_of_another_channel_is_refused(port: Port) -> None:
    """Somebody in the middle shows another certificate (or none) and passes the proofs on."""
    for binding in (b"another certificate" * 2, b"") if port.encrypted else (b"some certificate",):
        sock, _ = port.stranger()
        dialer = Dialer(port.secret, os.urandom(32), port.kind, binding)
        with sock:
            sock.sendall(framed(dialer.start()))
            (challenge,) = FrameReader(BEFORE_AUTH_LIMIT_BYTES).feed(sock.recv(4096))
            proof = dialer.receive(challenge)
            assert proof is not None
            sock.sendall(framed(proof))
            assert only_handshake(rest_of(sock)) == [hello.Refuse]


def test_a_wrong_role_is_not_served(port: Port) -> None:
    """Who knows the secret and names another kind of link, or plays the side that listens."""
    for kind in ({"worker", "data", "peer", "banana", ""} - {port.kind}) if port.kind == "peer" else ("peer", "banana", ""):
        # Under TLS the preamble of this port's own kind.
        sock, binding = port.stranger()
        dialer = Dialer(port.secret, os.urandom(32), kind, binding)
        with sock:
            reader, writer = FrameReader(BEFORE_AUTH_LIMIT_BYTES), FrameWriter()
            sock.sendall(writer.write(dialer.start()))
            (challenge,) = reader.feed(sock.recv(4096))
            proof = dialer.receive(challenge)
            assert proof is not None
            sock.sendall(writer.write(proof))
            accept = reader.feed(sock.recv(4096))
            assert dialer.receive(accept[0]) is None
            writer.rekey(dialer.send_key)
            with contextlib.suppress(OSError):
                sock.sendall(writer.write(messages.encode(port.request)))
            assert rest_of(sock) == b""
    for payload in (hello.Challenge(True, b"n" * 32), hello.Accept(bytes(32)), hello.Refuse("wrong-proof")):
        sock, _ = port.stranger()
        with sock:
            sock.sendall(framed(hello.encode(payload)))
            assert only_handshake(rest_of(sock)) == [hello.Refuse]
    if port.kind == "data" and port.encrypted:
        no_data_in_the_clear(port)


def no_data_in_the_clear(port: Port) -> None:
    """A data link that began as a control link would leave its encryption when it goes to a thread."""
    sock, binding = dial(port.number, preamble=tls.CONTROL_PREAMBLE)
    dialer = Dialer(port.secret, os.urandom(32), "data", binding)
    before = port.refused_count()
    with sock:
        reader, writer = FrameReader(BEFORE_AUTH_LIMIT_BYTES), FrameWriter()
        sock.sendall(writer.write(dialer.start()))
        proof = dialer.receive(reader.feed(sock.recv(4096))[0])
        assert proof is not None
        sock.sendall(writer.write(proof))
        rest_of(sock)
    assert port.refused_count() == before + 1


def test_a_slow_handshake_ends(ports: dict[str, Port]) -> None:
    """At every stage at once: silence, and a byte now and then, which must not extend the limit."""
    opening = hello.encode(hello.Opening("worker", "", True, b"n" * 32))
    slow: list[tuple[str, socket.socket, bytes]] = []
    limit_s = 3 * HANDSHAKE_TIMEOUT_S
    with contextlib.ExitStack() as stack:

        def add(name: str, sock: socket.socket, said: bytes, drip: bytes = b"") -> None:
            stack.enter_context(contextlib.closing(sock))
            if said:
                sock.sendall(said)
            slow.append((name, sock, drip))

        for kind in KINDS:
            port = ports[kind]
            if port.encrypted:
                for preamble in (b"", preamble_of(kind)[:2]):
                    add(f"{kind} silent behind {preamble!r}", dial(port.number)[0], preamble)
                for preamble in (b"", preamble_of(kind)):
                    add(
                        f"{kind} {preamble!r}",
                        dial(port.number)[0],
                        preamble,
                        bytes.fromhex("1603010200010001fc0303") + bytes(100),
                    )
            add(f"{kind} silent", port.stranger()[0], b"")
            add(f"{kind} drip", port.stranger()[0], b"", framed(opening)[:40])
            add(f"{kind} opening", port.stranger()[0], framed(opening), framed(opening)[:40])
        until = time.monotonic() + limit_s
        left = {name: (sock, drip) for name, sock, drip in slow}
        position = 0
        while left:
            assert time.monotonic() < until, f"these are still open: {sorted(left)}"
            for name, (sock, drip) in list(left.items()):
                try:
                    if drip:
                        sock.sendall(drip[position % len(drip) :][:1])
                    sock.settimeout(0.02)
                    if not sock.recv(4096):
                        del left[name]
                except TimeoutError:
                    continue
                except OSError:
                    del left[name]
            position += 1
            if position == 3:
                assert ports["peer"].still_serves()
                with ports["peer"].rogue() as rogue:
                    assert isinstance(ports["peer"].ask(rogue), messages.Object)


# ---------------------------------------------------------------- nothing is decoded before the proof


class Watched:
    """Remembers what decoders were asked for."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.names: list[str] = []
        original = messages.Decoder.__call__
        lock = threading.Lock()

        def call(decoder: messages.Decoder, data: bytes | memoryview) -> object:
            with lock:
                self.names.append(decoder._name)
            return original(decoder, data)

        def loads(*args: Any, **more: Any) -> object:
            raise AssertionError("something was unpickled")

        monkeypatch.setattr(messages.Decoder, "__call__", call)
        monkeypatch.setattr(pickle, "loads", loads)

    def take(self) -> set[str]:
        names, self.names = set(self.names), []
        return names


OF_A_DIALLER = "of a dialling side's handshake"


@pytest.fixture
def peer_server(tmp_path: Path) -> Iterator[tuple[int, str]]:
    """A worker's open port in this process, whose decoders can be watched; with the name of an object there."""
    store = Store(str(tmp_path / "workspace"))
    store.path("an-object").write_bytes(b"o" * 1000)
    server = PeerServer(store, b"s" * 32, lambda: b"k" * 32)
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    asyncio.run_coroutine_threadsafe(server.start(), loop).result(LIMIT_S)

    async def end() -> None:
        server.close()
        for _ in range(4):
            await asyncio.sleep(0)

    try:
        yield server.port, "an-object"
    finally:
        asyncio.run_coroutine_threadsafe(end(), loop).result(LIMIT_S)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(LIMIT_S)
        loop.close()
        store.remove()


def strangers_words(kind: str, secret: bytes) -> Iterator[bytes]:
    """Messages of every link, in the clear and under a guessed key, at every point before the proof."""
    opening = hello.encode(hello.Opening(kind, "", True, b"n" * 32))
    wrong = hello.encode(hello.Proof(bytes(32)))
    for message in (
        HELLO,
        messages.Get(1, "an-object"),
        messages.Put(1, 1, "x", 5, b"d" * 16),
        messages.Done([]),
        messages.Ping(),
    ):
        payload = messages.encode(message)
        keyed = FrameWriter(bytes(32)).write(payload)
        for said in ((), (opening,), (opening, wrong)):
            yield framed(*said, payload)
            yield framed(*said) + keyed
            # Behind a prefix of the handshake: it is read, by the handshake's own decoder, and refused.
            yield framed(*said, opening[:12] + payload)
    yield framed(opening, hello.encode(hello.Proof(Dialer(secret, b"n" * 32, kind).start()[:32])))


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_is_decoded_before_the_proof(
    kind: str, peer_server: tuple[int, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    with FuturesExecutor(port=0) as ex:
        number, secret = (peer_server[0], b"s" * 32) if kind == "peer" else (ex.port, ex.engine.secret)
        assert secret is not None
        with monkeypatch.context() as patch:
            watched = Watched(patch)
            for words in strangers_words(kind, secret):
                with contextlib.closing(dial(number)[0]) as sock:
                    sock.sendall(words)
                    assert hello.Accept not in only_handshake(rest_of(sock))
            assert watched.take() == {OF_A_DIALLER, "of a listening side's handshake"}, (
                "more than frames of the handshake was read"
            )
            # Who has proved himself is read: the watch works.
            with Rogue(number, secret, kind) as rogue:
                rogue.send(HELLO if kind == "worker" else messages.Get(1, peer_server[1]))
                with contextlib.suppress(AssertionError, PeerError):
                    rogue.receive()
                rogue.sock.close()
            assert watched.take() & {"from a worker", "of a data link"}
