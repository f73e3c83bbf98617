"""What is fuzzed, and what must hold whatever comes in. A target takes one input and returns a word for what became of it.

Every target raises AssertionError when a promise is broken; any other exception that comes out is one, too.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from typing import Any

from tests.fuzz.inputs import EVERYTHING, HANDSHAKE, NONCE_DIALER, NONCE_LISTENER, VALID, broken, fuzzed, pieces
from vinecore.errors import PeerError, ProtocolError
from vinecore.shell.stream import Link
from vinecore.wire import hello, messages
from vinecore.wire.framing import HEADER_BYTES, TAG_BYTES, FrameReader, FrameWriter
from vinecore.wire.handshake import BEFORE_AUTH_LIMIT_BYTES, Dialer, Listener, refusal_of

SECRET = b"correct horse battery staple 123"
KEY = bytes(range(7, 39))
Target = Callable[[random.Random], str]


def held_bytes(reader: FrameReader) -> int:
    """What a reader keeps."""
    return len(reader._buffer) + sum(map(len, reader._pieces))


# ---------------------------------------------------------------- decoders


def decoder_target(decode: Callable[[bytes], object], valid: list[bytes]) -> Target:
    """Only a ProtocolError comes out, or a message that can be written and read again."""

    def target(rng: random.Random) -> str:
        data = fuzzed(rng, valid)
        try:
            message = decode(data)
        except ProtocolError:
            return "refused"
        again = messages.encode(message)
        assert messages.encode(decode(again)) == again, "it changes when it is written and read"
        assert len(again) <= 40 * len(data) + 400, f"{len(data)} bytes became {len(again)}"
        return "decoded"

    return target


def decode_hello(direction: Callable[[bytes], object]) -> Callable[[bytes], object]:
    """A decoder of the handshake, without the prefix that says which version it is."""
    return lambda data: direction(bytes(12) + data)


# ---------------------------------------------------------------- framing


def _refuses(ask: Callable[[], object]) -> bool:
    try:
        ask()
    except ProtocolError:
        return True
    return False


def framing_target(key: bytes | None) -> Target:
    """Whatever the stream, what is kept is bounded, a fault lasts, and with a key nothing comes out that was not sent."""

    def target(rng: random.Random) -> str:
        writer = FrameWriter(key)
        sent = [rng.choice(EVERYTHING) for _ in range(rng.randrange(4))]
        stream = b"".join(map(writer.write, sent))
        stream = broken(rng, stream) if rng.random() < 0.8 else stream + fuzzed(rng, EVERYTHING)
        limit = rng.choice((64, BEFORE_AUTH_LIMIT_BYTES))
        reader = FrameReader(limit, key)
        seen: list[bytes] = []
        for number, piece in enumerate(pieces(rng, stream)):
            try:
                payloads = reader.feed(piece)
            except ProtocolError:
                assert held_bytes(reader) == 0, "a failed reader keeps bytes"
                assert all(map(_refuses, (reader.next_frame, reader.leftover, lambda: reader.push(b"x")))), (
                    "a failed reader goes on"
                )
                return "refused"
            seen += payloads
            assert all(len(payload) <= limit for payload in payloads)
            # An incomplete frame, and nothing of the frames before it.
            assert held_bytes(reader) <= limit + HEADER_BYTES + TAG_BYTES, f"{held_bytes(reader)} bytes are kept ({number})"
        if key is not None:
            assert seen == sent[: len(seen)], "a frame came out that was not sent"
        return "read"

    return target


# ---------------------------------------------------------------- handshake


def _frames(rng: random.Random) -> list[bytes]:
    return [fuzzed(rng, HANDSHAKE) if rng.random() < 0.8 else rng.choice(HANDSHAKE) for _ in range(rng.randrange(1, 4))]


def listener_target(rng: random.Random) -> str:
    """Nobody gets in without the secret; what is answered is a frame of the handshake."""
    secret = SECRET if rng.random() < 0.8 else None
    listener = Listener(secret, NONCE_LISTENER)
    frames = _frames(rng)
    if rng.random() < 0.5:
        frames.insert(0, Dialer(SECRET, NONCE_DIALER, "worker").start())
    result = "silent"
    for frame in frames:
        try:
            hello.decode_from_listener(listener.receive(frame))
            result = "answered"
        except PeerError as error:
            assert isinstance(hello.decode_from_listener(refusal_of(error)), hello.Refuse)
            result = "refused"
        if secret is not None:
            assert not listener.done and listener.send_key is None and listener.receive_key is None, "a stranger got in"
            assert listener.kind == listener.detail == "", "it is believed before it is proved"
    return result


def dialer_target(rng: random.Random) -> str:
    """Nobody passes for the other side without the secret."""
    secret = SECRET if rng.random() < 0.8 else None
    dialer = Dialer(secret, NONCE_DIALER, "worker")
    frames = _frames(rng)
    if rng.random() < 0.5:
        frames.insert(0, hello.encode(hello.Challenge(secret is not None, NONCE_LISTENER)))
    result = "silent"
    for frame in frames:
        try:
            dialer.receive(frame)
            result = "answered"
        except PeerError:
            result = "refused"
        if secret is not None:
            assert not dialer.done and dialer.send_key is None and dialer.receive_key is None, "a stranger passed for a manager"
    return result


# ---------------------------------------------------------------- a whole link


class Nowhere(asyncio.Transport):
    """The transport of a connection that leads nowhere."""

    def __init__(self) -> None:
        super().__init__()
        self.written = 0
        self.closed = False

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return default

    def write(self, data: Any) -> None:
        self.written += len(data)

    def close(self) -> None:
        self.closed = True

    abort = close


class LinkTarget:
    """The listener of a port as it is in use: before the proof no payload leaves it and one decoder is asked."""

    def __init__(self) -> None:
        self.asked: set[str] = set()

    def __call__(self, rng: random.Random) -> str:
        link = Link(Listener(SECRET, NONCE_LISTENER), _never, _never, _nothing)
        transport = Nowhere()
        link.connection_made(transport)
        writer = FrameWriter()
        dialer = Dialer(SECRET, NONCE_DIALER, "worker")
        frames = [dialer.start()] if rng.random() < 0.6 else []
        if frames and rng.random() < 0.5:
            # The proof of another session: the nonce was another one.
            proof = dialer.receive(hello.encode(hello.Challenge(True, bytes(32))))
            assert proof is not None
            frames.append(proof)
        frames += [fuzzed(rng, EVERYTHING) for _ in range(rng.randrange(3))]
        stream = b"".join(map(writer.write, frames))
        if rng.random() < 0.7:
            stream = broken(rng, stream)
        self.asked.clear()
        for piece in pieces(rng, stream):
            while piece and not link.lost:
                buffer = link.get_buffer(-1)
                count = min(len(buffer), len(piece))
                buffer[:count] = piece[:count]
                piece = piece[count:]
                link.buffer_updated(count)
                kept = held_bytes(link.reader)
                assert kept <= 2 * BEFORE_AUTH_LIMIT_BYTES, f"a stranger makes a link keep {kept} bytes"
        assert not link.ready, "a stranger got in"
        assert self.asked <= {"of a dialling side's handshake"}, f"decoders were asked before the proof: {self.asked}"
        # A challenge and a refusal at most.
        assert transport.written < 300, f"a stranger was told {transport.written} bytes"
        result = "refused" if link.lost else "waits"
        link.close()
        link.connection_lost(None)
        return result


def _never(*args: object) -> None:
    raise AssertionError("a stranger got in")


def _nothing(*args: object) -> None:
    """The end of a link is no news here."""


def all_targets() -> dict[str, Target]:
    """Every target by name: each decoder of every link, both kinds of framing, both sides of the handshake, a link."""
    found: dict[str, Target] = {
        name: decoder_target(decode, VALID[name])
        for name, decode in vars(messages).items()
        if isinstance(decode, messages.Decoder)
    }
    from_dialler = [data[12:] for data in HANDSHAKE]
    found["hello.decode_from_dialer"] = decoder_target(decode_hello(hello.decode_from_dialer), from_dialler)
    found["hello.decode_from_listener"] = decoder_target(decode_hello(hello.decode_from_listener), from_dialler)
    found["frames without a key"] = framing_target(None)
    found["frames with a key"] = framing_target(KEY)
    found["handshake, listener"] = listener_target
    found["handshake, dialler"] = dialer_target
    found["link before the proof"] = LinkTarget()
    return found
