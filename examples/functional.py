"""``map``, ``pair`` and ``tree_reduce`` over small sequences, in chunks of several sizes.

Prints the doubled list, the products of all pairs and the maximum, each for every chunk size, and at the end whether all
of them equal what the same work gives in this process.
"""

from __future__ import annotations

import argparse
from itertools import product

from daskvine import DaskVine


def double(x: int) -> int:
    return 2 * x


def multiply(pair: tuple[int, int]) -> int:
    return pair[0] * pair[1]


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cores", type=int, default=2, help="cores of the embedded worker (default: 2)")
    parser.add_argument("--port", type=int, help="listen here for external workers instead of starting one")
    options = parser.parse_args(argv)
    if options.cores < 1:
        parser.error("--cores must be at least 1")
    if options.port is not None and not 0 <= options.port <= 65535:
        parser.error("--port must be between 0 and 65535")

    numbers, others, heights = [1, 2, 3, 4], [10, 20, 30], [3, 1, 4, 1, 5, 9, 2, 6]
    agrees = True
    with DaskVine(port=options.port) if options.port is not None else DaskVine(local_cores=options.cores) as m:
        for chunksize in (1, 2, 3):
            doubled = m.map(double, numbers, chunksize=chunksize)
            print(f"map, chunks of {chunksize}: {doubled}")
            agrees = agrees and doubled == [double(x) for x in numbers]

            products = m.pair(multiply, numbers, others, chunksize=chunksize)
            print(f"pair, chunks of {chunksize}: {products}")
            agrees = agrees and products == [multiply(pair) for pair in product(numbers, others)]

        # A tree whose tasks take one value each would never end, so its chunks start at two.
        for chunksize in (2, 3):
            highest = m.tree_reduce(max, heights, chunksize=chunksize)
            print(f"tree_reduce, chunks of {chunksize}: {highest}")
            agrees = agrees and highest == max(heights)
    print(f"equal to the local computation: {agrees}")
    return 0 if agrees else 1


if __name__ == "__main__":
    raise SystemExit(main())
