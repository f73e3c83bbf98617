"""A private directory for one task: inputs put in place, outputs taken out, nothing left behind (DESIGN 6).

Inputs of the store are reflinked where the file system can, copied when small, else hard-linked read-only and checked afterwards:
a task that wrote into one has damaged the object, which is reported. Outputs with more than one link are copied, others renamed
into the store. What cannot be read of a task's files is the task's affair (``Unreadable``), what the store does not take is not.

Slots import this and fork for every task: ``shutil`` is not used, since the compressors behind it make each fork dearer.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
from pathlib import Path
from typing import BinaryIO

from vinecore.errors import UsageError
from vinecore.runtime.places import TEMPORARY, Place
from vinecore.wire import messages
from vinecore.wire.messages import Mount, Product, Sandbox

# Linux: ioctl that shares the blocks of a whole file (btrfs, xfs, bcachefs).
FICLONE = 0x40049409
# Below this a copy is cheaper than checking a link afterwards.
COPY_BELOW_BYTES = 1 << 20
# Content of outputs that rides with one result; higher: fewer transfers, larger messages.
INLINE_TOTAL_BYTES = 1 << 20
STDOUT = ".vine.stdout"
_SEND_BYTES = 1 << 30
_PIECE_BYTES = 1 << 16
# There is no such file: nothing, links in a circle, or a file in the place of a directory above it.
_ABSENT = (errno.ENOENT, errno.ELOOP, errno.ENOTDIR)
# A file cannot be opened, which is not its fault: this process, or the machine, has no room for one more.
_SHORT = (errno.EMFILE, errno.ENFILE, errno.ENOMEM)
# A file is not renamed since the disk does not take it; a copy would not help.
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS)
_THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "VECLIB_NUM_THREADS", "MKL_NUM_THREADS", "NUMEXPR_NUM_THREADS")


class Unreadable(OSError):
    """A file that a task has left, and that cannot be read: no fault of the disk, another try would leave the same."""

    def __init__(self, error: OSError) -> None:
        super().__init__(error.errno, error.strerror)


class Box:
    """One sandbox on disk.

    Parameters:
        place: directory that will hold it; made when needed.
        name: of the sandbox, unique among live ones.
        spec: what is in it.
        store: directory of objects.
    """

    def __init__(self, place: Place, name: str, spec: Sandbox, store: Path) -> None:
        self.place = place
        self.path = place.path / name
        self.spec = spec
        self.store = store
        # Hard-linked inputs: (object, size, mtime_ns) as they were.
        self._linked: list[tuple[str, int, int]] = []
        # Of the outputs that are missing, those that are there and cannot be read, and why.
        self.unread: dict[str, str] = {}

    def build(self, inline: dict[int, bytes]) -> None:
        """Make the directory and put the inputs in place. Of two inputs under one name the last one counts.

        Raises:
            FileNotFoundError: an object is not in the store. OSError: the disk does not take it.
            UsageError: a path would leave the sandbox, or an input stands where a directory has to be.
        """
        self.place.make(self.path.name)
        for mount in self.spec.mounts:
            target = self._free_place(mount.path)
            if isinstance(mount.source, int):
                target.write_bytes(inline[mount.source])
                if mount.flags & messages.EXECUTABLE:
                    target.chmod(0o755)
            else:
                self._place(mount, self.store / mount.source, target)
        for product in self.spec.products:
            self._parent_of(self.inside(product.path))

    def show(self, files: list[tuple[str, str]]) -> None:
        """Put links to other files, by relative name, where the task has nothing of its own, and will make nothing."""
        outputs = {product.path for product in self.spec.products}
        for relative, path in files:
            if relative not in outputs:
                target = self.path / relative
                try:
                    target.parent.mkdir(parents=True, exist_ok=True)
                    target.symlink_to(path)
                except (FileExistsError, NotADirectoryError):
                    continue

    def inside(self, relative: str) -> Path:
        """The path of a name in the sandbox.

        Raises:
            UsageError: it is absolute or leads out.
        """
        if not relative or relative.startswith("/") or ".." in relative.split("/"):
            raise UsageError(f"{relative!r} leads out of the sandbox: use a relative name without '..'")
        return self.path / relative

    def _parent_of(self, target: Path) -> None:
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
        except (FileExistsError, NotADirectoryError):
            name = target.relative_to(self.path)
            raise UsageError(
                f"{str(name)!r} cannot be made: another file of the task has the name of a directory above it"
            ) from None

    def _free_place(self, relative: str) -> Path:
        target = self.inside(relative)
        self._parent_of(target)
        if target.is_dir() and not target.is_symlink():
            raise UsageError(f"{relative!r} is a directory of the task's other files: give it another name")
        # Never written through: it may be a link into the store.
        target.unlink(missing_ok=True)
        return target

    def _place(self, mount: Mount, source: Path, target: Path) -> None:
        info = source.stat()
        executable = 0o555 if mount.flags & messages.EXECUTABLE else 0
        if mount.flags & messages.SYMLINK:
            if executable:
                source.chmod(stat.S_IMODE(info.st_mode) | executable)
            target.symlink_to(source)
        elif info.st_size < COPY_BELOW_BYTES:
            copy_file(source, target)
            target.chmod(stat.S_IMODE(info.st_mode) | 0o600 | executable)
        elif _reflink(source, target):
            target.chmod(stat.S_IMODE(info.st_mode) | 0o600 | executable)
        else:
            self._link(source, target, info, executable)

    def _link(self, source: Path, target: Path, info: os.stat_result, executable: int) -> None:
        """One more name for the object, which nobody may write to: who does it all the same is found out afterwards."""
        source.chmod(stat.S_IMODE(info.st_mode) & ~0o222 | 0o400 | executable)
        os.link(source, target)
        self._linked.append((source.name, info.st_size, info.st_mtime_ns))

    def variables(self) -> dict[str, str | None]:
        """What differs in the task's environment from the worker's (None: unset): allocation, sandbox, then the task's own."""
        spec = self.spec
        out: dict[str, str | None] = {"DISPLAY": None, "VINE_SANDBOX": str(self.path), "WORKER_TMPDIR": str(self.path.parent)}
        for name, amount in (("CORES", spec.cores), ("MEMORY", spec.memory_mb), ("DISK", spec.disk_mb), ("GPUS", spec.gpus)):
            out[name] = str(amount) if amount > 0 else None
        if spec.cores > 0:
            out.update(dict.fromkeys(_THREAD_VARIABLES, str(spec.cores)))
        out.update(spec.environment)
        out.update(dict.fromkeys(("TMPDIR", "TEMP", "TMP"), f"{self.path}/{TEMPORARY}"))
        return out

    def environment(self, base: dict[str, str]) -> dict[str, str]:
        """All variables of the task."""
        merged: dict[str, str | None] = {**base, **self.variables()}
        return {name: value for name, value in merged.items() if value is not None}

    def regain(self) -> None:
        """Give this process the rights in the directory, and in that around it, that the task may have taken away."""
        self.place.regain(self.path.name)

    def collect(self, succeeded: bool, inline_limit_bytes: int) -> tuple[list[tuple[str, int, bytes]], list[str]]:
        """Outputs go into the store: (name, size, content when small and wanted home) of each, and the paths that are missing.

        What is there and cannot be read is missing too; ``unread`` says why.

        Raises:
            OSError: the disk does not take one of them; none is in the store then.
        """
        taken: list[tuple[str, int, bytes]] = []
        missing: list[str] = []
        inline_bytes = 0
        # A file may be two outputs: all but the last are copied.
        last = {product.path: number for number, product in enumerate(self.spec.products)}
        # Behind a link in the place of the directory around it would be files of others, which look like the task's own.
        is_there = not last or self.place.stands()
        for number, product in enumerate(self.spec.products):
            if product.flags & (messages.ON_SUCCESS if not succeeded else messages.ON_FAILURE):
                continue
            limit = min(inline_limit_bytes, INLINE_TOTAL_BYTES - inline_bytes)
            try:
                found = self._take(product, limit, last[product.path] == number) if is_there else None
            except Unreadable as error:
                self.unread[product.path] = str(error.strerror)
                found = None
            except OSError:
                # The task counts as lost: what it has left so far would never be asked for, on a disk that may be full.
                for name, _, _ in taken:
                    (self.store / name).unlink(missing_ok=True)
                raise
            if found is None:
                missing.append(product.path)
                continue
            taken.append(found)
            inline_bytes += len(found[2])
        return taken, missing

    def _take(self, product: Product, inline_limit_bytes: int, may_move: bool) -> tuple[str, int, bytes] | None:
        """One output; None when there is no such file.

        Raises:
            Unreadable: it cannot be read. OSError: the store does not take it.
        """
        source = self.path / product.path
        try:
            # Not opened unless it is a file: that alone wakes up who waits at the other end of a pipe.
            if not stat.S_ISREG(_look(source).st_mode):
                return None
            file = _open_regular(source)
        except FileNotFoundError:
            return None
        aside = self.store / f".aside-{product.name}"
        with file:
            info = os.fstat(file.fileno())
            size = info.st_size
            if size == 0 or (product.flags & messages.HOME and size <= inline_limit_bytes):
                return product.name, size, _read(file)
            try:
                # A file that could not be read in the store either is not moved there: it has been opened.
                if not (may_move and info.st_nlink == 1 and self._is_own(source) and _move(source, aside)):
                    with open(aside, "wb", buffering=0) as new:
                        _send(file.fileno(), new.fileno())
                    aside.chmod(stat.S_IMODE(info.st_mode) | 0o600)
                aside.rename(self.store / product.name)
            except OSError:
                # A partial object must not stay behind: it would hold the space that the next try needs.
                aside.unlink(missing_ok=True)
                raise
        return product.name, size, b""

    def _is_own(self, source: Path) -> bool:
        """Whether a file is in this directory itself, not behind a link that leads out of it: only then it may be taken away."""
        base = os.path.join(os.path.realpath(self.path.parent), self.path.name)
        return os.path.realpath(source) == os.path.normpath(f"{base}/{source.relative_to(self.path)}")

    def damaged(self) -> list[str]:
        """Objects that the task wrote into through a hard link."""
        out = []
        for name, size, mtime_ns in self._linked:
            try:
                info = (self.store / name).stat()
            except FileNotFoundError:
                continue
            if info.st_size != size or info.st_mtime_ns != mtime_ns:
                out.append(name)
        return out

    def size_mb(self) -> int:
        """Megabytes that the task wrote, as far as can be seen (inputs are not counted)."""
        return self.place.size_bytes(self.path.name, [mount.path for mount in self.spec.mounts]) >> 20

    def remove(self) -> None:
        """Delete the directory, read-only parts too."""
        self.place.remove(self.path.name)

    def recycle(self) -> None:
        """Empty the directory for another task; only legal when no process of this one is left."""
        self.place.recycle(self.path.name)


def read_regular(path: Path, limit_bytes: int = -1) -> bytes:
    """A file that a task has left, or its beginning; reading anything else, a pipe say, could last for ever.

    Raises:
        FileNotFoundError: there is no such file, or it is no regular one.
        Unreadable: it cannot be read.
    """
    with _open_regular(path) as file:
        return _read(file, limit_bytes)


def _open_regular(path: Path) -> BinaryIO:
    """Open a file that a task has left.

    Raises:
        FileNotFoundError: there is no such file, or it is no regular one.
        Unreadable: it cannot be opened. OSError: nothing can be opened here now.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        # ENXIO: a socket.
        raise error if error.errno in _SHORT else _unusable(path, error, (*_ABSENT, errno.ENXIO)) from None
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise FileNotFoundError(errno.ENOENT, "not a regular file", str(path))
    return open(fd, "rb")


def _look(path: Path) -> os.stat_result:
    """What is there, as ``_open_regular`` raises."""
    try:
        return os.stat(path)
    except ValueError:
        raise FileNotFoundError(errno.ENOENT, "no name of a file", str(path)) from None
    except OSError as error:
        raise _unusable(path, error, _ABSENT) from None


def _unusable(path: Path, error: OSError, absent: tuple[int, ...]) -> OSError:
    return FileNotFoundError(errno.ENOENT, "not a regular file", str(path)) if error.errno in absent else Unreadable(error)


def _read(file: BinaryIO, limit_bytes: int = -1) -> bytes:
    """The beginning of a file that a task has left.

    Raises:
        Unreadable: the kernel does not give it.
    """
    try:
        content: bytes | None = file.read(limit_bytes)
    except OSError as error:
        raise Unreadable(error) from None
    if content is None:
        # A file of the kernel's that has nothing to say yet.
        raise Unreadable(OSError(errno.EAGAIN, os.strerror(errno.EAGAIN)))
    return content


def copy_file(source: Path, target: Path) -> None:
    """Copy the content of a file into a new one.

    Raises:
        OSError: it cannot be read, or the disk does not take it.
    """
    with open(source, "rb", buffering=0) as old, open(target, "wb", buffering=0) as new:
        _send(old.fileno(), new.fileno())


def _send(old: int, new: int) -> None:
    """Copy the rest of an open file into another one.

    Raises:
        Unreadable: it cannot be read. OSError: the disk does not take it.
    """
    try:
        while os.sendfile(new, old, None, _SEND_BYTES):
            pass
        return
    except OSError:
        pass
    # That does not tell which of the two has failed: from where it got to, in pieces.
    while True:
        try:
            piece = memoryview(os.read(old, _PIECE_BYTES))
        except OSError as error:
            raise Unreadable(error) from None
        if not piece:
            return
        while piece:
            piece = piece[os.write(new, piece) :]


def _move(source: Path, target: Path) -> bool:
    """Rename a file; False when only a copy can be had: another disk, or a directory that must not change.

    Raises:
        OSError: the disk does not take it.
    """
    try:
        source.rename(target)
    except OSError as error:
        if error.errno in _FULL:
            raise
        return False
    return True


def _reflink(source: Path, target: Path) -> bool:
    """Share the blocks of a file where the file system can."""
    with open(source, "rb") as old, open(target, "xb") as new:
        try:
            fcntl.ioctl(new.fileno(), FICLONE, old.fileno())
            return True
        except OSError:
            pass
    target.unlink()
    return False
