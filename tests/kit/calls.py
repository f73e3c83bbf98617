"""Functions that tests call remotely, and small waits, for tests with real processes. Every wait is bounded by ``LIMIT_S``."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from vinecore import FunctionCall, Manager
from vinecore.api.engine import Engine
from vinecore.manager import events, orders
from vinecore.wire import messages

LIMIT_S = 30.0


def eventually(condition: Callable[[], Any], limit_s: float = LIMIT_S) -> bool:
    """Look until it holds; False when it does not in time."""
    until = time.monotonic() + limit_s
    while not condition():
        if time.monotonic() > until:
            return False
        time.sleep(0.005)
    return True


def finish(manager: Manager, *calls: FunctionCall) -> list[Any]:
    """Submit, wait for all of them, outputs in order of submission."""
    for call in calls:
        manager.submit(call)
    left = set(map(id, calls))
    while left:
        task = manager.wait(LIMIT_S)
        assert task is not None, f"{len(left)} of {len(calls)} calls never came back"
        left.discard(id(task))
    return [call.output for call in calls]


def block(path: str) -> int:
    """Say that the call runs, then wait for a file, for a bounded time; returns the pid."""
    Path(f"{path}-{os.getpid()}").touch()
    until = time.monotonic() + LIMIT_S
    while not Path(path).exists():
        if time.monotonic() > until:
            raise RuntimeError(f"{path} never came")
        time.sleep(0.002)
    return os.getpid()


def started(path: Path, count: int) -> bool:
    """Wait until this many calls of ``block`` run."""
    return eventually(lambda: len(list(path.parent.glob(f"{path.name}-*"))) >= count)


def add(x: Any, y: Any = 1) -> Any:
    return x + y


def note(directory: str, value: Any = None) -> Any:
    """Leave one more file there: executions can be counted."""
    Path(directory, f"{os.getpid()}-{time.monotonic_ns()}").touch()
    return value


def fails(text: str) -> None:
    raise KeyError(text)


def codes_told(engine: Engine) -> set[int]:
    """Ids of the code that workers were sent and not told to forget, from here on; filled while the manager runs."""
    told: set[int] = set()
    handle = engine.machine.handle

    def watched(event: events.Event) -> list[orders.Order]:
        out = handle(event)
        for order in out:
            if isinstance(order, orders.SendTo):
                if isinstance(order.message, messages.Code):
                    told.add(order.message.code_id)
                elif isinstance(order.message, messages.ForgetCode):
                    told.difference_update(order.message.code_ids)
        return out

    engine.machine.handle = watched  # type: ignore[method-assign]
    return told


def outcome(call: Callable[[], object]) -> BaseException:
    """What a call raises.

    Raises:
        AssertionError: nothing.
    """
    try:
        call()
    except BaseException as error:
        return error
    raise AssertionError("nothing was raised")
