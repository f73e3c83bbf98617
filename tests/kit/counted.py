"""Work that counts itself: every execution appends its key, its process and its worker to a log, so runs can be told from reruns.

A record has a fixed length and is appended in one write, so that many processes may share a log and its size tells the number of
executions. What a killed process had begun is in the log of starts only.
"""

from __future__ import annotations

import os
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from tests.kit.calls import LIMIT_S, eventually

RECORD_BYTES = 64
# The environment variable by which a worker's slots know whose they are.
WORKER = "VINE_CHAOS_WORKER"


class Log:
    """Executions of one run. Travels to the workers by its path."""

    def __init__(self, path: Path | str) -> None:
        self.path = str(path)

    def append(self, what: str, key: str, value: int = 0) -> None:
        """Add one record."""
        text = f"{key} {os.getpid()} {os.environ.get(WORKER, '-')} {value}"
        assert len(text) < RECORD_BYTES, text
        file = os.open(f"{self.path}.{what}", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        try:
            os.write(file, text.ljust(RECORD_BYTES - 1).encode() + b"\n")
        finally:
            os.close(file)

    def count(self, what: str = "start") -> int:
        """Executions so far."""
        try:
            return os.stat(f"{self.path}.{what}").st_size // RECORD_BYTES
        except FileNotFoundError:
            return 0

    def records(self, what: str = "start") -> list[tuple[str, int, str, int]]:
        """(key, process, worker, value) of each, in order."""
        if not self.count(what):
            return []
        fields = [line.split() for line in Path(f"{self.path}.{what}").read_text().splitlines()]
        return [(key, int(pid), worker, int(value)) for key, pid, worker, value in fields]

    def starts_by_key(self) -> Counter[str]:
        return Counter(key for key, *_ in self.records())

    def wait_for(self, count: int, limit_s: float = LIMIT_S) -> None:
        """Return when this many executions have begun."""
        assert eventually(lambda: self.count() >= count, limit_s), f"only {self.count()} of {count} executions began"

    def mean_cpu_us(self) -> dict[str, float]:
        """CPU time of one execution of each key, over those that ended."""
        spent: dict[str, list[int]] = {}
        for key, _, _, cpu_us in self.records("end"):
            spent.setdefault(key, []).append(cpu_us)
        return {key: sum(values) / len(values) for key, values in spent.items()}

    def recomputed_cpu_s(self) -> float:
        """CPU time of executions beyond the first of each key."""
        cost, starts = self.mean_cpu_us(), self.starts_by_key()
        return sum((starts[key] - 1) * cost[key] for key in cost) / 1e6

    def recomputed_share(self) -> float:
        """CPU time of executions beyond the first of each key, as a share of one execution of each."""
        return self.recomputed_cpu_s() * 1e6 / sum(self.mean_cpu_us().values())

    def share_of(self, worker: str) -> float:
        """The same of the keys that ran at a worker, or were running there."""
        cost = self.mean_cpu_us()
        there = {key for key, _, name, _ in self.records() if name == worker}
        return sum(cost[key] for key in there) / sum(cost.values())


def _burn(until_cpu_s: float) -> None:
    """Work until this thread has used so much."""
    while time.thread_time() < until_cpu_s:
        pass


def _counted(path: str, key: str, cpu_s: float, make: Any) -> Any:
    log = Log(path)
    log.append("start", key)
    begin = time.thread_time()
    value = make()
    _burn(begin + cpu_s)
    log.append("end", key, int(1e6 * (time.thread_time() - begin)))
    return value


def leaf(path: str, key: str, cpu_s: float, size: int, number: int) -> Any:
    return _counted(path, key, cpu_s, lambda: np.full(size, float(number)))


def double(path: str, key: str, cpu_s: float, value: Any) -> Any:
    return _counted(path, key, cpu_s, lambda: 2.0 * value + 1.0)


def plus(path: str, key: str, cpu_s: float, one: Any, two: Any) -> Any:
    return _counted(path, key, cpu_s, lambda: one + two)


def tree(log: Log, leaves: int, size: int, cpu_s: float) -> tuple[dict[Any, Any], str, float]:
    """A graph of ``3 * leaves - 1`` tasks: leaves, a step behind each, pairwise sums. Graph, its end, each element of the end."""
    path = log.path
    graph: dict[Any, Any] = {}
    for number in range(leaves):
        graph[f"leaf-{number}"] = (leaf, path, f"l{number}", cpu_s, size, number)
        graph[f"step-{number}"] = (double, path, f"d{number}", cpu_s, f"leaf-{number}")
    level, rank = [f"step-{number}" for number in range(leaves)], 0
    while len(level) > 1:
        above = []
        for number in range(len(level) // 2):
            above.append(f"sum-{rank}-{number}")
            graph[above[-1]] = (plus, path, f"s{rank}.{number}", cpu_s, level[2 * number], level[2 * number + 1])
        level, rank = above + level[2 * len(above) :], rank + 1
    return graph, level[0], float(leaves * leaves)
