"""Files as users hold them: buffers and temps, and the methods of a manager that make and drop them."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from vinecore.errors import FileLost, LostError, UsageError
from vinecore.runtime import payload as payloads
from vinecore.wire.messages import INLINE_LIMIT_BYTES

if TYPE_CHECKING:
    from vinecore.api.engine import Engine
    from vinecore.manager.state import FileEntry

# Numbers of kinds, as TaskVine's clients compare them.
TEMP = 3
BUFFER = 4


class File(payloads.Dependency):
    """An immutable file. As an argument of a FunctionCall it stands for its content: bytes of a buffer, the value of a temp."""

    def __init__(self, engine: Engine, entry: FileEntry, kind: int, data: bytes | None = None) -> None:
        self.engine = engine
        self.entry = entry
        self._kind = kind
        self._data = data
        self.undeclared = False

    def type(self) -> int:
        """3 for a temp, 4 for a buffer."""
        return self._kind

    def source(self) -> str:
        """"temp" or "buffer"."""
        return "temp" if self._kind == TEMP else "buffer"

    def contents(self, unserializer: Callable[[io.BytesIO], Any] | None = None) -> Any:
        """Bytes of a buffer, or of a temp that was fetched; ``unserializer`` gets them as an open stream.

        Raises:
            UsageError: the temp has not been fetched: call ``Manager.fetch_file`` first.
        """
        if self._data is None:
            raise UsageError("this temp has not been fetched: call fetch_file on the manager first")
        return self._data if unserializer is None else unserializer(io.BytesIO(self._data))

    def __len__(self) -> int:
        return len(self._data) if self._data is not None else self.entry.size_bytes

    def __bool__(self) -> bool:
        return True

    def __repr__(self) -> str:
        return f"<File {self.source()} {self.entry.name or self.entry.value_id}>"


class FileMethods:
    """The part of a manager that deals with files."""

    engine: Engine

    def declare_buffer(self, buffer: bytes | bytearray | memoryview | str | None = None, **options: Any) -> File:
        """A file with this content; a str is stored as UTF-8.

        Parameters:
            buffer: the content; it is copied.
            options: cache, peer_transfer: accepted as in TaskVine; buffers are named by content and kept for the workflow.

        Raises:
            UsageError: it is neither bytes-like nor a str, or an option is unknown.
        """
        _known_options(options)
        if isinstance(buffer, str):
            buffer = buffer.encode()
        if buffer is None or not isinstance(buffer, bytes | bytearray | memoryview):
            raise UsageError(f"declare_buffer takes bytes or a str, not {type(buffer).__name__}")
        data = bytes(buffer)
        encoded = payloads.encode(data)
        body = encoded if isinstance(encoded, bytes) else encoded.join()
        entry = self.engine.new_file([body], len(body))
        if len(body) <= INLINE_LIMIT_BYTES:
            entry.data = body
        entry.holds = 1
        return File(self.engine, entry, BUFFER, data)

    def declare_temp(self) -> File:
        """A file that a call will make and that stays in the cluster: give it to ``FunctionCall.set_output``."""
        entry = self.engine.new_temp()
        entry.holds = 1
        return File(self.engine, entry, TEMP)

    def fetch_file(self, file: File, timeout: float | None = None) -> str | None:
        """Bring the content of a file here and return it as text; ``file.contents()`` then has the bytes.

        For a temp those bytes are the pickled value. None when it cannot be had (not produced, failed).

        Raises:
            UsageError: not a file of this manager. TimeoutError: it did not come in time.
        """
        self._own(file)
        if file._data is None:
            self.engine.refuse_in_loop("fetch_file")
            producer = file.entry.producer
            if producer is None:
                return None
            from vinecore.api.waiting import FileWaiter

            try:
                file._data = FileWaiter(self.engine, file.entry).raw(timeout)
            except (FileLost, LostError):
                return None
        return file._data.decode("utf-8", "surrogateescape")

    def undeclare_file(self, file: File) -> None:
        """Drop a file everywhere, as soon as no task needs it. A second time is harmless.

        Raises:
            UsageError: not a file of this manager.
        """
        self._own(file)
        if not file.undeclared:
            file.undeclared = True
            self.engine.release([file.entry])

    remove_file = undeclare_file

    def prune_file(self, file: File) -> None:
        """Drop the copies on workers; a temp that is needed again is made again.

        Raises:
            UsageError: not a file of this manager.
        """
        self._own(file)
        from vinecore.manager.events import FilePruned

        self.engine.post(FilePruned(0.0, file.entry))

    def get_file_replica_count(self, file: File) -> int:
        """Number of workers that hold it."""
        self._own(file)
        return int(self.engine.call_in_loop(lambda: len(file.entry.on_workers or ())))

    def _own(self, file: File) -> None:
        if not isinstance(file, File):
            raise UsageError(f"this takes a File made by a declare_ method, not {type(file).__name__}")
        if file.engine is not self.engine:
            raise UsageError(f"{file!r} belongs to another manager")


def _known_options(options: dict[str, Any]) -> None:
    for name in options:
        if name not in ("cache", "peer_transfer"):
            raise UsageError(f"declare_buffer has no option {name!r}: it takes cache and peer_transfer")
