"""Embedded managers with two cores, for each module of these tests: ``m`` in both task modes, ``calls`` in the usual one.

Workers that are started by their command: ``start``.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from daskvine import DaskVine
from tests.kit.processes import home, start

__all__ = ["home", "start"]  # fixtures


class InTasks(DaskVine):
    """Runs each vertex in a process of its own, unless a get says otherwise."""

    def get(self, dsk: Any, keys: Any, **options: Any) -> Any:
        return super().get(dsk, keys, **{"task_mode": "tasks", **options})

    __call__ = get


@pytest.fixture(scope="module", params=[DaskVine, InTasks], ids=["calls", "tasks"])
def m(request: pytest.FixtureRequest) -> Iterator[DaskVine]:
    with request.param(local_cores=2) as manager:
        yield manager


@pytest.fixture(scope="module")
def calls() -> Iterator[DaskVine]:
    with DaskVine(local_cores=2) as manager:
        yield manager


class Runs:
    """Counts executions through a file: each one appends a line, so it works across processes."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def lines(self) -> list[str]:
        return self.path.read_text().split() if self.path.exists() else []

    def __len__(self) -> int:
        return len(self.lines())


@pytest.fixture
def runs(tmp_path: Path) -> Runs:
    return Runs(tmp_path / "runs")
