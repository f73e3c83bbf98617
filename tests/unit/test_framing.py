"""Frames: exact bytes, limits, tags, and the exact places where keys change and raw bytes begin."""

from __future__ import annotations

from hashlib import blake2b

import pytest

from vinecore.errors import InvariantError, ProtocolError, UsageError
from vinecore.wire.framing import HEADER_BYTES, TAG_BYTES, FrameReader, FrameWriter

KEY = bytes(range(32))
OTHER_KEY = bytes(range(1, 33))
LIMIT_BYTES = 1000


def expected_tag(key: bytes, sequence: int, payload: bytes) -> bytes:
    text = sequence.to_bytes(8, "little") + len(payload).to_bytes(4, "little") + payload
    return blake2b(text, digest_size=16, key=key).digest()


def test_plain_frame_is_length_and_payload() -> None:
    assert FrameWriter().write(b"abc") == b"\x03\x00\x00\x00abc"
    assert FrameWriter().write(b"") == bytes(4)


def test_tag_covers_count_length_and_payload() -> None:
    writer = FrameWriter(KEY)
    assert writer.write(b"abc") == b"\x03\x00\x00\x00abc" + expected_tag(KEY, 0, b"abc")
    assert writer.write(b"abc") == b"\x03\x00\x00\x00abc" + expected_tag(KEY, 1, b"abc")
    writer.rekey(OTHER_KEY)
    assert writer.write(b"") == bytes(4) + expected_tag(OTHER_KEY, 0, b"")
    writer.rekey(None)
    assert writer.write(b"x") == b"\x01\x00\x00\x00x"


def test_bytes_of_a_tagged_frame_are_pinned() -> None:
    assert FrameWriter(KEY).write(b"abc").hex() == "030000006162631eaf726543e22cbd0cc6848a8a1d3f5a"


@pytest.mark.parametrize("key", [None, KEY], ids=["plain", "tagged"])
def test_whole_frames_partial_frames_and_single_bytes(key: bytes | None) -> None:
    payloads = [b"", b"a", b"b" * LIMIT_BYTES, b"c"]
    writer = FrameWriter(key)
    stream = b"".join(writer.write(payload) for payload in payloads)
    assert FrameReader(LIMIT_BYTES, key).feed(stream) == payloads
    reader = FrameReader(LIMIT_BYTES, key)
    assert [payload for byte in stream for payload in reader.feed(bytes([byte]))] == payloads
    assert reader.feed(b"") == []
    assert reader.leftover() == b""


def test_buffers_that_their_owner_fills_again_are_copied() -> None:
    buffer = bytearray(FrameWriter().write(b"abc")[:6])
    reader = FrameReader(LIMIT_BYTES)
    assert reader.feed(memoryview(buffer)) == []
    buffer[:] = bytes(6)
    (payload,) = reader.feed(bytearray(b"c"))
    assert payload == b"abc"
    assert type(payload) is bytes


def test_length_above_the_limit_is_refused_when_four_bytes_are_there() -> None:
    header = (LIMIT_BYTES + 1).to_bytes(HEADER_BYTES, "little")
    reader = FrameReader(LIMIT_BYTES)
    assert reader.feed(header[:3]) == []
    with pytest.raises(ProtocolError, match="1001 bytes exceeds the 1000 bytes"):
        reader.feed(header[3:])


@pytest.mark.parametrize("key", [None, KEY], ids=["plain", "tagged"])
def test_an_error_stays(key: bytes | None) -> None:
    reader = FrameReader(LIMIT_BYTES, key)
    with pytest.raises(ProtocolError) as first:
        reader.feed(b"\xff" * 64)
    good = FrameWriter(key).write(b"fine")
    for again in (lambda: reader.feed(good), lambda: reader.push(good), reader.next_frame, reader.leftover):
        with pytest.raises(ProtocolError) as later:
            again()
        assert str(later.value) == str(first.value)
        assert later.value is not first.value
    reader.rekey(KEY, LIMIT_BYTES)
    with pytest.raises(ProtocolError):
        reader.feed(FrameWriter(KEY).write(b"fine"))


def frames_of(count: int) -> list[bytes]:
    writer = FrameWriter(KEY)
    return [writer.write(b"payload %d" % number) for number in range(count)]


@pytest.mark.parametrize(
    "order", [[1], [0, 0], [0, 2], [0, 2, 1], [1, 0]], ids=["first lost", "replayed", "lost", "reordered", "exchanged"]
)
def test_frames_out_of_order_are_refused(order: list[int]) -> None:
    frames = frames_of(3)
    with pytest.raises(ProtocolError, match="its tag is wrong"):
        FrameReader(LIMIT_BYTES, KEY).feed(b"".join(frames[number] for number in order))


@pytest.mark.parametrize("position", range(4 + 9 + TAG_BYTES))
def test_any_changed_byte_is_refused(position: int) -> None:
    frame = bytearray(FrameWriter(KEY).write(b"payload 0"))
    frame[position] ^= 1
    reader = FrameReader(LIMIT_BYTES, KEY)
    # A changed length waits for more bytes or takes other ones as the tag; nothing ever comes out as a payload.
    with pytest.raises(ProtocolError):
        assert reader.feed(bytes(frame)) == []
        reader.feed(bytes(LIMIT_BYTES))


def test_a_frame_sent_back_or_under_another_key_is_refused() -> None:
    with pytest.raises(ProtocolError, match="its tag is wrong"):
        FrameReader(LIMIT_BYTES, OTHER_KEY).feed(FrameWriter(KEY).write(b"x"))


def test_an_untagged_frame_is_refused_where_tags_are_due() -> None:
    reader = FrameReader(LIMIT_BYTES, KEY)
    assert reader.feed(FrameWriter().write(b"x")) == []
    with pytest.raises(ProtocolError, match="its tag is wrong"):
        reader.feed(FrameWriter().write(b"y" * 16))


@pytest.mark.parametrize("split", range(0, 60, 3))
def test_rekey_applies_to_bytes_that_are_already_buffered(split: int) -> None:
    last_plain = FrameWriter().write(b"last of the handshake")
    tagged = FrameWriter(KEY)
    # Larger than the first limit: the header must not be judged before the change.
    stream = last_plain + tagged.write(b"x" * 50) + tagged.write(b"second")
    reader = FrameReader(30)
    reader.push(stream[:split])
    first = reader.next_frame()
    if first is None:
        reader.push(stream[split : len(last_plain)])
        first = reader.next_frame()
        split = max(split, len(last_plain))
    assert first == b"last of the handshake"
    reader.rekey(KEY, LIMIT_BYTES)
    assert reader.feed(stream[split:]) == [b"x" * 50, b"second"]


def test_rekey_after_a_look_at_an_incomplete_frame_starts_anew() -> None:
    frame = FrameWriter(KEY).write(b"x" * 10)
    reader = FrameReader(30)
    # Without a key this frame would be complete after 14 bytes.
    assert reader.feed(frame[:13]) == []
    reader.rekey(KEY, LIMIT_BYTES)
    assert reader.feed(frame[13:-1]) == []
    assert reader.feed(frame[-1:]) == [b"x" * 10]


@pytest.mark.parametrize("key", [None, KEY], ids=["plain", "tagged"])
def test_raw_bytes_behind_a_frame_are_handed_over(key: bytes | None) -> None:
    writer = FrameWriter(key)
    header, after = writer.write(b"object"), writer.write(b"next")
    reader = FrameReader(LIMIT_BYTES, key)
    reader.push(header + b"\xff\xff")
    assert reader.next_frame() == b"object"
    reader.push(b"\xff\xffraw")
    assert reader.leftover() == b"\xff\xff\xff\xffraw"
    assert reader.leftover() == b""
    assert reader.feed(after) == [b"next"]


def test_leftover_after_a_look_does_not_wait_for_the_looked_at_length() -> None:
    reader = FrameReader(LIMIT_BYTES)
    assert reader.feed(b"\x64\x00\x00\x00raw") == []
    assert reader.leftover() == b"\x64\x00\x00\x00raw"
    assert reader.feed(FrameWriter().write(b"x")) == [b"x"]


@pytest.mark.parametrize("key", [b"", b"short", bytes(65)], ids=["empty", "short", "long"])
def test_unsafe_keys_are_refused(key: bytes) -> None:
    with pytest.raises(UsageError, match=f"{len(key)} bytes"):
        FrameWriter(key)
    with pytest.raises(UsageError, match=f"{len(key)} bytes"):
        FrameReader(LIMIT_BYTES, key)


def test_a_payload_of_four_gigabytes_is_our_own_fault() -> None:
    class Huge(bytes):
        def __len__(self) -> int:
            return 2**32

    with pytest.raises(InvariantError, match="4294967296 bytes"):
        FrameWriter().write(Huge())


def test_a_large_frame_in_many_pieces_is_joined_once() -> None:
    payload = bytes(1_000_000)
    frame = FrameWriter(KEY).write(payload)
    reader = FrameReader(len(payload), KEY)
    pieces = [frame[start : start + 1000] for start in range(0, len(frame), 1000)]
    joined_sizes = set()
    for piece in pieces[:-1]:
        assert reader.feed(piece) == []
        joined_sizes.add(len(reader._buffer))
    # Growing with each piece would copy five hundred times the frame.
    assert joined_sizes == {1000}
    assert reader.feed(pieces[-1]) == [payload]


def test_consumed_frames_leave_memory_while_the_next_is_incomplete() -> None:
    writer = FrameWriter()
    reader = FrameReader(LIMIT_BYTES)
    stream = b"".join(writer.write(b"x" * LIMIT_BYTES) for _ in range(3))
    assert len(reader.feed(stream[:-1])) == 2
    assert len(reader._buffer) == HEADER_BYTES + LIMIT_BYTES - 1
    assert len(reader.feed(stream[-1:])) == 1
    assert reader._buffer == b""
