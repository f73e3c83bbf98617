"""Frames under any split of the bytes, any key change and any damage."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from vinecore.errors import ProtocolError
from vinecore.wire.framing import FrameReader, FrameWriter

LIMIT_BYTES = 300
KEYS = st.one_of(st.none(), st.binary(min_size=32, max_size=32))
PAYLOADS = st.lists(st.binary(max_size=LIMIT_BYTES), max_size=8)
# Small pieces and pieces that hold several frames.
CUTS = st.lists(st.one_of(st.integers(1, 8), st.integers(1, 1000)), max_size=60)

bounded = settings(max_examples=80, deadline=None, database=None)


def split(stream: bytes, sizes: list[int]) -> list[bytes]:
    pieces = []
    for size in sizes:
        pieces.append(stream[:size])
        stream = stream[size:]
    return [*pieces, stream]


@bounded
@given(payloads=PAYLOADS, key=KEYS, sizes=CUTS)
def test_payloads_come_out_under_any_split(payloads: list[bytes], key: bytes | None, sizes: list[int]) -> None:
    writer = FrameWriter(key)
    stream = b"".join(writer.write(payload) for payload in payloads)
    reader = FrameReader(LIMIT_BYTES, key)
    assert [payload for piece in split(stream, sizes) for payload in reader.feed(piece)] == payloads
    assert reader.leftover() == b""


@bounded
@given(first=PAYLOADS, second=PAYLOADS, keys=st.tuples(KEYS, KEYS), raw=st.binary(max_size=100), sizes=CUTS)
def test_keys_and_raw_bytes_begin_exactly_behind_a_frame(
    first: list[bytes], second: list[bytes], keys: tuple[bytes | None, bytes | None], raw: bytes, sizes: list[int]
) -> None:
    writer = FrameWriter(keys[0])
    stream = b"".join(writer.write(payload) for payload in first)
    writer.rekey(keys[1])
    stream += b"".join(writer.write(payload) for payload in second) + raw
    reader = FrameReader(LIMIT_BYTES, keys[0])
    if not first:
        reader.rekey(keys[1], LIMIT_BYTES)
    seen: list[bytes] = []
    rest = b""
    for piece in split(stream, sizes):
        reader.push(piece)
        while len(seen) < len(first) + len(second) and (payload := reader.next_frame()) is not None:
            seen.append(payload)
            if len(seen) == len(first):
                reader.rekey(keys[1], LIMIT_BYTES)
        if len(seen) == len(first) + len(second):
            rest += reader.leftover()
    assert seen == first + second
    assert rest == raw


@bounded
@given(
    payloads=st.lists(st.binary(max_size=40), min_size=1, max_size=4),
    key=st.binary(min_size=32, max_size=32),
    data=st.data(),
)
def test_damage_never_yields_another_payload(payloads: list[bytes], key: bytes, data: st.DataObject) -> None:
    writer = FrameWriter(key)
    stream = bytearray(b"".join(writer.write(payload) for payload in payloads))
    start = data.draw(st.integers(0, len(stream) - 1))
    stop = data.draw(st.integers(start, len(stream)))
    damage = data.draw(st.binary(max_size=60))
    whole = bytes(stream[:start]) + damage + bytes(stream[stop:])
    reader = FrameReader(LIMIT_BYTES, key)
    seen: list[bytes] = []
    try:
        for byte in whole:
            seen += reader.feed(bytes([byte]))
    except ProtocolError:
        pass
    # Whatever comes out is a beginning of what was sent.
    assert seen == payloads[: len(seen)]
    assert len(seen) == len(payloads) or whole != bytes(stream)


@bounded
@given(pieces=st.lists(st.binary(max_size=40), max_size=20), key=KEYS)
def test_any_bytes_give_payloads_or_a_lasting_protocol_error(pieces: list[bytes], key: bytes | None) -> None:
    reader = FrameReader(LIMIT_BYTES, key)
    failed = False
    for piece in pieces:
        try:
            payloads = reader.feed(piece)
        except ProtocolError:
            failed = True
        else:
            assert not failed
            assert all(len(payload) <= LIMIT_BYTES for payload in payloads)
