"""Objects at the worker: what is here, what is on its way, what the manager wants dropped."""

from __future__ import annotations

from vinecore.wire import messages
from vinecore.worker import on_calls, orders
from vinecore.worker.state import WorkerState


def fetch(state: WorkerState, message: messages.Fetch) -> None:
    """Bring an object here, unless it is here or on its way."""
    if message.name in state.objects:
        state.orders.append(orders.ToManager(messages.Fetched(message.name, state.objects[message.name])))
    elif message.name not in state.fetching:
        state.fetching[message.name] = []
        state.orders.append(orders.FetchObject(message.name, message.size_bytes))


def arrived(state: WorkerState, name: str, size_bytes: int) -> None:
    """A fetch is complete."""
    on_calls_waiting = name in state.fetching
    state.objects[name] = size_bytes
    state.orders.append(orders.ToManager(messages.Fetched(name, size_bytes)))
    if on_calls_waiting:
        on_calls.object_settled(state, name, False)


def failed(state: WorkerState, name: str, reason: str) -> None:
    """A fetch failed: the manager hears why, calls that need it find it missing."""
    state.orders.append(orders.ToManager(messages.FetchFailed(name, reason)))
    on_calls.object_settled(state, name, True)


def upload(state: WorkerState, message: messages.Upload) -> None:
    """Send an object to the manager; the shell finds out whether it can be read."""
    state.orders.append(orders.UploadObject(message.transfer_id, message.name))


def upload_ended(state: WorkerState, transfer_id: int, name: str, reason: str) -> None:
    """Tell the manager of a failed upload; a good one it has seen itself."""
    if reason:
        state.orders.append(orders.ToManager(messages.UploadFailed(transfer_id, name, reason)))


def unlink(state: WorkerState, names: list[str]) -> None:
    """Drop objects at the manager's wish."""
    for name in names:
        state.objects.pop(name, None)
    state.orders.append(orders.UnlinkObjects(names))
