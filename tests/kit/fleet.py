"""Workers that tests lose: several of one core, each known by a name that its slots write into the log of executions."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

from daskvine import FuturesExecutor
from tests.kit.calls import eventually
from tests.kit.counted import WORKER
from tests.kit.processes import Worker
from vinecore import Manager
from vinecore.api.engine import Engine


def fleet(engine: Engine, start: Callable[..., Worker], count: int = 2, cores: int = 1, **options: Any) -> list[Worker]:
    """Start workers named 0, 1, ...; returns when all of them take calls."""
    words = ("127.0.0.1", engine.port, "--cores", cores, "--min-backoff", 0.05, "--max-backoff", 0.2)
    workers = [start(*words, **{WORKER: str(number)}, **options) for number in range(count)]
    instances = engine.python.instances
    assert eventually(lambda: engine.call_in_loop(lambda: [i.state for i in instances.values()]) == ["up"] * count)
    return workers


def count_deliveries(engine: Engine) -> Counter[int]:
    """How often each task's end is told from here on, by task id; filled while the manager runs."""
    told: Counter[int] = Counter()
    deliver = engine.loop._deliver

    def counted(entries: list[Any]) -> None:
        told.update(entry.task_id for entry in entries if entry.handle is not None)
        deliver(entries)

    engine.loop._deliver = counted  # type: ignore[method-assign]
    return told


def check_idle(engine: Engine) -> None:
    """Every invariant of the manager's machine holds, and nothing runs or waits any more."""

    def look() -> tuple[int, int]:
        engine.machine.check()
        state = engine.machine.state
        return len(state.tasks), sum(worker.placed_count() for worker in state.workers.values())

    assert eventually(lambda: engine.call_in_loop(look) == (0, 0)), engine.call_in_loop(look)


@contextlib.contextmanager
def executor(manager: Manager | None = None, **options: Any) -> Iterator[FuturesExecutor]:
    """One that does not wait for its calls when the test has failed."""
    ex = FuturesExecutor(manager=manager) if manager is not None else FuturesExecutor(**options)
    try:
        yield ex
    finally:
        ex.shutdown(cancel_futures=True)
