"""Splices of the fake network: what ``shell/splice.py`` does with links, done with names and values."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vinecore.manager import events
from vinecore.manager import orders as from_manager

if TYPE_CHECKING:
    from tests.kit.machines import ManagerShell
    from tests.kit.workers import FakeWorker


class FakeSplices:
    """Destinations that wait, and those that are being sent to, by transfer."""

    def __init__(self, shell: ManagerShell) -> None:
        self.shell, self.network = shell, shell.network
        self.waiting: dict[int, tuple[FakeWorker, str]] = {}
        self.passing: dict[int, tuple[FakeWorker, str]] = {}

    def asked(self, transfer_id: int, destination: FakeWorker, name: str) -> None:
        """A destination has dialled."""
        splice = self.shell.machine.state.splices.get(transfer_id)
        if splice is None or (splice.name, splice.destination_id) != (name, destination.worker_id):
            self.network.later(self.network.delay(), destination.transfers.fetched, name, None)
            return
        self.waiting[transfer_id] = destination, name
        self.network.later(0.0, self._opened, transfer_id)

    def _opened(self, transfer_id: int) -> None:
        self.shell.handle(events.SpliceOpened(self.network.now, transfer_id))

    def begins(self, transfer_id: int) -> None:
        """A source has dialled and sends."""
        if transfer_id in self.waiting:
            self.passing[transfer_id] = self.waiting.pop(transfer_id)

    def ends(self, transfer_id: int, data: bytes | None) -> None:
        """The destination has everything, or (None) sees its link end."""
        if transfer_id in self.passing:
            destination, name = self.passing.pop(transfer_id)
            self.network.later(self.network.delay(), destination.transfers.fetched, name, data)

    def end(self, order: from_manager.EndSplice) -> None:
        """The manager ends it."""
        if not order.is_source_gone:
            self.begins(order.transfer_id)
        self.ends(order.transfer_id, None)
