"""What all integration tests share: whatever a test starts carries a mark in its environment, and nothing marked may outlive it.

Two marks: one for each test, one for each module, so that a module's own manager may live as long as the module does.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.kit.calls import LIMIT_S
from tests.kit.processes import home, marked, processes_marked, start
from vinecore import Manager

__all__ = ["home", "start"]  # fixtures

TEST_MARK = "VINE_TEST_MARK"
MODULE_MARK = "VINE_MODULE_MARK"
_numbers = itertools.count()


@pytest.fixture(scope="module", autouse=True)
def module_leaves_no_process() -> Iterator[str]:
    """Whatever the module's fixtures and tests started is gone after its last test."""
    yield from marked(MODULE_MARK)


@pytest.fixture(autouse=True)
def leaves_no_process(module_leaves_no_process: str) -> Iterator[str]:
    """The test's mark, as ``NAME=value``; what carries it must have ended with the test."""
    yield from marked(TEST_MARK)


@pytest.fixture
def started_by_test(leaves_no_process: str) -> Callable[[], list[int]]:
    """A function that lists the living processes which this test started, directly or not."""
    return lambda: processes_marked(leaves_no_process)


@pytest.fixture(scope="module")
def m() -> Iterator[Manager]:
    """A manager with an embedded worker of two cores."""
    with Manager(local_cores=2) as manager:
        yield manager


@pytest.fixture
def install(m: Manager) -> Iterator[Callable[..., str]]:
    """Install functions as a library with a fresh name; after the test its tasks and libraries are gone from the manager."""
    names = []

    def make(*functions: Callable[..., Any], slots: int = 0, **options: Any) -> str:
        names.append(f"lib-{next(_numbers)}")
        task = m.create_library_from_functions(names[-1], *functions, **{"exec_mode": "direct", **options})
        if slots:
            task.set_function_slots(slots)
        m.install_library(task)
        return names[-1]

    yield make
    m.cancel_all()
    while not m.empty() and m.wait(LIMIT_S) is not None:
        pass
    assert m.empty()
    for name in names:
        if m.check_library_exists(name):
            m.remove_library(name)


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Secrets of a module are made below a directory of its own."""
    place = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HOME", str(place))
        patch.setenv("XDG_CONFIG_HOME", str(place / "config"))
        for name in ("VINE_PASSWORD_FILE", "VINE_PORT"):
            patch.delenv(name, raising=False)
        yield place
