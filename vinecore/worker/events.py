"""What can happen to a worker. Every event carries the time, since the machine has no clock."""

from __future__ import annotations

from dataclasses import dataclass

from vinecore.wire import messages


@dataclass(slots=True)
class ManagerSaid:
    """A message came from the manager."""

    now: float
    message: object


@dataclass(slots=True)
class ManagerGone:
    """The control link ended."""

    now: float


@dataclass(slots=True)
class HostSaid:
    """A message came from a library's parent process."""

    now: float
    library_id: int
    message: object


@dataclass(slots=True)
class HostGone:
    """A library's parent process ended; ``text`` says how."""

    now: float
    library_id: int
    text: str


@dataclass(slots=True)
class SlotAnswered:
    """Results came from a slot."""

    now: float
    slot_id: int
    results: list[messages.Result]


@dataclass(slots=True)
class SlotGone:
    """A slot's socket ended. ``started``: the sequence number it had claimed last."""

    now: float
    slot_id: int
    started: int


@dataclass(slots=True)
class ClaimRead:
    """Answer to ReadClaim: the sequence number of the call that the slot has started."""

    now: float
    slot_id: int
    started: int


@dataclass(slots=True)
class ObjectArrived:
    """A fetch is complete: the object is in the store."""

    now: float
    name: str
    size_bytes: int


@dataclass(slots=True)
class ObjectFailed:
    """A fetch failed."""

    now: float
    name: str
    reason: str


@dataclass(slots=True)
class UploadEnded:
    """An upload ended; ``reason`` is empty when it went well."""

    now: float
    transfer_id: int
    name: str
    reason: str


@dataclass(slots=True)
class Tick:
    """A deadline passed."""

    now: float


Event = (
    ManagerSaid
    | ManagerGone
    | HostSaid
    | HostGone
    | SlotAnswered
    | SlotGone
    | ClaimRead
    | ObjectArrived
    | ObjectFailed
    | UploadEnded
    | Tick
)
