"""The helper thread of a slot: it sends results that a surprisingly long call of a batch would hold up.

A module of its own because it imports threading, which a slot that forks must do in its own way (``fork_hooks``) and has no other
use for.
"""

from __future__ import annotations

import threading
from time import perf_counter
from typing import Protocol

# It looks this often.
STUCK_FLUSH_S = 0.005


class Holder(Protocol):
    """Who gathers results: a slot."""

    # When it sent some, by ``perf_counter``.
    last_flush: float

    def flush(self) -> None: ...


class Flusher:
    """Start it with the first batch that has several calls; it lives as long as the slot."""

    def __init__(self, slot: Holder) -> None:
        self._slot = slot
        self._is_running = threading.Event()
        threading.Thread(target=self._run, name="vine-flush", daemon=True).start()

    def watch(self) -> None:
        """A batch runs."""
        self._is_running.set()

    def rest(self) -> None:
        """The batch is over."""
        self._is_running.clear()

    def _run(self) -> None:
        pause = threading.Event()
        while True:
            self._is_running.wait()
            pause.wait(STUCK_FLUSH_S)
            if perf_counter() - self._slot.last_flush > STUCK_FLUSH_S:
                try:
                    self._slot.flush()
                except OSError:
                    return
