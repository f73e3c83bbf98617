"""Tiny calls that were sent to a worker before one of them turned out long run elsewhere, all of them soon."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from tests.kit.calls import LIMIT_S
from tests.kit.fleet import check_idle, executor, fleet
from tests.kit.processes import Worker
from vinecore import Manager

COUNT = 2000


def tiny(number: int) -> int:
    return number


def held_up(gate: str) -> str:
    until = time.monotonic() + 2 * LIMIT_S
    while not Path(gate).exists():
        if time.monotonic() > until:
            raise TimeoutError("the calls behind this one never ended")
        time.sleep(0.005)
    return gate


def test_calls_behind_a_long_one_run_on_another_worker(start: Callable[..., Worker], tmp_path: Path) -> None:
    """They were asked back one by one, ten in a second, or went behind it again."""
    gate = tmp_path / "gate"
    with Manager(port=0) as m, executor(m) as ex:
        fleet(m.engine, start)
        assert [ex.submit(tiny, number).result(LIMIT_S) for number in range(20)] == list(range(20))
        assert list(ex.map(tiny, range(COUNT), timeout=LIMIT_S)) == list(range(COUNT))
        before = [ex.submit(tiny, number) for number in range(COUNT)]
        long = ex.submit(held_up, str(gate))
        behind = [ex.submit(tiny, number) for number in range(COUNT)]
        until = time.monotonic() + LIMIT_S
        assert [future.result(until - time.monotonic()) for future in (*before, *behind)] == [*range(COUNT), *range(COUNT)]
        assert not long.done()
        gate.touch()
        assert long.result(LIMIT_S) == str(gate)
        check_idle(m.engine)
