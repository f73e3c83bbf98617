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
from vinecore.runtime.payload import load_file

if TYPE_CHECKING:
    from vinecore.api.engine import Engine
    from vinecore.manager.state import TaskEntry

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
            continue
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
        self.workerless_since: float | None = None
        self.received_bytes = 0
        self.received_at = 0.0
        # Workers that were given up: what only they have is not asked for any more.
        self.silent: set[int] = set()

    def ended(self, waiter: FileWaiter) -> str:
        """Why this value is given up; empty: it is waited for, as one of which there is a copy always is while bytes come."""
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

    def _silence(self, waiter: FileWaiter) -> str:
        """Why a value is not waited for though workers have it; empty: it is."""
        # A copy made at one go: the loop's thread may change what it is a copy of.
        holders = set(waiter.file.on_workers or ())
        if not holders:
            return ""
        received, now = self.engine.loop.received_bytes, time.monotonic()
        if received != self.received_bytes:
            self.received_bytes, self.received_at = received, now
        tunables, limit = self.engine.machine.state.tunables, STILL_S
        if tunables.keepalive_interval:
            limit = max(limit, STILL_TIMEOUTS * tunables.keepalive_timeout)
        is_still = waiter.is_asked and now - max(waiter.asked_at, self.received_at) >= limit
        if is_still and len(holders) == 1:
            # Of several, only one was asked.
            self.silent |= holders
        return f"the worker that has it sent nothing for {limit:g} s" if is_still or holders <= self.silent else ""
