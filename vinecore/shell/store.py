"""The worker's directory of objects: write aside, verify, rename. A partial object is never visible.

Names come from the wire and are checked before they touch a path. Slots write their own results into the same directory by the
same rule.
"""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import tempfile
from pathlib import Path

import xxhash

from vinecore.errors import ProtocolError, UsageError

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.\-]{0,200}")
READ_BYTES = 1 << 20
# Locked for as long as a worker uses the workspace.
LOCK = ".lock"
_PREFIX = "vine-worker-{}-"


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
        if workspace is None:
            self.workspace = Path(tempfile.mkdtemp(prefix=_PREFIX.format(os.getuid())))
            self._made = True
        else:
            self.workspace = Path(workspace).absolute()
            self._made = not self.workspace.exists()
        self.keep = keep
        self.objects = self.workspace / f"objects-{os.getpid()}"
        try:
            self.workspace.mkdir(mode=0o700, parents=True, exist_ok=True)
            # One of a dead process with our number, in a workspace that was kept.
            shutil.rmtree(self.objects, ignore_errors=True)
            self.objects.mkdir(mode=0o700)
            # What user code makes there ends with the worker, also when its slots are killed.
            self.temporary = self.workspace / f"tmp-{os.getpid()}"
            self.temporary.mkdir(mode=0o700, exist_ok=True)
            self._lock = open(self.workspace / LOCK, "a")  # noqa: SIM115 - held for the worker's life
            # Of several workers in one workspace the last one's lock says that somebody lives there.
            fcntl.flock(self._lock, fcntl.LOCK_SH)
        except OSError as error:
            raise UsageError(
                f"cannot use {self.workspace} as the workspace ({error.strerror}): name another directory"
            ) from error

    def path(self, name: str) -> Path:
        """Where an object is, or would be."""
        return self.objects / checked_name(name)

    def aside(self, name: str) -> Path:
        """Where an object is written before it is complete."""
        return self.objects / f".aside-{checked_name(name)}"

    def unlink(self, names: list[str]) -> None:
        """Drop objects; those that are not there are no error."""
        for name in names:
            self.path(name).unlink(missing_ok=True)

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
            with open(place / LOCK, "a") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(place, ignore_errors=True)
        except OSError:
            continue  # somebody lives there, or it is just being made
