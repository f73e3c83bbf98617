"""The worker's workspace: private ones of dead workers are swept away, those of workers that are just starting are not."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import pytest

from tests.kit.deep import make_deep
from vinecore.errors import UsageError
from vinecore.shell import store
from vinecore.shell.store import LOCK, UNLOCKED_S, Store, sweep_dead_workspaces


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def test_a_living_workspace_is_left_alone_and_a_dead_one_goes() -> None:
    living, dead = Store(None), Store(None)
    dead._lock.close()
    sweep_dead_workspaces()
    assert living.objects.is_dir() and not dead.workspace.exists()
    living.remove()
    assert not living.workspace.exists()


def test_a_workspace_that_is_just_being_made_is_left_alone(temporary: Path) -> None:
    """Between the making of the directory and of its lock."""
    young, old = (temporary / f"vine-worker-{os.getuid()}-{name}" for name in ("young", "old"))
    for place in (young, old):
        place.mkdir()
    os.utime(old, (0, old.stat().st_mtime - 2 * UNLOCKED_S))
    sweep_dead_workspaces()
    assert young.exists() and not old.exists()


@pytest.mark.parametrize("is_private", [True, False])
def test_a_workspace_that_is_swept_before_it_is_locked_is_made_again(
    temporary: Path, monkeypatch: pytest.MonkeyPatch, is_private: bool
) -> None:
    """A sweeper that holds the lock first removes it with the directory; the lock got after that means nothing."""
    swept: list[Path] = []
    real = fcntl.flock

    def flock(lock: Any, how: int) -> None:
        if not swept:
            swept.append(Path(lock.name).parent)
            shutil.rmtree(swept[0])
        real(lock, how)

    monkeypatch.setattr(store.fcntl, "flock", flock)
    made = Store(None if is_private else str(temporary / "mine"))
    assert len(swept) == 1 and (made.workspace == swept[0]) is not is_private
    assert made.objects.is_dir() and (made.workspace / LOCK).exists()
    sweep_dead_workspaces()
    assert made.objects.is_dir()
    made.remove()
    assert not made.workspace.exists()


def entries(place: Path) -> list[str]:
    return sorted(path.name for path in place.iterdir())


@pytest.mark.parametrize("first_leaves_last", [True, False])
def test_a_shared_workspace_goes_with_the_last_of_its_workers(temporary: Path, first_leaves_last: bool) -> None:
    place = temporary / "deep" / "shared"
    pair = [Store(str(place)) for _ in range(2)]
    last, other = pair if first_leaves_last else reversed(pair)
    last.path("r1-1.1").write_bytes(b"x")
    (other.objects.parent / "sandboxes-7").mkdir()
    left = [LOCK, "objects", "tmp"] if first_leaves_last else [LOCK, last.objects.parent.name]
    other.remove()
    assert last.path("r1-1.1").read_bytes() == b"x" and entries(place) == left
    third = Store(str(place))
    third.remove()
    assert entries(place) == left
    last.remove()
    assert not place.exists() and place.parent.exists()


@pytest.mark.parametrize("keeper", [0, 1])
def test_a_shared_workspace_stays_if_one_of_its_workers_was_told_so(temporary: Path, keeper: int) -> None:
    place = temporary / "shared"
    pair = [Store(str(place), keep=number == keeper) for number in range(2)]
    for made in pair:
        made.remove()
    assert entries(place) == []


def test_a_workspace_that_was_there_keeps_its_lock_for_as_long_as_somebody_uses_it(temporary: Path) -> None:
    place = temporary / "shared"
    place.mkdir()
    (place / "mine").touch()
    pair = [Store(str(place)) for _ in range(2)]
    pair[0].remove()
    assert (place / LOCK).exists()
    pair[1].remove()
    assert entries(place) == ["mine"]


def test_a_workspace_whose_workers_were_all_killed_belongs_to_its_user(temporary: Path) -> None:
    place = temporary / "shared"
    Store(str(place))._lock.close()
    (place / "mine").touch()
    Store(str(place)).remove()
    assert (place / "mine").exists() and not (place / LOCK).exists()


def test_who_moves_in_while_the_last_one_leaves_begins_again(temporary: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It has opened the lock, which then goes with the workspace."""
    place = temporary / "shared"
    leaving = Store(str(place))
    real = fcntl.flock

    def flock(lock: Any, how: int) -> None:
        monkeypatch.setattr(store.fcntl, "flock", real)
        leaving.remove()
        assert not place.exists()
        real(lock, how)

    monkeypatch.setattr(store.fcntl, "flock", flock)
    coming = Store(str(place))
    assert coming.objects.is_dir() and (place / LOCK).exists()
    coming.remove()
    assert not place.exists()


def test_two_machines_may_give_their_workers_the_same_number(temporary: Path) -> None:
    pair = [Store(str(temporary / "shared")) for _ in range(2)]
    assert pair[0].mark != pair[1].mark
    assert len({path for made in pair for path in (made.objects, made.temporary, made.libraries)}) == 6
    for made in pair:
        made.remove()


def test_objects_that_somebody_has_removed_are_no_error(temporary: Path) -> None:
    made = Store(str(temporary / "mine"))
    shutil.rmtree(made.objects)
    made.clear()
    made.remove()
    assert not made.workspace.exists()


def test_parts_of_objects_go_only_with_their_writers(temporary: Path) -> None:
    made = Store(str(temporary / "mine"))
    whole, part = made.path("r1-1.1"), made.aside("r1-1.1")
    for path in (whole, part):
        path.write_bytes(b"x")
    made.unlink(["r1-1.1", "r1-2.1"])
    assert not whole.exists() and part.exists(), "a slot that lives may still be writing"
    made.unlink(["r1-1.1", "r1-2.1"], partial=True)
    assert list(made.objects.iterdir()) == []
    made.remove()


def test_directories_deeper_than_calls_go_are_removed(temporary: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    private, named = Store(None), Store(str(temporary / "named"))
    for made in (private, named):
        make_deep(made.temporary, 3000)
    named.remove()
    monkeypatch.setattr(store, "UNLOCKED_S", 0.0)
    private._lock.close()
    sweep_dead_workspaces()
    assert entries(temporary) == []


@pytest.mark.parametrize("is_first", [True, False])
def test_a_workspace_that_was_replaced_is_known_again(temporary: Path, is_first: bool) -> None:
    """A task has moved it, and put a link to somebody's directory in its place."""
    place, aside, victim = temporary / "shared", temporary / "aside", temporary / "victim"
    pair = [Store(str(place)) for _ in range(2)]
    made, other = pair if is_first else reversed(pair)
    theirs = [victim / name / "precious" for name in ("objects", "libraries", "tmp", "sandboxes-1", made.objects.parent.name)]
    for path in theirs:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    (made.objects / "precious").touch()
    assert not made.is_gone()
    place.rename(aside)
    place.symlink_to(victim)
    assert made.is_gone()
    made.unlink(["precious"])
    assert not (aside / made.objects.relative_to(place) / "precious").exists()
    made.clear()
    made.remove_library(1)
    made.remove()
    assert LOCK in entries(aside) and (place.is_symlink(), all(path.exists() for path in theirs)) == (True, True)
    other.remove()
    assert not aside.exists() and not place.is_symlink() and all(path.exists() for path in theirs)


def test_a_workspace_that_is_a_link_from_the_start(temporary: Path) -> None:
    (temporary / "real").mkdir()
    (temporary / "link").symlink_to("real")
    made = Store(str(temporary / "link"))
    assert made.workspace == temporary / "real" and not made.is_gone()
    made.remove()
    assert entries(temporary) == ["link", "real"] and entries(temporary / "real") == []


def test_the_sweep_follows_no_link(temporary: Path) -> None:
    victim, link = temporary / "victim", temporary / f"vine-worker-{os.getuid()}-x"
    victim.mkdir()
    (victim / "precious").touch()
    os.utime(victim, (0, victim.stat().st_mtime - 2 * UNLOCKED_S))
    link.symlink_to(victim)
    sweep_dead_workspaces()
    assert entries(victim) == ["precious"]


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


# Calls of ``os.open`` and ``open`` by a Store: the lock, the workspace, what is above, its own directory, the one of objects.
@pytest.mark.parametrize("place", ["private", "new", "there", "shared"])
@pytest.mark.parametrize("fails_at", range(1, 6))
def test_a_workspace_that_cannot_be_used_leaves_nothing(
    temporary: Path, monkeypatch: pytest.MonkeyPatch, place: str, fails_at: int
) -> None:
    name = None if place == "private" else str(temporary / "mine")
    if place == "there":
        Path(str(name)).mkdir()
    other = Store(name) if place == "shared" else None
    before, opened = descriptors(), []

    def failing(real: Any) -> Any:
        def fail(path: Any, *args: Any, **kwargs: Any) -> Any:
            opened.append(path)
            if len(opened) >= fails_at:
                raise OSError(errno.EMFILE, "Too many open files")
            return real(path, *args, **kwargs)

        return fail

    names = sorted(str(path.relative_to(temporary)) for path in temporary.rglob("*"))
    with monkeypatch.context() as patch:
        patch.setattr(store, "open", failing(open), raising=False)
        patch.setattr(store.os, "open", failing(os.open))
        with pytest.raises(UsageError, match="Too many open files"):
            Store(name)
    assert len(opened) == fails_at
    assert descriptors() == before
    assert sorted(str(path.relative_to(temporary)) for path in temporary.rglob("*")) == names
    if other is not None:
        other.remove()
        assert not other.workspace.exists()
