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
import tempfile
import time
from pathlib import Path
from typing import TextIO

import xxhash

from vinecore.errors import ProtocolError, UsageError
from vinecore.runtime.places import remove_tree

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
        try:
            # Held for the worker's life.
            self._lock = self._move_in(workspace is None)
            # Programs make sockets below it, whose paths have at most 107 characters: so the one that nobody comes before
            # has no directory more.
            own = self.workspace if self._made else Path(tempfile.mkdtemp("", f"w{os.getpid()}-", self.workspace))
            self._own = own
            self.objects = own / "objects"
            self.objects.mkdir(mode=0o700)
            # What user code makes there ends with the worker, also when its slots are killed.
            self.temporary = own / "tmp"
            self.temporary.mkdir(mode=0o700)
            # Parents make directories for the files of their libraries there.
            self.libraries = own / "libraries"
        except OSError as error:
            raise UsageError(
                f"cannot use {self.workspace} as the workspace ({error.strerror}): name another directory"
            ) from error

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
            if _alone(lock) and os.fstat(lock.fileno()).st_size:
                # They were all killed, their guards too. Whoever wrote there that the workspace may be removed is long gone.
                path.unlink(missing_ok=True)
                lock.close()
                continue
            fcntl.flock(lock, fcntl.LOCK_SH)
            if _is_at(lock, path):
                lock.write(_MADE * self._made + _KEEP * self.keep)
                lock.flush()
                return lock
            lock.close()
        raise FileNotFoundError(errno.ENOENT, "it vanishes again and again", str(self.workspace))

    @property
    def lock_fd(self) -> int:
        """The descriptor that keeps the workspace locked."""
        return self._lock.fileno()

    def is_gone(self) -> bool:
        """Whether somebody has removed the directory of objects."""
        return not self.objects.is_dir()

    def path(self, name: str) -> Path:
        """Where an object is, or would be."""
        return self.objects / checked_name(name)

    def aside(self, name: str) -> Path:
        """Where an object is written before it is complete."""
        return self.objects / f".aside-{checked_name(name)}"

    def unlink(self, names: list[str], partial: bool = False) -> None:
        """Drop objects; those that are not there are no error. ``partial``: their writers are dead and may have left parts."""
        for name in names:
            self.path(name).unlink(missing_ok=True)
            if partial:
                self.aside(name).unlink(missing_ok=True)

    def clear(self) -> None:
        """Drop all objects (another manager comes)."""
        # Somebody else may have removed the directory, or put a link in its place, which must not be followed.
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            place = os.open(self.objects, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
            try:
                for name in os.listdir(place):
                    with contextlib.suppress(FileNotFoundError):
                        os.unlink(name, dir_fd=place)
            finally:
                os.close(place)

    def remove(self) -> None:
        """Remove what this worker put there; the last one in a workspace that a worker made removes that too."""
        if self._own == self.workspace:
            # Slots make the last ones; those of other workers are in directories of these.
            for path in (self.objects, self.temporary, self.libraries, *self.workspace.glob("sandboxes-*")):
                remove_tree(str(path))
        else:
            remove_tree(str(self._own))
        path = self.workspace / LOCK
        # Who moves in meanwhile waits for the lock, then finds that its file is gone, and begins again.
        if _alone(self._lock) and (_is_at(self._lock, path) or not path.exists()):
            self._lock.seek(0)
            letters = self._lock.read()
            if _MADE in letters and _KEEP not in letters:
                remove_tree(str(self.workspace))
            else:
                path.unlink(missing_ok=True)
        self._lock.close()


def _new_directory(path: Path) -> bool:
    """Make it; False if it is there already."""
    try:
        path.mkdir(mode=0o700)
    except FileExistsError:
        return False
    return True


def _alone(lock: TextIO) -> bool:
    """Take the lock for this process alone if nobody else has it; if not, it is not locked by this process any more."""
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def _is_at(lock: TextIO, path: Path) -> bool:
    """Whether this open file still is the one of that name."""
    try:
        return os.path.samestat(os.fstat(lock.fileno()), path.stat())
    except FileNotFoundError:
        return False


def sweep_dead_workspaces() -> None:
    """Remove private workspaces of this user's workers that were killed: nobody holds their lock any more."""
    for place in Path(tempfile.gettempdir()).glob(_PREFIX.format(os.getuid()) + "*"):
        try:
            if not (place / LOCK).exists() and time.time() - place.stat().st_mtime < UNLOCKED_S:
                continue
            with open(place / LOCK, "a") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                remove_tree(str(place))
        except OSError:
            continue  # somebody lives there
