"""Links that stay open for a moment behind an object, for the next one.

    KeptLinks (of a worker that fetches) --Get--> Requests (of a peer, or of the manager)

Small objects cost less than the way to the other side: a connection, a mutual proof, a thread there.
"""

from __future__ import annotations

import select
import threading
import time

from vinecore.shell.transfer import STALL_S, DataLink

# Host and port, and the kind of link that is served there.
Address = tuple[str, int, str]

# The other side waits longer, so that links are rarely closed there first.
KEEP_S = 5.0
IDLE_S = 10.0
# An answer over a kept link is waited for this long, then a new one has to prove that somebody is there. Higher: one that stands
# still, or is gone without a word, is noticed later than it would be by a dial; lower: slow disks there cost connections.
ANSWER_S = 5.0
# In all; the oldest go first. Bounds descriptors.
MOST_KEPT = 32
# Links that wait for another request at one server: each has a thread.
MOST_IDLE = 64


class KeptLinks:
    """Idle links by address; for any thread."""

    def __init__(self) -> None:
        # Oldest first: address, until when, link.
        self._idle: list[tuple[Address, float, DataLink]] = []
        self._lock = threading.Lock()

    def take(self, address: Address) -> DataLink | None:
        """A link to there that was good a moment ago; the caller owns it from now on."""
        self.tidy()
        with self._lock:
            for number in reversed(range(len(self._idle))):
                if self._idle[number][0] == address:
                    link = self._idle.pop(number)[2]
                    if not _was_closed(link):
                        return link
                    link.close()
        return None

    def tidy(self) -> None:
        """Close those that have idled for too long."""
        now = time.monotonic()
        with self._lock:
            while self._idle and self._idle[0][1] < now:
                self._idle.pop(0)[2].close()

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


class Requests:
    """What comes over the links of one server, each of which is served by a thread."""

    def __init__(self) -> None:
        self.idle_count = 0
        self._lock = threading.Lock()

    def next_of(self, link: DataLink) -> object:
        """What is asked for next over a link; None: too many wait for that already.

        Raises:
            PeerError, OSError: nothing more is asked for.
        """
        with self._lock:
            if self.idle_count >= MOST_IDLE:
                return None
            self.idle_count += 1
        try:
            link.sock.settimeout(IDLE_S)
            request = link.receive()
            link.sock.settimeout(STALL_S)
            return request
        finally:
            with self._lock:
                self.idle_count -= 1
