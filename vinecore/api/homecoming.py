"""The end of a manager: large values that futures or tasks of the user still stand for come into this process first.

They stay encoded until they are asked for, so no code of the user runs here. Whoever ends the manager waits in his own thread;
Ctrl-C there leaves, and what has not come then is lost with the manager.
"""

from __future__ import annotations

import contextlib
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, Protocol

from vinecore.api.waiting import FileWaiter
from vinecore.errors import FileLost, LoopDied
from vinecore.manager.events import WorkerSaid
from vinecore.runtime.payload import load_file
from vinecore.wire.messages import UploadFailed

if TYPE_CHECKING:
    from vinecore.api.engine import Engine
    from vinecore.manager.entries import FileEntry, TaskEntry

# Values under way at once. Higher: fewer round trips to workers elsewhere are waited for; lower: less is asked for in vain.
AHEAD_COUNT = 32
# How often who waits looks whether waiting has become pointless.
LOOK_S = 0.25
# Without any worker for so long, a value that must be made again is given up. Higher: a factory, or what replaces the embedded
# worker, has more time; lower: the end of a program whose workers are gone comes sooner.
WORKERLESS_S = 5.0
# Without a byte of any value for so long, one that was asked for is given up: with keepalive-interval 0 nothing else ends the
# wait for a worker that is frozen or cut off. Higher: it takes longer to end; lower: a worker that reads many gigabytes from a
# slow disk, before it sends the first byte, counts as frozen.
STILL_S = 30.0
# With a keepalive so many of its timeouts, if that is longer: by then it has ended such links, and the values are made again.
STILL_TIMEOUTS = 1.5
# After so long the user is told what is waited for. Higher: who watches wonders longer; lower: ordinary ends print a line.
TELL_S = 5.0
# Smaller files are copied: a process may have some 65,000 mappings. Larger ones are mapped, and need memory when they are read.
MAP_MIN_BYTES = 1 << 20


class Holder(Protocol):
    """What a future or task is here: it has its outcome, and its value is on workers."""

    # What this module found: bytes, or an exception.
    _home: Any

    def _unread(self) -> TaskEntry | None:
        """Its entry, if nobody has asked for the value yet, and it was not found before."""


def bring_home(engine: Engine, holders: Iterable[weakref.ref[Any]], hurry: Callable[[], str]) -> None:
    """Give what somebody holds, and has not read yet, the bytes of its value, or the reason why there are none.

    Parameters:
        hurry: why only values that are there are brought, and nothing is made again; empty: there is time for that.
    """
    patience = _Patience(engine, hurry)
    asked: deque[tuple[Holder, FileWaiter]] = deque()
    with contextlib.suppress(LoopDied):
        for reference in holders:
            holder: Holder | None = reference()
            entry = None if holder is None else holder._unread()
            if holder is None or entry is None or entry.output is None:
                continue
            waiter = FileWaiter(engine, entry.output, entry.kind.name)
            if not patience.ended(waiter):
                waiter.ask()
                patience.pass_over()
            asked.append((holder, waiter))
            if len(asked) >= AHEAD_COUNT:
                _take(*asked.popleft(), patience)
        while asked:
            _take(*asked.popleft(), patience)


def _take(holder: Holder, waiter: FileWaiter, patience: _Patience) -> None:
    """Wait for one value.

    Raises:
        LoopDied: the manager has ended, and with it all others.
    """
    home: Any = None
    while home is None:
        try:
            why = patience.ended(waiter)
            if why and not waiter.done.is_set():
                home = FileLost(f"the result of {waiter.name} is lost: {why}, when the manager was closed")
            else:
                home = waiter.content(LOOK_S, _load)
        except TimeoutError:
            patience.tell(waiter)
        except LoopDied:
            raise
        except Exception as error:
            # A disk, a mapping or memory that fails costs this value only.
            home = error
    holder._home = home


def _load(path: str) -> Any:
    return load_file(path, MAP_MIN_BYTES)


class _Patience:
    """When it is pointless to wait on."""

    def __init__(self, engine: Engine, hurry: Callable[[], str]) -> None:
        self.engine = engine
        self.hurry = hurry
        self.began_at = time.monotonic()
        self.is_told = False
        self.workerless_since: float | None = None
        self.received_bytes = 0
        # When bytes came, or others were asked than before: they have as much time.
        self.moved_at = 0.0
        # Workers that were given up: what only they have is not asked for any more, what others have too is asked of those.
        self.silent: set[int] = set()

    def ended(self, waiter: FileWaiter) -> str:
        """Why this value is given up; empty: it is waited for, as one of which there is a copy always is while bytes come."""
        if waiter.done.is_set():
            return ""  # it is here, and says nothing about its worker
        if waiter.file.is_available():
            return self._silence(waiter)
        why = self.hurry()
        if why:
            return f"no copy of it was left, and {why}"
        if self.engine.machine.state.workers:
            self.workerless_since = None
            return ""
        now = time.monotonic()
        if self.workerless_since is None:
            self.workerless_since = now
        return "no worker was there that has it or could make it again" if now - self.workerless_since >= WORKERLESS_S else ""

    def pass_over(self) -> None:
        """What was just asked for is asked of somebody else, if it was asked of one that was given up and others have it."""
        if self.silent:
            self.engine.post(self._ask_others)

    def tell(self, waiter: FileWaiter) -> None:
        """Say once, if the end takes long, for what it waits and until when."""
        now = time.monotonic()
        if self.is_told or now - self.began_at < TELL_S:
            return
        self.is_told = True
        until = "which is made again first"
        if waiter.file.is_available():
            until = f"for {max(0.0, self._left_s(waiter, now)):.0f} s more and longer if bytes come"
        self.engine.loop.say(
            f"the end waits for large results that are still held, now for that of {waiter.name}, {until}; "
            "Ctrl-C leaves without them"
        )

    def _limit_s(self) -> float:
        tunables = self.engine.machine.state.tunables
        return max(STILL_S, STILL_TIMEOUTS * tunables.keepalive_timeout) if tunables.keepalive_interval else STILL_S

    def _left_s(self, waiter: FileWaiter, now: float) -> float:
        """How long this one may still be waited for, if no byte comes."""
        return max(waiter.asked_at, self.moved_at) + self._limit_s() - now

    def _silence(self, waiter: FileWaiter) -> str:
        """Why a value is not waited for though workers have it; empty: it is."""
        received, now = self.engine.loop.received_bytes, time.monotonic()
        if received != self.received_bytes:
            self.received_bytes, self.moved_at = received, now
        if waiter.is_asked and self._left_s(waiter, now) <= 0 and self.engine.call_in_loop(lambda: self._give_up(waiter)):
            self.moved_at = now
        # A copy made at one go: the loop's thread may change what it is a copy of.
        holders = set(waiter.file.on_workers)
        return f"no worker that has it sent anything for {self._limit_s():g} s" if holders and holders <= self.silent else ""

    def _give_up(self, waiter: FileWaiter) -> bool:
        """Nothing more is expected of the worker that was asked for this; whether others were asked now (loop's thread)."""
        if waiter.done.is_set():
            return False
        file = waiter.file
        asked = {relay.worker_id for relay in self.engine.machine.state.relays.values() if relay.file is file}
        self.silent |= asked or set(file.on_workers)
        return self._ask_others()

    def _ask_others(self) -> bool:
        """Ask others for what they have and a silent worker was asked for; whether there was any (loop's thread).

        The manager asks one worker, and another one when that says that it cannot send: this is said on its behalf, as it is
        where an upload breaks off. A worker that is only slow loses that copy, and stays.
        """
        relays, has_asked = self.engine.machine.state.relays, False
        # The next one that is asked may be silent, too.
        for _ in self.silent:
            for one in list(relays.values()):
                if one.worker_id not in self.silent or not self._is_elsewhere(one.file):
                    continue
                has_asked = True
                failed = UploadFailed(one.transfer_id, one.name, "its worker sends nothing")
                self.engine.loop.handle_now(WorkerSaid(time.monotonic(), one.worker_id, failed))
        return has_asked

    def _is_elsewhere(self, file: FileEntry) -> bool:
        return not self.silent.issuperset(file.on_workers)
