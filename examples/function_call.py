"""A library of two functions that share a context, which is loaded once on the worker and used by 100 calls.

The context function builds a table and notes each time that it runs in a file, so the count is a proof. With ``--port``
that file must be on a disk that the workers share. Prints the sums of both functions' results and the number of loads.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from pathlib import Path

from vinecore import FunctionCall, Manager, load_variable_from_library

WAIT_S = 5


def load_table(size: int, log_path: str) -> dict[str, list[int]]:
    """The context: squares of the first numbers. Every item of the returned dict is a variable of the library."""
    with open(log_path, "a") as log:
        log.write(f"loaded by process {os.getpid()}\n")
    return {"table": [i * i for i in range(size)]}


def look_up(index: int) -> int:
    return load_variable_from_library("table")[index]


def sum_up_to(stop: int) -> int:
    return sum(load_variable_from_library("table")[:stop])


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cores", type=int, default=2, help="cores of the embedded worker (default: 2)")
    parser.add_argument("--port", type=int, help="listen here for external workers instead of starting one")
    options = parser.parse_args(argv)
    if options.cores < 1:
        parser.error("--cores must be at least 1")
    if options.port is not None and not 0 <= options.port <= 65535:
        parser.error("--port must be between 0 and 65535")

    with tempfile.TemporaryDirectory(prefix="function-call-") as directory:
        log_path = Path(directory) / "loads.txt"
        sums = {"look_up": 0, "sum_up_to": 0}
        with Manager(port=options.port) if options.port is not None else Manager(local_cores=options.cores) as m:
            context = [load_table, [50], {"log_path": str(log_path)}]
            library = m.create_library_from_functions(
                "squares", look_up, sum_up_to, exec_mode="direct", library_context_info=context
            )
            m.install_library(library)
            names = {m.submit(FunctionCall("squares", name, i)): name for name in sums for i in range(50)}
            while not m.empty():
                task = m.wait(WAIT_S)
                if task is None:
                    continue
                if not task.successful():
                    raise SystemExit(f"call {task.id} failed: {task.output}")
                sums[names[task.id]] += task.output
        for name, total in sums.items():
            print(f"{name}: 50 calls, sum {total}")
        print(f"context loads: {len(log_path.read_text().splitlines())}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
