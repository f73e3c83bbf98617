"""What an engine knows by identity: libraries, functions, kinds and shapes of tasks, objects; one entry for equal ones.

User threads call this: dictionaries are filled by ``setdefault``, and what must be made once is made under the engine's lock.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from vinecore.wire.messages import INLINE_LIMIT_BYTES

if TYPE_CHECKING:
    from vinecore.manager.entries import CodeEntry, FileEntry, Kind, LibraryEntry, Shape
    from vinecore.model.resources import Resources
    from vinecore.runtime.functions import FunctionCache, FunctionPickle
    from vinecore.shell.manager_loop import ManagerLoop

# Functions remembered, and bytes of their pickles, before those that are gone are looked for; higher: a longer tail of dead ones
# in this process, in slots and on the disks of workers.
CODES_LIMIT_COUNT = 128
CODES_LIMIT_BYTES = 64 * 1024 * 1024
# Kinds of tasks remembered: the latest ones, and those that are used again; higher: more memory where names never repeat.
KINDS_LIMIT_COUNT = 10_000


class Releasing(Protocol):
    """What is needed of an engine here."""

    def release(self, files: list[FileEntry]) -> None: ...


class Release:
    """Lets go of a file when what holds this object is gone. No lock is taken here."""

    __slots__ = ("engine", "file")

    def __init__(self, engine: Releasing, file: FileEntry) -> None:
        self.engine = engine
        self.file = file

    def __del__(self) -> None:
        self.engine.release([self.file])


class CodeMethods:
    """The part of an engine that makes entries of the core and keeps one for equal ones."""

    _lock: threading.Lock
    loop: ManagerLoop
    functions: FunctionCache
    # The room of the core's tables, which is imported late.
    _entries: Any
    _code_ids: Iterator[int]
    _library_ids: Iterator[int]
    _file_ids: Iterator[int]
    # The library of futures and graphs, and its shape for tasks without requests.
    python: LibraryEntry
    default_shape: Shape
    codes: dict[FunctionPickle, tuple[CodeEntry, Kind]]
    # Both tables of functions together: what they may hold until the next look, and the bytes that they hold.
    _codes_limit: int
    _codes_limit_bytes: int
    _codes_bytes: int
    kinds: dict[tuple[str, Shape], Kind]
    # Of those that are in use.
    _shapes: weakref.WeakValueDictionary[tuple[int, Resources, bool], Shape]
    _process_library: LibraryEntry | None
    _process_codes: dict[FunctionPickle | None, CodeEntry]
    # Local files that are declared, by version, with who declares them.
    _local_files: dict[str, tuple[FileEntry, weakref.WeakSet[Any]]]

    if TYPE_CHECKING:

        def post(self, item: object) -> None: ...

        def release(self, files: list[FileEntry]) -> None: ...

    def new_library(self, name: str, **options: Any) -> LibraryEntry:
        """A library entry with a fresh id; not installed."""
        library: LibraryEntry = self._entries.LibraryEntry(next(self._library_ids), name, **options)
        return library

    def install(self, library: LibraryEntry) -> None:
        """Let calls of a library come."""
        from vinecore.manager.events import LibraryInstalled

        self.post(LibraryInstalled(0.0, library))

    def shape_for(self, library: LibraryEntry, request: Resources, allocates: bool = False) -> Shape:
        """The shape of a library and a request, one object for equal ones."""
        if library is self.python and request.is_unset():
            return self.default_shape
        key = (library.library_id, request, allocates)
        shape = self._shapes.get(key)
        if shape is None:
            with self._lock:
                shape = self._shapes.get(key) or self._entries.Shape(library, request, allocates)
                self._shapes[key] = shape
        return shape

    def kind_for(self, name: str, shape: Shape) -> Kind:
        """What is measured of tasks of this name, one object for equal ones."""
        key = (name, shape)
        kind = self.kinds.get(key)
        if kind is not None:
            kind.is_recent = True
            return kind
        with self._lock:
            if key not in self.kinds:
                self._drop_kinds()
                self.kinds[key] = self._entries.Kind(name, shape)
            return self.kinds[key]

    def _drop_kinds(self) -> None:
        """Make room for one kind more. Second chance: what was used since it last came up goes to the end once more."""
        while len(self.kinds) >= KINDS_LIMIT_COUNT:
            key = next(iter(self.kinds))
            kind = self.kinds.pop(key)
            if kind.is_recent:
                kind.is_recent = False
                self.kinds[key] = kind

    def code_of(self, function: object) -> tuple[CodeEntry, Kind]:
        """Intern a function for the default library.

        Raises:
            UnpicklableError: it cannot be pickled; the text names what is at fault.
        """
        pickled = self.functions.get(function)
        found = self.codes.get(pickled)
        if found is None:
            code = self.new_code(self.python, pickled.payload, pickled.modules)
            found = self.codes.setdefault(pickled, (code, self.kind_for(pickled.name, self.default_shape)))
            self._learned(pickled)
        return found

    def _learned(self, pickled: FunctionPickle) -> None:
        """There is one function more: perhaps it is time to forget those that live no more."""
        with self._lock:
            self._codes_bytes += len(pickled.payload)
            count = len(self.codes) + len(self._process_codes)
            is_much = count > self._codes_limit or self._codes_bytes > self._codes_limit_bytes
        if is_much:
            self._drop_orphans(pickled)

    def _drop_orphans(self, wanted: FunctionPickle) -> None:
        """Forget functions that live no more: a program may make new ones without end.

        ``wanted`` is about to be called, even if the function that was pickled first is gone and an equal one took its place.
        """
        from vinecore.manager.events import CodesUnused

        with self._lock:
            orphans = [pickled for pickled in list(self.codes) if pickled.is_orphan and pickled is not wanted]
            unused = [self.codes.pop(pickled)[0] for pickled in orphans]
            known = [pickled for pickled in list(self._process_codes) if pickled is not None]
            gone = [pickled for pickled in known if pickled.is_orphan and pickled is not wanted]
            unused += [self._process_codes.pop(pickled) for pickled in gone]
            # Those that are left live in the user's program: the next look comes when there is twice as much.
            left = [*self.codes, *(pickled for pickled in list(self._process_codes) if pickled is not None)]
            self._codes_bytes = sum(len(pickled.payload) for pickled in left)
            self._codes_limit = max(CODES_LIMIT_COUNT, 2 * len(left))
            self._codes_limit_bytes = max(CODES_LIMIT_BYTES, 2 * self._codes_bytes)
        if unused:
            self.post(CodesUnused(0.0, unused))

    def new_code(
        self,
        library: LibraryEntry,
        payload: bytes,
        modules: tuple[str, ...] = (),
        requires: tuple[CodeEntry, ...] = (),
        is_piece: bool = False,
    ) -> CodeEntry:
        """A code entry; a payload above the inline limit becomes an object of the manager."""
        file = None
        if len(payload) > INLINE_LIMIT_BYTES:
            file = self.new_file([payload], len(payload))
            payload = b""
        number = next(self._code_ids)
        code: CodeEntry = self._entries.CodeEntry(number, library.library_id, payload, modules, requires, is_piece, file)
        if file is not None:
            file.holds = 1
            code.keeper = Release(self, file)
        return code

    def new_file(self, parts: Sequence[bytes | memoryview], size_bytes: int) -> FileEntry:
        """An object at the manager, released with its last use, or with who holds it."""
        number = next(self._file_ids)
        file: FileEntry = self._entries.FileEntry(-number, f"{self.loop.machine.state.run}-b{number}", size_bytes)
        file.at_manager = True
        self.loop.objects[file.name] = parts
        return file

    def local_file(self, owner: object, path: str, size_bytes: int, version: str) -> FileEntry:
        """A file on the manager's disk, as an object under a name that says which version of it this is.

        ``owner``: who declares it. Whoever else declares the same version gets the same file: its name is that of one object.
        """
        from vinecore.shell.transfer import LocalPath

        with self._lock:
            found = self._local_files.get(version)
            if found is None:
                file: FileEntry = self._entries.FileEntry(
                    -next(self._file_ids), f"{self.loop.machine.state.run}-{version}", size_bytes
                )
                if file.name in self.loop.objects:
                    file.name += f"-{-file.value_id}"  # it was let go of, and tasks still read it under that name
                file.at_manager, file.holds = True, 1
                self.loop.objects[file.name] = LocalPath(path)
                found = self._local_files[version] = file, weakref.WeakSet()
            found[1].add(owner)
            return found[0]

    def left_alone(self, owner: object, files: Mapping[str, FileEntry]) -> list[FileEntry]:
        """Nobody else has declared these local files, by version, of which this one lets go."""
        left = []
        with self._lock:
            for version, file in files.items():
                found = self._local_files.get(version)
                if found is None or found[0] is not file:
                    continue  # another thread lets go of it
                found[1].discard(owner)
                if not found[1]:
                    del self._local_files[version]
                    left.append(file)
        return left

    def process_code(self, function: object | None, request: Resources) -> tuple[CodeEntry, Kind]:
        """Code for a process of its own: a function, or None for a shell command; with the request of its task.

        Raises:
            UnpicklableError: the function cannot be pickled.
        """
        pickled = None if function is None else self.functions.get(function)
        shape = self.shape_for(self.process_library(), request, True)
        return self._process_code_of(pickled), self.kind_for("command" if pickled is None else pickled.name, shape)

    def _process_code_of(self, pickled: FunctionPickle | None) -> CodeEntry:
        code = self._process_codes.get(pickled)
        if code is None:
            payload, modules = (b"", ()) if pickled is None else (pickled.payload, pickled.modules)
            code = self._process_codes.setdefault(pickled, self.new_code(self.process_library(), payload, modules))
            if pickled is not None:
                self._learned(pickled)
        return code

    def code_for(self, library: LibraryEntry, function: object) -> CodeEntry:
        """Intern a function for one of the two libraries that run any function: ``python``, or that of processes.

        Raises:
            UnpicklableError: it cannot be pickled; the text names what is at fault.
        """
        if library is self.python:
            return self.code_of(function)[0]
        return self._process_code_of(self.functions.get(function))

    def process_library(self) -> LibraryEntry:
        """The library whose slots give each task a process; installed at first use."""
        library = self._process_library
        if library is None:
            with self._lock:
                library = self._process_library
                if library is None:
                    library = self._process_library = self.new_library("processes", exec_mode="fork")
                    self.install(library)
        return library

    def new_temp(self) -> FileEntry:
        """A file that some task will make."""
        file: FileEntry = self._entries.FileEntry(-next(self._file_ids))
        return file
