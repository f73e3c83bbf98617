"""What tasks leave in sandboxes that no path names or nobody may read: measured as far as can be seen, missing as an output."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pytest

from tests.kit.deep import make_deep
from vinecore.runtime import places
from vinecore.runtime.forking_slot import _missing_text, _read_limited
from vinecore.runtime.places import _OPEN_LEVELS, Place
from vinecore.runtime.sandbox import STDOUT, Box, Unreadable
from vinecore.wire.messages import HOME, Mount, Product, Report, Sandbox

MB = 1 << 20
LONG = "a" * 300
LIMIT_BYTES = 65536
# Links to these can be made by anyone, and reading them fails for root too.
UNREADABLE = [(LONG, errno.ENAMETOOLONG), ("/proc/self/mem", errno.EIO), ("/proc/self/pagemap", errno.EINVAL)]


@pytest.fixture
def store(tmp_path: Path) -> Path:
    path = tmp_path / "objects"
    path.mkdir()
    return path


def built(store: Path, *mounts: Mount, products: tuple[Product, ...] = ()) -> Box:
    box = Box(Place(store.parent / "sandboxes"), "task.1.1", Sandbox(list(mounts), list(products), []), store)
    box.build({1: b"i" * MB})
    return box


def write_mb(path: str, directory: int | None = None) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT, dir_fd=directory)
    os.truncate(fd, MB)
    os.close(fd)


def open_files() -> int:
    return len(os.listdir("/proc/self/fd"))


# ------------------------------------------------------------ sizes


def test_the_size_of_a_path_that_has_no_name(store: Path) -> None:
    box = built(store)
    directory = os.open(box.path, os.O_RDONLY)
    for _ in range(25):
        os.mkdir("d" * 200, dir_fd=directory)
        below = os.open("d" * 200, os.O_RDONLY, dir_fd=directory)
        os.close(directory)
        directory = below
    write_mb("f" * 200, directory)
    os.close(directory)
    assert box.size_mb() == 1
    box.remove()


@pytest.mark.parametrize("levels", [_OPEN_LEVELS - 1, _OPEN_LEVELS, _OPEN_LEVELS + 1, _OPEN_LEVELS + 2, 1500])
def test_the_size_of_a_deep_tree(store: Path, levels: int) -> None:
    box = built(store)
    make_deep(box.path / "deep", levels)
    # Files and directories beside the way: found when it comes back up.
    directory = os.open(box.path / "deep", os.O_RDONLY)
    for level in range(levels):
        for side in "ce":
            os.mkdir(side, dir_fd=directory)
        if level in (0, 1, levels - 1):
            for side in "ce":
                write_mb(f"{side}/file", directory)
        below = os.open("d", os.O_RDONLY, dir_fd=directory)
        os.close(directory)
        directory = below
    write_mb("file", directory)
    os.close(directory)
    before = open_files()
    assert box.size_mb() == 2 * 3 + 1
    assert open_files() == before
    box.remove()


def test_a_deep_tree_that_is_moved_while_it_is_measured(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was below it is counted, and what the top has; nothing outside."""
    box = built(store)
    make_deep(box.path / "deep", 3 * _OPEN_LEVELS)
    write_mb(str(box.path / "file"))
    for name in ("a", "z"):
        (box.path / name).mkdir()
        write_mb(str(box.path / name / "file"))
    (store / "d").mkdir()
    write_mb(str(store / "big"))
    real, count = os.scandir, 0

    def scandir(place: Any) -> Any:
        nonlocal count
        count += 1
        if count == 2 * _OPEN_LEVELS + 20:
            moved = box.path / "deep" / "/".join("d" * 40)
            moved.rename(store / "d/d")
        return real(place)

    monkeypatch.setattr(places.os, "scandir", scandir)
    before = open_files()
    assert box.size_mb() == 3 and count > 2 * _OPEN_LEVELS + 20
    assert open_files() == before


def test_a_measure_follows_no_link_and_changes_nothing(store: Path, tmp_path: Path) -> None:
    write_mb(str(tmp_path / "elsewhere"))
    box = built(store)
    (box.path / "link").symlink_to(tmp_path)
    (box.path / "file").symlink_to(tmp_path / "elsewhere")
    (box.path / "closed").mkdir()
    os.utime(box.path / "closed", (1, 1))
    (box.path / "closed").chmod(0o400)
    assert box.size_mb() == 0
    info = (box.path / "closed").stat()
    assert (info.st_mtime, info.st_mode & 0o777) == (1, 0o400)
    box.path.rename(box.path.parent / "away")
    box.path.symlink_to(tmp_path)
    assert box.size_mb() == 0


def test_a_measure_counts_no_inputs_but_what_is_beside_them(store: Path) -> None:
    box = built(store, Mount(1, "a/b/in"), Mount(1, "a//in"), Mount(1, "in"))
    for name in ("a/b/mine", "a/mine", "mine"):
        write_mb(str(box.path / name))
    assert box.size_mb() == 3


def test_a_sandbox_that_is_gone_has_no_size(store: Path) -> None:
    box = built(store)
    box.remove()
    assert box.size_mb() == 0


# ------------------------------------------------------------ outputs


@pytest.mark.parametrize(("target", "number"), UNREADABLE)
@pytest.mark.parametrize("flags", [0, HOME])
def test_an_output_that_cannot_be_read_is_missing(store: Path, target: str, number: int, flags: int) -> None:
    box = built(store, products=(Product("out", "made", flags), Product("good", "kept", flags)))
    (box.path / "out").symlink_to(target)
    (box.path / "good").write_bytes(b"x" * LIMIT_BYTES)
    taken, missing = box.collect(True, 0)
    assert [name for name, _, _ in taken] == ["kept"] and missing == ["out"]
    assert box.unread == {"out": os.strerror(number)} and os.listdir(store) == ["kept"]
    text = _missing_text(Report(0, b"", [], missing, []), box.path, box.unread)
    assert text == f"its output out cannot be read: {os.strerror(number)}"


# The beginning of the last one can be read.
@pytest.mark.parametrize(("target", "number"), UNREADABLE[:2])
def test_a_standard_output_that_cannot_be_read_says_why(tmp_path: Path, target: str, number: int) -> None:
    (tmp_path / STDOUT).symlink_to(target)
    said = f"its standard output cannot be read: {os.strerror(number)}\n"
    assert _read_limited(tmp_path / STDOUT, 100) == (said.encode(), False)


@pytest.mark.parametrize("name", ["gone", "loop", "file/below", "pipe", "directory"])
def test_what_is_no_file_is_just_missing(store: Path, name: str) -> None:
    box = built(store, products=(Product(name, "made"),))
    if name == "file/below":
        (box.path / "file").rmdir()
        (box.path / "file").touch()
    (box.path / "loop").symlink_to("loop")
    os.mkfifo(box.path / "pipe")
    (box.path / "directory").mkdir()
    assert box.collect(True, 0) == ([], [name]) and box.unread == {}


@pytest.mark.parametrize("fails", ["read", "write"])
def test_a_copy_tells_reading_from_writing(store: Path, monkeypatch: pytest.MonkeyPatch, fails: str) -> None:
    """The same error, of a file that the task has left or of the disk of the worker: only the latter is worth another try."""
    box = built(store, products=(Product("out", "made"),))
    write_mb(str(box.path / "out"))
    os.link(box.path / "out", box.path / "second")

    def broken(*_: Any) -> Any:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "sendfile", broken)
    monkeypatch.setattr(os, fails, broken)
    if fails == "write":
        with pytest.raises(OSError, match="Input/output") as caught:
            box.collect(True, 0)
        assert not isinstance(caught.value, Unreadable)
    else:
        assert box.collect(True, 0) == ([], ["out"]) and box.unread == {"out": "Input/output error"}
    monkeypatch.undo()
    assert os.listdir(store) == []


@pytest.mark.parametrize("number", [errno.EXDEV, errno.EACCES, errno.EPERM])
def test_an_output_that_cannot_be_moved_is_copied(store: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    box = built(store, products=(Product("out", "made"),))
    (box.path / "out").write_bytes(b"content")
    real = os.rename

    def rename(source: Any, target: Any, **options: Any) -> None:
        if Path(source).name == "out":
            raise OSError(number, os.strerror(number))
        real(source, target, **options)

    monkeypatch.setattr(os, "rename", rename)
    # No sendfile either, as of some files.
    monkeypatch.setattr(os, "sendfile", lambda *_: rename("out", ""))
    assert box.collect(True, 0) == ([("made", 7, b"")], [])
    assert (store / "made").read_bytes() == b"content"


def test_rights_of_a_sandbox_are_given_back(store: Path) -> None:
    box = built(store)
    (box.path / "file").touch(0o400)
    box.path.chmod(0o005)
    box.place.path.chmod(0)
    box.regain()
    modes = [path.stat().st_mode & 0o777 for path in (box.place.path, box.path, box.path / "file")]
    assert modes == [0o700, 0o700, 0o400]
    box.remove()
    box.regain()  # nothing there: nothing happens
