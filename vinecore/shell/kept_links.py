"""Links to peers that stay open for a moment behind an object, for the next one from there.

For small objects the way to the other side (connection, mutual proof, a thread there) costs ten times what they cost themselves.
"""

from __future__ import annotations

import select
import threading
import time

from vinecore.shell.transfer import DataLink

Address = tuple[str, int]

# The other side waits longer (``peer_server.IDLE_S``), so that links are rarely closed there first.
KEEP_S = 5.0
# In all; the oldest go first. Bounds descriptors here, and threads there.
MOST_KEPT = 32


class KeptLinks:
    """Idle links by address; for any thread."""

    def __init__(self) -> None:
        # Oldest first: address, until when, link.
        self._idle: list[tuple[Address, float, DataLink]] = []
        self._lock = threading.Lock()

    def take(self, address: Address) -> DataLink | None:
        """A link to there that was good a moment ago; the caller owns it from now on."""
        now = time.monotonic()
        with self._lock:
            while self._idle and self._idle[0][1] < now:
                self._idle.pop(0)[2].close()
            for number in reversed(range(len(self._idle))):
                if self._idle[number][0] == address:
                    link = self._idle.pop(number)[2]
                    if not _was_closed(link):
                        return link
                    link.close()
        return None

    def keep(self, address: Address, link: DataLink) -> None:
        """A link whose last object has come as it should."""
        with self._lock:
            self._idle.append((address, time.monotonic() + KEEP_S, link))
            if len(self._idle) > MOST_KEPT:
                self._idle.pop(0)[2].close()

    def close(self) -> None:
        """Close all of them."""
        with self._lock:
            for _, _, link in self._idle:
                link.close()
            self._idle.clear()


def _was_closed(link: DataLink) -> bool:
    """Nothing was asked: what can be read is the end."""
    poll = select.poll()
    poll.register(link.sock, select.POLLIN)
    return bool(poll.poll(0))
