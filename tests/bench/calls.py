"""The functions that the systems under measurement run. Imported by every worker process, so it must stay light:
nothing but the standard library's cheapest modules at the top; heavy imports stand inside the functions that need them.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

# A worker that never gets its release must end by itself some day.
BLOCKER_LIMIT_S = 120.0
SLOW_TASK_S = 0.05


def inc(value: int) -> int:
    """The no-op call."""
    return value + 1


def fork_until(seconds: float) -> float:
    """Forks of this process that exit at once, per second, one after the other."""
    count = 0
    begin_s = time.perf_counter()
    while (passed_s := time.perf_counter() - begin_s) < seconds:
        pid = os.fork()
        if pid == 0:
            os._exit(0)
        os.waitpid(pid, 0)
        count += 1
    return count / passed_s


def add(left: int, right: int) -> int:
    """The trivial graph vertex."""
    return left + right


def slow_add(left: int, right: int) -> int:
    """The one long vertex of the mixed graphs."""
    time.sleep(SLOW_TASK_S)
    return left + right


def sum_all(values: list[int]) -> int:
    """The end of a wide graph."""
    return sum(values)


def block_until(release_path: str, started_path: str) -> bool:
    """Say that a slot is taken, then keep it until the release file appears; false when it never did."""
    Path(started_path).touch()
    deadline = time.monotonic() + BLOCKER_LIMIT_S
    while not os.path.exists(release_path):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True


def count_here(*counts: dict[int, int]) -> dict[int, int]:
    """Merge counts of vertices per process and add this vertex."""
    merged: dict[int, int] = {os.getpid(): 1}
    for count in counts:
        for pid, vertices in count.items():
            merged[pid] = merged.get(pid, 0) + vertices
    return merged


def slow_count_here() -> dict[int, int]:
    """``count_here`` of the one long vertex."""
    time.sleep(SLOW_TASK_S)
    return count_here()


def count_all(counts: list[dict[int, int]]) -> dict[int, int]:
    """The end of a wide graph that counts vertices per process."""
    return count_here(*counts)


def needs_pandas_and_scipy(value: int) -> float:
    """A short call behind a second of imports."""
    import pandas
    import scipy.stats

    series = pandas.Series([value - 1.0, value, value + 1.0])
    return float(scipy.stats.norm.cdf(series.mean(), loc=value))


def make_array(value: float, elements: int) -> Any:
    """One array of the data chain; cheap to fill, so that moving it is what is measured."""
    import numpy

    return numpy.full(elements, value)


def transform_array(array: Any) -> Any:
    """The element-wise step of the data chain."""
    return array * 2.0 + 1.0


def add_arrays(left: Any, right: Any) -> Any:
    """One step of the tree sum, of arrays as of histograms."""
    return left + right


def sum_array(array: Any) -> float:
    """The scalar at the end of the data chain."""
    return float(array.sum())


def sum_and_add(array: Any, index: int) -> float:
    """One reader of the shared value."""
    return float(array.sum()) + index


def sum_floats(values: list[float]) -> float:
    """The end of the shared-value graph."""
    return float(sum(values))


def fill_histogram(seed: int, events: int) -> Any:
    """One partition of jagged events: select, pair, histogram the pairs' mass."""
    import awkward
    import numpy

    rng = numpy.random.default_rng(seed)
    counts = rng.poisson(2.0, events)
    total = int(counts.sum())
    muons = awkward.zip(
        {
            "pt": awkward.unflatten(rng.exponential(20.0, total), counts),
            "eta": awkward.unflatten(rng.normal(0.0, 1.5, total), counts),
            "phi": awkward.unflatten(rng.uniform(-numpy.pi, numpy.pi, total), counts),
        }
    )
    muons = muons[muons.pt > 5.0]
    pairs = muons[awkward.num(muons) >= 2]
    first, second = pairs[:, 0], pairs[:, 1]
    mass = numpy.sqrt(2.0 * first.pt * second.pt * (numpy.cosh(first.eta - second.eta) - numpy.cos(first.phi - second.phi)))
    return numpy.histogram(awkward.to_numpy(mass), bins=100, range=(0.0, 200.0))[0]


def sum_bins(histogram: Any) -> int:
    """The scalar at the end of the physics graph."""
    return int(histogram.sum())
