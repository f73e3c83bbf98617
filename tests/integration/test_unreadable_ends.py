"""Results and exceptions whose classes misbehave when they come back: the user gets an error of ours that names the call."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from typing import Any

import pytest

from daskvine import DaskVine, FuturesExecutor
from tests.kit.calls import finish
from vinecore import FunctionCall, Manager, PythonTask
from vinecore.errors import UnpicklableError

LARGE = 200_000


class Bad:
    """Calls a function, as soon as it is unpickled."""

    def __init__(self, *call: Any) -> None:
        self.call = call

    def __reduce__(self) -> tuple[Any, ...]:
        function, *arguments = self.call
        return function, tuple(arguments)


def divide(size: int) -> Any:
    return Bad(divmod, 1, 0), bytes(size)


def leave(size: int) -> Any:
    return Bad(sys.exit, 3), bytes(size)


def miss(size: int) -> Any:
    return Bad(open, "/nowhere/at/all"), bytes(size)


RAISES: list[tuple[Callable[[int], Any], type[BaseException]]] = [
    (divide, ZeroDivisionError),
    (leave, SystemExit),
    (miss, FileNotFoundError),
]


def check(ask: Callable[[], Any], name: str, cause: type[BaseException]) -> None:
    for _ in range(2):
        with pytest.raises(
            UnpicklableError, match=f"the result of {name} came back.*not be rebuilt here: {cause.__name__}"
        ) as caught:
            ask()
        assert type(caught.value.__cause__) is cause


@pytest.mark.parametrize("size", [1, LARGE])
@pytest.mark.parametrize(("function", "cause"), RAISES)
def test_results_that_raise_when_they_are_rebuilt(
    m: Manager, install: Callable[..., str], function: Callable[[int], Any], cause: type[BaseException], size: int
) -> None:
    name = function.__name__
    for task in (FunctionCall(install(function), name, size), PythonTask(function, size)):
        m.submit(task)
        assert m.wait(30) is task and task.successful()
        check(lambda: task.output, name, cause)  # noqa: B023
    with FuturesExecutor(manager=m) as executor:
        check(executor.submit(function, size).result, name, cause)


def test_vertices_whose_values_raise() -> None:
    with DaskVine(local_cores=1) as m:
        check(lambda: m.get({"x": (leave, 1)}, "x"), "dask:x", SystemExit)


class Unspeakable(Exception):
    def __str__(self) -> str:
        raise ZeroDivisionError


def raise_unspeakable() -> None:
    raise Unspeakable(5)


def test_an_exception_without_a_text(m: Manager, install: Callable[..., str]) -> None:
    call = FunctionCall(install(raise_unspeakable), "raise_unspeakable")
    (error,) = finish(m, call)
    assert isinstance(error, Unspeakable) and error.args == (5,)
    assert call.reason == "it raised Unspeakable: <exception str() failed>"
    assert "<exception str() failed>" in (call.std_output or "")


class UsualError(Exception):
    def __init__(self, code: int, where: str) -> None:
        super().__init__(f"{code} at {where}")
        self.code, self.lock = code, threading.Lock()


def raise_usual() -> None:
    raise UsualError(404, "home")


def test_an_exception_with_an_initialiser_of_its_own_is_caught_by_its_class(m: Manager, install: Callable[..., str]) -> None:
    """Pickle would call the class with its text alone; besides, one attribute cannot be pickled."""
    call, task = FunctionCall(install(raise_usual), "raise_usual"), PythonTask(raise_usual)
    with FuturesExecutor(manager=m) as executor, pytest.raises(UsualError) as caught:
        executor.submit(raise_usual).result(30)
    m.submit(task)
    assert m.wait(30) is task
    for error in (caught.value, *finish(m, call), task.output):
        assert type(error) is UsualError and (error.code, str(error)) == (404, "404 at home")
        assert "in raise_usual" in str(error.__cause__) and "attributes left out" in str(error.__cause__)


class ReadOnlyError(Exception):
    @property
    def __cause__(self) -> Any:  # type: ignore[override]
        raise SystemExit(9)

    __context__ = __traceback__ = __cause__  # type: ignore[assignment]


def raise_read_only() -> None:
    raise ReadOnlyError("real reason")


def test_an_exception_with_a_read_only_cause_comes_back_itself(m: Manager, install: Callable[..., str]) -> None:
    """Its place for the remote traceback is found past the class."""
    call, task = FunctionCall(install(raise_read_only), "raise_read_only"), PythonTask(raise_read_only)
    with FuturesExecutor(manager=m) as executor:
        of_future = executor.submit(raise_read_only).exception(30)
    m.submit(task)
    assert m.wait(30) is task
    caught: list[BaseException | None] = [of_future, *finish(m, call), task.output]
    with DaskVine(local_cores=1) as graphs:
        try:
            graphs.get({"x": (raise_read_only,)}, "x")
        except ReadOnlyError as error:
            caught.append(error)
    assert [type(error) for error in caught] == [ReadOnlyError] * 4
    for one in (call, task):
        assert one.reason == "it raised ReadOnlyError: real reason"
        assert "in raise_read_only" in (one.std_output or "")
