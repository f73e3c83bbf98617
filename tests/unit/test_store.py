"""The worker's workspace: private ones of dead workers are swept away, those of workers that are just starting are not."""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import pytest

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
