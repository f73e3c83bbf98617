"""What the worker's machine may ask of its shell."""

from __future__ import annotations

from vinecore.wire import messages
from vinecore.wire.messages import Record


class ToManager(Record):
    """Send a message on the control link."""

    message: object


class StartHost(Record):
    """Start (or adopt) a parent process for this library and send it ``begin``, but not the modules ``without``."""

    library_id: int
    begin: messages.StartLibrary
    without: frozenset[str] = frozenset()


class ToHost(Record):
    """Send a message to a library's parent process."""

    library_id: int
    message: object


class StopHost(Record):
    """End a library's parent process and its slots."""

    library_id: int


class OpenSlots(Record):
    """Make sockets and claims for these slots and have the parent fork them."""

    library_id: int
    slot_ids: list[int]


class CloseSlot(Record):
    """Close the socket of a slot: it ends when it is idle."""

    slot_id: int


class KillSlot(Record):
    """Kill a slot's process group now; SlotGone follows."""

    slot_id: int


class ToSlot(Record):
    """Send a message to a slot."""

    slot_id: int
    message: object


class Revoke(Record):
    """Write the number from which the slot's calls are revoked."""

    slot_id: int
    sequence: int


class ReadClaim(Record):
    """Read the number of the call that the slot has started; ClaimRead follows at once."""

    slot_id: int


class FetchObject(Record):
    """Bring an object here: from the first of these peers that has it, or from the manager when there are none."""

    name: str
    size_bytes: int
    sources: list[tuple[str, int]] = []
    ticket: bytes = b""
    expires_s: int = 0
    # Not 0: another worker sends it through the manager.
    transfer_id: int = 0


class StopFetch(Record):
    """Wait no longer for an object from this peer."""

    name: str
    source: tuple[str, int]


class UploadObject(Record):
    """Send an object to the manager over a data link."""

    transfer_id: int
    name: str


class UnlinkObjects(Record):
    """Remove objects from the store; ``partial``: also what was written of them before their writer died."""

    names: list[str]
    partial: bool = False


class LookAtStore(Record):
    """Calls ended badly, which the following reports: leave the manager first if that is because the store is gone."""


class LeaveManager(Record):
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
    | StopFetch
    | UploadObject
    | UnlinkObjects
    | LookAtStore
    | LeaveManager
)
