"""Function calls with files of their own: each call gets a text under one name and leaves its word counts under another.

The library is one in fork mode, so each call has a process and a private directory, and a limit of time if it asks for one.
Prints the counts, which come back as a buffer of the manager.
"""

from __future__ import annotations

import argparse
from collections import Counter
from pathlib import Path

from vinecore import FunctionCall, Manager

WAIT_S = 5
LIMIT_S = 60
TEXTS = {"sea": "the sea the sky the ship", "land": "a hill a tree"}


def count_words(source: str, target: str) -> int:
    """Write how often each word stands in a file; returns the number of words."""
    words = Path(source).read_text().split()
    Path(target).write_text(", ".join(f"{word} {count}" for word, count in sorted(Counter(words).items())))
    return len(words)


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
        m.install_library(m.create_library_from_functions("words", count_words, exec_mode="fork"))
        calls = {}
        for name, text in TEXTS.items():
            call = FunctionCall("words", "count_words", "in.txt", "out.txt")
            counts = m.declare_buffer()
            call.add_input(m.declare_buffer(text), "in.txt")
            call.add_output(counts, "out.txt")
            call.set_time_max(LIMIT_S)
            m.submit(call)
            calls[name] = call, counts
        while not m.empty():
            m.wait(WAIT_S)
        for name, (call, counts) in calls.items():
            if not call.successful():
                raise SystemExit(f"{name}: {call.result}: {call.reason}")
            print(f"{name}: {call.output} words: {counts.contents().decode()}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
