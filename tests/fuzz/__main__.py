"""``python -m tests.fuzz``: fuzzed inputs through framing, handshake, links and every decoder of the protocol.

Ends with 1 when anything but the project's own protocol error came out, a promise of a target was broken, or memory was used
without a bound. A failure is repeated with the ``--seed`` and ``--inputs`` that it names.
"""

from __future__ import annotations

import argparse
import resource
import sys
from collections import Counter
from pathlib import Path

from tests.fuzz import fuzz

# What a run may take beyond what the interpreter has at its start: who allots what a message promises fails.
MEMORY_MB = 512
GROWTH_MB = 32


def limit_memory() -> None:
    """Let no allocation go far beyond what this process has."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    size = pages * resource.getpagesize() + (MEMORY_MB << 20)
    resource.setrlimit(resource.RLIMIT_AS, (size, resource.getrlimit(resource.RLIMIT_AS)[1]))


def main() -> int:
    """Parse, run, report."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description="Fuzz framing, handshake, links and every decoder.")
    parser.add_argument("--inputs", type=int, default=1_000_000, help="how many in all (default 1,000,000)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--target", default="", help="only this one (see the report for their names)")
    args = parser.parse_args()
    # Everything that is imported and cached once comes first: growth is counted behind it.
    fuzz.run(min(args.inputs, 2000), args.seed + 1, args.target)
    limit_memory()
    outcome = fuzz.run(args.inputs, args.seed, args.target)
    by_target: dict[str, Counter[str]] = {}
    for (name, result), count in outcome.results.items():
        by_target.setdefault(name, Counter())[result] += count
    for name, counts in by_target.items():
        print(f"{name:28} " + ", ".join(f"{count} {result}" for result, count in sorted(counts.items())))
    for failure in outcome.failures:
        print("BROKEN", failure)
    print(
        f"{outcome.inputs} inputs in {outcome.seconds:.0f} s; most memory {outcome.peak_kb / 1024:.0f} MB, "
        f"{outcome.grown_kb / 1024:.1f} MB more than at the start; {len(outcome.failures)} broken"
    )
    if outcome.grown_kb > GROWTH_MB * 1024:
        print(f"BROKEN: memory has grown by more than {GROWTH_MB} MB")
        return 1
    return 1 if outcome.failures or not outcome.inputs else 0


if __name__ == "__main__":
    sys.exit(main())
