"""What a cache line costs here that is in no near cache: the manager at size is as slow as the memory of its machine.

A chain through an array, in random order, so that each step has to wait for the one before; ``python -m tests.sim.memory``.
"""

from __future__ import annotations

import random
from array import array
from time import perf_counter

LINE_BYTES = 64
STEPS = 200_000
SIZES_MB = (2, 4, 8, 16, 32, 64)


def step_ns(size_bytes: int) -> float:
    """Nanoseconds of one step through so much memory, the fastest of three walks."""
    count = size_bytes // LINE_BYTES
    order = list(range(count))
    random.Random(1).shuffle(order)
    chain = array("q", bytes(size_bytes))
    words = LINE_BYTES // chain.itemsize
    for number in range(count):
        chain[order[number] * words] = order[(number + 1) % count] * words
    place, walks = 0, []
    for _ in range(4):  # the first one is not counted: it brings in what the caches can hold
        began = perf_counter()
        for _ in range(STEPS):
            place = chain[place]
        walks.append((perf_counter() - began) / STEPS * 1e9)
    return min(walks[1:])


def text() -> str:
    """One line: what a step costs more, by size of the memory, than in 16 KB."""
    near = step_ns(16 * 1024)
    return ", ".join(f"{step_ns(size * 2**20) - near:.0f} ns in {size} MB" for size in SIZES_MB)


if __name__ == "__main__":
    print(text())
