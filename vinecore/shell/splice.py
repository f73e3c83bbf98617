"""The manager's side of a splice: two data links, and the bytes of one object from one to the other.

    destination's Get --park--> waiting --take (source's Put)--> pass_on: 256 KiB at a time --> both closed

No thread waits with a parked link: the source's thread passes the bytes on. It reads no more than the destination has taken, so
the slower side sets the pace, and what is held is one buffer, whatever the size. The manager does not verify what it passes on:
the destination has the source's checksum. Any thread may call in here.
"""

from __future__ import annotations

import threading

from vinecore.errors import PeerError
from vinecore.shell.transfer import DataLink
from vinecore.wire import messages

# In the user's process, once for each splice; larger is not faster on a loopback link, smaller costs system calls.
BUFFER_BYTES = 256 * 1024


class Splices:
    """Links that wait for their other half, and pairs that are at work, by transfer."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._parked: dict[int, DataLink] = {}
        self._pairs: dict[int, tuple[DataLink, DataLink]] = {}
        self._closed = False

    def __len__(self) -> int:
        return len(self._parked) + len(self._pairs)

    def park(self, transfer_id: int, destination: DataLink) -> None:
        """Keep the link of a destination until its source has dialled; it belongs to this table from now on."""
        with self._lock:
            # Whoever comes after the end is sent away: nobody would ever close his link.
            older = destination if self._closed else self._parked.pop(transfer_id, None)
            if not self._closed:
                self._parked[transfer_id] = destination
        if older is not None:
            older.close()

    def end(self, transfer_id: int, is_source_gone: bool = False) -> None:
        """Close what there is of a splice; of one whose source is gone only if bytes have passed."""
        with self._lock:
            parked = None if is_source_gone else self._parked.pop(transfer_id, None)
            pair = self._pairs.get(transfer_id, ())
            # Under the lock: their thread cannot close them, and so give their numbers away, at the same time.
            for link in pair:
                link.interrupt()
        if parked is not None:
            parked.close()

    def end_all(self) -> None:
        """The manager ends."""
        with self._lock:
            self._closed = True
        for transfer_id in [*self._parked, *self._pairs]:
            self.end(transfer_id)

    def pass_on(self, source: DataLink, request: messages.Put) -> None:
        """Pass the object that a source brings on to the destination that waits for it; closes the destination's link.

        Raises:
            PeerError: nobody waits for it, or one side closed early. OSError: one side failed, or stood still for too long.
        """
        with self._lock:
            destination = self._parked.pop(request.transfer_id, None)
            if destination is None:
                raise PeerError(f"nobody waits for {request.name[:80]!r} any more")
            self._pairs[request.transfer_id] = source, destination
        try:
            _pass_on(source, destination, request)
        finally:
            with self._lock:
                del self._pairs[request.transfer_id]
                destination.close()


def _pass_on(source: DataLink, destination: DataLink, request: messages.Put) -> None:
    left = request.size_bytes
    destination.send(messages.Object(request.name, left, request.digest))
    early = source.reader.leftover()[:left]
    if early:
        destination.sock.sendall(early)
        left -= len(early)
    buffer = memoryview(bytearray(BUFFER_BYTES))
    while left:
        count = source.sock.recv_into(buffer, min(left, BUFFER_BYTES))
        if not count:
            raise PeerError(f"the source of an object closed its link {left} bytes too early")
        destination.sock.sendall(buffer[:count])
        left -= count
