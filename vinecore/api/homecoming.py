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

    def ended(self, waiter: FileWaiter) -> str:
        """Why this value is given up; empty: it is waited for, as one of which there is a copy always is."""
        if waiter.file.is_available():
            return ""
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
