"""How the child of a forking slot leaves its Result: in memory that it shares with the slot.

    number u64 | length u64 | status u8 | duration us u64 | size of what it stored u64 | harmless u8 || value

No message of the wire, since each page that a child or the slot touches between two forks is copied, which is what a fork costs.
And no descriptor: user code may close all of them, open others under their numbers, or set limits for files.
"""

from __future__ import annotations

import mmap
import struct

from vinecore.runtime import raised
from vinecore.wire.messages import Call, Result

# The number of a child, so that an older answer is not taken for its. The head is written last: half an answer does not count.
_HEAD = struct.Struct("<QQBQQ?")
# The memory is given back when an answer was larger.
_KEEP_BYTES = 1 << 16


class Answers:
    """Made by the slot, before it forks.

    Parameters:
        limit_bytes: the longest value.
    """

    def __init__(self, limit_bytes: int) -> None:
        # Only pages that were written take memory.
        self._map = mmap.mmap(-1, _HEAD.size + max(limit_bytes, raised.ENCODED_ERROR_LIMIT_BYTES))

    def leave(self, number: int, result: Result, is_harmless: bool) -> None:
        """In a child: its Result, and whether the code that it unpickled may be unpickled in the slot."""
        value = result.value
        end = _HEAD.size + len(value)
        self._map[_HEAD.size : end] = value
        _HEAD.pack_into(self._map, 0, number, len(value), result.status, result.duration_us, result.size_bytes, is_harmless)

    def take(self, number: int, call: Call) -> tuple[Result, bool] | None:
        """What this child left; None when it did not get that far."""
        found, length, status, duration_us, size_bytes, is_harmless = _HEAD.unpack_from(self._map)
        if found != number:
            return None
        value = self._map[_HEAD.size : _HEAD.size + length]
        if length > _KEEP_BYTES:
            self._map.madvise(mmap.MADV_REMOVE)
        return Result(call.task_id, call.attempt, status, duration_us, value, size_bytes), is_harmless
