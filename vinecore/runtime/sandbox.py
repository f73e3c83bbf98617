"""A private directory for one task: inputs put in place, outputs taken out, nothing left behind (DESIGN 6).

Inputs of the store are reflinked where the file system can, copied when small, else hard-linked read-only and checked afterwards:
a task that wrote into one has damaged the object, which is reported. Outputs with more than one link are copied, others renamed
into the store.

Slots import this and fork for every task: ``shutil`` is not used, since the compressors behind it make each fork dearer.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
from pathlib import Path

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
_THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "VECLIB_NUM_THREADS", "MKL_NUM_THREADS", "NUMEXPR_NUM_THREADS")


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

    def collect(self, succeeded: bool, inline_limit_bytes: int) -> tuple[list[tuple[str, int, bytes]], list[str]]:
        """Outputs go into the store: (name, size, content when small and wanted home) of each, and the paths that are missing.

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
            source = self.path / product.path
            if not is_there or not source.is_file():
                missing.append(product.path)
                continue
            limit = min(inline_limit_bytes, INLINE_TOTAL_BYTES - inline_bytes)
            try:
                taken.append(self._take(product, source, limit, last[product.path] == number))
            except OSError:
                # The task counts as lost: what it has left so far would never be asked for, on a disk that may be full.
                for name, _, _ in taken:
                    (self.store / name).unlink(missing_ok=True)
                raise
            inline_bytes += len(taken[-1][2])
        return taken, missing

    def _take(self, product: Product, source: Path, inline_limit_bytes: int, may_move: bool) -> tuple[str, int, bytes]:
        info = source.stat()
        size = info.st_size
        if size == 0 or (product.flags & messages.HOME and size <= inline_limit_bytes):
            return product.name, size, source.read_bytes()
        aside = self.store / f".aside-{product.name}"
        try:
            if may_move and info.st_nlink == 1 and self._is_own(source):
                _move(source, aside)
            else:
                copy_file(source, aside)
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
        """Megabytes that the task wrote (inputs are not counted)."""
        inputs = {str(self.path / mount.path) for mount in self.spec.mounts}
        total = 0
        for directory, _, files in os.walk(self.path):
            for name in files:
                path = f"{directory}/{name}"
                if path not in inputs:
                    try:
                        total += os.lstat(path).st_size
                    except FileNotFoundError:
                        continue
        return total >> 20

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
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        # A socket, links in a circle, or a file in the place of a directory above it.
        if error.errno in (errno.ENXIO, errno.ELOOP, errno.ENOTDIR):
            raise FileNotFoundError(errno.ENOENT, "not a regular file", str(path)) from None
        raise
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise FileNotFoundError(errno.ENOENT, "not a regular file", str(path))
    with open(fd, "rb") as file:
        return file.read(limit_bytes)


def copy_file(source: Path, target: Path) -> None:
    """Copy the content of a file into a new one.

    Raises:
        OSError: it cannot be read, or the disk does not take it.
    """
    with open(source, "rb", buffering=0) as old, open(target, "wb", buffering=0) as new:
        while os.sendfile(new.fileno(), old.fileno(), None, _SEND_BYTES):
            pass


def _move(source: Path, target: Path) -> None:
    try:
        source.rename(target)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        copy_file(source, target)


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
