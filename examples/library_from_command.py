"""Calls of functions that live in a program of their own, ``programs/squares.py``: it is sent to the workers and started there.

Prints the sum of 100 calls, the answer to a call with keyword arguments, and what a call that fails has to say.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from vinecore import FunctionCall, Manager

WAIT_S = 5
PROGRAM = Path(__file__).parent / "programs" / "squares.py"


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cores", type=int, default=2, help="cores of the embedded worker (default: 2)")
    parser.add_argument("--port", type=int, help="listen here for external workers instead of starting one")
    options = parser.parse_args(argv)
    if options.cores < 1:
        parser.error("--cores must be at least 1")
    if options.port is not None and not 0 <= options.port <= 65535:
        parser.error("--port must be between 0 and 65535")

    with Manager(port=options.port) if options.port is not None else Manager(local_cores=options.cores) as m:
        library = m.create_library_from_command(PROGRAM, "squares")
        library.set_function_exec_mode_from_string("direct")
        library.set_function_slots(options.cores)
        m.install_library(library)
        calls = [FunctionCall("squares", "square", number) for number in range(100)]
        calls.append(FunctionCall("squares", "total", 0, 10, step=2))
        calls.append(FunctionCall("squares", "square", 5000))
        for call in calls:
            m.submit(call)
        while not m.empty():
            m.wait(WAIT_S)
    *squares, total, failed = calls
    print(f"square: 100 calls, sum {sum(call.output for call in squares)}")
    print(f"total of every second square below 10: {total.output}")
    print(f"square of 5000: {str(failed.output).splitlines()[-1]}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
