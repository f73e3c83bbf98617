"""``map``, ``pair``, ``tree_reduce``: after an error, what has not begun does not."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from daskvine.functional import Manager
from vinecore.errors import UnpicklableError

LIMIT_S = 30.0
COUNT = 100


@pytest.fixture
def m() -> Iterator[Manager]:
    # A new one for each test: what is known to be short is sent by the hundred, and what was sent is not cancelled.
    with Manager(local_cores=1) as manager:
        yield manager


@pytest.fixture
def until(tmp_path: Path) -> Callable[[Any], Any]:
    """A function that notes that it runs, then waits until somebody says that the error has come; of a 0 it raises."""
    ran, has_come = str(tmp_path / "ran"), str(tmp_path / "has_come")

    def run(item: Any) -> int:
        if item == 0 or (isinstance(item, list | tuple) and item[0] == 0):
            raise ValueError("the first")
        with open(ran, "a") as file:
            file.write(".")
        end = time.monotonic() + LIMIT_S
        while not Path(has_come).exists() and time.monotonic() < end:
            time.sleep(0.01)
        return 1

    return run


def runs_after_error(m: Manager, tmp_path: Path) -> int:
    """How many calls run at all, when an error has come and all that are before this are done."""
    (tmp_path / "has_come").touch()
    assert m.map(abs, [-1]) == [1]
    ran = tmp_path / "ran"
    return len(ran.read_text()) if ran.exists() else 0


CALLS: list[Callable[[Manager, Any], Any]] = [
    lambda m, run: m.map(run, range(COUNT)),
    lambda m, run: m.pair(run, range(COUNT), [1]),
    lambda m, run: m.tree_reduce(run, range(2 * COUNT)),
]


@pytest.mark.parametrize("call", CALLS, ids=["map", "pair", "tree_reduce"])
def test_an_error_cancels_the_rest(m: Manager, until: Any, tmp_path: Path, call: Any) -> None:
    with pytest.raises(ValueError, match="the first"):
        call(m, until)
    assert runs_after_error(m, tmp_path) < COUNT // 2


UNSENT: list[Callable[[Manager, Any], Any]] = [
    lambda m, run: m.map(run, [*range(1, COUNT), threading.Lock()]),
    lambda m, run: m.tree_reduce(run, [*range(1, 2 * COUNT), threading.Lock()]),
]


@pytest.mark.parametrize("call", UNSENT, ids=["map", "tree_reduce"])
def test_what_cannot_be_sent_cancels_the_rest(m: Manager, until: Any, tmp_path: Path, call: Any) -> None:
    with pytest.raises(UnpicklableError):
        call(m, until)
    assert runs_after_error(m, tmp_path) < COUNT // 2
