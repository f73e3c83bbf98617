"""The end of an executor that owns its manager: large values that futures still stand for come into this process first.

They stay encoded until they are asked for, so no code of the user runs here. Whoever ends the executor waits in his own thread;
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

# Where there is no value yet.
UNSET: Any = object()
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
    """What a future is here: it has its outcome, and its value is on workers."""

    entry: Any
    # The value, once it was asked for.
    _decoded: Any
    # What this module found.
    _home: Any


def bring_home(engine: Engine, futures: Iterable[weakref.ref[Any]], is_hurried: Callable[[], bool]) -> None:
    """Give each future that somebody holds, and that was not read yet, the bytes of its value, or the reason why there are none.

    Parameters:
        is_hurried: when it says so, only values that are there are brought: nothing is made again.
    """
    patience = _Patience(engine, is_hurried)
    asked: deque[tuple[Holder, FileWaiter]] = deque()
    with contextlib.suppress(LoopDied):
        for reference in futures:
            future: Holder | None = reference()
            if future is None or future._decoded is not UNSET or future._home is not None:
                continue
            waiter = FileWaiter(engine, future.entry.output, future.entry.kind.name)
            if not patience.ended(waiter):
                waiter.ask()
            asked.append((future, waiter))
            if len(asked) >= AHEAD_COUNT:
                _take(*asked.popleft(), patience)
        while asked:
            _take(*asked.popleft(), patience)


def _take(future: Holder, waiter: FileWaiter, patience: _Patience) -> None:
    """Wait for one value.

    Raises:
        LoopDied: the manager has ended, and with it all others.
    """
    home: Any = None
    while home is None:
        try:
            why = patience.ended(waiter)
            if why and not waiter.done.is_set():
                home = FileLost(f"the result of {waiter.name} is lost: {why}, when its executor was shut down")
            else:
                home = waiter.content(LOOK_S, _load)
        except TimeoutError:
            continue
        except LoopDied:
            raise
        except Exception as error:
            # A disk, a mapping or memory that fails costs this value only.
            home = error
    future._home = home


def _load(path: str) -> Any:
    return load_file(path, MAP_MIN_BYTES)


class _Patience:
    """When it is pointless to wait on."""

    def __init__(self, engine: Engine, is_hurried: Callable[[], bool]) -> None:
        self.engine = engine
        self.is_hurried = is_hurried
        self.workerless_since: float | None = None

    def ended(self, waiter: FileWaiter) -> str:
        """Why this value is given up; empty: it is waited for, as one of which there is a copy always is."""
        if waiter.file.is_available():
            return ""
        if self.is_hurried():
            return "no copy of it was left, and an interrupt left no time to make it again"
        if self.engine.machine.state.workers:
            self.workerless_since = None
            return ""
        now = time.monotonic()
        if self.workerless_since is None:
            self.workerless_since = now
        return "no worker was there that has it or could make it again" if now - self.workerless_since >= WORKERLESS_S else ""
