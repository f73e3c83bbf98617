"""A Dask graph of steps that need a process and a directory of their own: ``task_mode="tasks"``.

Each of 24 runs calls a program that knows nothing of the others: it reads its settings from ``settings.txt``, changes the
directory it is in, writes ``events.txt`` there, and now and then dies. The counts are added up in a tree. With function calls in
shared processes the runs would overwrite each other's files; here each has a private directory, and one that dies is run again.

    python examples/dask_tasks.py                 (an embedded worker of two cores)
    python examples/dask_tasks.py --port 9123     (waits for external workers: vine_worker HOST 9123)
"""

from __future__ import annotations

import argparse
import os
import random
import tempfile
from pathlib import Path

import dask

from daskvine import DaskVine

RUN_COUNT = 24
SETTINGS = "events 1000\nthreshold 0.25\n"


def simulate(number: int, deaths: str) -> int:
    """One run: events above a threshold, through files with fixed names; every fifth run dies the first time."""
    settings = dict(line.split() for line in Path("settings.txt").read_text().splitlines())
    chance = random.Random(number)
    os.mkdir("output")
    os.chdir("output")
    Path("events.txt").write_text("".join(f"{chance.random():.6f}\n" for _ in range(int(settings["events"]))))
    flag = Path(deaths, str(number))
    if number % 5 == 0 and not flag.exists():
        flag.touch()
        os.abort()
    threshold = float(settings["threshold"])
    return sum(float(line) > threshold for line in Path("events.txt").read_text().splitlines())


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cores", type=int, default=2, help="cores of the embedded worker (default: 2)")
    parser.add_argument("--port", type=int, help="listen here for external workers instead of starting one")
    options = parser.parse_args(argv)
    if options.cores < 1:
        parser.error("--cores must be at least 1")
    if options.port is not None and not 0 <= options.port <= 65535:
        parser.error("--port must be between 0 and 65535")

    with (
        tempfile.TemporaryDirectory(prefix="dask-tasks-") as deaths,
        DaskVine(port=options.port) if options.port is not None else DaskVine(local_cores=options.cores) as m,
    ):
        settings = m.declare_buffer(SETTINGS)
        counts = [dask.delayed(simulate)(number, deaths) for number in range(RUN_COUNT)]
        while len(counts) > 1:
            counts = [dask.delayed(sum)(counts[start : start + 4]) for start in range(0, len(counts), 4)]
        (total,) = dask.compute(
            counts[0],
            scheduler=m.get,
            task_mode="tasks",
            resources={"cores": 1, "wall_time": 60},
            extra_files={settings: "settings.txt"},
        )
        print(f"{RUN_COUNT} runs, {len(os.listdir(deaths))} of them died once: {total} events above the threshold")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
