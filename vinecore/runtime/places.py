"""Directories that user code can reach and replace: known before they are used, measured and removed without following a link.

Slots import this and fork for every task: ``shutil`` is not used, since the compressors behind it make each fork dearer. Besides,
it calls itself for each level, and a task may have made more of these than calls or descriptors go deep.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Iterable
from pathlib import Path

TEMPORARY = ".vine.tmp"
# An emptied sandbox waits for the next task under this name: making and deleting directories costs as much as starting a shell.
_SPARE = "spare"
_PRIVATE = stat.S_IFDIR | 0o700
KNOW = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_READ = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
# So many directories inside each other are open at once while they are removed or measured; higher: fewer are moved or opened
# again, more descriptors needed.
_OPEN_LEVELS = 64
# Times that a directory is made before giving up: others may put something in its place meanwhile.
_TRIES = 10

# Names in a directory, each with those below it.
_Names = dict[str, "_Names"]


class Place:
    """The directory around sandboxes.

    Tasks can put something else under its name, a link say: an open handle tells what this process has made, and what is made,
    emptied and removed there is so relative to that. They can do so with what is around it too, the workspace: nothing is made
    or removed in another directory than the one that is around it now.

    Parameters:
        path: of it; made when needed.
        is_shared: other processes make and use it too: a directory that is there already is as good as a new one.
    """

    def __init__(self, path: Path, is_shared: bool = False) -> None:
        self.path = path
        self._is_shared = is_shared
        try:
            self._around = identity(os.lstat(path.parent))
        except OSError:
            self._around = (0, 0)
        # The directory, by handle (-1: none yet) and by device and number.
        self._handle = -1
        self._known = (0, 0)
        # The emptied sandbox that waits there; (0, 0): none.
        self._spare = (0, 0)

    def stands(self) -> bool:
        """Whether what has its name is the directory that this process knows."""
        try:
            return self._handle >= 0 and identity(os.lstat(self.path)) == self._known
        except OSError:
            return False

    def find(self) -> None:
        """Know the directory that is there, if it is one.

        Raises:
            OSError: it is not there, or something else is.
        """
        around = self._open_around()
        try:
            self._find_in(around)
        finally:
            os.close(around)

    def _open_around(self) -> int:
        """The directory around it; user code may have put another one, or a link, in the place of that.

        Raises:
            OSError: it is not there any more.
        """
        handle = os.open(self.path.parent, KNOW)
        if identity(os.fstat(handle)) != self._around:
            os.close(handle)
            raise FileNotFoundError(errno.ENOENT, "something else is in its place", str(self.path.parent))
        return handle

    def _find_in(self, around: int) -> None:
        handle = os.open(self.path.name, KNOW, dir_fd=around)
        if self._handle >= 0:
            os.close(self._handle)
        self._handle = handle
        self._known = identity(os.fstat(handle))
        self._spare = (0, 0)

    def ensure(self) -> None:
        """Make the directory unless it stands there; what stands there instead is removed, not what a link leads to.

        Raises:
            OSError: it cannot be made.
        """
        tries = 0
        while not self.stands():
            around = self._open_around()
            try:
                try:
                    os.mkdir(self.path.name, 0o700, dir_fd=around)
                except FileExistsError:
                    tries += 1
                    if tries > _TRIES:
                        raise
                    if not self._is_shared:
                        remove_in(around, self.path.name)
                        continue
                try:
                    self._find_in(around)
                except OSError as error:
                    if error.errno not in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
                        raise
                    # No directory, so nobody's place. It may be one again by now: that is not touched by this.
                    _quietly_unlink(around, self.path.name)
            finally:
                os.close(around)

    def make(self, name: str) -> None:
        """Make a sandbox, with its directory for temporary files; nothing of what a task has put in its way is used.

        Raises:
            OSError: the disk does not take it.
        """
        self.ensure()
        spare, self._spare = self._spare, (0, 0)
        if spare != (0, 0):
            try:
                os.rename(_SPARE, name, src_dir_fd=self._handle, dst_dir_fd=self._handle)
                handle = os.open(name, _READ, dir_fd=self._handle)
                try:
                    if identity(os.fstat(handle)) == spare and _is_bare(handle):
                        return
                finally:
                    os.close(handle)
            except OSError:
                pass
            remove_in(self._handle, _SPARE)
            remove_in(self._handle, name)
        try:
            os.mkdir(name, 0o700, dir_fd=self._handle)
        except FileExistsError:
            remove_in(self._handle, name)
            os.mkdir(name, 0o700, dir_fd=self._handle)
        os.mkdir(f"{name}/{TEMPORARY}", 0o700, dir_fd=self._handle)

    def recycle(self, name: str) -> None:
        """Empty a sandbox for the next task, or remove it."""
        try:
            handle = os.open(name, _READ, dir_fd=self._handle)
            try:
                known = identity(os.fstat(handle))
                _clear(handle, TEMPORARY)
                is_bare = _is_bare(handle)
            finally:
                os.close(handle)
            if is_bare and self.stands():
                os.rename(name, _SPARE, src_dir_fd=self._handle, dst_dir_fd=self._handle)
                self._spare = known
                return
        except OSError:
            pass
        self.remove(name)
        self.remove(_SPARE)

    def remove(self, name: str) -> None:
        """Remove what has this name there, read-only parts too."""
        if self._handle >= 0:
            remove_in(self._handle, name)

    def remove_all(self) -> None:
        """Remove the directory, whoever made it, unless what is around it has been replaced."""
        try:
            around = self._open_around()
        except OSError:
            return
        try:
            remove_in(around, self.path.name)
        finally:
            os.close(around)

    def regain(self, name: str) -> None:
        """Give this process its rights in the place, and in a sandbox there, again if a task has taken them away."""
        try:
            _give_missing_rights(self._handle)
            handle = os.open(name, KNOW, dir_fd=self._handle)
            try:
                _give_missing_rights(handle)
            finally:
                os.close(handle)
        except OSError:
            pass  # the task has removed or replaced it: there is nothing of its own to be read then

    def size_bytes(self, name: str, left_out: Iterable[str]) -> int:
        """What the files in a sandbox hold, without those of these relative names, as far as can be seen."""
        known: _Names = {}
        for path in left_out:
            below = known
            for part in Path(path).parts:
                below = below.setdefault(part, {})
        try:
            top = os.open(name, _READ, dir_fd=self._handle)
        except OSError:
            return 0
        try:
            return _measure(top, known)
        finally:
            os.close(top)


def identity(info: os.stat_result) -> tuple[int, int]:
    """What tells a file or directory from all others, whatever its name is."""
    return info.st_dev, info.st_ino


def _is_bare(handle: int) -> bool:
    """Whether a sandbox is as it was made.

    Raises:
        OSError: there is something else in the place of its directory for temporary files.
    """
    if os.fstat(handle).st_mode != _PRIVATE or os.listdir(handle) != [TEMPORARY]:
        return False
    inner = os.open(TEMPORARY, _READ, dir_fd=handle)
    try:
        return os.fstat(inner).st_mode == _PRIVATE and not os.listdir(inner)
    finally:
        os.close(inner)


def remove_tree(directory: str) -> None:
    """Delete a directory with all that is in it; what cannot be deleted stays.

    A link is deleted and never followed, whatever a task puts in the place of its directory or of one below, now or meanwhile:
    directories are opened without following links, and entries deleted relative to these. A task may have taken rights away, even
    its own: they are given back where they are missed. Links above it are followed, so
    user code must not be able to replace what is there.
    """
    parent, name = os.path.split(directory)
    try:
        place = os.open(parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:
        return
    try:
        remove_in(place, name)
    finally:
        os.close(place)


def empty(place: int) -> None:
    """Delete what is in an open directory."""
    directory = _enter(place, ".")
    if directory >= 0:
        try:
            _clear(directory)
        finally:
            os.close(directory)


def remove_known(place: int) -> None:
    """Empty an open directory, and remove it where it is now, which may be elsewhere than it was made; the handle stays open."""
    empty(place)
    try:
        # The path without any link in it. A name that means something else by now is left alone, and so is what has content.
        path = os.readlink(f"/proc/self/fd/{place}")
        if identity(os.lstat(path)) == identity(os.fstat(place)):
            os.rmdir(path)
    except OSError:
        pass


def remove_in(place: int, name: str) -> None:
    """As ``remove_tree``, in an open directory."""
    directory = _enter(place, name)
    if directory >= 0:
        try:
            _clear(directory)
        finally:
            os.close(directory)
        _delete(os.rmdir, place, name)


def _enter(place: int, name: str) -> int:
    """Open a directory; -1 when it cannot be, or is none: then it is deleted."""
    try:
        return _open_in(place, name)
    except OSError as error:
        if error.errno in (errno.ENOTDIR, errno.ELOOP):
            _delete(os.unlink, place, name)
        return -1


def _clear(top: int, kept: str = "") -> None:
    """Delete what is in an open directory, except for a directory of that name.

    The way down is a list, not calls. What is deeper than that may get is moved up, next to what the top still has to delete.
    """
    # Open directories, each inside the one before: name there, and directories in it that are left.
    way = [(top, "", [name for name in _strip(top) if name != kept])]
    try:
        while way:
            directory, name, left = way[-1]
            if not left:
                way.pop()
                if way:
                    os.close(directory)
                    _delete(os.rmdir, way[-1][0], name)
            elif len(way) <= _OPEN_LEVELS:
                name = left.pop()
                below = _enter(directory, name)
                if below >= 0:
                    way.append((below, name, []))
                    left_below = _strip(below)
                    way[-1][2].extend(left_below)
            else:
                lifted = f".vine.lifted.{os.urandom(8).hex()}"
                if _lift(directory, left.pop(), top, lifted):
                    way[0][2].append(lifted)
    finally:
        for directory, _, _ in way[1:]:
            os.close(directory)


def _strip(directory: int) -> list[str]:
    """Delete what are no directories; the names of those that are."""
    below = []
    try:
        with os.scandir(directory) as found:
            entries = [(entry.name, entry.is_dir(follow_symlinks=False)) for entry in found]
    except OSError:
        return []
    for name, is_directory in entries:
        if is_directory:
            below.append(name)
        else:
            _delete(os.unlink, directory, name)
    return below


def _lift(place: int, name: str, top: int, lifted: str) -> bool:
    """Move a directory up; False when that cannot be."""
    try:
        try:
            os.rename(name, lifted, src_dir_fd=place, dst_dir_fd=top)
        except PermissionError:
            # It changes itself too: it knows what is above it.
            handle = os.open(name, KNOW, dir_fd=place)
            try:
                for changed in (handle, place, top):
                    _give_rights(changed)
            finally:
                os.close(handle)
            os.rename(name, lifted, src_dir_fd=place, dst_dir_fd=top)
    except OSError:
        return False
    return True


def _open_in(place: int, name: str) -> int:
    """Open a directory, which is no link, to read it.

    Raises:
        OSError: with ENOTDIR or ELOOP, it is no directory.
    """
    try:
        return os.open(name, _READ, dir_fd=place)
    except PermissionError:
        _give_rights(place)
        handle = os.open(name, KNOW, dir_fd=place)
        try:
            _give_rights(handle)
        finally:
            os.close(handle)
        return os.open(name, _READ, dir_fd=place)


def _delete(function: Callable[..., None], place: int, name: str) -> None:
    try:
        function(name, dir_fd=place)
    except PermissionError:
        try:
            _give_rights(place)
            function(name, dir_fd=place)
        except OSError:
            pass
    except OSError:
        pass


def _give_rights(handle: int) -> None:
    """To the owner of an open directory; a handle without rights of its own can be used by its name only."""
    os.chmod(f"/proc/self/fd/{handle}", 0o700)


def _give_missing_rights(handle: int) -> None:
    if os.fstat(handle).st_mode & 0o700 != 0o700:
        _give_rights(handle)


class _Level:
    """One directory on the way down through a tree that is measured."""

    def __init__(self, handle: int, left_out: _Names) -> None:
        # -1: closed for a while, since the way goes on far below it.
        self.handle = handle
        self.known = identity(os.fstat(handle))
        self.left_out = left_out
        # Directories in it that are left to be measured.
        self.left: list[str] = []


def _measure(top: int, left_out: _Names) -> int:
    """Bytes of the files in an open directory and below, as far as this process may look, while others change what is there.

    The way down is a list, not calls, and each directory is opened from the one around it: neither the length of a path nor the
    depth of a tree is a limit. Of a deep way only the last levels are open; those above are found again by ``..``.
    """
    way = [_Level(top, left_out)]
    total = _count(way[0])
    try:
        while way:
            level = way[-1]
            if level.left:
                name = level.left.pop()
                try:
                    way.append(_Level(os.open(name, _READ, dir_fd=level.handle), level.left_out.get(name, {})))
                except OSError:
                    continue  # gone meanwhile, or without rights
                total += _count(way[-1])
                if len(way) - 2 > _OPEN_LEVELS:
                    _close(way[-2 - _OPEN_LEVELS])
                continue
            way.pop()
            if way and way[-1].handle < 0 and not _reopen(way[-1], level.handle):
                # The task has moved it: what is left to be seen from there is seen the next time.
                del way[1:]
            if way:
                os.close(level.handle)
    finally:
        for level in way[1:]:
            _close(level)
    return total


def _count(level: _Level) -> int:
    """Bytes of the files in a directory; notes the directories."""
    total = 0
    try:
        with os.scandir(level.handle) as found:
            for entry in found:
                try:
                    if entry.is_dir(follow_symlinks=False):
                        level.left.append(entry.name)
                    elif level.left_out.get(entry.name) != {}:
                        total += entry.stat(follow_symlinks=False).st_size
                except OSError:
                    continue
    except OSError:
        pass
    return total


def _close(level: _Level) -> None:
    if level.handle >= 0:
        os.close(level.handle)
        level.handle = -1


def _reopen(level: _Level, below: int) -> bool:
    """Open a directory again from one in it; False when that is elsewhere by now."""
    try:
        handle = os.open("..", _READ, dir_fd=below)
    except OSError:
        return False
    if identity(os.fstat(handle)) != level.known:
        os.close(handle)
        return False
    level.handle = handle
    return True


def _quietly_unlink(place: int, name: str) -> None:
    try:
        os.unlink(name, dir_fd=place)
    except OSError:
        pass
