"""The worker's directory of objects: write aside, verify, rename. A partial object is never visible.

Names come from the wire and are checked before they touch a path. Slots write their own results into the same directory by the
same rule.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import re
import secrets
import stat
import tempfile
import time
import weakref
from pathlib import Path
from typing import TextIO

import xxhash

from vinecore.errors import ProtocolError, UsageError
from vinecore.runtime.places import KNOW, empty, identity, remove_in, remove_known

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.\-]{0,200}")
READ_BYTES = 1 << 20
# Locked for as long as a worker uses the workspace.
LOCK = ".lock"
_MADE = "m"
_KEEP = "k"
_PREFIX = "vine-worker-{}-"
# A private workspace without a lock is left alone for this long: it is just being made.
UNLOCKED_S = 60.0
# Times that a workspace is made before giving up: others may sweep it away until it is locked.
_LOCK_TRIES = 10


def checked_name(name: str) -> str:
    """Return ``name`` when it is a legal object name.

    Raises:
        ProtocolError: it could leave the directory, or is hidden.
    """
    if not _NAME.fullmatch(name):
        raise ProtocolError(f"{name[:80]!r} is not a legal object name")
    return name


def file_digest(fd: int) -> bytes:
    """xxh3 of a whole open file."""
    digest = xxhash.xxh3_128()
    offset = 0
    while True:
        data = os.pread(fd, READ_BYTES, offset)
        if not data:
            return digest.digest()
        digest.update(data)
        offset += len(data)


class Store:
    """A workspace with the directory of objects in it.

    A workspace that was named may have several workers, also of other machines and other namespaces of process ids: each but
    the one that made it has a directory of its own there. The lock file counts them, and tells what becomes of the rest:

        in use                  each holds it shared, and so does the guard of one that was killed
        a letter in it          ``MADE``: one of them made the workspace; ``KEEP``: one of them was told to leave it there
        who gets it for itself  was the last one: removes the workspace if the letters say so, else the lock file

    User code may put something else in the place of the workspace, a link say: an open handle tells which directory it is, and
    what is removed is so relative to that. Only a workspace that is a link from the start is followed.

    Parameters:
        workspace: directory to use; None makes a private one under the system's directory for temporary files.
        keep: leave it there at the end.

    Raises:
        UsageError: the directory cannot be made or written, or its name is no valid UTF-8.
    """

    def __init__(self, workspace: str | None, keep: bool = False) -> None:
        self.workspace = Path(tempfile.gettempdir() if workspace is None else workspace).absolute()
        try:
            str(self.workspace).encode()
        except UnicodeEncodeError:
            # Its name goes to the manager, to slots and into messages, all of which are UTF-8.
            raise UsageError(f"the workspace {str(self.workspace)!r} is no valid UTF-8: name another directory") from None
        self.keep = keep
        # Tells this worker's processes from those of every other, also in the same workspace.
        self.mark = secrets.token_hex(16)
        self._handles: list[int] = []
        try:
            if self.workspace.is_symlink() and self.workspace.is_dir():
                self.workspace = Path(os.path.realpath(self.workspace))
            # Held for the worker's life.
            self._lock = self._move_in(workspace is None)
            try:
                # Programs make sockets below it, whose paths have at most 107 characters: so the one that nobody comes before
                # has no directory more.
                own = self.workspace if self._made else Path(tempfile.mkdtemp("", f"w{os.getpid()}-", self.workspace))
                self._settle(own)
            except OSError:
                self._move_out(self._lock)
                raise
            self._close_handles = weakref.finalize(self, _close_all, self._handles)
        except OSError as error:
            raise UsageError(
                f"cannot use {self.workspace} as the workspace ({error.strerror}): name another directory"
            ) from error

    def _settle(self, own: Path) -> None:
        """Make this worker's directories in ``own``, which is new and empty.

        Raises:
            OSError: they cannot be made or opened.
        """
        self._own = own
        self.objects = own / "objects"
        # What user code makes there ends with the worker, also when its slots are killed.
        self.temporary = own / "tmp"
        # Parents make directories for the files of their libraries there.
        self.libraries = own / "libraries"
        try:
            self.objects.mkdir(mode=0o700)
            self.temporary.mkdir(mode=0o700)
            self._own_handle = os.open(own, KNOW)
            self._handles.append(self._own_handle)
            self._objects_handle = os.open(self.objects.name, KNOW, dir_fd=self._own_handle)
            self._handles.append(self._objects_handle)
            self._objects_known = identity(os.fstat(self._objects_handle))
        except OSError:
            _remove_empty(self.objects, self.temporary, *([] if self._made else [own]))
            raise

    def _move_out(self, lock: TextIO) -> None:
        """A workspace of no use: what was made of it is empty, and goes without a descriptor, of which there may be none left."""
        with contextlib.suppress(OSError):
            if _alone(lock) and os.path.samestat(os.fstat(lock.fileno()), os.lstat(lock.name)):
                os.unlink(lock.name)
                if self._made:
                    self.workspace.rmdir()
        _close_all(self._handles)
        lock.close()

    def _move_in(self, is_private: bool) -> TextIO:
        """Make the workspace and lock it; once more when somebody took it for a dead one before it was locked.

        Raises:
            OSError: it cannot be made.
        """
        for _ in range(_LOCK_TRIES):
            if is_private:
                self.workspace = Path(tempfile.mkdtemp(prefix=_PREFIX.format(os.getuid())))
                self._made = True
            else:
                self.workspace.parent.mkdir(parents=True, exist_ok=True)
                self._made = _new_directory(self.workspace)
            path = self.workspace / LOCK
            try:
                lock = open(path, "a+")  # noqa: SIM115 - the caller keeps it
            except FileNotFoundError:
                continue
            except OSError:
                if self._made:
                    _remove_empty(self.workspace)
                raise
            try:
                if self._hold(lock):
                    return lock
            except OSError:
                self._move_out(lock)
                raise
            lock.close()
        raise FileNotFoundError(errno.ENOENT, "it vanishes again and again", str(self.workspace))

    def _hold(self, lock: TextIO) -> bool:
        """Lock the workspace, and open it; False if it vanishes, or was one of dead workers.

        Raises:
            OSError: it cannot be locked or opened.
        """
        if _alone(lock) and os.fstat(lock.fileno()).st_size:
            # They were all killed, their guards too. Whoever wrote there that the workspace may be removed is long gone.
            Path(lock.name).unlink(missing_ok=True)
            return False
        fcntl.flock(lock, fcntl.LOCK_SH)
        try:
            self._handle = os.open(self.workspace, KNOW)
        except FileNotFoundError:
            return False
        self._handles = [self._handle]
        if not _is_at(lock, self._handle):
            _close_all(self._handles)
            return False
        self._above = os.open(self.workspace.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        self._handles.append(self._above)
        lock.write(_MADE * self._made + _KEEP * self.keep)
        lock.flush()
        return True

    @property
    def kept_fds(self) -> list[int]:
        """The descriptors that keep the workspace locked, and by which ``remove`` knows it."""
        return [self._lock.fileno(), *self._handles]

    def is_gone(self) -> bool:
        """Whether somebody has removed the directory of objects, or replaced it or what is above."""
        try:
            return identity(os.lstat(self.objects)) != self._objects_known
        except OSError:
            return True

    def path(self, name: str) -> Path:
        """Where an object is, or would be."""
        return self.objects / checked_name(name)

    def aside(self, name: str) -> Path:
        """Where an object is written before it is complete."""
        return self.objects / f".aside-{checked_name(name)}"

    def unlink(self, names: list[str], partial: bool = False) -> None:
        """Drop objects; those that are not there are no error. ``partial``: their writers are dead and may have left parts."""
        for name in names:
            for path in (self.path(name), self.aside(name))[: 1 + partial]:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(path.name, dir_fd=self._objects_handle)

    def clear(self) -> None:
        """Drop all objects (another manager comes)."""
        empty(self._objects_handle)

    def remove_library(self, pid: int) -> None:
        """Remove the files of a library whose parent had this process id."""
        with contextlib.suppress(OSError):
            libraries = os.open(self.libraries.name, KNOW, dir_fd=self._own_handle)
            try:
                remove_in(libraries, str(pid))
            finally:
                os.close(libraries)

    def remove(self) -> None:
        """Remove what this worker put there; the last one in a workspace that a worker made removes that too."""
        if self._own == self.workspace:
            for name in (self.objects.name, self.temporary.name, self.libraries.name):
                remove_in(self._handle, name)
            # Slots made these; those of other workers are in the directories of these.
            for name in _names_in(self._handle):
                if name.startswith("sandboxes-"):
                    remove_in(self._handle, name)
        else:
            remove_known(self._own_handle)
            _unlink_link(self._own.name, self._handle)
        # Who moves in meanwhile waits for the lock, then finds that its file is gone, and begins again.
        if _alone(self._lock) and _is_at(self._lock, self._handle, or_gone=True):
            self._lock.seek(0)
            letters = self._lock.read()
            if _MADE in letters and _KEEP not in letters:
                remove_known(self._handle)
                _unlink_link(self.workspace.name, self._above)
            else:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(LOCK, dir_fd=self._handle)
        self._close_handles()
        self._lock.close()


def _new_directory(path: Path) -> bool:
    """Make it; False if it is there already."""
    try:
        path.mkdir(mode=0o700)
    except FileExistsError:
        return False
    return True


def _remove_empty(*places: Path) -> None:
    for place in places:
        with contextlib.suppress(OSError):
            place.rmdir()


def _alone(lock: TextIO) -> bool:
    """Take the lock for this process alone if nobody else has it; if not, it is not locked by this process any more."""
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def _close_all(handles: list[int]) -> None:
    while handles:
        os.close(handles.pop())


def _is_at(lock: TextIO, workspace: int, or_gone: bool = False) -> bool:
    """Whether this open file still is the lock of that open directory. ``or_gone``: or that has none any more."""
    try:
        return os.path.samestat(os.fstat(lock.fileno()), os.stat(LOCK, dir_fd=workspace, follow_symlinks=False))
    except FileNotFoundError:
        return or_gone


def _unlink_link(name: str, place: int) -> None:
    """Remove a link that code of this user has put in the place of a directory of ours."""
    with contextlib.suppress(OSError):
        info = os.stat(name, dir_fd=place, follow_symlinks=False)
        if stat.S_ISLNK(info.st_mode) and info.st_uid == os.getuid():
            os.unlink(name, dir_fd=place)


def _names_in(place: int) -> list[str]:
    """What is in an open directory; nothing if it cannot be read."""
    try:
        directory = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=place)
    except OSError:
        return []
    try:
        return os.listdir(directory)
    finally:
        os.close(directory)


def sweep_dead_workspaces() -> None:
    """Remove private workspaces of this user's workers that were killed: nobody holds their lock any more."""
    for place in Path(tempfile.gettempdir()).glob(_PREFIX.format(os.getuid()) + "*"):
        with contextlib.suppress(OSError):  # somebody lives there, or it is no directory
            handle = os.open(place, KNOW)
            try:
                _sweep(handle)
            finally:
                os.close(handle)


def _sweep(handle: int) -> None:
    """Remove an open directory if it is this user's and nobody lives there.

    Raises:
        OSError: somebody does.
    """
    info = os.fstat(handle)
    if info.st_uid != os.getuid():
        return
    if LOCK not in _names_in(handle) and time.time() - info.st_mtime < UNLOCKED_S:
        return
    lock = os.open(LOCK, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o600, dir_fd=handle)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        remove_known(handle)
    finally:
        os.close(lock)
