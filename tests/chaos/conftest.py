"""Faults at random moments: each moment is a seed, and the same seed makes the same moment again.

``VINE_CHAOS_MOMENTS`` is the number of moments for each fault (default 1, which keeps the whole folder near a minute; full
size is 20), ``VINE_CHAOS_SEED`` the first seed (default 0). What was measured is printed after the run.
"""

from __future__ import annotations

import os
import random
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.integration.conftest import leaves_no_process, module_leaves_no_process, started_by_test
from tests.kit.processes import home, start

__all__ = ["home", "leaves_no_process", "module_leaves_no_process", "start", "started_by_test"]  # fixtures

MOMENTS = int(os.environ.get("VINE_CHAOS_MOMENTS", "1"))
FIRST_SEED = int(os.environ.get("VINE_CHAOS_SEED", "0"))
IS_FULL = MOMENTS >= 10
_FIGURES: dict[str, list[float]] = {}


@dataclass(frozen=True)
class Moment:
    """When a fault strikes, as far as a seed decides it."""

    seed: int

    def draw(self, what: str) -> random.Random:
        """Chance for one decision; others do not change it."""
        return random.Random(f"{what} {self.seed}")

    def between(self, low: int, high: int) -> int:
        """A number of executions after which the fault strikes."""
        return self.draw("when").randint(low, high)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            item.add_marker("chaos")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Every test for each moment. One that names its ``variants`` meets all of them at full size, else one with each moment."""
    if "moment" not in metafunc.fixturenames:
        return
    moments = [Moment(FIRST_SEED + number) for number in range(MOMENTS)]
    marker = metafunc.definition.get_closest_marker("variants")
    if marker is None:
        metafunc.parametrize("moment", moments, ids=[f"seed-{moment.seed}" for moment in moments])
        return
    name, values = marker.args
    rows = [(m, value) for m in moments for value in (values if IS_FULL else [m.draw("variant").choice(values)])]
    metafunc.parametrize(("moment", name), rows, ids=[f"seed-{m.seed}-{value}" for m, value in rows])


@pytest.fixture
def figure() -> Callable[[str, float], None]:
    """Keep a measurement for the table at the end."""

    def keep(name: str, value: float) -> None:
        _FIGURES.setdefault(name, []).append(value)

    return keep


def pytest_terminal_summary(terminalreporter: Any) -> None:
    if _FIGURES:
        terminalreporter.section("what the faults did")
        for name, values in sorted(_FIGURES.items()):
            few = f"median {statistics.median(values):.3g}, max {max(values):.3g}"
            terminalreporter.write_line(f"{name}: {len(values)} moments, {few}")


@pytest.fixture(autouse=True)
def away_from_home(request: pytest.FixtureRequest) -> None:
    """All of these tests start workers."""
    request.getfixturevalue("home")
