"""Files as users hold them: local files, buffers and temps, and the methods of a manager that make and drop them."""

from __future__ import annotations

import hashlib
import io
import os
import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from vinecore.api.numbers import shown
from vinecore.api.texts import NAME_LIMIT_BYTES, checked_text
from vinecore.errors import FileLost, InputMissing, LostError, UsageError
from vinecore.runtime import payload as payloads
from vinecore.wire.messages import INLINE_LIMIT_BYTES

if TYPE_CHECKING:
    from vinecore.api.engine import Engine
    from vinecore.manager.entries import FileEntry

# Numbers of kinds, as TaskVine's clients compare them.
FILE = 1
TEMP = 3
BUFFER = 4
_SOURCES = {TEMP: "temp", BUFFER: "buffer"}
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")


class File(payloads.Dependency):
    """An immutable file. As an argument of a call it stands for its content: bytes of a buffer, the value of a temp."""

    def __init__(self, engine: Engine, entry: FileEntry | None, kind: int, data: bytes | None = None, path: str = "") -> None:
        self.engine = engine
        self._kind = kind
        self._data = data
        self._path = path
        # As a value: what a task made, or the encoded content of a buffer.
        self._entry = entry
        # As bytes to mount: a version of a local file, or a buffer as it is; by its name.
        self._raw: dict[str, FileEntry] = {}
        # How the local path looked when the latest output had come home; while it does, the cluster's copy is the same.
        self._home: tuple[int, int, int] | None = None
        # ``_entry`` is held for it: until it is undeclared, or nobody can name it any more.
        self._is_held = True

    def __del__(self) -> None:
        # Versions of local files stay: one that is declared anew for each task is not sent anew. No lock is taken here.
        if self._kind != FILE or self._entry is not None:
            self.engine.release([*self._held_entry(), *(self._raw.values() if self._kind != FILE else ())])

    @property
    def entry(self) -> FileEntry:
        """The file of the core that an argument stands for.

        Raises:
            UsageError: a local file, which is no value.
        """
        if self._entry is None:
            if self._data is None or self._kind == FILE:
                raise UsageError(f"{self!r} cannot be an argument: read it inside the function, or pass its content")
            self._entry, self._is_held = _encoded(self.engine, self._data), True
        return self._entry

    def mount_entry(self) -> FileEntry:
        """The file of the core with the bytes themselves.

        Raises:
            UsageError: a local file that does not exist, or is a directory.
        """
        if self._kind == TEMP or self._is_made():
            return self.entry
        if self._kind == BUFFER:
            return self._raw.get("") or self._raw.setdefault("", self._new_raw())
        try:
            info = os.stat(self._path)
        except OSError as error:
            raise InputMissing(f"the input {self._path} cannot be read: {error.strerror}") from None
        if not os.path.isfile(self._path):
            raise UsageError(f"{self._path} is no regular file: directories cannot be inputs in this version")
        # A changed file is a new file.
        text = f"{self._path}\0{info.st_size}\0{info.st_mtime_ns}\0{info.st_ino}"
        name = f"f{hashlib.blake2b(os.fsencode(text), digest_size=10).hexdigest()}"
        return self._raw.get(name) or self._raw.setdefault(name, self.engine.local_file(self, self._path, info.st_size, name))

    def _new_raw(self) -> FileEntry:
        data = self._data
        if data is None:
            raise UsageError("this buffer has no content yet: the task that makes it must be submitted first")
        raw = self.engine.new_file([data], len(data))
        raw.holds = 1
        if len(data) <= INLINE_LIMIT_BYTES:
            raw.data = data
        return raw

    def _is_made(self) -> bool:
        """Whether what a task makes is what counts, and not the content from before or a local file that was changed since."""
        entry = self._entry
        if entry is None or entry.producer is None:
            return False
        if self._kind != FILE or entry.producer.error is not None:
            return True
        return self._home is None or self._home == _looks(self._path)

    def is_program(self) -> bool:
        """Whether a task that has it as input may run it: a local file with that right; buffers are scripts as often as data."""
        if self._kind == BUFFER:
            return True
        return self._kind == FILE and os.access(self._path, os.X_OK)

    def made_by(self, entry: FileEntry) -> list[FileEntry]:
        """A task makes it (again): from now on it stands for that. Returns what it stood for, which is not held any more."""
        old, self._entry, self._home = self._held_entry(), entry, None
        self._is_held = True
        if self._kind == TEMP:
            self._data = None
        return [file for file in old if file is not entry]

    def expects(self, product: FileEntry) -> bool:
        """Whether what a task made is to come here: not when a later one made it meanwhile."""
        entry = self._entry
        return entry is None or entry is product or not entry.is_available()

    def take_content(self, data: bytes) -> None:
        """What a task made has come here: write it to the local path, or keep it.

        Raises:
            OSError: the path cannot be written.
        """
        if self._kind == FILE:
            directory = os.path.dirname(self._path)
            if directory:
                os.makedirs(directory, exist_ok=True)
            with open(self._path, "wb") as file:
                file.write(data)
            self._home = _looks(self._path)
        else:
            self._data = data

    def held(self) -> list[FileEntry]:
        """Everything in the core that is held for this file."""
        return [*([self._entry] if self._entry is not None else []), *self._raw.values()]

    def _held_entry(self) -> list[FileEntry]:
        return [self._entry] if self._entry is not None and self._is_held else []

    def let_go(self) -> list[FileEntry]:
        """It is not declared any more; returns what is held for it, and for no other. What is used again is declared again."""
        raw, self._raw = self._raw, {}
        files = [*self._held_entry(), *(self.engine.left_alone(self, raw) if self._kind == FILE else raw.values())]
        self._is_held = False
        if self._kind != TEMP:
            self._entry = None
        elif self._entry is not None and self._entry.producer is not None:
            self._entry.promised = False  # who reads it now does not wait for somebody to make it
        return files

    def type(self) -> int:
        """1 for a local file, 3 for a temp, 4 for a buffer."""
        return self._kind

    def source(self) -> str:
        """The path of a local file, "temp" or "buffer"."""
        return _SOURCES.get(self._kind, self._path)

    def contents(self, unserializer: Callable[[io.BytesIO], Any] | None = None) -> Any:
        """Bytes of a buffer, or of a temp that was fetched; ``unserializer`` gets them as an open stream.

        Raises:
            UsageError: the temp has not been fetched (call ``Manager.fetch_file`` first), or no task has made the buffer yet.
        """
        if self._kind == FILE:
            with open(self._path, "rb") as file:
                data = file.read()
            return data if unserializer is None else unserializer(io.BytesIO(data))
        if self._data is None and self._kind == BUFFER:
            raise UsageError(f"{self!r} has no content yet: {self._why_empty()}")
        if self._data is None:
            raise UsageError("this temp has not been fetched: call fetch_file on the manager first")
        return self._data if unserializer is None else unserializer(io.BytesIO(self._data))

    def _why_empty(self) -> str:
        producer = None if self._entry is None else self._entry.producer
        if producer is None:
            return "make it an output of a task (add_output), submit that and wait for it, or declare the buffer with its content"
        if producer.error is not None or producer.report is not None:
            return "the task that was to make it did not (its result and reason say why)"
        return "wait for the task that makes it"

    def __len__(self) -> int:
        if self._data is not None:
            return len(self._data)
        if self._kind == FILE:
            return os.path.getsize(self._path) if os.path.exists(self._path) else 0
        return self._entry.size_bytes if self._entry is not None else 0

    def __bool__(self) -> bool:
        return True

    def __repr__(self) -> str:
        if self._kind == FILE:
            return f"<File {self._path}>"
        entry = self._entry
        if self._data is not None:
            state = f"{len(self._data)} bytes"
        elif entry is not None and entry.is_available():
            state = f"{entry.size_bytes} bytes"
        elif entry is not None and entry.producer is not None and entry.producer.error is not None:
            state = "whose task failed"
        elif entry is not None and entry.size_bytes:
            state = "of which no copy is left"
        else:
            state = "not made yet"
        return f"<File {self.source()} {state}>"


class FileMethods:
    """The part of a manager that deals with files."""

    engine: Engine

    def declare_file(self, path: str | os.PathLike[str], unlink_when_done: bool = False, **options: Any) -> File:
        """A file on the manager's disk: an input if it exists, an output if a task makes it.

        Parameters:
            unlink_when_done: True is refused; remove the file yourself.
            options: cache, peer_transfer: accepted as in TaskVine.

        Raises:
            TypeError: no path. UsageError (a ValueError): one that no file can have, a URL, ``unlink_when_done``.
        """
        _known_options("declare_file", options)
        if not isinstance(path, str | os.PathLike):
            raise TypeError(f"declare_file takes the path of a file as a str or Path, not {shown(path)}")
        if unlink_when_done:
            raise UsageError("unlink_when_done is not supported in this version: remove the file yourself")
        return File(self.engine, None, FILE, path=os.path.abspath(_checked_path(os.fsdecode(path))))

    def declare_buffer(self, buffer: bytes | bytearray | memoryview | str | None = None, **options: Any) -> File:
        """A file with this content (a str is stored as UTF-8); None: an output, whose content a task makes.

        Parameters:
            buffer: the content; it is copied.
            options: cache, peer_transfer: accepted as in TaskVine.

        Raises:
            UsageError: it is neither bytes-like nor a str, or an option is unknown.
        """
        _known_options("declare_buffer", options)
        if isinstance(buffer, str):
            buffer = buffer.encode()
        if buffer is not None and not isinstance(buffer, bytes | bytearray | memoryview):
            raise UsageError(f"declare_buffer takes bytes or a str, not {type(buffer).__name__}")
        return File(self.engine, None, BUFFER, None if buffer is None else bytes(buffer))

    def declare_temp(self) -> File:
        """A file that a task will make and that stays in the cluster: for ``add_output``, or ``FunctionCall.set_output``."""
        entry = self.engine.new_temp()
        entry.holds = 1
        entry.promised = True
        return File(self.engine, entry, TEMP)

    def fetch_file(self, file: File, timeout: float | None = None) -> str | None:
        """Bring the content of a file here and return it as text; ``file.contents()`` then has the bytes.

        For the value of a call or vertex these are its pickle, for a file that a command made its content. None
        when it cannot be had (not produced, failed).

        Raises:
            UsageError: not a file of this manager. TimeoutError: it did not come in time.
        """
        self._own(file)
        if file.type() == FILE:
            return str(file.contents().decode("utf-8", "surrogateescape")) if os.path.isfile(file.source()) else None
        if file._data is None:
            self.engine.refuse_in_loop("fetch_file")
            if file._entry is None or file._entry.producer is None:
                return None
            from vinecore.api.waiting import FileWaiter

            try:
                data = FileWaiter(self.engine, file.entry).raw(timeout)
                # A value with buffers beside its pickle: what is promised is one pickle.
                file._data = payloads.dump(payloads.decode(data)) if data.startswith(payloads.MAGIC) else data
            except (FileLost, LostError):
                return None
        return file._data.decode("utf-8", "surrogateescape")

    def undeclare_file(self, file: File) -> None:
        """Drop a file everywhere, as soon as no task needs it, unless it was declared twice. A second time is harmless.

        Raises:
            UsageError: not a file of this manager.
        """
        self._own(file)
        files = file.let_go()
        if files:
            self.engine.release(files)

    remove_file = undeclare_file

    def prune_file(self, file: File) -> None:
        """Drop the copies on workers; a temp that is needed again is made again.

        Raises:
            UsageError: not a file of this manager.
        """
        self._own(file)
        from vinecore.manager.events import FilePruned

        for entry in file.held():
            self.engine.post(FilePruned(0.0, entry))

    def get_file_replica_count(self, file: File) -> int:
        """Number of workers that hold it."""
        self._own(file)

        def count() -> int:
            return len(set().union(*(entry.on_workers for entry in file.held())))

        return int(self.engine.call_in_loop(count))

    def _own(self, file: File) -> None:
        if not isinstance(file, File):
            raise UsageError(f"this takes a File made by a declare_ method, not {type(file).__name__}")
        check_owner(file, self.engine)


def check_owner(file: File, engine: Engine) -> None:
    """Refuse a file that another manager declared: the ids of its core mean something else here.

    Raises:
        UsageError: it belongs to another manager.
    """
    if file.engine is not engine:
        raise UsageError(f"{file!r} belongs to another manager: declare it with the one that is to use it")


def _checked_path(path: str) -> str:
    if not path:
        raise UsageError("declare_file takes the path of a file, which is not empty")
    if "\0" in path:
        raise UsageError(f"no file can have this path, which holds a null character: {path!r}")
    if _URL.match(path) and not os.path.lexists(path):
        raise UsageError(
            f"declare_file takes the path of a file on this machine, not the URL {path}: URLs are not supported in this version, "
            "fetch it first, or in the task's command"
        )
    return path


def checked_name(name: Any) -> str:
    """A relative name in a task's directory.

    Raises:
        TypeError, ValueError: it is none.
    """
    if not isinstance(name, str):
        raise TypeError(f"a name in the task's directory is a str, not {type(name).__name__}")
    if not name.strip("./"):
        raise ValueError(f"{name!r} names no file in the task's directory: use a relative name such as 'data/input.txt'")
    if name.startswith("/") or ".." in name.split("/"):
        raise ValueError(f"{name!r} leads out of the task's directory: use a relative name without '..'")
    checked_text(name, "a name in the task's directory")
    if any(len(part.encode()) > NAME_LIMIT_BYTES for part in name.split("/")):
        raise UsageError(f"a name in the task's directory has at most {NAME_LIMIT_BYTES} bytes between two '/', unlike {name!r}")
    return name


def _looks(path: str) -> tuple[int, int, int] | None:
    try:
        info = os.stat(path)
    except OSError:
        return None
    return info.st_size, info.st_mtime_ns, info.st_ino


def _known_options(method: str, options: dict[str, Any]) -> None:
    for name in options:
        if name not in ("cache", "peer_transfer"):
            raise UsageError(f"{method} has no option {name!r}: it takes cache and peer_transfer")


def _encoded(engine: Engine, data: bytes) -> FileEntry:
    """The content of a buffer as a value."""
    encoded = payloads.encode(data)
    body = encoded if isinstance(encoded, bytes) else encoded.join()
    entry = engine.new_file([body], len(body))
    if len(body) <= INLINE_LIMIT_BYTES:
        entry.data = body
    entry.holds = 1
    return entry
