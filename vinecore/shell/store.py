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
import shutil
import tempfile
import time
from pathlib import Path
from typing import TextIO

import xxhash

from vinecore.errors import ProtocolError, UsageError

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.\-]{0,200}")
READ_BYTES = 1 << 20
# Locked for as long as a worker uses the workspace.
LOCK = ".lock"
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

    Parameters:
        workspace: directory to use; None makes a private one under the system's directory for temporary files.
        keep: leave it there at the end.

    Raises:
        UsageError: the directory cannot be made or written.
    """

    def __init__(self, workspace: str | None, keep: bool = False) -> None:
        self.workspace = Path(tempfile.gettempdir() if workspace is None else workspace).absolute()
        self._made = workspace is None or not self.workspace.exists()
        self.keep = keep
        try:
            # Held for the worker's life. Of several workers in one workspace the last one's lock says that somebody lives there.
            self._lock = self._move_in(workspace is None)
            self.objects = self.workspace / f"objects-{os.getpid()}"
            # One of a dead process with our number, in a workspace that was kept.
            shutil.rmtree(self.objects, ignore_errors=True)
            self.objects.mkdir(mode=0o700)
            # What user code makes there ends with the worker, also when its slots are killed.
            self.temporary = self.workspace / f"tmp-{os.getpid()}"
            self.temporary.mkdir(mode=0o700, exist_ok=True)
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
            else:
                self.workspace.mkdir(mode=0o700, parents=True, exist_ok=True)
            path = self.workspace / LOCK
            try:
                lock = open(path, "a")  # noqa: SIM115 - the caller keeps it
            except FileNotFoundError:
                continue
            fcntl.flock(lock, fcntl.LOCK_SH)
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(lock.fileno()), path.stat()):
                    return lock
            lock.close()
        raise FileNotFoundError(errno.ENOENT, "it vanishes again and again", str(self.workspace))

    @property
    def mark(self) -> str:
        """Tells this worker's processes from those of every other, also in the same workspace."""
        return str(self.objects)

    @property
    def lock_fd(self) -> int:
        """The descriptor that keeps the workspace locked."""
        return self._lock.fileno()

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
        for path in self.objects.iterdir():
            path.unlink(missing_ok=True)

    def remove(self) -> None:
        """Remove what this worker put there; the workspace too if it made it."""
        shutil.rmtree(self.objects, ignore_errors=True)
        shutil.rmtree(self.temporary, ignore_errors=True)
        self._lock.close()
        if self._made and not self.keep:
            shutil.rmtree(self.workspace, ignore_errors=True)
        else:
            (self.workspace / LOCK).unlink(missing_ok=True)


def sweep_dead_workspaces() -> None:
    """Remove private workspaces of this user's workers that were killed: nobody holds their lock any more."""
    for place in Path(tempfile.gettempdir()).glob(_PREFIX.format(os.getuid()) + "*"):
        try:
            if not (place / LOCK).exists() and time.time() - place.stat().st_mtime < UNLOCKED_S:
                continue
            with open(place / LOCK, "a") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(place, ignore_errors=True)
        except OSError:
            continue  # somebody lives there
