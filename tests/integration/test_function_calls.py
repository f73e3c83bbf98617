"""``Manager`` with ``FunctionCall`` on real processes: waiting, cancelling, files, libraries, losses, ends.

Waits are bounded by ``LIMIT_S``; a call that must last blocks on a file, so nothing depends on how long anything takes.
"""

from __future__ import annotations

import ctypes
import itertools
import os
import pickle
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vinecore import FunctionCall, LibraryTask, Manager, load_variable_from_library
from vinecore.errors import LibraryFailed, LoopDied, RemoteError, SlotLost, UnpicklableError, UsageError

LIMIT_S = 30.0
_numbers = itertools.count()


@pytest.fixture(scope="module")
def m() -> Iterator[Manager]:
    with Manager(local_cores=2) as manager:
        yield manager


@pytest.fixture(autouse=True)
def nothing_left(request: pytest.FixtureRequest) -> Iterator[None]:
    """The shared manager goes from test to test without tasks."""
    yield
    if "m" in request.fixturenames:
        manager = request.getfixturevalue("m")
        manager.cancel_all()
        while not manager.empty() and manager.wait(LIMIT_S) is not None:
            pass
        assert manager.empty()


@pytest.fixture
def install(m: Manager) -> Iterator[Callable[..., str]]:
    """Install functions as a library with a fresh name; it is removed after the test."""
    names = []

    def make(*functions: Callable[..., Any], slots: int = 0, **options: Any) -> str:
        names.append(f"lib-{next(_numbers)}")
        task = m.create_library_from_functions(names[-1], *functions, **{"exec_mode": "direct", **options})
        if slots:
            task.set_function_slots(slots)
        m.install_library(task)
        return names[-1]

    yield make
    for name in names:
        if m.check_library_exists(name):
            m.remove_library(name)


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


def eventually(condition: Callable[[], Any], limit_s: float = LIMIT_S) -> bool:
    until = time.monotonic() + limit_s
    while not condition():
        if time.monotonic() > until:
            return False
        time.sleep(0.005)
    return True


def block(path: str) -> int:
    """Say that the call runs, then wait for a file, for a bounded time."""
    Path(f"{path}-{os.getpid()}").touch()
    until = time.monotonic() + LIMIT_S
    while not Path(path).exists():
        if time.monotonic() > until:
            raise RuntimeError(f"{path} never came")
        time.sleep(0.002)
    return os.getpid()


def started(path: Path, count: int) -> bool:
    return eventually(lambda: len(list(path.parent.glob(f"{path.name}-*"))) >= count)


def add(x: Any, y: Any = 1) -> Any:
    return x + y


def note(directory: str, value: Any = None) -> Any:
    """Leave one more file there: executions can be counted."""
    Path(directory, f"{os.getpid()}-{time.monotonic_ns()}").touch()
    return value


def fails(text: str) -> None:
    raise KeyError(text)


_kept: list[int] = []


def keep(x: int) -> tuple[int, int]:
    _kept.append(x)
    return os.getpid(), len(_kept)


# ---------------------------------------------------------------- submit and wait


@pytest.mark.parametrize("timeout", [30, 30.5, None, "wait_forever", -1])
def test_wait_takes_every_kind_of_timeout(m: Manager, install: Callable[..., str], timeout: Any) -> None:
    call = FunctionCall(install(add), "add", 1, y=2)
    assert (call.state, call.result, call.id, call.output) == ("INITIAL", "unknown", None, None)
    number = m.submit(call)
    assert m.wait(timeout) is call
    assert (call.id, call.output, call.result, call.exit_code, call.state) == (number, 3, "success", 0, "DONE")
    assert call.completed() and call.successful() and call.std_output == "" and call.command == "add"


@pytest.mark.parametrize("timeout", ["soon", True, [1], b"1"])
def test_wait_refuses_what_is_no_timeout(m: Manager, timeout: Any) -> None:
    with pytest.raises(UsageError, match="a timeout is a number of seconds"):
        m.wait(timeout)


def test_wait_ends_when_nothing_is_there(m: Manager, install: Callable[..., str], tmp_path: Path) -> None:
    assert m.empty() and m.wait(0) is None and m.wait("wait_forever") is None and m.wait(None) is None
    call = FunctionCall(install(block), "block", str(tmp_path / "gate"))
    m.submit(call)
    assert m.wait(0) is None and m.wait(0.05) is None and not m.empty()
    assert started(tmp_path / "gate", 1)
    assert eventually(lambda: call.state == "RUNNING")
    (tmp_path / "gate").touch()
    # 0 looks without waiting, and finds it once it is there.
    assert eventually(lambda: call.state == "RETRIEVED")
    assert m.wait(0) is call and call.state == "DONE" and m.empty() and m.wait(0) is None


def test_ids_grow_and_every_call_comes_back_once(m: Manager, install: Callable[..., str]) -> None:
    library = install(add)
    calls = [FunctionCall(library, "add", i) for i in range(300)]
    ids = [m.submit(call) for call in calls]
    assert ids == sorted(set(ids))
    back = [m.wait(LIMIT_S) for _ in calls]
    assert sorted(task.id for task in back) == ids and m.empty()
    assert [call.output for call in calls] == list(range(1, 301))


def test_wait_for_tag_and_for_id(m: Manager, install: Callable[..., str]) -> None:
    library = install(add)
    calls = [FunctionCall(library, "add", i) for i in range(6)]
    for call in calls:
        call.set_tag("even" if call.args[0] % 2 == 0 else "odd")
        m.submit(call)
    assert m.wait_for_tag("nobody", None) is None
    assert m.wait_for_task_id(10**9, None) is None
    assert m.wait_for_tag("nobody", 0) is None
    assert m.wait_for_task_id(calls[5].id or 0, LIMIT_S) is calls[5]
    assert m.wait_for_task_id(calls[5].id or 0, LIMIT_S) is None
    assert {m.wait_for_tag("even", LIMIT_S) for _ in range(3)} == {calls[0], calls[2], calls[4]}
    assert m.wait_for_tag("even") is None
    assert {m.wait_for_tag(None, LIMIT_S), m.wait_for_task_id(-1, LIMIT_S)} == {calls[1], calls[3]}
    assert m.empty() and m.wait(0) is None


def test_returned_task_can_be_submitted_again(m: Manager, install: Callable[..., str]) -> None:
    call = FunctionCall(install(add), "add", 1)
    assert finish(m, call) == [2]
    first = call.id
    call.set_fn_args([5], {"y": 5})
    assert call.output == 2
    assert finish(m, call) == [10]
    assert call.id != first and call.result == "success"


def test_submitting_a_task_that_is_under_way_is_refused(m: Manager, install: Callable[..., str], tmp_path: Path) -> None:
    call = FunctionCall(install(block), "block", str(tmp_path / "gate"))
    m.submit(call)
    with pytest.raises(UsageError, match=f"task {call.id} is under way already"):
        m.submit(call)
    (tmp_path / "gate").touch()
    assert m.wait(LIMIT_S) is call


def test_submit_refuses_what_is_no_task(m: Manager, install: Callable[..., str]) -> None:
    library = install(add)
    with pytest.raises(TypeError, match="submit takes a task"):
        m.submit(add)
    with pytest.raises(ValueError, match=r"invalid library name 'nowhere' \(installed: .*lib-"):
        m.submit(FunctionCall("nowhere", "add", 1))
    with pytest.raises(ValueError, match=f"library '{library}' has no function 'sub'; it has: add"):
        m.submit(FunctionCall(library, "sub", 1))
    with pytest.raises(UnpicklableError, match="lock"):
        m.submit(FunctionCall(library, "add", threading.Lock()))
    # What was refused leaves nothing behind, and its object can be put right.
    assert m.empty()
    call = FunctionCall("nowhere", "add", 1)
    with pytest.raises(UsageError):
        m.submit(call)
    call.library = library
    assert finish(m, call) == [2]


def test_several_threads_submit_and_wait(m: Manager, install: Callable[..., str]) -> None:
    library = install(add, slots=2)
    got: list[int] = []
    errors: list[BaseException] = []

    def work(number: int) -> None:
        try:
            for i in range(50):
                call = FunctionCall(library, "add", 1000 * number, i)
                call.set_tag(f"thread-{number}")
                m.submit(call)
            for _ in range(50):
                task = m.wait_for_tag(f"thread-{number}", LIMIT_S)
                got.append(task.output)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(2 * LIMIT_S)
        assert not thread.is_alive()
    assert errors == []
    assert sorted(got) == sorted(1000 * number + i for number in range(4) for i in range(50))


def test_hungry_follows_the_documented_values() -> None:
    with Manager(port=0, auth=None) as manager:
        manager.tune("no-worker-notice", 3600)
        manager.tune("hungry-minimum", 11)
        assert manager.hungry() == 11
        manager.tune("hungry-minimum", 2)
        assert manager.hungry() == 2
        manager.install_library(manager.create_library_from_functions("lib", add))
        manager.submit(FunctionCall("lib", "add", 1))
        assert manager.hungry() == 1
        manager.submit(FunctionCall("lib", "add", 1))
        assert manager.hungry() == 0


def test_hungry_with_a_worker_of_twelve_cores(tmp_path: Path) -> None:
    with Manager(local_cores=12) as manager:
        assert eventually(lambda: manager.stats.total_cores == 12)
        assert manager.hungry() == 24
        manager.install_library(manager.create_library_from_functions("lib", block, exec_mode="direct"))
        manager.submit(FunctionCall("lib", "block", str(tmp_path / "gate")))
        assert started(tmp_path / "gate", 1)
        assert manager.hungry() == 23
        manager.tune("hungry-minimum-factor", 3)
        assert manager.hungry() == 35
        (tmp_path / "gate").touch()
        assert manager.wait(LIMIT_S).result == "success"


# ---------------------------------------------------------------- cancelling


def test_cancel_by_id_tag_category_and_all(m: Manager, install: Callable[..., str], tmp_path: Path) -> None:
    library = install(block)
    calls = [FunctionCall(library, "block", str(tmp_path / "gate")) for _ in range(8)]
    for number, call in enumerate(calls):
        call.set_tag("tagged" if number in (1, 2, 3) else "other")
        call.set_category("cold" if number in (4, 5) else "default")
        m.submit(call)
    assert started(tmp_path / "gate", 1)
    # The first one is running.
    assert m.cancel_by_task_id(calls[0].id or 0) == 1
    assert m.wait(LIMIT_S) is calls[0]
    assert m.cancel_by_task_id(calls[0].id or 0) == 0 and m.cancel_by_task_id(10**9) == 0
    assert m.cancel_by_task_tag("tagged") == 1 and m.cancel_by_task_tag("nobody") == 0
    assert m.wait_for_tag("tagged", LIMIT_S).result == "cancelled"
    assert m.cancel_all_by_tag("tagged") == 2 and m.cancel_all_by_tag("nobody") == 0
    assert m.cancel_by_category("cold") == 2 and m.cancel_by_category("nothing") == 0
    assert m.cancel_all() == 2
    back = {m.wait(LIMIT_S) for _ in range(6)}
    assert None not in back and m.empty() and m.wait(0) is None
    for call in calls:
        assert (call.result, call.exit_code, call.std_output, call.state) == ("cancelled", -1, None, "DONE")
        assert not call.completed() and not call.successful() and type(call.output).__name__ == "CancelledError"
    assert m.cancel_all() == 0
    # The slot that was stuck is free again, and a cancelled call can be tried again.
    (tmp_path / "gate").touch()
    assert isinstance(finish(m, calls[0])[0], int)


def test_cancelling_is_counted(m: Manager, install: Callable[..., str], tmp_path: Path) -> None:
    library = install(block)
    before = m.stats.tasks_cancelled
    for _ in range(3):
        m.submit(FunctionCall(library, "block", str(tmp_path / "gate")))
    assert m.cancel_all() == 3
    assert [m.wait(LIMIT_S).result for _ in range(3)] == ["cancelled"] * 3
    assert m.stats.tasks_cancelled == before + 3


# ---------------------------------------------------------------- files


def test_buffers_as_arguments(m: Manager, install: Callable[..., str]) -> None:
    library = install(len, add)
    small, large = m.declare_buffer(b"ab\x00cd"), m.declare_buffer(os.urandom(1 << 20), cache=True, peer_transfer=False)
    text = m.declare_buffer("hällo")
    assert finish(m, *(FunctionCall(library, "len", f) for f in (small, large, text))) == [5, 1 << 20, 6]
    assert finish(m, FunctionCall(library, "add", small, y=text)) == [b"ab\x00cd" + "hällo".encode()]
    assert small.contents() == b"ab\x00cd" and m.fetch_file(text) == "hällo" and len(large) == 1 << 20
    assert small.contents(lambda file: file.read(2)) == b"ab"
    m.undeclare_file(large)
    m.undeclare_file(large)


def test_a_changed_bytearray_is_sent_as_it_was_declared(m: Manager, install: Callable[..., str]) -> None:
    data = bytearray(b"before")
    file = m.declare_buffer(data)
    data[:] = b"after!"
    assert finish(m, FunctionCall(install(bytes), "bytes", file)) == [b"before"]


def make_array(size: int, path: str = "") -> Any:
    if path:
        note(path)
    return np.arange(size)


def total(*arrays: Any) -> int:
    return int(sum(a.sum() for a in arrays))


@pytest.mark.parametrize("size", [10, 1_000_000])
def test_a_temp_stays_in_the_cluster_and_feeds_calls(m: Manager, install: Callable[..., str], size: int) -> None:
    library = install(make_array, total)
    temp = m.declare_temp()
    assert m.fetch_file(temp) is None and m.get_file_replica_count(temp) == 0
    maker = FunctionCall(library, "make_array", size)
    maker.set_output(temp)
    m.submit(maker)
    # Submitted before its input exists: it waits for the file.
    user = FunctionCall(library, "total", temp, temp)
    m.submit(user)
    assert m.wait_for_task_id(user.id or 0, LIMIT_S).output == size * (size - 1)
    assert m.wait(LIMIT_S) is maker and maker.result == "success" and maker.output_file is temp
    with pytest.raises(UsageError, match="the value was left in the cluster"):
        _ = maker.output
    assert m.fetch_file(temp, timeout=LIMIT_S) is not None
    assert isinstance(temp.contents(), bytes)
    if size == 10:
        assert temp.contents(pickle.load).tolist() == list(range(10))
    else:
        assert m.get_file_replica_count(temp) == 1 and len(temp) >= 8 * size


def test_output_file_without_a_declared_temp(m: Manager, install: Callable[..., str]) -> None:
    library = install(add)
    first = FunctionCall(library, "add", 1)
    first.enable_temp_output()
    assert first.output_file is None
    m.submit(first)
    assert first.output_file is not None
    second = FunctionCall(library, "add", first.output_file, y=40)
    m.submit(second)
    assert m.wait_for_task_id(second.id or 0, LIMIT_S).output == 42
    assert m.wait(LIMIT_S) is first


def test_pruned_temp_is_made_again(m: Manager, install: Callable[..., str], tmp_path: Path) -> None:
    library = install(make_array, total)
    temp = m.declare_temp()
    maker = FunctionCall(library, "make_array", 200_000, str(tmp_path))
    maker.set_output(temp)
    m.submit(maker)
    assert m.wait(LIMIT_S) is maker
    assert m.get_file_replica_count(temp) == 1 and len(list(tmp_path.iterdir())) == 1
    m.prune_file(temp)
    assert eventually(lambda: m.get_file_replica_count(temp) == 0)
    assert finish(m, FunctionCall(library, "total", temp)) == [200_000 * 199_999 // 2]
    assert len(list(tmp_path.iterdir())) == 2 and m.get_file_replica_count(temp) == 1
    m.prune_file(temp)
    assert m.fetch_file(temp, timeout=LIMIT_S) is not None
    assert len(list(tmp_path.iterdir())) == 3
    m.undeclare_file(temp)
    assert eventually(lambda: m.get_file_replica_count(temp) == 0)


def test_a_temp_whose_call_raised(m: Manager, install: Callable[..., str]) -> None:
    library = install(fails, add)
    temp = m.declare_temp()
    maker = FunctionCall(library, "fails", "broken")
    maker.set_output(temp)
    user = FunctionCall(library, "add", temp)
    outputs = finish(m, maker, user)
    assert [type(output) for output in outputs] == [KeyError, KeyError]
    assert m.fetch_file(temp, timeout=LIMIT_S) is None


def test_files_are_refused_clearly(m: Manager, install: Callable[..., str]) -> None:
    library = install(add)
    with pytest.raises(UsageError, match="declare_buffer takes bytes or a str, not int"):
        m.declare_buffer(3)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="no option 'cash'"):
        m.declare_buffer(b"", cash=True)
    call = FunctionCall(library, "add", 1)
    with pytest.raises(UsageError, match="set_output takes a temp"):
        call.set_output(m.declare_buffer(b"x"))
    with pytest.raises(UsageError, match="this takes a File"):
        m.prune_file("name")  # type: ignore[arg-type]
    temp = m.declare_temp()
    call.set_output(temp)
    assert finish_without_output(m, call) == "success"
    with pytest.raises(UsageError, match="another call makes this temp"):
        FunctionCall(library, "add", 1).set_output(temp)
    with Manager(port=0, auth=None) as other:
        theirs = other.declare_buffer(b"theirs")
        with pytest.raises(UsageError, match="belongs to another manager"):
            m.fetch_file(theirs)
        with pytest.raises(UsageError, match="belongs to another"):
            m.submit(FunctionCall(library, "add", theirs))
    assert m.empty()


def finish_without_output(manager: Manager, call: FunctionCall) -> str:
    manager.submit(call)
    assert manager.wait(LIMIT_S) is call
    return call.result


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


def list_context() -> Any:
    return [1, 2]


def exiting_context() -> dict[str, Any]:
    sys.exit(3)


def dying_context() -> dict[str, Any]:
    os._exit(3)


def test_context_that_is_no_dict(m: Manager, install: Callable[..., str]) -> None:
    error = finish(m, FunctionCall(install(add, library_context_info=[list_context]), "add", 1))[0]
    assert isinstance(error, UsageError) and "must return a dict of names to values, not list" in str(error)


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


def test_hoisting_modules_are_imported_before_calls(m: Manager, install: Callable[..., str]) -> None:
    import wave

    # Modules that nothing else imports.
    names = ("wave", "xml.dom.pulldom", "chunk_that_is_not_there", "sndhdr_not_there", "colorsys")
    library = install(loaded, hoisting_modules=[wave, "xml.dom.pulldom", "chunk_that_is_not_there"])
    assert finish(m, FunctionCall(library, "loaded", *names)) == [[True, True, False, False, False]]
    assert finish(m, FunctionCall(install(loaded), "loaded", *names)) == [[False] * 5]


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
@pytest.mark.parametrize(("how", "told"), [("os._exit", "exit code 7|died"), ("segfault", "SIGSEGV|died")])
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


# ---------------------------------------------------------------- exceptions, retries, large values


class Unrebuildable(Exception):
    def __init__(self, one: int, two: int) -> None:
        super().__init__("made of two")


class Own(Exception):
    def __init__(self, text: str, code: int) -> None:
        super().__init__(text, code)
        self.code = code


def raise_own() -> None:
    try:
        raise ValueError("inner")
    except ValueError as inner:
        raise Own("outer", 5) from inner


def raise_unrebuildable() -> None:
    raise Unrebuildable(1, 2)


def test_exceptions_come_back_as_themselves(m: Manager, install: Callable[..., str]) -> None:
    library = install(fails, raise_own, raise_unrebuildable)
    calls = [
        FunctionCall(library, "fails", "k"),
        FunctionCall(library, "raise_own"),
        FunctionCall(library, "raise_unrebuildable"),
    ]
    key, own, other = finish(m, *calls)
    assert isinstance(key, KeyError) and key.args == ("k",)
    assert isinstance(own, Own) and own.code == 5 and own.args == ("outer", 5)
    text = "".join(traceback.format_exception(own))
    assert "in raise_own" in text and "inner" in text
    assert isinstance(other, RemoteError) and "made of two" in str(other) and "Unrebuildable" in str(other)
    for call in calls:
        assert (call.result, call.exit_code, call.successful(), call.completed()) == ("success", 1, False, True)
        assert call.std_output is not None and "Traceback" in call.std_output
        # Asked twice, it is the same object.
        assert call.output is call.output


def unpicklable() -> Any:
    return threading.Lock()


@pytest.mark.parametrize("exec_mode", ["direct", "fork"])
def test_unpicklable_result(m: Manager, install: Callable[..., str], exec_mode: str) -> None:
    error = finish(m, FunctionCall(install(unpicklable, exec_mode=exec_mode), "unpicklable"))[0]
    assert isinstance(error, UnpicklableError) and "lock" in str(error) and "unpicklable" in str(error)


def second_time(directory: str) -> str:
    first = not any(Path(directory).iterdir())
    note(directory)
    if first:
        raise OSError("not yet")
    return "done"


def test_retries(m: Manager, install: Callable[..., str], tmp_path: Path) -> None:
    library = install(second_time, fails)
    call = FunctionCall(library, "second_time", str(tmp_path))
    call.set_retries(1)
    assert finish(m, call) == ["done"]
    hopeless = FunctionCall(library, "fails", "k")
    hopeless.set_retries(3)
    assert isinstance(finish(m, hopeless)[0], KeyError)


@pytest.mark.parametrize("exec_mode", ["direct", "fork"])
def test_large_arguments_and_results(m: Manager, install: Callable[..., str], exec_mode: str) -> None:
    library = install(add, make_array, exec_mode=exec_mode)
    array, text = np.arange(2_000_000), b"x" * 20_000_000
    results = finish(
        m,
        FunctionCall(library, "add", array),
        FunctionCall(library, "add", text, b"y"),
        FunctionCall(library, "make_array", 1_000_000),
        FunctionCall(library, "make_array", 8_000),
    )
    assert np.array_equal(results[0], array + 1) and results[1] == text + b"y"
    assert results[2].sum() == 999_999 * 500_000 and results[3].shape == (8000,)
    # Results are the caller's own: they can be written.
    results[2][0] = 5
    assert results[2][0] == 5


def test_large_results_are_dropped_with_their_tasks(m: Manager, install: Callable[..., str]) -> None:
    library = install(make_array)
    call = FunctionCall(library, "make_array", 500_000)
    objects = lambda: m.engine.call_in_loop(lambda: len(m.engine.machine.state.held))  # noqa: E731
    before = objects()
    for _ in range(3):
        # Submitted again, the value of the time before is nobody's.
        assert len(finish(m, call)[0]) == 500_000
    assert eventually(lambda: objects() <= before + 1), objects()
    del call
    assert eventually(lambda: objects() <= before), objects()


# ---------------------------------------------------------------- stats, tune, the end


def test_stats(m: Manager, install: Callable[..., str], tmp_path: Path) -> None:
    library = install(block, add, fails)
    before = m.stats
    assert (before.workers_connected, before.workers_joined, before.total_cores, before.total_gpus) == (1, 1, 2, 0)
    assert before.total_memory > 100 and before.total_disk > 1
    gate = str(tmp_path / "gate")
    for _ in range(3):
        m.submit(FunctionCall(library, "block", gate))
    assert started(tmp_path / "gate", 1)
    during = m.stats
    assert during.tasks_running + during.tasks_waiting == 3 and during.tasks_running >= 1
    assert during.workers_busy == 1 and during.workers_idle == 0 and during.tasks_on_workers == during.tasks_running
    Path(gate).touch()
    assert eventually(lambda: m.stats.tasks_with_results == 3)
    m.submit(FunctionCall(library, "fails", "x"))
    for _ in range(4):
        m.wait(LIMIT_S)
    after = m.stats
    assert after.tasks_submitted == before.tasks_submitted + 4
    assert after.tasks_done == before.tasks_done + 3 and after.tasks_failed == before.tasks_failed + 1
    assert after.tasks_dispatched >= before.tasks_dispatched + 4
    assert (after.tasks_waiting, after.tasks_running, after.tasks_with_results) == (0, 0, 0)
    assert after.workers_idle == 1 and after.time_workers_execute > before.time_workers_execute


def test_tune(m: Manager, capfd: pytest.CaptureFixture[str]) -> None:
    assert m.tune("pipeline-ms", 30) == 0 and m.tune("pipeline_ms", 20) == 0
    assert m.tune("no-such-thing", 1) == -1
    assert capfd.readouterr().err == "vine: tune: there is no tunable 'no-such-thing'\n"
    with pytest.raises(UsageError, match="takes a number"):
        m.tune("pipeline-ms", "fast")  # type: ignore[arg-type]


def test_close_while_work_is_running(tmp_path: Path) -> None:
    manager = Manager(local_cores=2)
    manager.install_library(manager.create_library_from_functions("lib", block, exec_mode="direct"))
    calls = [FunctionCall("lib", "block", str(tmp_path / "gate")) for _ in range(3)]
    for call in calls:
        manager.submit(call)
    assert started(tmp_path / "gate", 1)
    told: list[Any] = []

    def wait() -> None:
        try:
            told.append(manager.wait_for_tag("never", "wait_forever"))
            while (task := manager.wait()) is not None:
                told.append(task)
        except LoopDied as error:
            told.append(error)

    waiter = threading.Thread(target=wait)
    waiter.start()
    manager.close()
    waiter.join(LIMIT_S)
    assert not waiter.is_alive() and told
    for call in calls:
        assert call.result == "forsaken" and isinstance(call.output, LoopDied)


def test_use_after_close() -> None:
    with Manager(local_cores=1) as manager:
        manager.install_library(manager.create_library_from_functions("lib", add))
        done = FunctionCall("lib", "add", 1)
        assert finish(manager, done) == [2]
        temp = manager.declare_temp()
    manager.close()
    assert "closed" in repr(manager) and manager.empty()
    for use in (
        lambda: manager.submit(FunctionCall("lib", "add", 1)),
        lambda: manager.submit(done),
        lambda: manager.stats,
        lambda: manager.hungry(),
        lambda: manager.get_file_replica_count(temp),
        lambda: manager.install_library(manager.create_library_from_functions("other", add)),
        lambda: manager.remove_library("lib"),
    ):
        begin = time.monotonic()
        with pytest.raises((LoopDied, UsageError), match=r"closed|ended"):
            use()
        assert time.monotonic() - begin < LIMIT_S / 2
    assert manager.wait(0) is None
    with pytest.raises(LoopDied, match="has been closed"):
        manager.wait(5)
    # A refused submit leaves nothing that one could wait for.
    assert manager.empty() and manager.wait() is None
    assert done.output == 2
    manager.undeclare_file(temp)


def test_leaving_the_block_by_an_exception_ends_everything(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), Manager(local_cores=1) as manager:
        manager.install_library(manager.create_library_from_functions("lib", block))
        manager.submit(FunctionCall("lib", "block", str(tmp_path / "gate")))
        assert started(tmp_path / "gate", 1)
        1 / 0  # noqa: B018
    assert manager.engine.closed
