"""What can happen to a worker. Every event carries the time, since the machine has no clock."""

from __future__ import annotations

from vinecore.wire import messages
from vinecore.wire.messages import Record


class ManagerSaid(Record):
    """A message came from the manager."""

    now: float
    message: object


class ManagerGone(Record):
    """The control link ended."""

    now: float


class HostSaid(Record):
    """A message came from a library's parent process."""

    now: float
    library_id: int
    message: object


class HostGone(Record):
    """A library's parent process ended; ``text`` says how."""

    now: float
    library_id: int
    text: str


class SlotAnswered(Record):
    """Results came from a slot."""

    now: float
    slot_id: int
    results: list[messages.Result]


class SlotReady(Record):
    """A slot that loads its library by itself has done so."""

    now: float
    slot_id: int


class SlotGone(Record):
    """A slot's socket ended. ``started``: the number it had claimed last; ``how``: what is known of its process's end."""

    now: float
    slot_id: int
    started: int
    how: str = ""


class SlotTired(Record):
    """A slot wants to be replaced: its memory has grown by ``grown_mb``."""

    now: float
    slot_id: int
    grown_mb: int


class ClaimRead(Record):
    """Answer to ReadClaim: the sequence number of the call that the slot has started."""

    now: float
    slot_id: int
    started: int


class ObjectArrived(Record):
    """A fetch is complete: the object is in the store."""

    now: float
    name: str
    size_bytes: int


class ObjectFailed(Record):
    """A fetch failed. ``absent``, ``unreached``: numbers of sources, as in FetchFailed."""

    now: float
    name: str
    reason: str
    absent: list[int] = []
    unreached: list[int] = []


class UploadEnded(Record):
    """An upload ended; ``reason`` is empty when it went well."""

    now: float
    transfer_id: int
    name: str
    reason: str


class Tick(Record):
    """A deadline passed."""

    now: float


Event = (
    ManagerSaid
    | ManagerGone
    | HostSaid
    | HostGone
    | SlotAnswered
    | SlotReady
    | SlotGone
    | SlotTired
    | ClaimRead
    | ObjectArrived
    | ObjectFailed
    | UploadEnded
    | Tick
)
