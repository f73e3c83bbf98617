"""What the worker's machine may ask of its shell."""

from __future__ import annotations

from dataclasses import dataclass

from vinecore.wire import messages


@dataclass(slots=True)
class ToManager:
    """Send a message on the control link."""

    message: object


@dataclass(slots=True)
class StartHost:
    """Start (or adopt) a parent process for this library and send it ``begin``."""

    library_id: int
    begin: messages.StartLibrary


@dataclass(slots=True)
class ToHost:
    """Send a message to a library's parent process."""

    library_id: int
    message: object


@dataclass(slots=True)
class StopHost:
    """End a library's parent process and its slots."""

    library_id: int


@dataclass(slots=True)
class OpenSlots:
    """Make sockets and claims for these slots and have the parent fork them."""

    library_id: int
    slot_ids: list[int]


@dataclass(slots=True)
class CloseSlot:
    """Close the socket of a slot: it ends when it is idle."""

    slot_id: int


@dataclass(slots=True)
class KillSlot:
    """Kill a slot's process group now; SlotGone follows."""

    slot_id: int


@dataclass(slots=True)
class ToSlot:
    """Send a message to a slot."""

    slot_id: int
    message: object


@dataclass(slots=True)
class Revoke:
    """Write the number from which the slot's calls are revoked."""

    slot_id: int
    sequence: int


@dataclass(slots=True)
class ReadClaim:
    """Read the number of the call that the slot has started; ClaimRead follows at once."""

    slot_id: int


@dataclass(slots=True)
class FetchObject:
    """Bring an object from the manager over a data link."""

    name: str
    size_bytes: int


@dataclass(slots=True)
class UploadObject:
    """Send an object to the manager over a data link."""

    transfer_id: int
    name: str


@dataclass(slots=True)
class UnlinkObjects:
    """Remove objects from the store."""

    names: list[str]


@dataclass(slots=True)
class LeaveManager:
    """Close the control link; ``exit``: end the process afterwards."""

    exit: bool
    reason: str


Order = (
    ToManager
    | StartHost
    | ToHost
    | StopHost
    | OpenSlots
    | CloseSlot
    | KillSlot
    | ToSlot
    | Revoke
    | ReadClaim
    | FetchObject
    | UploadObject
    | UnlinkObjects
    | LeaveManager
)
