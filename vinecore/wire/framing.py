"""Bytes in, frames out, and back: length prefix, size limit and, with a key, a tag that counts.

A frame is four bytes of length (little endian), the payload, and on an authenticated link sixteen bytes of keyed
BLAKE2b over (sequence number, length, payload). Each direction of a link has its own key and its own count, so a frame
that was changed, replayed, reordered, dropped, injected or sent back to where it came from fails at once.

This room owns no socket and never looks into a payload. Bytes enter by ``FrameReader.push`` (or ``feed``) in any pieces;
payloads leave by ``next_frame``. Whoever owns the link closes it on the first ``ProtocolError``: there is no way to
find the next frame after a bad one.
"""

from __future__ import annotations

import hmac
import struct
from hashlib import blake2b

from vinecore.errors import InvariantError, ProtocolError, UsageError

HEADER_BYTES = 4
# 128 bits: forging one frame takes 2**127 tries on average, and every try costs the forger a link.
TAG_BYTES = 16
# The length is four bytes; links set far lower limits of their own.
LARGEST_PAYLOAD_BYTES = 2**32 - 1

_length = struct.Struct("<I")
_counted = struct.Struct("<QI")


def _hasher(key: bytes) -> blake2b:
    # An empty key would make BLAKE2b an unkeyed checksum that anybody can compute.
    if not 16 <= len(key) <= 64:
        raise UsageError(f"a frame key has {len(key)} bytes: give 16 to 64, as the handshake makes them")
    return blake2b(digest_size=TAG_BYTES, key=key)


class FrameWriter:
    """Turns payloads of one direction of one link into frames, in the order in which they are sent."""

    __slots__ = ("_copy_hasher", "_sequence")

    def __init__(self, key: bytes | None = None) -> None:
        self.rekey(key)

    def rekey(self, key: bytes | None) -> None:
        """Use ``key`` (None: no tags) from the next frame on, whose sequence number is zero.

        Raises:
            UsageError: the key is shorter than 16 or longer than 64 bytes.
        """
        # Copying a hasher that has taken its key in costs a third less than making one for each frame.
        self._copy_hasher = None if key is None else _hasher(key).copy
        self._sequence = 0

    def write(self, payload: bytes) -> bytes:
        """Return the frame that carries ``payload``; each call counts as sent.

        Raises:
            InvariantError: the payload's length does not fit in four bytes.
        """
        size_bytes = len(payload)
        if size_bytes > LARGEST_PAYLOAD_BYTES:
            raise InvariantError(f"a payload of {size_bytes} bytes does not fit in a frame: send it over a data link")
        if self._copy_hasher is None:
            return b"".join((_length.pack(size_bytes), payload))
        hasher = self._copy_hasher()
        counted = _counted.pack(self._sequence, size_bytes)
        self._sequence += 1
        hasher.update(counted)
        hasher.update(payload)
        # One join is one copy of the payload; two additions would be two.
        return b"".join((counted[8:], payload, hasher.digest()))


class FrameReader:
    """Finds the frames in the bytes of one direction of one link.

    ``feed`` gives all complete payloads at once. Where the key or the meaning of the bytes changes between two frames
    (end of a handshake, bulk after a header), use ``push`` and ``next_frame``: nothing behind the frame that was
    returned has been looked at, so ``rekey`` and ``leftover`` apply exactly from there.

    Parameters:
        limit_bytes: a longer payload is refused as soon as its length is known.
        key: None for a link without tags.
    """

    __slots__ = (
        "_buffer",
        "_copy_hasher",
        "_fault",
        "_limit_bytes",
        "_needed",
        "_offset",
        "_pieces",
        "_sequence",
        "_size",
        "_tag_bytes",
    )

    def __init__(self, limit_bytes: int, key: bytes | None = None) -> None:
        # Unconsumed bytes are _buffer[_offset:] and then _pieces; _size counts them all.
        self._buffer = b""
        self._offset = 0
        self._pieces: list[bytes] = []
        self._size = 0
        self._fault = ""
        self.rekey(key, limit_bytes)

    def __repr__(self) -> str:
        return f"<FrameReader {self._size} of {self._needed} bytes, {self._sequence} frames{', failed' if self._fault else ''}>"

    def rekey(self, key: bytes | None, limit_bytes: int) -> None:
        """Treat every byte behind the last returned frame, buffered ones too, under ``key`` and ``limit_bytes``.

        Raises:
            UsageError: the key is shorter than 16 or longer than 64 bytes.
        """
        self._copy_hasher = None if key is None else _hasher(key).copy
        self._tag_bytes = 0 if key is None else TAG_BYTES
        self._limit_bytes = limit_bytes
        self._sequence = 0
        # How many bytes must be there before looking is of use; the header is read again under the new rules.
        self._needed = HEADER_BYTES

    def feed(self, data: bytes | bytearray | memoryview) -> list[bytes]:
        """Take bytes in and return every payload that is complete.

        Raises:
            ProtocolError: a length above the limit or a wrong tag; frames before it in the same ``data`` are dropped
                with it, and every later call raises again.
        """
        self.push(data)
        payloads: list[bytes] = []
        while (payload := self.next_frame()) is not None:
            payloads.append(payload)
        return payloads

    def push(self, data: bytes | bytearray | memoryview) -> None:
        """Take bytes in, without looking at them. Raises ProtocolError after an earlier one."""
        if self._fault:
            raise ProtocolError(self._fault)
        if not data:
            return
        # A buffer that its owner fills again must not change below us; bytes are taken as they are.
        taken = data if isinstance(data, bytes) else bytes(data)
        if self._size:
            self._pieces.append(taken)
        else:
            self._buffer = taken
            self._offset = 0
        self._size += len(taken)

    def next_frame(self) -> bytes | None:
        """Return the payload of the next complete frame, or None until more bytes are pushed.

        Raises:
            ProtocolError: a length above the limit or a wrong tag; every later call raises again.
        """
        if self._fault:
            raise ProtocolError(self._fault)
        if self._size < self._needed:
            if self._offset:
                # Less than a header is left: the frames before it would stay in memory until more comes.
                self._buffer = self._buffer[self._offset :]
                self._offset = 0
            return None
        if self._pieces:
            # Only when the frame (or its header) is complete, so pieces of a large frame are joined once.
            self._buffer = b"".join((self._buffer[self._offset :], *self._pieces))
            self._offset = 0
            self._pieces.clear()
        buffer = self._buffer
        start = self._offset + HEADER_BYTES
        (size_bytes,) = _length.unpack_from(buffer, self._offset)
        if size_bytes > self._limit_bytes:
            raise self._failed(f"a frame of {size_bytes} bytes exceeds the {self._limit_bytes} bytes that this link allows")
        end = start + size_bytes
        taken = HEADER_BYTES + size_bytes + self._tag_bytes
        if self._size < taken:
            self._needed = taken
            # Consumed frames would stay in memory as long as this one is incomplete.
            self._buffer = buffer[self._offset :]
            self._offset = 0
            return None
        payload = buffer[start:end]
        if self._copy_hasher is not None:
            hasher = self._copy_hasher()
            hasher.update(_counted.pack(self._sequence, size_bytes))
            hasher.update(payload)
            if not hmac.compare_digest(hasher.digest(), buffer[end : end + TAG_BYTES]):
                raise self._failed(f"frame {self._sequence} was changed, injected, replayed or lost on its way: its tag is wrong")
        self._sequence += 1
        self._needed = HEADER_BYTES
        self._size -= taken
        if self._size:
            self._offset += taken
        else:
            self._buffer = b""
            self._offset = 0
        return payload

    def leftover(self) -> bytes:
        """Return and forget all bytes behind the last returned frame; frames may follow in later pushes.

        Raises:
            ProtocolError: after an earlier one.
        """
        if self._fault:
            raise ProtocolError(self._fault)
        raw = b"".join((self._buffer[self._offset :], *self._pieces))
        self._clear()
        return raw

    def _failed(self, text: str) -> ProtocolError:
        self._fault = text
        self._clear()
        return ProtocolError(text)

    def _clear(self) -> None:
        self._buffer = b""
        self._offset = 0
        self._pieces.clear()
        self._size = 0
        self._needed = HEADER_BYTES
