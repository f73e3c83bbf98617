"""A private directory for one task: inputs put in place, outputs taken out, nothing left behind (DESIGN 6).

Inputs of the store are reflinked where the file system can, copied when small, else hard-linked read-only and checked afterwards: a task that
wrote into one has damaged the object, which is reported. Outputs with more than one link are copied, others renamed into the store.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import stat
from pathlib import Path

from vinecore.errors import UsageError
from vinecore.wire import messages
from vinecore.wire.messages import Mount, Product, Sandbox

# Linux: ioctl that shares the blocks of a whole file (btrfs, xfs, bcachefs).
FICLONE = 0x40049409
# Below this a copy is cheaper than checking a link afterwards.
COPY_BELOW_BYTES = 1 << 20
TEMPORARY = ".vine.tmp"
STDOUT = ".vine.stdout"
_THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "VECLIB_NUM_THREADS", "MKL_NUM_THREADS", "NUMEXPR_NUM_THREADS")


class Box:
    """One sandbox on disk.

    Parameters:
        root: directory that will hold it; made when needed.
        name: of the sandbox, unique among live ones.
        spec: what is in it.
        store: directory of objects.
    """

    def __init__(self, root: Path, name: str, spec: Sandbox, store: Path) -> None:
        self.path = root / name
        self.spec = spec
        self.store = store
        # Hard-linked inputs: (object, size, mtime_ns) as they were.
        self._linked: list[tuple[str, int, int]] = []

    def build(self, inline: dict[int, bytes]) -> None:
        """Make the directory and put the inputs in place.

        Raises:
            FileNotFoundError: an object is not in the store. OSError: the disk does not take it.
            UsageError: a path would leave the sandbox.
        """
        self.path.mkdir(mode=0o700, parents=True)
        (self.path / TEMPORARY).mkdir(mode=0o700)
        for mount in self.spec.mounts:
            target = self.inside(mount.path)
            target.parent.mkdir(parents=True, exist_ok=True)
            if isinstance(mount.source, int):
                target.write_bytes(inline[mount.source])
            else:
                self._place(mount, self.store / mount.source, target)
        for product in self.spec.products:
            self.inside(product.path).parent.mkdir(parents=True, exist_ok=True)

    def inside(self, relative: str) -> Path:
        """The path of a name in the sandbox.

        Raises:
            UsageError: it is absolute or leads out.
        """
        if not relative or relative.startswith("/") or ".." in Path(relative).parts:
            raise UsageError(f"{relative!r} leads out of the sandbox: use a relative name without '..'")
        return self.path / relative

    def _place(self, mount: Mount, source: Path, target: Path) -> None:
        info = source.stat()
        if mount.flags & messages.SYMLINK:
            target.symlink_to(source)
        elif _reflink(source, target):
            target.chmod(stat.S_IMODE(info.st_mode) | 0o600)
        elif info.st_size < COPY_BELOW_BYTES:
            shutil.copyfile(source, target)
            target.chmod(stat.S_IMODE(info.st_mode) | 0o600)
        else:
            source.chmod(stat.S_IMODE(info.st_mode) & ~0o222 | 0o400)
            info = source.stat()
            os.link(source, target)
            self._linked.append((source.name, info.st_size, info.st_mtime_ns))

    def environment(self, base: dict[str, str]) -> dict[str, str]:
        """Variables of the task: the worker's, the allocation, the sandbox, then the task's own."""
        spec = self.spec
        variables = {**base, "VINE_SANDBOX": str(self.path), "WORKER_TMPDIR": str(self.path.parent)}
        variables.pop("DISPLAY", None)
        for name, amount in (("CORES", spec.cores), ("MEMORY", spec.memory_mb), ("DISK", spec.disk_mb), ("GPUS", spec.gpus)):
            variables.pop(name, None)
            if amount > 0:
                variables[name] = str(amount)
        if spec.cores > 0:
            variables.update(dict.fromkeys(_THREAD_VARIABLES, str(spec.cores)))
        for key, value in spec.environment:
            if value is None:
                variables.pop(key, None)
            else:
                variables[key] = value
        variables.update(dict.fromkeys(("TMPDIR", "TEMP", "TMP"), str(self.path / TEMPORARY)))
        return variables

    def collect(self, succeeded: bool, inline_limit_bytes: int) -> tuple[list[tuple[str, int, bytes]], list[str]]:
        """Move the outputs into the store; returns (name, size, content when small and wanted home) and the paths that are missing."""
        taken, missing = [], []
        for product in self.spec.products:
            if product.flags & (messages.ON_SUCCESS if not succeeded else messages.ON_FAILURE):
                continue
            source = self.path / product.path
            if not source.is_file():
                missing.append(product.path)
                continue
            taken.append(self._take(product, source, inline_limit_bytes))
        return taken, missing

    def _take(self, product: Product, source: Path, inline_limit_bytes: int) -> tuple[str, int, bytes]:
        size = source.stat().st_size
        if product.flags & messages.HOME and size <= inline_limit_bytes:
            return product.name, size, source.read_bytes()
        aside = self.store / f".aside-{product.name}"
        if source.is_symlink() or source.stat().st_nlink > 1:
            shutil.copy(source, aside)
        else:
            shutil.move(source, aside)
        aside.rename(self.store / product.name)
        return product.name, size, b""

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
        inputs = {mount.path for mount in self.spec.mounts}
        total = 0
        for directory, _, files in os.walk(self.path):
            for name in files:
                path = Path(directory, name)
                if str(path.relative_to(self.path)) not in inputs:
                    try:
                        total += path.lstat().st_size
                    except FileNotFoundError:
                        continue
        return total >> 20

    def remove(self) -> None:
        """Delete the directory, read-only parts too."""
        shutil.rmtree(self.path, onerror=_force)


def _force(function: object, path: str, _: object) -> None:
    """A task may have taken its own rights away; give them back and try once more."""
    try:
        os.chmod(os.path.dirname(path), 0o700)  # noqa: PTH101, PTH120
        os.chmod(path, 0o700, follow_symlinks=True)  # noqa: PTH101
        if os.path.isdir(path) and not os.path.islink(path):  # noqa: PTH112, PTH114
            shutil.rmtree(path, ignore_errors=True)
        else:
            os.unlink(path)  # noqa: PTH108
    except OSError:
        pass


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
