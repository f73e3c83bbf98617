"""Waiting for the bytes of a file, from a user's thread."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any, Protocol

from vinecore.api.outcome import rebuilt
from vinecore.errors import FileLost, LoopDied
from vinecore.manager.entries import FileEntry
from vinecore.manager.events import FileWanted
from vinecore.runtime.payload import load_file
from vinecore.shell.manager_loop import ManagerLoop
from vinecore.shell.transfer import LocalPath

# A copy on this machine may vanish between being named and being opened (its worker died): asked again this often.
TRIES = 5


class Posts(Protocol):
    """What is needed of an engine here."""

    loop: ManagerLoop

    def post(self, item: object) -> None: ...

    def refuse_in_loop(self, what: str) -> None: ...


class FileWaiter:
    """One wish for a file's bytes.

    Parameters:
        name: of the call whose result that is, for errors.
    """

    def __init__(self, engine: Posts, file: FileEntry, name: str = "") -> None:
        self.engine = engine
        self.file = file
        self.name = name or file.name
        self.is_asked = False
        self.asked_at = 0.0
        self.done = threading.Event()
        self.path = ""
        self.error: Exception | None = None

    def here(self, file: FileEntry, path: str) -> None:
        """The file can be read (loop's thread)."""
        self.path = path
        self.done.set()

    def failed(self, error: Exception) -> None:
        """It cannot be had (loop's thread)."""
        self.error = error
        self.done.set()

    def value(self, timeout: float | None) -> Any:
        """Wait, then decode.

        Raises:
            TimeoutError: it did not come in time. FileLost: it cannot be had. LoopDied: the manager ended.
            UnpicklableError: it cannot be rebuilt here.
        """
        return rebuilt(self.content(timeout), self.name)

    def value_in_loop(self) -> Any:
        """Decode a value that is on this machine already; the loop's thread cannot wait for it.

        Raises:
            UsageError: it would have to be waited for. FileLost: it cannot be had. UnpicklableError: it cannot be rebuilt here.
        """
        for _ in range(TRIES):
            gone, self.path = self.path, ""
            self.done.clear()
            self.engine.loop.handle_now(FileWanted(time.monotonic(), self.file, self, gone))
            if not self.done.is_set():
                self.engine.refuse_in_loop("reading a value that is on another machine")
            try:
                data = self._take(load_file)
            except FileNotFoundError:
                continue
            return rebuilt(data, self.name)
        raise FileLost(f"{self.file.name} vanished {TRIES} times before it could be read")

    def raw(self, timeout: float | None) -> bytes:
        """Wait, then return the bytes as they are."""
        return bytes(self.content(timeout, _read_file))

    def ask(self) -> None:
        """Say what is wanted; it may come while the caller does something else."""
        gone, self.path, self.error = self.path, "", None
        self.done.clear()
        self.engine.post(FileWanted(0.0, self.file, self, gone))
        self.is_asked, self.asked_at = True, time.monotonic()

    def content(self, timeout: float | None, from_path: Callable[[str], Any] = load_file) -> Any:
        """Wait for the bytes; after a TimeoutError they may be waited for again.

        Raises:
            TimeoutError, FileLost, LoopDied, OSError: they did not come.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        for _ in range(TRIES):
            if not self.is_asked:
                self.ask()
            self._wait(deadline)
            self.is_asked = False
            try:
                return self._take(from_path)
            except FileNotFoundError:
                continue
        raise FileLost(f"{self.file.name} vanished {TRIES} times before it could be read")

    def _take(self, from_path: Callable[[str], Any]) -> Any:
        """Read what is said to be here; FileNotFoundError when it is gone again."""
        if self.error is not None:
            raise self.error
        if self.path:
            return from_path(self.path)
        if self.file.data is not None:
            return self.file.data
        parts = self.engine.loop.objects.get(self.file.name)
        if parts is None:
            raise FileNotFoundError(self.file.name)
        if isinstance(parts, LocalPath):
            return from_path(parts.path)
        # Others may be given these bytes later: a value that is changed must not change them, so it gets a copy of its buffers.
        return memoryview(parts[0] if len(parts) == 1 else b"".join(parts)).toreadonly()

    def _wait(self, deadline: float | None) -> None:
        thread = self.engine.loop.thread
        while True:
            left = 1.0 if deadline is None else min(1.0, deadline - time.monotonic())
            if self.done.wait(max(0.0, left)):
                return
            if deadline is not None and time.monotonic() >= deadline:
                raise TimeoutError(f"{self.file.name or 'the value'} did not come in time")
            if thread is None or not thread.is_alive():
                raise LoopDied("the manager ended before the value came")


def _read_file(path: str) -> bytes:
    with open(path, "rb") as file:
        return file.read()
