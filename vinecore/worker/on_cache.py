"""Objects at the worker: what is here, what is on its way, what the manager wants dropped."""

from __future__ import annotations

from vinecore.wire import messages
from vinecore.worker import events, on_calls, on_libraries, orders
from vinecore.worker.state import WorkerState


def fetch(state: WorkerState, message: messages.Fetch) -> None:
    """Bring an object here, unless it is here or on its way."""
    if message.name in state.objects:
        state.orders.append(orders.ToManager(messages.Fetched(message.name, state.objects[message.name])))
    elif message.name in state.fetching:
        state.unwanted.discard(message.name)
    else:
        state.fetching[message.name] = []
        state.orders.append(
            orders.FetchObject(
                message.name, message.size_bytes, message.sources, message.ticket, message.expires_s, message.transfer_id
            )
        )


def stop_fetch(state: WorkerState, message: messages.StopFetch) -> None:
    """A peer is gone; the fetch from it ends as any that fails."""
    if message.name in state.fetching:
        state.orders.append(orders.StopFetch(message.name, (message.host, message.port)))


def arrived(state: WorkerState, name: str, size_bytes: int) -> None:
    """A fetch is complete; what was dropped meanwhile goes at once."""
    if name in state.unwanted:
        state.unwanted.discard(name)
        state.orders.append(orders.UnlinkObjects([name]))
        state.orders.append(orders.ToManager(messages.FetchFailed(name, "it was dropped while it was on its way")))
        _settle(state, name, "it was dropped while it was on its way")
        return
    state.objects[name] = size_bytes
    state.orders.append(orders.ToManager(messages.Fetched(name, size_bytes)))
    _settle(state, name, "")


def failed(state: WorkerState, event: events.ObjectFailed) -> None:
    """A fetch failed: the manager hears why, calls that need it find it missing."""
    name, reason = event.name, event.reason
    if name not in state.unwanted and on_libraries.may_fetch_again(state, name):
        state.orders.append(orders.FetchObject(name, 0))
        return
    state.unwanted.discard(name)
    state.orders.append(orders.ToManager(messages.FetchFailed(name, reason, event.absent, event.unreached)))
    _settle(state, name, reason)


def _settle(state: WorkerState, name: str, error: str) -> None:
    on_libraries.payload_settled(state, name, error)
    on_calls.object_settled(state, name, error)


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
        if name in state.fetching:
            state.unwanted.add(name)
    state.orders.append(orders.UnlinkObjects(names))
