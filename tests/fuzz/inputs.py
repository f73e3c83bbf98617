"""Where fuzzed inputs come from: valid messages, broken in the ways that break parsers, and random bytes."""

from __future__ import annotations

import random
from collections.abc import Callable

from tests.unit.test_messages_golden import GOLDEN
from vinecore.wire import hello, messages

NONCE_DIALER, NONCE_LISTENER = bytes(range(32)), bytes(range(100, 132))

# The beginnings of MessagePack values that promise much: arrays, maps, texts, bytes and extensions of the largest sizes.
PROMISES = (
    b"\xdd\xff\xff\xff\xff", b"\xdc\xff\xff", b"\xdf\xff\xff\xff\xff", b"\xde\xff\xff", b"\xdb\xff\xff\xff\xff", b"\xda\xff\xff",
    b"\xc6\xff\xff\xff\xff", b"\xc5\xff\xff", b"\xc9\xff\xff\xff\xff\x00", b"\xc8\xff\xff\x00", b"\xd8\xff", b"\xc1", b"\x9f",
    b"\xcf\xff\xff\xff\xff\xff\xff\xff\xff", b"\xd3\x80\x00\x00\x00\x00\x00\x00\x00", b"\xcb\x7f\xf8\x00\x00\x00\x00\x00\x00",
    b"\xa2\xc3\x28", b"\xa3\xed\xa0\x80", b"\xc0", b"\xc2", b"\xff", b"\x00", b"\xdd\x00\x00\x10\x00", b"\x8f",
)  # fmt: skip

# Every message of every link, as bytes.
VALID: dict[str, list[bytes]] = {name: [bytes.fromhex(text) for _, text in pairs] for name, pairs in GOLDEN.items()}
BOX = messages.Sandbox(
    [messages.Mount("a", "b/c", 1)], [messages.Product("d", "e", 2)], [("HOME", None), ("A", "1")], "echo", 1.5
)
REPORT = messages.Report(1, b"out", [("a", 5, b"hello")], ["b"], ["c"], "max wall time", 1.0, 2.0, 3, True, "why")
VALID["decode_from_manager"].append(
    messages.encode(messages.Run(1, [[messages.Call(7, 1, 3, -1, b"x", [5, "a"], 2, True, False, BOX)]], [(5, b"five")]))
)
VALID["decode_from_worker"].append(messages.encode(messages.Done([messages.Result(7, 1, 1, 5, b"", 9, REPORT)])))
HANDSHAKE = [
    hello.encode(hello.Opening("worker", "of a worker", True, NONCE_DIALER)),
    hello.encode(hello.Opening("peer", "", False, NONCE_LISTENER)),
    hello.encode(hello.Challenge(True, NONCE_LISTENER)),
    hello.encode(hello.Proof(bytes(32))),
    hello.encode(hello.Accept(bytes(32))),
    hello.encode(hello.Refuse("wrong-proof")),
]
EVERYTHING = [data for group in VALID.values() for data in group] + HANDSHAKE


def random_bytes(rng: random.Random) -> bytes:
    """Of any values, mostly few."""
    return rng.randbytes(rng.choice((0, 1, 2, 5, 20, 100, rng.randrange(1500))))


def _flip(rng: random.Random, data: bytearray) -> None:
    data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)


def _replace(rng: random.Random, data: bytearray) -> None:
    data[rng.randrange(len(data))] = rng.randrange(256)


def _promise(rng: random.Random, data: bytearray) -> None:
    at = rng.randrange(len(data))
    data[at : at + rng.randrange(3)] = rng.choice(PROMISES)


def _cut(rng: random.Random, data: bytearray) -> None:
    del data[rng.randrange(len(data)) :]


def _drop(rng: random.Random, data: bytearray) -> None:
    at = rng.randrange(len(data))
    del data[at : at + rng.randrange(1, 9)]


def _repeat(rng: random.Random, data: bytearray) -> None:
    at = rng.randrange(len(data))
    piece = bytes(data[at : at + rng.randrange(1, 40)])
    data[at:at] = piece * rng.choice((1, 2, 30))


def _insert(rng: random.Random, data: bytearray) -> None:
    at = rng.randrange(len(data) + 1)
    data[at:at] = random_bytes(rng)[:50]


def _nest(rng: random.Random, data: bytearray) -> None:
    at = rng.randrange(len(data))
    data[at:at] = rng.choice((b"\x91", b"\x92", b"\x81\x01", b"\xdd\x00\x00\x00\x01")) * rng.choice((3, 100, 2000))


def _splice(rng: random.Random, data: bytearray) -> None:
    other = rng.choice(EVERYTHING)
    data[rng.randrange(len(data)) :] = other[rng.randrange(len(other)) :]


WAYS: tuple[Callable[[random.Random, bytearray], None], ...] = (
    _flip, _flip, _replace, _promise, _promise, _cut, _drop, _repeat, _insert, _nest, _splice,
)  # fmt: skip


def broken(rng: random.Random, valid: bytes) -> bytes:
    """The bytes with one to four changes; once in a while none."""
    data = bytearray(valid)
    for _ in range(rng.choice((0, 1, 1, 1, 2, 2, 3, 4))):
        if data:
            rng.choice(WAYS)(rng, data)
    return bytes(data)


def fuzzed(rng: random.Random, valid: list[bytes]) -> bytes:
    """One input: mostly a message of this list, broken; else a message of any link, or random bytes."""
    chance = rng.random()
    if chance < 0.7:
        return broken(rng, rng.choice(valid))
    if chance < 0.85:
        return broken(rng, rng.choice(EVERYTHING))
    return random_bytes(rng)


def pieces(rng: random.Random, stream: bytes) -> list[bytes]:
    """A stream cut at random places, as a network does."""
    cuts = sorted(rng.randrange(len(stream) + 1) for _ in range(rng.choice((0, 0, 1, 2, 5))))
    return [stream[begin:end] for begin, end in zip([0, *cuts], [*cuts, len(stream)], strict=True)]
