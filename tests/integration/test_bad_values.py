"""Values that cannot mean anything: refused in words where they are given, and the manager goes on."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.kit.calls import LIMIT_S
from vinecore import FunctionCall, Manager, PythonTask, Task
from vinecore.errors import UsageError

_numbers = itertools.count()


def add(x: Any, y: Any = 1) -> Any:
    return x + y


@pytest.fixture(scope="module")
def m() -> Iterator[Manager]:
    """A manager with one worker, which nothing here may harm."""
    with Manager(local_cores=1) as manager:
        manager.install_library(manager.create_library_from_functions("lib", add))
        yield manager


@pytest.fixture(scope="module")
def other() -> Iterator[Manager]:
    """A second manager, with one worker too."""
    with Manager(local_cores=1) as manager:
        yield manager


@pytest.fixture(autouse=True)
def still_works(request: pytest.FixtureRequest) -> Iterator[None]:
    """Whatever was refused: managers have nothing under way, and run the next task."""
    yield
    for name in ("m", "other"):
        if name in request.fixturenames:
            manager = request.getfixturevalue(name)
            assert manager.engine.loop.died is None
            assert manager.empty()
            task = Task("echo fine", cores=1)
            manager.submit(task)
            assert manager.wait(LIMIT_S) is task and task.output == "fine\n"


# ---------------------------------------------------------------- files of another manager


@pytest.mark.parametrize("kind", ["file", "buffer", "temp"])
@pytest.mark.parametrize("make", [lambda: Task("true"), lambda: PythonTask(add, 1), lambda: FunctionCall("lib", "add", 1)])
def test_files_of_another_manager(m: Manager, other: Manager, tmp_path: Path, kind: str, make: Any) -> None:
    (tmp_path / "in").write_text("x")
    file = {"file": lambda: other.declare_file(tmp_path / "in"), "buffer": lambda: other.declare_buffer(b"x")}.get(
        kind, other.declare_temp
    )()
    for way in ("add_input", "add_output"):
        task = make()
        getattr(task, way)(file, "name")
        with pytest.raises(UsageError, match="<File .* belongs to another manager"):
            m.submit(task)
        assert task.id is None and task.state == "INITIAL"


def test_result_in_a_temp_of_another_manager(m: Manager, other: Manager) -> None:
    call = FunctionCall("lib", "add", 1)
    call.set_output(other.declare_temp())
    with pytest.raises(UsageError, match="belongs to another manager"):
        m.submit(call)


def test_library_with_a_file_of_another_manager(m: Manager, other: Manager) -> None:
    library = m.create_library_from_functions(f"lib-{next(_numbers)}", add)
    library.add_input(other.declare_buffer(b"x"), "name")
    with pytest.raises(UsageError, match="belongs to another manager"):
        m.install_library(library)
    assert not m.check_library_exists(library.name)
