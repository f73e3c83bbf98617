"""The worker's machine.

    manager's messages ─┐                                 ┌─> messages to the manager
    libraries, slots ───┼─> handle(event) ─> tables ──────┼─> batches for slots, orders to parents
    transfers ends ─────┤        (state.py, on_*.py)      ├─> transfers, unlinks
    ticks ──────────────┘                                 └─> revocations, kills

It has no clock, no socket, no process: events carry the time, orders are performed by ``shell/worker_loop.py``. The manager
decides where things run; this machine decides which slot, and takes work back from slots that are stuck.
"""

from __future__ import annotations

import math

from vinecore.errors import ProtocolError
from vinecore.wire import messages
from vinecore.worker import events, on_cache, on_calls, on_claims, on_libraries, orders
from vinecore.worker.state import WorkerState

# Silence of the manager after which its link counts as dead: this many keepalive timeouts.
SILENCE_FACTOR = 2.0
# After this share of it the manager is asked for a word.
ASK_SHARE = 0.5
# Least time from the look that finds it silent to the one that leaves it. A worker that stood still itself (suspended, say) has
# the manager's words in its socket, which is read after a look that is overdue: that one must not be the last.
DOUBT_S = 1.0


class WorkerMachine:
    """Feed it events, perform the orders it returns."""

    def __init__(self) -> None:
        self.state = WorkerState()
        self._next: float | None = None

    def handle(self, event: events.Event) -> list[object]:
        """The only way in. Returns the orders that follow from this event.

        Raises:
            ProtocolError: the manager sent something that is not legal now.
        """
        state = self.state
        state.now = event.now
        if type(event) is events.SlotAnswered:
            on_calls.slot_answered(state, event.slot_id, event.results)
        elif type(event) is events.ManagerSaid:
            state.last_heard = event.now
            self._manager_said(event.message)
        else:
            self._other(event)
        self._next = on_claims.rebalance(state)
        if state.results:
            state.orders.append(orders.ToManager(messages.Done(state.results)))
            state.results = []
        out, state.orders = state.orders, []
        return out

    def _manager_said(self, message: object) -> None:
        state = self.state
        if isinstance(message, messages.Run):
            on_calls.run_came(state, message)
        elif state.welcome is None and not isinstance(message, messages.Welcome | messages.Release):
            raise ProtocolError(f"the manager sent {type(message).__name__} before its welcome")
        elif isinstance(message, messages.Welcome):
            state.welcome = message
            self._note_keepalive(message.keepalive_interval_s, message.keepalive_timeout_s)
        elif isinstance(message, messages.StartLibrary):
            on_libraries.start_library(state, message)
        elif isinstance(message, messages.StopLibrary):
            on_libraries.stop_library(state, message.library_id)
        elif isinstance(message, messages.Code):
            on_libraries.code_came(state, message)
        elif isinstance(message, messages.ForgetCode):
            on_libraries.forget_code(state, message)
        elif isinstance(message, messages.Cancel):
            on_calls.cancel(state, message.tasks)
        elif isinstance(message, messages.HandBack):
            on_claims.hand_back(state, message.library_id, message.count)
        elif isinstance(message, messages.Fetch):
            on_cache.fetch(state, message)
        elif isinstance(message, messages.StopFetch):
            on_cache.stop_fetch(state, message)
        elif isinstance(message, messages.Upload):
            on_cache.upload(state, message)
        elif isinstance(message, messages.Unlink):
            on_cache.unlink(state, message.names)
        elif isinstance(message, messages.Keepalive):
            self._note_keepalive(message.interval_s, message.timeout_s)
        elif isinstance(message, messages.Ping):
            state.orders.append(orders.ToManager(messages.Pong()))
        elif isinstance(message, messages.Release):
            state.leaving = True
            state.orders.append(orders.LeaveManager(message.exit, message.reason))
        elif not isinstance(message, messages.Pong):
            raise ProtocolError(f"the manager sent {type(message).__name__}, which a worker does not take")

    def _other(self, event: events.Event) -> None:
        state = self.state
        if isinstance(event, events.HostSaid):
            on_libraries.host_said(state, event.library_id, event.message)
        elif isinstance(event, events.HostGone):
            on_libraries.host_gone(state, event.library_id, event.text)
        elif isinstance(event, events.SlotReady):
            on_libraries.slot_ready(state, event.slot_id)
        elif isinstance(event, events.SlotGone):
            on_libraries.slot_gone(state, event.slot_id, event.started, event.how)
        elif isinstance(event, events.SlotTired):
            on_calls.slot_tired(state, event.slot_id)
        elif isinstance(event, events.ClaimRead):
            on_claims.claim_read(state, event.slot_id, event.started)
        elif isinstance(event, events.ObjectArrived):
            on_cache.arrived(state, event.name, event.size_bytes)
        elif isinstance(event, events.ObjectFailed):
            on_cache.failed(state, event)
        elif isinstance(event, events.UploadEnded):
            on_cache.upload_ended(state, event.transfer_id, event.name, event.reason)
        elif isinstance(event, events.ManagerGone):
            for library_id in list(state.libraries):
                state.orders.append(orders.StopHost(library_id))
        elif isinstance(event, events.Tick):
            on_libraries.look_at_imports(state)
            if state.welcome is not None and not state.leaving:
                self._look_for_silence()

    def _look_for_silence(self) -> None:
        """Ask a manager that says nothing, in time: it asks silent workers only, and we may answer calls all the while."""
        state = self.state
        silent_s = state.now - state.last_heard
        if silent_s > state.silence_s:
            self._found_silent()
        elif silent_s > ASK_SHARE * state.silence_s and state.asked_at <= state.last_heard:
            state.asked_at = state.now
            state.orders.append(orders.ToManager(messages.Ping()))

    def _found_silent(self) -> None:
        state = self.state
        if state.doubted_at <= state.last_heard:
            state.doubted_at = state.now
        elif state.now - state.doubted_at >= DOUBT_S:
            state.leaving = True
            state.orders.append(orders.LeaveManager(False, f"the manager was silent for {state.silence_s:g} s"))

    def _note_keepalive(self, interval_s: float, timeout_s: float) -> None:
        """A manager that asks nobody may be silent for ever."""
        self.state.silence_s = timeout_s * SILENCE_FACTOR if interval_s > 0 and timeout_s > 0 else math.inf

    def next_deadline(self) -> float | None:
        """When to send a Tick at the latest; None: nothing is pending."""
        return self._next

    def check(self) -> None:
        """Raise InvariantError when a promise of the state is broken."""
        self.state.check()

    def story(self, *ids: int) -> list[str]:
        """Where these tasks are now, for error reports."""
        lines: list[str] = []
        for library in self.state.libraries.values():
            held = [call for call in on_calls.outstanding_calls(library) if call.task_id in ids]
            lines.extend(f"task {call.task_id} attempt {call.attempt}: held by {library!r}" for call in held)
        return lines
