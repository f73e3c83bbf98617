"""Libraries on real processes: describing, installing, removing, contexts, hoisting, slots, both modes, losses."""

from __future__ import annotations

import ctypes
import os
import re
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.kit.calls import LIMIT_S, add, block, eventually, finish, note, started
from vinecore import FunctionCall, LibraryTask, Manager, load_variable_from_library
from vinecore.errors import LibraryFailed, SlotLost, UnpicklableError, UsageError

_kept: list[int] = []


def keep(x: int) -> tuple[int, int]:
    _kept.append(x)
    return os.getpid(), len(_kept)


# ---------------------------------------------------------------- libraries


def test_create_library_refuses_what_cannot_be(m: Manager) -> None:
    create = m.create_library_from_functions
    with pytest.raises(ValueError, match="library 'lib' needs at least one function"):
        create("lib")
    with pytest.raises(ValueError, match="two functions named 'add'"):
        create("lib", add, add)
    with pytest.raises(ValueError, match="exec_mode must be 'fork' or 'direct', not 'thread'"):
        create("lib", add, exec_mode="thread")
    with pytest.raises(ValueError, match="hoisting_modules must be a list"):
        create("lib", add, hoisting_modules="json")
    for info in (add, [], [3], [add, [], {}, 4], "add"):
        with pytest.raises(ValueError, match="library_context_info is"):
            create("lib", add, library_context_info=info)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="takes functions, not 3"):
        create("lib", 3)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="has no option 'execmode'"):
        create("lib", add, execmode="fork")
    with pytest.raises(ValueError, match="a library needs a name"):
        create("", add)
    with pytest.raises(ValueError, match=r"poncho_env='env.tar.gz' is not supported"):
        create("lib", add, poncho_env="env.tar.gz")
    assert create("lib", add, add_env=False, poncho_env=None, init_command=None).exec_mode == "fork"


@pytest.mark.parametrize("info", [[add, 3], [add, [], 3], [add, [], [1]]])
def test_context_arguments_of_the_wrong_kind(m: Manager, info: list[Any]) -> None:
    with pytest.raises(UsageError, match="library_context_info is"):
        m.create_library_from_functions("lib", add, library_context_info=info)


@pytest.mark.parametrize("modules", [[3], [None], [object()]])
def test_hoisting_of_what_has_no_module(m: Manager, modules: list[Any]) -> None:
    with pytest.raises(UsageError, match="hoisting_modules"):
        m.create_library_from_functions("lib", add, hoisting_modules=modules)


def test_install_and_remove(m: Manager) -> None:
    task = m.create_library_from_functions("twice", add, exec_mode="direct")
    assert isinstance(task, LibraryTask) and not m.check_library_exists("twice")
    with pytest.raises(TypeError, match="install_library takes a LibraryTask"):
        m.install_library("twice")  # type: ignore[arg-type]
    m.install_library(task)
    assert m.check_library_exists("twice")
    with pytest.raises(UsageError, match="a library named 'twice' is installed"):
        m.install_library(task)
    with pytest.raises(UsageError, match="a library named 'twice' is installed"):
        m.install_library(m.create_library_from_functions("twice", add))
    with pytest.raises(UsageError, match="is installed: set its slots before"):
        task.set_function_slots(2)
    assert finish(m, FunctionCall(task, "add", 1)) == [2]
    m.remove_library("twice")
    assert not m.check_library_exists("twice")
    with pytest.raises(KeyError, match="no library named 'twice'"):
        m.remove_library("twice")
    with pytest.raises(UsageError, match="invalid library name 'twice'"):
        m.submit(FunctionCall("twice", "add", 1))
    with pytest.raises(TypeError, match="a library's name is a str, not int"):
        m.check_library_exists(3)  # type: ignore[arg-type]
    # Removed, it may come back.
    m.install_library(task)
    assert finish(m, FunctionCall("twice", "add", 2)) == [3]
    m.remove_library("twice")


@pytest.mark.parametrize("count", [0, -1, 1.5, True, "2"])
def test_bad_slots(m: Manager, count: Any) -> None:
    task = m.create_library_from_functions("slots", add)
    with pytest.raises(UsageError, match="function slots must be a whole number >= 1"):
        task.set_function_slots(count)


def test_unpicklable_function(m: Manager) -> None:
    lock = threading.Lock()

    def uses_lock() -> None:
        lock.acquire()

    with pytest.raises(UnpicklableError, match=r"function uses_lock of library 'bad' cannot be pickled.*lock"):
        m.install_library(m.create_library_from_functions("bad", uses_lock))
    with pytest.raises(UnpicklableError, match=r"the context of library 'bad' cannot be pickled.*lock"):
        m.install_library(m.create_library_from_functions("bad", add, library_context_info=[add, [lock], {}]))
    assert not m.check_library_exists("bad")


def test_removed_library_gives_waiting_calls_back(m: Manager, install: Callable[..., str], tmp_path: Path) -> None:
    library = install(block)
    calls = [FunctionCall(library, "block", str(tmp_path / "gate")) for _ in range(4)]
    for call in calls:
        m.submit(call)
    assert started(tmp_path / "gate", 1)
    pid = int(next(tmp_path.glob("gate-*")).name.partition("-")[2])
    m.remove_library(library)
    assert {m.wait(LIMIT_S) for _ in calls} == set(calls)
    for call in calls:
        assert (call.result, call.exit_code) == ("missing library", -1)
        assert isinstance(call.output, LibraryFailed) and library in str(call.output)
    # The running one is ended with its slot.
    assert eventually(lambda: not Path(f"/proc/{pid}").exists())


def test_lambdas_and_nested_functions(m: Manager, install: Callable[..., str]) -> None:
    offset = 10
    library = install(lambda x: x + offset, add)
    assert finish(m, FunctionCall(library, "<lambda>", 1), FunctionCall(library, "add", 1)) == [11, 2]


def make_context(directory: str, base: int, *, name: str) -> dict[str, Any]:
    note(directory)
    return {"base": base, name: os.getpid()}


def read_context(x: int) -> tuple[int, int, int]:
    base = load_variable_from_library("base")
    return base + x, load_variable_from_library("maker"), os.getpid()  # type: ignore[operator, return-value]


def read_missing() -> object:
    return load_variable_from_library("nothing")


@pytest.mark.parametrize("exec_mode", ["direct", "fork"])
def test_context_is_made_once_for_all_slots(m: Manager, install: Callable[..., str], tmp_path: Path, exec_mode: str) -> None:
    info = [make_context, [str(tmp_path), 100], {"name": "maker"}]
    library = install(read_context, read_missing, slots=2, exec_mode=exec_mode, library_context_info=info)
    outputs = finish(m, *(FunctionCall(library, "read_context", i) for i in range(40)))
    assert [value for value, _, _ in outputs] == list(range(100, 140))
    assert len({maker for _, maker, _ in outputs}) == 1 and len(list(tmp_path.iterdir())) == 1
    assert all(pid != maker for _, maker, pid in outputs)
    error = finish(m, FunctionCall(library, "read_missing"))[0]
    assert isinstance(error, KeyError) and "no variable 'nothing'" in str(error) and "base, maker" in str(error)


def test_no_context_outside_of_a_library() -> None:
    with pytest.raises(KeyError, match="only filled inside a function call of a library"):
        load_variable_from_library("base")


class ContextBroke(Exception):
    """An exception of the user's own."""


def broken_context() -> dict[str, Any]:
    raise ContextBroke("no data there")


@pytest.mark.parametrize("exec_mode", ["direct", "fork"])
def test_failing_context_is_raised_by_each_call(m: Manager, install: Callable[..., str], exec_mode: str) -> None:
    library = install(add, exec_mode=exec_mode, library_context_info=[broken_context, [], {}])
    outputs = finish(m, *(FunctionCall(library, "add", i) for i in range(3)))
    # The library has failed by now: later calls must not hang.
    outputs += finish(m, FunctionCall(library, "add", 3))
    for error in outputs:
        assert isinstance(error, ContextBroke) and str(error) == "no data there"
        assert "in broken_context" in str(error.__cause__)
    assert finish(m, FunctionCall(install(add), "add", 1)) == [2]


class Unshown(Exception):
    """Takes no notes either."""

    def __str__(self) -> str:
        raise RuntimeError("no text")

    def __getattr__(self, name: str) -> Any:
        raise KeyError(name)

    def __setattr__(self, name: str, value: object) -> None:
        raise TypeError(name)

    def add_note(self, note: str) -> None:
        raise RuntimeError("no note")


def raising(kind: str, size: int) -> dict[str, Any]:
    if kind == "type":
        raise type("T" * size, (Exception,), {})("x")
    raise Unshown("seen") if kind == "odd" else ValueError(kind * size)


@pytest.mark.parametrize(
    ("kind", "size", "said"),
    [
        ("a", 16_580_231, "raised ValueError: aaa"),
        ("a", 17_000_000, "raised ValueError: aaa"),
        ("\udcff", 1, "raised ValueError: \\udcff"),
        ("type", 17_000_000, "raised TTT"),
        ("odd", 0, "raised Unshown: <str() of it failed: RuntimeError>"),
    ],
)
def test_context_whose_error_makes_no_message(m: Manager, install: Callable[..., str], kind: str, size: int, said: str) -> None:
    """One that was too long for a message ended the manager, one that no message takes was lost."""
    call = FunctionCall(install(add, library_context_info=[raising, [kind, size], {}]), "add", 1)
    error = finish(m, call)[0]
    reason = call.reason.replace(f"{__name__}.", "")
    assert call.result == "missing library" and f"running its context function raising {said}" in reason
    assert len(call.reason) < 200_000
    assert isinstance(error, BaseException) and not isinstance(error, LibraryFailed)
    assert "in raising" in str(error.__cause__) and "raised while library" in str(error.__cause__)
    assert finish(m, FunctionCall(install(add), "add", 1)) == [2]


def threaded(name: str) -> dict[str, Any]:
    threading.Thread(target=threading.Event().wait, name=name, daemon=True).start()
    return {}


def test_names_in_a_library_that_are_long(m: Manager, install: Callable[..., str]) -> None:
    """Of a context function and of a thread."""

    def context() -> dict[str, Any]:
        return threaded("t" * 17_000_000 + "\udcff")

    context.__name__ = context.__qualname__ = "c" * 17_000_000
    assert finish(m, FunctionCall(install(add, library_context_info=[context]), "add", 1)) == [2]
    assert finish(m, FunctionCall(install(add, library_context_info=[threaded, ["\udcff"]]), "add", 1)) == [2]


def test_a_library_that_no_message_takes(m: Manager, install: Callable[..., str]) -> None:
    with pytest.raises(UsageError, match=r"a library has at most 1024 characters, unlike 'n{59}\.\.\.$"):
        m.create_library_from_functions("n" * 17_000_000, add)
    with pytest.raises(UsageError, match=r"the init_command.* of library .* take 17,000,0.. bytes, more than 8,388,608: put"):
        install(add, init_command="#" * 17_000_000)
    with pytest.raises(UsageError, match=r"take 12,000,0.. bytes"):
        install(add, init_command="\U0001f600" * 3_000_000)
    with pytest.raises(UsageError, match=r"the name of a module that library .* has at most 1024 characters"):
        install(add, hoisting_modules=["m" * 17_000_000])
    error = finish(m, FunctionCall(install(add, init_command=f": {'x' * (2 << 20)} &&"), "add", 1))[0]
    assert isinstance(error, UsageError) and "the command line is too long" in str(error)
    assert finish(m, FunctionCall(install(add), "add", 1)) == [2]


def list_context() -> Any:
    return [1, 2]


def exiting_context() -> dict[str, Any]:
    sys.exit(3)


def dying_context() -> dict[str, Any]:
    os._exit(3)


def test_context_that_is_no_dict(m: Manager, install: Callable[..., str]) -> None:
    error = finish(m, FunctionCall(install(add, library_context_info=[list_context]), "add", 1))[0]
    assert isinstance(error, UsageError) and "must return a dict of names to values, not list" in str(error)


def numbered_context() -> Any:
    return {"first": 1, 2: "second"}


def test_context_with_a_key_that_is_no_name(m: Manager, install: Callable[..., str]) -> None:
    error = finish(m, FunctionCall(install(add, library_context_info=[numbered_context]), "add", 1))[0]
    assert isinstance(error, UsageError)
    assert "must return a dict of names to values, all of whose keys are str: 2 is of type int" in str(error)


def test_context_that_exits(m: Manager, install: Callable[..., str]) -> None:
    error = finish(m, FunctionCall(install(add, library_context_info=[exiting_context]), "add", 1))[0]
    assert isinstance(error, BaseException) and "3" in str(error)


def test_context_that_ends_its_process(m: Manager, install: Callable[..., str]) -> None:
    library = install(add, library_context_info=[dying_context])
    call = FunctionCall(library, "add", 1)
    error = finish(m, call)[0]
    assert call.result == "missing library" and isinstance(error, LibraryFailed)
    assert f"library '{library}'" in str(error) and "exit code 3" in str(error)
    again = FunctionCall(library, "add", 1)
    assert isinstance(finish(m, again)[0], LibraryFailed)


def test_large_context_and_function(m: Manager, install: Callable[..., str]) -> None:
    table = np.arange(200_000)

    def context(values: Any) -> dict[str, Any]:
        return {"values": values}

    def look(i: int) -> int:
        return int(load_variable_from_library("values")[i])  # type: ignore[index]

    library = install(look, library_context_info=[context, [table], {}])
    assert finish(m, *(FunctionCall(library, "look", i) for i in (0, 7, 199_999))) == [0, 7, 199_999]


def loaded(*names: str) -> list[bool]:
    return [name in sys.modules for name in names]


@pytest.mark.parametrize("exec_mode", ["direct", "fork"])
def test_functions_find_hoisted_modules_by_name(m: Manager, install: Callable[..., str], exec_mode: str) -> None:
    scope: dict[str, Any] = {"wave": 7}
    exec("def uses():\n    return colorsys.__name__, xml.dom.pulldom.__name__, wave", scope)
    library = install(scope["uses"], hoisting_modules=["colorsys", "xml.dom.pulldom", "wave"], exec_mode=exec_mode)
    m.submit(FunctionCall(library, "uses"))
    assert m.wait(LIMIT_S).output == ("colorsys", "xml.dom.pulldom", 7), "its own names are left alone"


def test_hoisting_modules_are_imported_before_calls(m: Manager, install: Callable[..., str]) -> None:
    import wave

    # Modules that nothing else imports.
    names = ("wave", "xml.dom.pulldom", "colorsys")
    library = install(loaded, hoisting_modules=[wave, "xml.dom.pulldom"])
    assert finish(m, FunctionCall(library, "loaded", *names)) == [[True, True, False]]
    assert finish(m, FunctionCall(install(loaded), "loaded", *names)) == [[False] * 3]


def test_a_named_module_that_is_not_there_fails_the_library(m: Manager, install: Callable[..., str]) -> None:
    """A misspelled name would otherwise go unnoticed: modules that are only found by looking at functions may be missing."""
    library = install(loaded, hoisting_modules=["chunk_that_is_not_there"])
    (failure,) = finish(m, FunctionCall(library, "loaded", "wave"))
    assert isinstance(failure, ModuleNotFoundError) and failure.name == "chunk_that_is_not_there"
    assert re.fullmatch(
        "hoisting_modules names the module 'chunk_that_is_not_there', which a worker on .+ does not have: "
        "install it where workers run, or leave it out of hoisting_modules",
        str(failure),
    )


def imports_inside() -> bool:
    before = "tornado.wsgi" in sys.modules
    import tornado.wsgi

    return before and tornado.wsgi is not None


def test_imports_inside_functions_are_hoisted_by_themselves(m: Manager, install: Callable[..., str]) -> None:
    assert finish(m, FunctionCall(install(imports_inside), "imports_inside")) == [True]


def imports_missing() -> None:
    import no_such_module_at_all  # type: ignore[import-not-found]  # noqa: F401


@pytest.mark.parametrize("exec_mode", ["direct", "fork"])
def test_missing_module_is_named(m: Manager, install: Callable[..., str], exec_mode: str) -> None:
    error = finish(m, FunctionCall(install(imports_missing, exec_mode=exec_mode), "imports_missing"))[0]
    assert isinstance(error, ModuleNotFoundError) and "no_such_module_at_all" in str(error)


# ---------------------------------------------------------------- modes, slots, losses


def test_direct_mode_keeps_state_with_its_one_slot(m: Manager, install: Callable[..., str]) -> None:
    library = install(keep)
    outputs = finish(m, *(FunctionCall(library, "keep", i) for i in range(10)))
    assert len({pid for pid, _ in outputs}) == 1
    assert sorted(count for _, count in outputs) == list(range(1, 11))


def test_fork_mode_forgets_state(m: Manager, install: Callable[..., str]) -> None:
    library = install(keep, exec_mode="fork")
    outputs = finish(m, *(FunctionCall(library, "keep", i) for i in range(10)))
    assert len({pid for pid, _ in outputs}) == 10
    assert {count for _, count in outputs} == {1}


@pytest.mark.parametrize(("exec_mode", "slots"), [("direct", 2), ("direct", 3), ("fork", 0), ("fork", 3)])
def test_slots_run_at_the_same_time(m: Manager, install: Callable[..., str], tmp_path: Path, exec_mode: str, slots: int) -> None:
    library = install(block, exec_mode=exec_mode, slots=slots)
    expected = slots or 2  # the worker's cores
    calls = [FunctionCall(library, "block", str(tmp_path / "gate")) for _ in range(expected + 1)]
    for call in calls:
        m.submit(call)
    assert started(tmp_path / "gate", expected)
    assert len(list(tmp_path.glob("gate-*"))) == expected
    (tmp_path / "gate").touch()
    pids = {m.wait(LIMIT_S).output for _ in calls}
    assert len(pids) >= expected


def leave(how: str, directory: str) -> None:
    note(directory)
    if how == "sys.exit":
        sys.exit(7)
    if how == "os._exit":
        os._exit(7)
    if how == "nameless":
        os.kill(os.getpid(), 40)
    ctypes.string_at(0)


@pytest.mark.parametrize("exec_mode", ["direct", "fork"])
def test_sys_exit_is_an_exception_like_others(m: Manager, install: Callable[..., str], tmp_path: Path, exec_mode: str) -> None:
    library = install(leave, add, exec_mode=exec_mode)
    call = FunctionCall(library, "leave", "sys.exit", str(tmp_path))
    error = finish(m, call)[0]
    assert isinstance(error, BaseException) and "7" in str(error)
    assert (call.result, call.exit_code) == ("success", 1) and len(list(tmp_path.iterdir())) == 1
    assert finish(m, FunctionCall(library, "add", 1)) == [2]


@pytest.mark.parametrize("exec_mode", ["direct", "fork"])
@pytest.mark.parametrize(
    ("how", "told"), [("os._exit", "exit code 7|died"), ("segfault", "SIGSEGV|died"), ("nameless", "signal 40|died")]
)
def test_a_call_that_ends_its_process_is_tried_again_then_given_up(
    m: Manager, install: Callable[..., str], tmp_path: Path, exec_mode: str, how: str, told: str
) -> None:
    library = install(leave, add, slots=2, exec_mode=exec_mode)
    bad = FunctionCall(library, "leave", how, str(tmp_path))
    good = [FunctionCall(library, "add", i) for i in range(50)]
    outputs = finish(m, bad, *good)
    assert outputs[1:] == list(range(1, 51))
    error = outputs[0]
    assert isinstance(error, SlotLost)
    text = str(error)
    assert "(leave) was lost 6 times" in text and any(part in text for part in told.split("|"))
    assert bad.result == "forsaken" and bad.exit_code == -1
    assert len(list(tmp_path.iterdir())) == 6
    assert finish(m, FunctionCall(library, "add", 1)) == [2]


def context_that_ends_forks() -> dict[str, Any]:
    os.register_at_fork(after_in_child=lambda: os._exit(3))
    return {}


def test_slots_that_all_die_at_once_fail_their_library(m: Manager, install: Callable[..., str]) -> None:
    library = install(add, library_context_info=[context_that_ends_forks, [], {}])
    (failure,) = finish(m, FunctionCall(library, "add", 1))
    assert isinstance(failure, LibraryFailed)
    assert "before their first call: its process ended with exit code 3" in str(failure)
