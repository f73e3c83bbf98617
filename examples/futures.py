"""Futures in the words of ``concurrent.futures``: arguments that are futures, as_completed, a cancelled call, an error.

Prints three sums, of which the third takes the first two futures as arguments (their values stay on the worker until
asked for), the squares as they complete, whether a waiting call could be cancelled, and the error of a call that raises.
"""

from __future__ import annotations

import argparse
import time
from concurrent.futures import CancelledError, as_completed

from daskvine import FuturesExecutor


def add(a: int, b: int) -> int:
    return a + b


def square(x: int) -> int:
    return x * x


def divide(a: int, b: int) -> float:
    return a / b


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cores", type=int, default=2, help="cores of the embedded worker (default: 2)")
    parser.add_argument("--port", type=int, help="listen here for external workers instead of starting one")
    options = parser.parse_args(argv)
    if options.cores < 1:
        parser.error("--cores must be at least 1")
    if options.port is not None and not 0 <= options.port <= 65535:
        parser.error("--port must be between 0 and 65535")

    with FuturesExecutor(port=options.port) if options.port is not None else FuturesExecutor(max_workers=options.cores) as ex:
        first = ex.submit(add, 1, 2)
        second = ex.submit(add, 3, 4)
        both = ex.submit(add, first, second)
        print(f"1 + 2 = {first.result()}")
        print(f"3 + 4 = {second.result()}")
        print(f"the sum of both = {both.result()}")

        for future in as_completed([ex.submit(square, x) for x in range(5)]):
            print(f"completed: {future.result()}")

        # The last of many waiting calls has not been started when it is cancelled.
        waiting = [ex.submit(time.sleep, 0.01) for _ in range(100)]
        print(f"cancelled: {waiting[-1].cancel()}")
        try:
            waiting[-1].result()
        except CancelledError as error:
            print(f"its result: {type(error).__name__}")

        error = ex.submit(divide, 1, 0).exception()
        print(f"1 / 0: {type(error).__name__}: {error}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
