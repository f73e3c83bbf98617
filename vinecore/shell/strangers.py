"""Connections whose other side has not proved itself: few for each address, and few in all.

    accepted --take_in--> Strangers --settled--> proved, or gone
                              |
                              +--end()--> the oldest, when there is one too many

An honest handshake takes milliseconds, so what has waited longest is what waits for nothing: ending that keeps nobody out, which
refusing the newest would let idle connections do. One table serves a whole port, whatever stands before the handshake there
(TLS), so that no stage of it is without a limit. It is for the loop's thread only.
"""

from __future__ import annotations

import ipaddress
from collections import OrderedDict
from collections.abc import Callable

from vinecore.wire.handshake import PENDING_PER_ADDRESS

# Connections that the kernel keeps until the loop accepts them; one more would be dropped, and dialled again a second later. The
# loop takes a hundred at a time, whatever this is.
ACCEPT_QUEUE = 1024
# Half of the descriptors that a process usually may open; below it, every worker of a large cluster may dial at the same moment.
PENDING_IN_ALL = 512


class Stranger:
    """One connection that is counted.

    Parameters:
        group: addresses that are counted together.
        end: closes it; called at most once, after it is counted no more.
    """

    __slots__ = ("end", "group")

    def __init__(self, group: str, end: Callable[[], None]) -> None:
        self.group = group
        self.end = end


class Strangers:
    """The unproved connections of one port, oldest first for each address.

    Parameters:
        per_address, in_all: how many are kept; one more ends the oldest of its address, or of the address that has most.
    """

    __slots__ = ("_by_address", "_count", "ended_count", "in_all", "per_address")

    def __init__(self, per_address: int = PENDING_PER_ADDRESS, in_all: int = PENDING_IN_ALL) -> None:
        self.per_address = per_address
        self.in_all = in_all
        # Ended because there were too many.
        self.ended_count = 0
        self._by_address: dict[str, OrderedDict[Stranger, None]] = {}
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def take_in(self, address: str, end: Callable[[], None]) -> Stranger:
        """Count a connection; another one may be ended for it."""
        group = group_of(address)
        stranger = Stranger(group, end)
        here = self._by_address.setdefault(group, OrderedDict())
        if len(here) >= self.per_address:
            self._end_oldest(here)
        elif self._count >= self.in_all:
            self._end_oldest(max(self._by_address.values(), key=len))
        self._by_address.setdefault(group, here)[stranger] = None
        self._count += 1
        return stranger

    def settled(self, stranger: Stranger) -> None:
        """It has proved itself, or is gone; safe to call twice."""
        here = self._by_address.get(stranger.group)
        if here is None or stranger not in here:
            return
        del here[stranger]
        self._count -= 1
        if not here:
            del self._by_address[stranger.group]

    def end_all(self) -> None:
        """The port closes."""
        for here in list(self._by_address.values()):
            for stranger in list(here):
                self.settled(stranger)
                stranger.end()

    def _end_oldest(self, here: OrderedDict[Stranger, None]) -> None:
        oldest = next(iter(here))
        self.settled(oldest)
        self.ended_count += 1
        oldest.end()


def group_of(address: str) -> str:
    """What counts as one address: that of IPv4, the network of IPv6 (64 bits), of which one host may use all."""
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return address
    if parsed.version == 4:
        return address
    mapped = parsed.ipv4_mapped
    if mapped is not None:
        return str(mapped)
    return str(ipaddress.IPv6Address(int(parsed) >> 64 << 64))
