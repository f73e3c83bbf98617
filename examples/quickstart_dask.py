"""A dask.array computation on the workers of a DaskVine.

Builds x[i, j] = i + 2 j in blocks, computes the mean over the rows of x + x.T through ``scheduler=m.get`` and compares it with
the formula 3 j + 3 (n - 1) / 2. Prints the first and the last of the means and whether all of them agree.
"""

from __future__ import annotations

import argparse

import dask.array as da
import numpy as np

from daskvine import DaskVine


def mean_of_symmetric_sum(size: int, chunk: int) -> da.Array:
    """The lazy mean over the rows of x + x.T, in blocks of ``chunk`` x ``chunk``."""
    x = da.fromfunction(lambda i, j: i + 2.0 * j, shape=(size, size), chunks=(chunk, chunk), dtype=np.float64)
    return (x + x.T).mean(axis=0)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cores", type=int, default=2, help="cores of the embedded worker (default: 2)")
    parser.add_argument("--port", type=int, help="listen here for external workers instead of starting one")
    parser.add_argument("--size", type=int, default=2000, help="rows and columns (default: 2000)")
    options = parser.parse_args(argv)
    if options.cores < 1:
        parser.error("--cores must be at least 1")
    if options.port is not None and not 0 <= options.port <= 65535:
        parser.error("--port must be between 0 and 65535")
    if options.size < 1:
        parser.error("--size must be at least 1")

    lazy = mean_of_symmetric_sum(options.size, chunk=500)
    with DaskVine(port=options.port) if options.port is not None else DaskVine(local_cores=options.cores) as m:
        means = lazy.compute(scheduler=m.get)

    expected = 3.0 * np.arange(options.size) + 1.5 * (options.size - 1)
    agrees = bool(np.allclose(means, expected))
    print(f"{len(means)} means, first {means[0]}, last {means[-1]}")
    print(f"equal to the formula: {agrees}")
    return 0 if agrees else 1


if __name__ == "__main__":
    raise SystemExit(main())
