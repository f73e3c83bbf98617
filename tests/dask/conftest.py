"""One embedded manager with two cores for each module of these tests."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from daskvine import DaskVine


@pytest.fixture(scope="module")
def m() -> Iterator[DaskVine]:
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
