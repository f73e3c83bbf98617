"""Code that does harm when it is imported or unpickled: it hurts the calls that need it, and no others."""

from __future__ import annotations

import os
import resource
import signal
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from daskvine import FuturesExecutor
from tests.kit.calls import LIMIT_S, add, finish
from tests.kit.processes import LIMIT_S as LONG_S
from vinecore import FunctionCall, Manager, PythonTask, Task
from vinecore.errors import LibraryFailed, SlotLost, TaskFailed


@pytest.fixture
def modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], None]:
    """Write a module that workers find."""
    place = tmp_path / "modules"
    place.mkdir()
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, [str(place), os.environ.get("PYTHONPATH", "")])))

    def write(name: str, text: str) -> None:
        (place / f"{name}.py").write_text(text)

    return write


@pytest.fixture(scope="module")
def m() -> Iterator[Manager]:
    with Manager(local_cores=2) as manager:
        yield manager


class Unpickled:
    """Calls a function wherever it is unpickled, and stands for what that returns."""

    def __init__(self, function: Callable[..., Any], *args: Any) -> None:
        self.function, self.args = function, args

    def __reduce__(self) -> tuple[Any, ...]:
        return self.function, self.args


def with_unpickled(function: Callable[..., Any], *args: Any) -> Callable[[int], int]:
    """A function whose code has that in it."""
    harm = Unpickled(function, *args)

    def call(number: int) -> int:
        assert harm is not call
        return number + 1

    return call


def ignore_ends() -> None:
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)


def start_thread() -> None:
    threading.Thread(target=time.sleep, args=(10 * LONG_S,), daemon=True).start()


def fork() -> int:
    return os.fork()


def exit_at_once() -> None:
    os._exit(3)


# ---------------------------------------------------------------- imports


def test_a_slow_import_holds_up_only_the_calls_that_need_it(modules: Callable[[str, str], None], tmp_path: Path) -> None:
    gate, begun = tmp_path / "gate", tmp_path / "begun"
    waits = f"while not os.path.exists({str(gate)!r}): time.sleep(0.01)"
    modules("slow_to_import", f"import os, time\nopen({str(begun)!r}, 'w').close()\n{waits}\none = 1\n")

    def needs_it(number: int) -> int:
        import slow_to_import  # type: ignore[import-not-found]

        return number + int(slow_to_import.one)

    with FuturesExecutor(2) as executor:
        assert executor.submit(add, 0).result(LIMIT_S) == 1
        # One: it takes a slot as long as it waits, as if the slot did the import.
        waiting = executor.submit(needs_it, 1)
        until = time.monotonic() + LIMIT_S
        while not begun.exists() and time.monotonic() < until:
            time.sleep(0.01)
        others = [executor.submit(add, number) for number in range(300)]
        try:
            assert [other.result(LIMIT_S) for other in others] == list(range(1, 301))
            assert not waiting.done()
        finally:
            gate.touch()
        assert waiting.result(LIMIT_S) == 2


def test_the_traceback_of_a_failing_import_leads_to_its_line(modules: Callable[[str, str], None]) -> None:
    modules("fails_deep", "def inner():\n    raise KeyError('the real reason')\ninner()\n")

    def needs_it() -> None:
        import fails_deep  # type: ignore[import-not-found]  # noqa: F401

    class AtUnpickling:
        def __reduce__(self) -> tuple[Any, ...]:
            return __import__, ("fails_deep",)

    def has_it(harm: object = AtUnpickling()) -> None:
        """Its defaults are part of its code."""

    with FuturesExecutor(1) as executor:
        for function in (needs_it, has_it, has_it):
            error = executor.submit(function).exception(LIMIT_S)
            assert isinstance(error, KeyError)
            text = "".join(traceback.format_exception(error))
            assert "fails_deep.py" in text and "line 2, in inner" in text, text
            assert text.count("in inner") == 1, "of this call alone"


def test_a_module_that_ends_its_process_later(modules: Callable[[str, str], None]) -> None:
    modules("ends_later", "import os, threading\nthreading.Timer(0.3, os._exit, (3,)).start()\n")

    def needs_it() -> None:
        import ends_later  # type: ignore[import-not-found]  # noqa: F401

        time.sleep(10 * LONG_S)

    with FuturesExecutor(2) as executor:
        bad = executor.submit(needs_it)
        assert isinstance(bad.exception(LONG_S), SlotLost)
        assert [executor.submit(add, number).result(LIMIT_S) for number in range(3)] == [1, 2, 3]


# ---------------------------------------------------------------- libraries


def plus_one(number: int) -> int:
    return number + 1


def imports_what_does_harm() -> str:
    import does_harm  # type: ignore[import-not-found]

    return str(does_harm.__name__)


@pytest.mark.parametrize("exec_mode", ["direct", "fork"])
@pytest.mark.parametrize(
    "harm",
    [
        "os._exit(4)",
        "os.kill(os.getpid(), signal.SIGSEGV)",
        "os.closerange(3, 1000); time.sleep(1000)",
        "sys.exit(4)",
        "if os.fork() == 0: sys.path_hooks.append(None)",
    ],
)
def test_a_module_found_in_a_function_hurts_only_its_calls(
    modules: Callable[[str, str], None], exec_mode: str, harm: str
) -> None:
    modules("does_harm", f"import os, signal, sys, time\n{harm}\n")
    with Manager(local_cores=1) as manager:
        task = manager.create_library_from_functions("L", plus_one, imports_what_does_harm, exec_mode=exec_mode)
        manager.install_library(task)
        good = [FunctionCall("L", "plus_one", number) for number in range(5)]
        assert finish(manager, *good) == [1, 2, 3, 4, 5]
        if "sleep" in harm:
            return  # its call does not end
        bad = FunctionCall("L", "imports_what_does_harm")
        outputs = finish(manager, bad, FunctionCall("L", "plus_one", 1))
        assert outputs[1] == 2
        if "_exit" in harm or "SIGSEGV" in harm:
            assert isinstance(outputs[0], SlotLost) and bad.result == "forsaken"
            assert ("exit code 4" if "_exit" in harm else "SIGSEGV") in str(outputs[0])
        elif "fork" in harm:
            assert outputs[0] == "does_harm"
        else:
            assert bad.exit_code == 1 and "4" in str(outputs[0])


def test_what_a_library_names_itself_fails_it_and_is_named(modules: Callable[[str, str], None]) -> None:
    modules("exits", "import os\nos._exit(4)\n")
    modules("raises", "raise KeyError('the real reason')\n")
    harm = Unpickled(exit_at_once)
    error = Unpickled(divide_by_zero)

    def has_harm() -> None:
        assert harm is not None

    def has_error() -> None:
        assert error is not None

    def raises() -> dict[str, Any]:
        raise ValueError("no data")

    with Manager(local_cores=1) as manager:
        for number, (options, function, said, kind) in enumerate(
            [
                ({"hoisting_modules": ["exits"]}, plus_one, "code 4 while importing 'exits' (from its hoisting", LibraryFailed),
                ({"hoisting_modules": ["raises"]}, plus_one, "importing 'raises' (from its hoisting_modules) raised", KeyError),
                ({}, has_harm, "code 3 while unpickling its functions", LibraryFailed),
                ({}, has_error, "unpickling its functions raised ZeroDivisionError", ZeroDivisionError),
                ({"library_context_info": [exit_at_once]}, plus_one, "running its context function exit_at_once", LibraryFailed),
                ({"library_context_info": [raises]}, plus_one, "context function raises raised ValueError: no data", ValueError),
            ]
        ):
            name = f"L{number}"
            manager.install_library(manager.create_library_from_functions(name, function, **options))
            plain, limited = (FunctionCall(name, function.__name__) for _ in range(2))
            limited.set_time_max(5)
            for call, failure in zip((plain, limited), finish(manager, plain, limited), strict=True):
                assert (call.result, call.exit_code) == ("missing library", -1)
                assert not call.completed() and not call.successful() and call.std_output is None
                assert isinstance(failure, kind), failure
                assert f"library {name!r} cannot be started" in call.reason and said in call.reason, call.reason


def test_a_task_whose_input_a_failed_library_was_to_make(tmp_path: Path) -> None:
    with Manager(local_cores=1) as manager:
        task = manager.create_library_from_functions("L", plus_one, library_context_info=[divide_by_zero])
        manager.install_library(task)
        call = FunctionCall("L", "plus_one", 1)
        call.enable_temp_output()
        manager.submit(call)
        reader = Task("cat value")
        reader.add_input(call.output_file, "value")
        manager.submit(reader)
        while not manager.empty():
            assert manager.wait(LIMIT_S) is not None
        assert (call.result, reader.result) == ("missing library", "input missing")


def divide_by_zero() -> float:
    return 1 / 0


# ---------------------------------------------------------------- unpickling, where each call has a process


def test_unpickling_that_never_ends_is_ended_by_the_limit_of_its_call(m: Manager) -> None:
    bad = PythonTask(with_unpickled(time.sleep, 10 * LONG_S), 1)
    bad.set_time_max(1)
    for task in (bad, *(others := [PythonTask(add, number) for number in range(8)])):
        task.set_cores(1)
    failure, *values = finish(m, bad, *others)  # type: ignore[arg-type]
    assert bad.result == "max wall time" and isinstance(failure, TaskFailed)
    assert values == list(range(1, 9))


def close_descriptors() -> None:
    os.closerange(3, 100)


def close_then_open() -> dict[str, Any]:
    os.closerange(3, 100)
    return {"files": [os.open(os.devnull, os.O_RDONLY) for _ in range(20)]}


def close_then_raise() -> dict[str, Any]:
    os.closerange(3, 100)
    raise ValueError("no data")


@pytest.mark.parametrize("options", [{"exec_mode": "direct"}, {}, {"init_command": "true &&"}], ids=["direct", "fork", "init"])
@pytest.mark.parametrize("context", [close_descriptors, close_then_open, close_then_raise])
def test_a_context_function_that_closes_what_it_has_not_opened(options: dict[str, Any], context: Callable[[], Any]) -> None:
    """Its process cannot tell anybody what has happened to it."""
    with Manager(local_cores=1) as manager:
        library = manager.create_library_from_functions("C", plus_one, library_context_info=[context], **options)
        manager.install_library(library)
        (failure,) = finish(manager, FunctionCall("C", "plus_one", 1))
    assert isinstance(failure, LibraryFailed) and f"running its context function {context.__name__}" in str(failure)
    said = "code of the library most likely closed descriptors that it had not opened, as os.closerange(3, 100) does"
    assert f"its process ended with exit code 76 ({said}" in str(failure)


def allow_few_files() -> None:
    resource.setrlimit(resource.RLIMIT_NOFILE, (4, 4))


@pytest.mark.parametrize("harm", [fork, ignore_ends, start_thread, close_descriptors, allow_few_files])
def test_side_effects_of_unpickling_stay_with_the_call(m: Manager, harm: Callable[[], Any]) -> None:
    function = with_unpickled(harm)
    tasks = [PythonTask(function if number % 3 == 0 else add, number) for number in range(24)]
    for task in tasks:
        task.set_cores(1)
    assert finish(m, *tasks) == list(range(1, 25))  # type: ignore[arg-type]
    assert [task.result for task in tasks] == ["success"] * 24


def drop_variable() -> None:
    os.environ.pop("DISPLAY", None)


def test_a_variable_that_unpickling_drops(monkeypatch: pytest.MonkeyPatch) -> None:
    """From the second call on it was the slot that unpickled the code: there is no DISPLAY to take from a task any more."""
    monkeypatch.setenv("DISPLAY", ":0")
    with Manager(local_cores=1) as manager:
        function = with_unpickled(drop_variable)
        for number in range(4):
            assert finish(manager, PythonTask(function, number)) == [number + 1]  # type: ignore[arg-type]


def test_unpickling_that_ends_the_process(m: Manager) -> None:
    bad, good = PythonTask(with_unpickled(exit_at_once), 1), PythonTask(add, 1)
    failure, value = finish(m, bad, good)  # type: ignore[arg-type]
    assert isinstance(failure, SlotLost) and "lost 6 times" in str(failure) and value == 2


def count_unpickling(directory: str) -> None:
    Path(directory, f"{os.getppid()}-{os.getpid()}").touch()


def test_harmless_code_is_unpickled_in_the_slot_from_the_second_call_on(tmp_path: Path) -> None:
    """Once in the child of the first call, once in the slot; the children after that have it."""
    with Manager(local_cores=1) as manager:
        function = with_unpickled(count_unpickling, str(tmp_path))
        for number in range(5):
            assert finish(manager, PythonTask(function, number)) == [number + 1]
        assert len(list(tmp_path.iterdir())) == 2


def raise_in_slot(file: str) -> None:
    """The first process that comes here is a child of the slot."""
    if not Path(file).exists():
        Path(file).write_text(str(os.getppid()))
    if Path(file).read_text() == str(os.getpid()):
        raise ValueError("not in the slot")


def test_what_only_the_slot_cannot_unpickle_is_left_to_its_children(tmp_path: Path) -> None:
    with Manager(local_cores=1) as manager:
        function = with_unpickled(raise_in_slot, str(tmp_path / "slot"))
        for number in range(5):
            assert finish(manager, PythonTask(function, number)) == [number + 1]


def keep_cycle(megabytes: int) -> Callable[[], int]:
    """A function that only the collector can free."""
    ballast = os.urandom(1 << 20) * megabytes

    def call() -> int:
        return len(ballast) if call is not None else 0

    return call


def slot_memory_mb() -> int:
    pages = Path(f"/proc/{os.getppid()}/statm").read_text().split()
    return (int(pages[1]) - int(pages[2])) * os.sysconf("SC_PAGE_SIZE") >> 20


def test_forgotten_code_with_cycles_is_freed(m: Manager) -> None:
    library = m.create_library_from_functions("memory", slot_memory_mb, exec_mode="fork")
    m.install_library(library)
    assert finish(m, FunctionCall("memory", "slot_memory_mb"))[0] < 200
    with Manager(local_cores=1) as manager:
        before = finish(manager, PythonTask(slot_memory_mb))[0]
        for _ in range(6):
            function = keep_cycle(10)
            for _ in range(2):
                assert finish(manager, PythonTask(function)) == [10 << 20]
            code = manager.engine._process_codes.pop(manager.engine.functions.get(function))
            from vinecore.manager.events import CodesUnused

            manager.engine.post(CodesUnused(0.0, [code]))
            del function
        assert finish(manager, PythonTask(slot_memory_mb))[0] < before + 35
    m.remove_library("memory")
