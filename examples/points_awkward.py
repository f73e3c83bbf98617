"""Distances between two jagged arrays of points with dask-awkward, computed on the workers of a DaskVine.

Prints the jagged list of distances, one line for each row. Needs dask-awkward, which today asks for Dask 2025.3; without
it the program says what is missing and how to get it, and exits with 1.
"""

from __future__ import annotations

import argparse
import importlib.util
from typing import TYPE_CHECKING

from daskvine import DaskVine

if TYPE_CHECKING:
    import awkward as ak

FIRST = [[(0.0, 0.0), (1.0, 1.0)], [], [(2.0, 3.0)], [(5.0, 5.0), (6.0, 2.0), (0.0, 1.0)]]
SECOND = [[(3.0, 4.0), (1.0, 2.0)], [], [(2.0, 3.0)], [(5.0, 17.0), (0.0, 10.0), (1.0, 1.0)]]


def jagged_points(rows: list[list[tuple[float, float]]]) -> ak.Array:
    """Rows of (x, y) as an awkward array of records."""
    import awkward as ak

    return ak.Array([[{"x": x, "y": y} for x, y in row] for row in rows])


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cores", type=int, default=2, help="cores of the embedded worker (default: 2)")
    parser.add_argument("--port", type=int, help="listen here for external workers instead of starting one")
    options = parser.parse_args(argv)
    if options.cores < 1:
        parser.error("--cores must be at least 1")
    if options.port is not None and not 0 <= options.port <= 65535:
        parser.error("--port must be between 0 and 65535")
    if importlib.util.find_spec("dask_awkward") is None:
        raise SystemExit(
            "this example needs dask-awkward, which is not installed: from a clone, in a virtual environment of its own,\n"
            '    pip install -e ".[awkward]" "dask==2025.3.*"'
        )
    import dask_awkward as dak

    first = dak.from_awkward(jagged_points(FIRST), npartitions=2)
    second = dak.from_awkward(jagged_points(SECOND), npartitions=2)
    distances = ((first.x - second.x) ** 2 + (first.y - second.y) ** 2) ** 0.5
    with DaskVine(port=options.port) if options.port is not None else DaskVine(local_cores=options.cores) as m:
        result = distances.compute(scheduler=m.get)
    for row in result.to_list():
        print(row)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
