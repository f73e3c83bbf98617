"""Shell commands beside each other on one cached file: the "quickstart" application.

A text of some 5 MB is generated, then three command tasks count one word each in it: the lines with the word, its hits, and the
bytes that the hits take. The file is brought to a worker once, for all of its tasks; every finished task is one line.

    python examples/commands.py                   (an embedded worker of two cores)
    python examples/commands.py --port 9123       (waits for external workers: vine_worker HOST 9123)
"""

from __future__ import annotations

import argparse
import random
import tempfile
from pathlib import Path

from vinecore import Manager, Task

WORDS = ("lantern", "harbour", "meridian", "salt", "copper", "orchard", "tide", "window", "granite", "sparrow")
SEARCHED = ("lantern", "tide", "sparrow")
TEXT_BYTES = 5_000_000
WAIT_S = 5


def write_text(path: Path, size_bytes: int) -> None:
    """Lines of random words, the same ones in every run."""
    source = random.Random(2026)
    written = 0
    with open(path, "w") as file:
        while written < size_bytes:
            written += file.write(" ".join(source.choices(WORDS, k=12)) + "\n")


def count_task(word: str) -> Task:
    """A command that prints the lines with the word, its hits, and their bytes."""
    hits = f"grep -o {word} text"
    return Task(
        f"grep -c {word} text; {hits} | wc -l; {hits} | tr -d '\\n' | wc -c", tag=word, cores=1, memory=100, disk=100, time_max=60
    )


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cores", type=int, default=2, help="cores of the embedded worker (default: 2)")
    parser.add_argument("--port", type=int, help="listen here for external workers instead of starting one")
    options = parser.parse_args(argv)
    if options.cores < 1:
        parser.error("--cores must be at least 1")
    if options.port is not None and not 0 <= options.port <= 65535:
        parser.error("--port must be between 0 and 65535")

    with tempfile.TemporaryDirectory(prefix="commands-") as directory:
        path = Path(directory) / "text"
        write_text(path, TEXT_BYTES)
        with Manager(port=options.port) if options.port is not None else Manager(local_cores=options.cores) as m:
            text = m.declare_file(path)
            for word in SEARCHED:
                task = count_task(word)
                task.add_input(text, "text")
                m.submit(task)
            while not m.empty():
                done = m.wait(WAIT_S)
                if done is None:
                    continue
                if not done.successful():
                    raise SystemExit(f"{done.tag}: {done.result}, exit code {done.exit_code}: {done.output}")
                lines, hits, size_bytes = map(int, done.output.split())
                print(f"{done.tag}: {lines} lines, {hits} hits, {size_bytes} bytes")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
